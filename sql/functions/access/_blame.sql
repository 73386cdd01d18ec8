CREATE FUNCTION osgprod._blame(
    p_project osgprod_data.projects, p_attempt osgprod_data.attempts, p_is_first boolean, p_outcome osgprod_data.outcome,
    p_worker text, p_call osgprod.report_call)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Notes a failure, and looks for its cause beyond the slice and the worker: the input or the output of the whole project,
-- the work script, a site, a file, an address. What is found is acted upon: a pause, a ban, a suspension.
-- Promise:    the widest cause that the last failures have in common is blamed, and only while nothing succeeds that would
--             have to fail as well. Failures with such a cause count neither against slices nor against workers.
-- Parameters: p_project  the project's row;  p_attempt  the attempt, which holds its slice;  p_is_first  had nothing of the
--             slice failed before?;  p_outcome  failed or node-fault;  p_worker  see _worker;  p_call  the report
-- Returns:    true when something other than slice and worker is to blame
-- Locks:      rows of projects, loaded_files, slices and worker_bans, all SKIP LOCKED; merges whose slices become ready again, for
--             which it waits
-- Source:     docs/design.md "Outages: who is blamed"
DECLARE
    v_failure osgprod_data.recent_failures;
BEGIN
    INSERT INTO osgprod_data.recent_failures (project_id, started_at, fault, exit_code, is_failure, is_first, worker, address,
           place, rawdata_id, block1, opened_at, reason, blamed)
    SELECT p_project.project_id, p_attempt.started_at, osgprod._fault(p_outcome, p_call.exitcode::int, p_call.fault),
           p_call.exitcode, p_outcome = 'failed', p_is_first, p_worker, host(p_attempt.client),
           osgprod._place(p_attempt.client, coalesce(p_call.site, p_attempt.site)), p_attempt.rawdata_id, p_attempt.block1,
           p_attempt.opened_at, osgprod._label(p_call.reason),
           CASE WHEN p_project.pause_cause IS NOT NULL OR p_attempt.started_at <= p_project.resumed_at THEN 'project'
                WHEN f.suspended_at IS NOT NULL
                     AND osgprod._fault(p_outcome, p_call.exitcode::int, p_call.fault) IN ('fetch', 'work') THEN 'file' END
      FROM osgprod_data.loaded_files f
     WHERE f.project_id = p_project.project_id AND f.rawdata_id = p_attempt.rawdata_id
    RETURNING * INTO v_failure;
    IF v_failure.blamed IS NOT NULL THEN
        RETURN true;
    END IF;
    RETURN p_project.state = 'active'
        AND (osgprod._blame_project(p_project, v_failure) OR osgprod._blame_place(p_project, v_failure)
             OR osgprod._blame_file(p_project, v_failure) OR osgprod._blame_address(p_project, v_failure));
END
$fn$;

CREATE FUNCTION osgprod._fault(p_outcome osgprod_data.outcome, p_exit_code int, p_fault text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- What went wrong: fetch, delivery or program as the job reports it, or as the exit codes of the shipped scripts say (75,
    -- 74, and 126 and 127 of the shell); node, another node fault; work, the work script's own failure.
    SELECT CASE WHEN p_outcome = 'failed' THEN 'work'
                WHEN p_fault IN ('fetch', 'delivery', 'program') THEN p_fault
                WHEN coalesce(p_fault, '') = '' AND p_exit_code = 75 THEN 'fetch'
                WHEN coalesce(p_fault, '') = '' AND p_exit_code = 74 THEN 'delivery'
                WHEN p_exit_code IN (126, 127) THEN 'program'
                ELSE 'node' END
$fn$;

CREATE FUNCTION osgprod._place(p_client inet, p_site text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- Where a job runs, as far as its failures have a cause in common: its site, else the network of its address.
    SELECT coalesce(osgprod._label(p_site), osgprod._network(p_client))
$fn$;

CREATE FUNCTION osgprod._network(p_client inet)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- The network of an address: 24 bits of IPv4, 64 of IPv6.
    SELECT text(network(set_masklen(p_client, CASE family(p_client) WHEN 4 THEN 24 ELSE 64 END)))
$fn$;

CREATE FUNCTION osgprod._is_untried(p_project osgprod_data.projects, p_started_at timestamptz)
RETURNS boolean LANGUAGE sql IMMUTABLE
AS $fn$
    -- Did an attempt of a project with probe_jobs begin in a test in which none has succeeded yet?
    SELECT p_project.probe_jobs > 0 AND p_project.unproven = p_project.probe_jobs
       AND p_started_at > coalesce(p_project.tested_since, '-infinity')
$fn$;

CREATE FUNCTION osgprod._blame_project(p_project osgprod_data.projects, p_failure osgprod_data.recent_failures)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Pauses the project when failures of one kind are everywhere: on several files, by several workers, at three places or
-- wherever any job runs; and nothing has succeeded since the first of them.
-- Parameters: p_project  the project's row;  p_failure  the newest failure
-- Returns:    true when the project is paused now
-- Locks:      see _pause_project
DECLARE
    v_row      record;
    v_untried  boolean := osgprod._is_untried(p_project, p_failure.started_at) AND p_failure.fault <> 'fetch';
    v_since    timestamptz;  -- the first failure of those that are needed
    v_workers  text[] := '{}'::text[];
    v_places   text[] := '{}'::text[];
    v_files    int[] := '{}'::int[];
    v_slices   text[] := '{}'::text[];
    v_attempts int := 0;
    v_is_wide  boolean := false;
BEGIN
    FOR v_row IN
        SELECT r.* FROM osgprod_data.recent_failures r
         WHERE r.project_id = p_project.project_id AND r.fault = p_failure.fault AND r.failed_at > now() - interval '1 hour'
           AND (r.fault NOT IN ('work', 'node') OR r.exit_code = p_failure.exit_code AND (r.is_first OR v_untried))
           AND coalesce(r.blamed, 'file') = 'file'
           AND (NOT v_untried OR osgprod._is_untried(p_project, r.started_at))
         ORDER BY r.failed_at DESC LIMIT 100
    LOOP
        v_attempts := v_attempts + 1;
        v_workers := osgprod._with(v_workers, v_row.worker);
        v_places := osgprod._with(v_places, v_row.place);
        v_slices := osgprod._with(v_slices, v_row.rawdata_id || '/' || v_row.block1);
        v_files := CASE WHEN v_row.rawdata_id = ANY (v_files) THEN v_files ELSE v_files || v_row.rawdata_id END;
        IF NOT v_is_wide OR cardinality(v_places) <= 3 THEN
            v_since := least(v_since, CASE p_failure.fault WHEN 'delivery' THEN v_row.failed_at ELSE v_row.started_at END);
        END IF;
        v_is_wide := v_is_wide
            OR v_untried AND v_attempts >= p_project.probe_jobs
               AND (p_failure.fault IN ('delivery', 'program') OR cardinality(v_files) >= 2
                    OR NOT osgprod._has_other_files(p_project.project_id, v_files))
            OR cardinality(v_workers) >= p_project.suspend_after AND CASE p_failure.fault
                WHEN 'fetch' THEN cardinality(v_files) >= 3
                WHEN 'delivery' THEN true
                WHEN 'program' THEN cardinality(v_slices) >= 5
                ELSE cardinality(v_slices) >= 5 AND cardinality(v_files) >= 3 END;
        EXIT WHEN v_is_wide AND cardinality(v_places) >= 3;
    END LOOP;
    IF NOT v_is_wide OR cardinality(v_places) < 3 AND osgprod._has_outsiders(p_project.project_id, v_places)
        OR osgprod._has_succeeded(p_project.project_id, p_failure.fault, v_since)
    THEN
        RETURN false;
    END IF;
    RETURN osgprod._pause_project(p_project, p_failure.fault, v_since,
        CASE p_failure.fault
            WHEN 'fetch' THEN format('the input can''t be read: %s files', cardinality(v_files))
            WHEN 'delivery' THEN 'outputs can''t be delivered: ' || v_attempts || ' attempts'
            ELSE format('all attempts fail alike with exit code %s: %s attempts', p_failure.exit_code, v_attempts) END
        || format(' by %s workers at %s', cardinality(v_workers), CASE WHEN cardinality(v_places) <= 3
            THEN array_to_string(v_places, ', ') ELSE cardinality(v_places) || ' places' END)
        || coalesce('; the last: ' || p_failure.reason, ''));
END
$fn$;

CREATE FUNCTION osgprod._with(p_words text[], p_word text)
RETURNS text[] LANGUAGE sql IMMUTABLE
AS $fn$
    -- A set of words with one more.
    SELECT CASE WHEN p_word = ANY (p_words) THEN p_words ELSE p_words || p_word END
$fn$;

CREATE FUNCTION osgprod._has_other_files(p_project_id int, p_files int[])
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Has the project work in other files than these?
    SELECT EXISTS (SELECT FROM osgprod_data.loaded_files f
                    WHERE f.project_id = p_project_id AND f.state <> 'complete' AND f.rawdata_id <> ALL (p_files))
$fn$;

CREATE FUNCTION osgprod._has_outsiders(p_project_id int, p_places text[])
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Have jobs started at other places than these in the last hour? (project_id + 0: found by time.)
    SELECT EXISTS (SELECT FROM osgprod_data.attempts a
                    WHERE a.project_id + 0 = p_project_id AND a.started_at > now() - interval '1 hour'
                      AND osgprod._place(a.client, a.site) <> ALL (p_places))
$fn$;

CREATE FUNCTION osgprod._has_succeeded(
    p_project_id int, p_fault text, p_since timestamptz, p_place text DEFAULT NULL, p_rawdata_id int DEFAULT NULL)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Has something succeeded that would have failed if the cause of some failures were a wide one? For a delivery that is a
    -- success that was reported since; for anything else one of an attempt that started since. A slice that has arrived at
    -- a running job disproves that the input can't be read.
    -- Parameters: p_project_id  project;  p_fault  see _fault;  p_since  start of the first failure, of a delivery its report
    --             p_place  only there: a place, or an address;  p_rawdata_id  only in this file
    SELECT EXISTS (
        SELECT FROM osgprod_data.reports r
         CROSS JOIN LATERAL (  -- LIMIT: by key, never by reading all attempts of the project
            SELECT t.* FROM osgprod_data.attempts t
             WHERE t.project_id = r.project_id AND t.cluster = r.cluster AND t.process = r.process AND t.nstart = r.nstart
             LIMIT 1) a
         WHERE r.project_id + 0 = p_project_id AND r.reported_at > p_since AND r.by_worker AND r.outcome = 'done'
           AND (p_fault = 'delivery' OR a.started_at > p_since)
           AND (p_place IS NULL OR p_place IN (osgprod._place(a.client, coalesce(r.site, a.site)), host(a.client)))
           AND (p_rawdata_id IS NULL OR a.rawdata_id = p_rawdata_id))
      OR p_fault = 'fetch' AND EXISTS (
        SELECT FROM osgprod_data.attempts a
          JOIN osgprod_data.slices s ON s.project_id = a.project_id AND s.rawdata_id = a.rawdata_id AND s.block1 = a.block1
                                    AND s.cluster = a.cluster AND s.process = a.process AND s.nstart = a.nstart
         WHERE a.project_id + 0 = p_project_id AND a.started_at > p_since AND s.state = 'leased'
           AND osgprod._has_arrived(s.rawdata_id, s.block2 - s.block1, s.bytes_fetched)
           AND (p_place IS NULL OR p_place IN (osgprod._place(a.client, a.site), host(a.client)))
           AND (p_rawdata_id IS NULL OR s.rawdata_id = p_rawdata_id))
$fn$;

CREATE FUNCTION osgprod._has_arrived(p_rawdata_id int, p_nblocks int, p_bytes bigint)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Has a job fetched so much that its slice must be there? Blocks differ in size: nine tenths of what that many blocks have
    -- on average.
    SELECT p_bytes >= 0.9 * w.size_bytes * p_nblocks / w.nblocks FROM osgprod_data.rawdata w WHERE w.rawdata_id = p_rawdata_id
$fn$;

CREATE FUNCTION osgprod._pause_project(p_project osgprod_data.projects, p_fault text, p_since timestamptz, p_reason text)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Pauses a project on its own account, and clears slices, workers and files of what the same cause did to them.
-- Parameters: p_project  the project's row;  p_fault  see _fault;  p_since  start of the first failure;  p_reason  in words
-- Returns:    false when another session has the project's row, or it is not active any more
-- Locks:      the project's row, SKIP LOCKED; see _clear_failures and _resume_file
BEGIN
    UPDATE osgprod_data.projects p
       SET state = 'paused', pause_reason = p_reason, paused_at = clock_timestamp(),
           pause_cause = CASE p_fault WHEN 'fetch' THEN 'input' WHEN 'delivery' THEN 'output' ELSE 'work' END,
           probe_at = clock_timestamp() + make_interval(secs => p.retest_s)
     WHERE p.project_id = (SELECT q.project_id FROM osgprod_data.projects q
                            WHERE q.project_id = p_project.project_id AND q.state = 'active' FOR NO KEY UPDATE SKIP LOCKED);
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM osgprod._resume_file(f.project_id, f.rawdata_id, 'it is not this file alone')
       FROM osgprod_data.loaded_files f
      WHERE f.project_id = p_project.project_id AND f.suspended_at >= p_since;
    PERFORM osgprod._clear_failures(p_project, 'project', p_since, ARRAY(
        SELECT r.failure_id FROM osgprod_data.recent_failures r
         WHERE r.project_id = p_project.project_id AND r.fault = p_fault AND r.started_at >= p_since - interval '1 hour'
           AND (p_fault = 'delivery' OR r.started_at >= p_since) AND r.failed_at >= p_since));
    PERFORM osgprod._tell(p_project.project_id, 'project-paused', jsonb_build_object('reason', p_reason));
    RETURN true;
END
$fn$;

CREATE FUNCTION osgprod._clear_failures(
    p_project osgprod_data.projects, p_blamed text, p_since timestamptz, p_failures bigint[])
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Takes failures off the slices and the workers that had them, since something else is to blame: counts, backoffs,
-- quarantine and bans.
-- Parameters: p_project  the project's row;  p_blamed  project, place, file or address;  p_since  bans from then on end
--             p_failures  keys of recent_failures
-- Locks:      slices, SKIP LOCKED, and their files, tried; bans, SKIP LOCKED: a locked one stays
DECLARE
    v_slice record;
BEGIN
    FOR v_slice IN
        WITH cleared AS (
            UPDATE osgprod_data.recent_failures r SET blamed = p_blamed
             WHERE r.failure_id = ANY (p_failures) AND r.blamed IS NULL
            RETURNING r.rawdata_id, r.block1, r.opened_at, r.is_failure
        ), counted AS (
            SELECT c.rawdata_id, c.block1, c.opened_at, count(*) FILTER (WHERE c.is_failure) AS failures,
                   count(*) FILTER (WHERE NOT c.is_failure) AS faults
              FROM cleared c GROUP BY c.rawdata_id, c.block1, c.opened_at
        )
        SELECT s.rawdata_id, s.block1, greatest(s.failures - c.failures, 0) AS failures,
               greatest(s.faults - c.faults, 0) AS faults
          FROM counted c
          JOIN osgprod_data.slices s ON s.project_id = p_project.project_id AND s.rawdata_id = c.rawdata_id
                                    AND s.block1 = c.block1 AND s.opened_at = c.opened_at
         WHERE s.state <> 'done'
         ORDER BY s.run, s.seqno, s.block1
           FOR NO KEY UPDATE OF s SKIP LOCKED
    LOOP
        PERFORM osgprod._take_failures_off(p_project, v_slice.rawdata_id, v_slice.block1, v_slice.failures::int,
            v_slice.faults::int);
    END LOOP;
    UPDATE osgprod_data.worker_bans b SET until = now(), banned_at = now(), times = 0, reason = 'not its fault'
     WHERE (b.project_id, b.worker) IN (
        SELECT c.project_id, c.worker FROM osgprod_data.worker_bans c
         WHERE c.project_id = p_project.project_id AND c.times > 0 AND c.banned_at >= p_since AND c.worker IN (
               SELECT unnest(ARRAY[r.worker, r.address]) FROM osgprod_data.recent_failures r
                WHERE r.failure_id = ANY (p_failures))
           FOR NO KEY UPDATE SKIP LOCKED);
    IF FOUND THEN
        PERFORM osgprod._note_bans(p_project.project_id);
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._take_failures_off(
    p_project osgprod_data.projects, p_rawdata_id int, p_block1 int, p_failures int, p_faults int)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Gives a slice smaller counts of failures. With them its backoff ends; what reached quarantine through them is ready again.
-- Parameters: p_project  the project's row;  p_rawdata_id, p_block1  the slice, locked;  p_failures, p_faults  the counts;
--             p_faults NULL = as they are
-- Locks:      the file's row, tried: the failures of a locked one stay; see _reopen_slice
BEGIN
    -- The row may be updated for a second time in this transaction: then it is checked against its foreign key, which fails
    -- while somebody splits the slice before it.
    IF NOT osgprod._lock_file(p_project.project_id, p_rawdata_id) THEN
        RETURN;
    END IF;
    IF p_failures < p_project.max_failures THEN
        PERFORM osgprod._reopen_slice(p_project.project_id, s.rawdata_id, s.block1) FROM osgprod_data.slices s
          WHERE s.project_id = p_project.project_id AND s.rawdata_id = p_rawdata_id AND s.block1 = p_block1
            AND s.state = 'quarantined';
    END IF;
    UPDATE osgprod_data.slices s
       SET failures = p_failures, faults = coalesce(p_faults, s.faults),
           is_ready = CASE WHEN s.state = 'ready' THEN f.suspended_at IS NULL ELSE s.is_ready END,
           not_before = CASE WHEN s.state = 'ready' THEN least(s.not_before, now()) ELSE s.not_before END
      FROM osgprod_data.loaded_files f
     WHERE f.project_id = p_project.project_id AND f.rawdata_id = p_rawdata_id
       AND s.project_id = p_project.project_id AND s.rawdata_id = p_rawdata_id AND s.block1 = p_block1;
END
$fn$;

CREATE FUNCTION osgprod._blame_file(p_project osgprod_data.projects, p_failure osgprod_data.recent_failures)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Suspends a file that several workers can't fetch from, or of which five slices fail alike at their first attempts, when
-- nothing of it has succeeded since. A worker that failed on another suspended file does not count against this one: it may
-- be the worker.
-- Parameters: p_project  the project's row;  p_failure  the newest failure
-- Returns:    true when the file is suspended now
-- Locks:      see _suspend_file
DECLARE
    v_since   timestamptz;
    v_workers int;
    v_slices  int;
    v_ids     bigint[];
BEGIN
    IF p_failure.fault NOT IN ('fetch', 'work') THEN
        RETURN false;
    END IF;
    SELECT min(x.started_at), count(DISTINCT x.worker), count(DISTINCT x.block1), array_agg(x.failure_id)
      INTO v_since, v_workers, v_slices, v_ids FROM (
        SELECT r.* FROM osgprod_data.recent_failures r
         WHERE r.project_id = p_project.project_id AND r.fault = p_failure.fault AND r.failed_at > now() - interval '1 hour'
           AND r.rawdata_id = p_failure.rawdata_id AND r.blamed IS NULL
           AND CASE r.fault WHEN 'work' THEN r.exit_code = p_failure.exit_code
                                             AND (r.is_first OR osgprod._is_untried(p_project, r.started_at))
                ELSE NOT EXISTS (
                    SELECT FROM osgprod_data.recent_failures o
                     WHERE o.project_id = r.project_id AND o.address = r.address AND o.worker = r.worker
                       AND o.failed_at > now() - interval '1 hour' AND o.rawdata_id <> r.rawdata_id AND o.fault = 'fetch'
                       AND o.blamed = 'file') END
         ORDER BY r.failed_at DESC LIMIT 30) x;
    IF (CASE p_failure.fault WHEN 'fetch' THEN v_workers < p_project.suspend_after
            ELSE v_slices < CASE WHEN osgprod._is_untried(p_project, v_since) THEN p_project.probe_jobs ELSE 5 END
                 OR v_workers < p_project.suspend_after AND NOT osgprod._is_untried(p_project, v_since) END)
        OR osgprod._has_succeeded(p_project.project_id, p_failure.fault, v_since, NULL, p_failure.rawdata_id)
    THEN
        RETURN false;
    END IF;
    IF NOT osgprod._suspend_file(p_project, p_failure.rawdata_id, CASE p_failure.fault
        WHEN 'fetch' THEN format('%s workers can''t read it', v_workers)
        ELSE format('%s of its slices failed at their first attempts with exit code %s', v_slices, p_failure.exit_code) END
        || coalesce('; the last: ' || p_failure.reason, ''))
    THEN
        RETURN false;
    END IF;
    PERFORM osgprod._clear_failures(p_project, 'file', v_since, v_ids);
    RETURN true;
END
$fn$;

CREATE FUNCTION osgprod._suspend_file(p_project osgprod_data.projects, p_rawdata_id int, p_reason text)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Suspends a file: nothing of it is assigned but one slice at a time, to see whether it works again. Leased slices go on.
-- Parameters: p_project  the project's row;  p_rawdata_id  the file;  p_reason  in words
-- Returns:    false when another session has the file's row, or it is suspended already
-- Locks:      the file's row, tried; its ready slices, SKIP LOCKED
BEGIN
    IF NOT osgprod._lock_file(p_project.project_id, p_rawdata_id) THEN
        RETURN false;
    END IF;
    UPDATE osgprod_data.loaded_files f
       SET suspended_at = clock_timestamp(), suspend_reason = p_reason,
           retest_at = clock_timestamp() + make_interval(secs => p_project.retest_s), retest_s = 2 * p_project.retest_s
     WHERE f.project_id = p_project.project_id AND f.rawdata_id = p_rawdata_id AND f.suspended_at IS NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE osgprod_data.slices s SET is_ready = false
     WHERE (s.project_id, s.rawdata_id, s.block1) IN (
        SELECT x.project_id, x.rawdata_id, x.block1 FROM osgprod_data.slices x
         WHERE x.project_id = p_project.project_id AND x.rawdata_id = p_rawdata_id AND x.is_ready
           FOR NO KEY UPDATE SKIP LOCKED);
    PERFORM osgprod._note_suspended(p_project.project_id);
    PERFORM osgprod._tell(p_project.project_id, 'file-suspended', jsonb_build_object('reason', p_reason, 'path',
        (SELECT w.path FROM osgprod_data.rawdata w WHERE w.rawdata_id = p_rawdata_id)));
    RETURN true;
END
$fn$;

CREATE FUNCTION osgprod._resume_file(p_project_id int, p_rawdata_id int, p_reason text)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Ends the suspension of a file.
-- Parameters: p_project_id, p_rawdata_id  the file;  p_reason  why, for the notification
-- Returns:    false when another session has the file's row, or it is not suspended
-- Locks:      the file's row, tried; its slices, SKIP LOCKED
BEGIN
    IF NOT osgprod._lock_file(p_project_id, p_rawdata_id) THEN
        RETURN false;
    END IF;
    UPDATE osgprod_data.loaded_files f SET suspended_at = NULL, suspend_reason = NULL, retest_at = NULL, retest_s = NULL
     WHERE f.project_id = p_project_id AND f.rawdata_id = p_rawdata_id AND f.suspended_at IS NOT NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE osgprod_data.slices s SET is_ready = true, not_before = least(s.not_before, now())
     WHERE (s.project_id, s.rawdata_id, s.block1) IN (
        SELECT x.project_id, x.rawdata_id, x.block1 FROM osgprod_data.slices x
         WHERE x.project_id = p_project_id AND x.rawdata_id = p_rawdata_id AND x.state = 'ready' AND NOT x.is_ready
           FOR NO KEY UPDATE SKIP LOCKED);
    PERFORM osgprod._note_suspended(p_project_id);
    PERFORM osgprod._tell(p_project_id, 'file-resumed', jsonb_build_object('reason', p_reason, 'path',
        (SELECT w.path FROM osgprod_data.rawdata w WHERE w.rawdata_id = p_rawdata_id)));
    RETURN true;
END
$fn$;

CREATE FUNCTION osgprod._note_suspended(p_project_id int)
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Notes how many files are suspended, so that nothing looks for them while none is. Waits for no session that has the
    -- project's row locked: tick() notes it then.
    UPDATE osgprod_data.projects p SET nsuspended = n.files
      FROM (SELECT count(*) AS files FROM osgprod_data.loaded_files f
             WHERE f.project_id = p_project_id AND f.suspended_at IS NOT NULL) n
     WHERE p.nsuspended <> n.files
       AND p.project_id = (SELECT q.project_id FROM osgprod_data.projects q
                            WHERE q.project_id = p_project_id FOR NO KEY UPDATE SKIP LOCKED)
$fn$;

CREATE FUNCTION osgprod._probe_files(p_project osgprod_data.projects)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Makes one slice ready of each suspended file that it is time to try again, unless one of its slices is leased: that is the
-- probe then. The time to the next probe is doubled, up to max_backoff_s.
-- Parameters: p_project  the project's row
-- Locks:      the files' rows and the slices, SKIP LOCKED
DECLARE
    v_file record;
BEGIN
    FOR v_file IN
        SELECT f.rawdata_id FROM osgprod_data.loaded_files f
         WHERE f.project_id = p_project.project_id AND f.suspended_at IS NOT NULL AND f.retest_at <= now()
           AND NOT EXISTS (SELECT FROM osgprod_data.slices s
                            WHERE s.project_id = f.project_id AND s.rawdata_id = f.rawdata_id
                              AND (s.state = 'leased' OR s.is_ready))
         ORDER BY f.run, f.seqno
           FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        UPDATE osgprod_data.slices s SET is_ready = true, not_before = now()
         WHERE (s.project_id, s.rawdata_id, s.block1) = (
            SELECT x.project_id, x.rawdata_id, x.block1 FROM osgprod_data.slices x
             WHERE x.project_id = p_project.project_id AND x.rawdata_id = v_file.rawdata_id AND x.state = 'ready'
             ORDER BY cardinality(x.exit_codes) NULLS FIRST, x.block1 LIMIT 1
               FOR NO KEY UPDATE SKIP LOCKED);
        IF NOT FOUND THEN  -- all of it is unallocated or settled
            PERFORM osgprod._resume_file(p_project.project_id, v_file.rawdata_id, 'it has no slice to try');
            CONTINUE;
        END IF;
        UPDATE osgprod_data.loaded_files f
           SET retest_at = now() + make_interval(secs => f.retest_s),
               retest_s = greatest(least(2 * f.retest_s, p_project.max_backoff_s), p_project.retest_s)
         WHERE f.project_id = p_project.project_id AND f.rawdata_id = v_file.rawdata_id;
    END LOOP;
END
$fn$;

CREATE FUNCTION osgprod._blame_place(p_project osgprod_data.projects, p_failure osgprod_data.recent_failures)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Bans a place, a site or a network, where five workers failed and nothing succeeded since, on more than one file or on one
-- that others can process, while jobs run elsewhere and don't fail alike. After the ban it is on probation, as a worker is: two failures without a success ban
-- it again, twice as long.
-- Parameters: p_project  the project's row;  p_failure  the newest failure
-- Returns:    true when the place is banned now
-- Locks:      see _ban
DECLARE
    v_name         text := osgprod._ban_of_place(p_failure.place);
    v_ban          osgprod_data.worker_bans;
    v_on_probation boolean;
    v_since        timestamptz;
    v_count        record;
BEGIN
    SELECT b.* INTO v_ban FROM osgprod_data.worker_bans b WHERE b.project_id = p_project.project_id AND b.worker = v_name;
    v_since := greatest(v_ban.banned_at, now() - interval '1 hour');
    v_on_probation := coalesce(v_ban.times, 0) > 0
        AND NOT osgprod._has_succeeded(p_project.project_id, 'any', v_ban.banned_at, p_failure.place);
    SELECT count(*) AS failures, count(DISTINCT x.worker) AS workers, count(DISTINCT x.address) AS addresses,
           count(DISTINCT x.rawdata_id) AS files, count(DISTINCT (x.rawdata_id, x.block1)) AS slices,
           min(x.started_at) AS since, array_agg(x.failure_id) AS ids
      INTO v_count FROM (
        SELECT r.* FROM osgprod_data.recent_failures r
         WHERE r.project_id = p_project.project_id AND r.place = p_failure.place AND r.started_at > v_since
           AND coalesce(r.blamed, 'file') = 'file'
         ORDER BY r.failed_at DESC LIMIT 20) x;
    IF v_count.failures < (CASE WHEN v_on_probation THEN 2 ELSE 5 END)
        OR NOT v_on_probation AND (v_count.workers < 5 OR v_count.files < 2
            AND p_failure.fault NOT IN ('program', 'delivery')
            AND NOT osgprod._has_succeeded(p_project.project_id, p_failure.fault, v_count.since, NULL, p_failure.rawdata_id)
            AND NOT (p_failure.fault = 'node' AND v_count.slices >= 5
                     AND osgprod._is_leased_elsewhere(p_project.project_id, p_failure)))
        OR NOT osgprod._has_outsiders(p_project.project_id, ARRAY[p_failure.place])
        -- One address can call itself by any site's name: it is not the site when that has others.
        OR v_count.addresses = 1 AND EXISTS (
            SELECT FROM osgprod_data.attempts a
             WHERE a.project_id + 0 = p_project.project_id AND a.started_at > now() - interval '1 hour'
               AND osgprod._place(a.client, a.site) = p_failure.place AND host(a.client) <> p_failure.address)
        OR (SELECT count(DISTINCT r.worker) FROM osgprod_data.recent_failures r
             WHERE r.project_id = p_project.project_id AND r.fault = p_failure.fault AND r.failed_at > v_count.since
               AND r.place <> p_failure.place AND r.blamed IS NULL) >= p_project.suspend_after
        OR osgprod._has_succeeded(p_project.project_id, p_failure.fault, v_count.since, p_failure.place)
    THEN
        RETURN false;
    END IF;
    IF NOT osgprod._ban(p_project, v_name, CASE WHEN v_on_probation THEN v_ban.times + 1 ELSE 1 END,
        format('%s attempts by %s workers failed there, none succeeded', v_count.failures, v_count.workers)
        || coalesce('; the last: ' || p_failure.reason, ''))
    THEN
        RETURN false;
    END IF;
    PERFORM osgprod._resume_file(f.project_id, f.rawdata_id, 'not the file, but ' || v_name)
       FROM osgprod_data.loaded_files f
      WHERE f.project_id = p_project.project_id AND f.suspended_at >= v_count.since
        AND NOT EXISTS (SELECT FROM osgprod_data.recent_failures r
                         WHERE r.project_id = f.project_id AND r.fault = p_failure.fault AND r.failed_at > v_count.since
                           AND r.rawdata_id = f.rawdata_id AND r.place <> p_failure.place);
    PERFORM osgprod._clear_failures(p_project, 'place', v_count.since, v_count.ids);
    RETURN true;
END
$fn$;

CREATE FUNCTION osgprod._is_leased_elsewhere(p_project_id int, p_failure osgprod_data.recent_failures)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Do jobs at other places hold slices of the same file?
    SELECT EXISTS (
        SELECT FROM osgprod_data.slices s
         CROSS JOIN LATERAL (
            SELECT t.client, t.site FROM osgprod_data.attempts t
             WHERE t.project_id = s.project_id AND t.cluster = s.cluster AND t.process = s.process AND t.nstart = s.nstart
             LIMIT 1) a
         WHERE s.project_id = p_project_id AND s.rawdata_id = p_failure.rawdata_id AND s.state = 'leased'
           AND osgprod._place(a.client, a.site) <> p_failure.place)
$fn$;

CREATE FUNCTION osgprod._blame_address(p_project osgprod_data.projects, p_failure osgprod_data.recent_failures)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Bans an address that failed fast under three names or more, twice as often as a worker may, and did nothing else: a node
-- that calls itself by another name each time.
-- Parameters: p_project  the project's row;  p_failure  the newest failure
-- Returns:    true when the address is banned now
-- Locks:      see _ban
DECLARE
    v_ban           osgprod_data.worker_bans;
    v_count         record;
    v_has_outsiders boolean;
BEGIN
    SELECT b.* INTO v_ban FROM osgprod_data.worker_bans b
     WHERE b.project_id = p_project.project_id AND b.worker = p_failure.address;
    v_has_outsiders := EXISTS (
        SELECT FROM osgprod_data.attempts a
         WHERE a.project_id + 0 = p_project.project_id AND a.started_at > now() - interval '1 hour'
           AND host(a.client) <> p_failure.address);
    SELECT count(*) AS failures, count(DISTINCT x.worker) AS names, min(x.started_at) AS since, array_agg(x.failure_id) AS ids
      INTO v_count FROM (
        SELECT r.* FROM osgprod_data.recent_failures r
         WHERE r.project_id = p_project.project_id AND r.address = p_failure.address
           AND r.failed_at > now() - interval '1 hour' AND r.started_at > coalesce(v_ban.banned_at, '-infinity')
           AND r.failed_at - r.started_at <= make_interval(secs => p_project.fast_failure_s) AND r.blamed IS NULL
           -- Slices that failed before may be to blame: those that failed elsewhere as well, and where there is no elsewhere
           -- all of them.
           AND (r.is_first OR v_has_outsiders AND NOT EXISTS (
                SELECT FROM osgprod_data.recent_failures o
                 WHERE o.project_id = r.project_id AND o.fault = r.fault AND o.failed_at > now() - interval '1 hour'
                   AND o.rawdata_id = r.rawdata_id AND o.address <> r.address))
         ORDER BY r.failed_at DESC LIMIT 100) x;
    IF v_count.names < 3
        OR v_count.failures < (CASE WHEN v_ban.times > 0 THEN p_project.max_fast_failures
                                 ELSE 2 * p_project.max_fast_failures END)
        OR osgprod._has_succeeded(p_project.project_id, p_failure.fault, v_count.since, p_failure.address)
        OR osgprod._others_fail_alike(p_project.project_id, p_failure.address, p_failure.fault, v_count.since)
        OR NOT osgprod._ban(p_project, p_failure.address, coalesce(v_ban.times, 0) + 1,
                            format('%s attempts under %s names failed within %s s', v_count.failures, v_count.names,
                                   p_project.fast_failure_s))
    THEN
        RETURN false;
    END IF;
    PERFORM osgprod._clear_failures(p_project, 'address', 'infinity', v_count.ids);
    RETURN true;
END
$fn$;

CREATE FUNCTION osgprod._others_fail_alike(p_project_id int, p_worker text, p_fault text, p_since timestamptz)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Do others fail to fetch or to deliver as well, and does nobody succeed? Then it is not the worker, and what it is will
    -- be known soon.
    -- Parameters: p_project_id  project;  p_worker  the worker, or its address;  p_fault  see _fault;  p_since  since when
    SELECT p_fault IN ('fetch', 'delivery')
       AND EXISTS (SELECT FROM osgprod_data.recent_failures r
                    WHERE r.project_id = p_project_id AND r.fault = p_fault AND r.failed_at >= p_since
                      AND p_worker NOT IN (r.worker, r.address))
       AND NOT osgprod._has_succeeded(p_project_id, p_fault, p_since)
$fn$;

CREATE FUNCTION osgprod._note_success(
    p_project osgprod_data.projects, p_attempt osgprod_data.attempts, p_is_done boolean)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Ends the pause that the project has begun itself, and the suspension of the file, when a success shows that they work again.
-- Counts the successes that a new project needs. Called only while the project's row says that there is such a thing.
-- Parameters: p_project  the project's row;  p_attempt  the attempt;  p_is_done  false = it has only fetched its slice
-- Locks:      the project's row and the file's, SKIP LOCKED: a later success does it then; see _resume_file
BEGIN
    IF p_project.pause_cause IS NOT NULL AND (p_is_done AND p_project.pause_cause = 'output'
        OR p_attempt.started_at > p_project.paused_at AND (p_is_done OR p_project.pause_cause = 'input'))
    THEN
        UPDATE osgprod_data.projects p
           SET state = 'active', pause_cause = NULL, pause_reason = NULL, paused_at = NULL, probe_at = NULL,
               resumed_at = clock_timestamp()
         WHERE p.project_id = (SELECT q.project_id FROM osgprod_data.projects q
                                WHERE q.project_id = p_project.project_id AND q.pause_cause IS NOT NULL
                                  FOR NO KEY UPDATE SKIP LOCKED);
        IF FOUND THEN
            PERFORM osgprod._has_resumed(p_project);
        END IF;
    END IF;
    IF p_project.nsuspended > 0 THEN
        PERFORM osgprod._resume_file(f.project_id, f.rawdata_id, 'it can be processed again')
           FROM osgprod_data.loaded_files f
          WHERE f.project_id = p_project.project_id AND f.rawdata_id = p_attempt.rawdata_id
            AND f.suspended_at < p_attempt.started_at;
    END IF;
    IF p_is_done AND p_project.unproven > 0 AND p_attempt.started_at > p_project.tested_since THEN
        UPDATE osgprod_data.projects p SET unproven = greatest(p.unproven - 1, 0)
         WHERE p.project_id = (SELECT q.project_id FROM osgprod_data.projects q
                                WHERE q.project_id = p_project.project_id FOR NO KEY UPDATE SKIP LOCKED);
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._has_resumed(p_project osgprod_data.projects)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- What follows when a pause that the project had begun itself has ended: what failed during the pause is assigned at once.
-- Parameters: p_project  the project's row as it was while it was paused
-- Locks:      slices, SKIP LOCKED
BEGIN
    UPDATE osgprod_data.slices s SET is_ready = true, not_before = now()
     WHERE (s.project_id, s.rawdata_id, s.block1) IN (
        SELECT x.project_id, x.rawdata_id, x.block1 FROM osgprod_data.recent_failures r
          JOIN osgprod_data.loaded_files f ON f.project_id = r.project_id AND f.rawdata_id = r.rawdata_id
                                          AND f.suspended_at IS NULL
          JOIN osgprod_data.slices x ON x.project_id = r.project_id AND x.rawdata_id = r.rawdata_id
                                    AND x.block1 = r.block1 AND x.opened_at = r.opened_at
         WHERE r.project_id = p_project.project_id AND r.failed_at >= p_project.paused_at AND NOT x.is_ready
           AND x.not_before > now()
           FOR NO KEY UPDATE OF x SKIP LOCKED);
    PERFORM osgprod._tell(p_project.project_id, 'project-resumed', jsonb_build_object('reason', p_project.pause_reason));
END
$fn$;

CREATE FUNCTION osgprod._why_no_probe(p_project osgprod_data.projects)
RETURNS text[] LANGUAGE plpgsql VOLATILE
AS $fn$
-- Says why a job gets nothing of a project that has paused itself, or lets it be the probe: one job at a time, first after
-- retest_s, later after half of the time that the pause has lasted, at most 5 times retest_s. A probe that is not heard
-- of for 10 times retest_s is not waited for.
-- Parameters: p_project  the project's row
-- Returns:    code, message and hint (OG501); NULL = this job is the probe
-- Locks:      the project's row, SKIP LOCKED
BEGIN
    UPDATE osgprod_data.projects p
       SET probe_at = now() + make_interval(secs => least(greatest(p.retest_s,
               extract(epoch FROM now() - p.paused_at) / 2), 5 * p.retest_s))
     WHERE p.project_id = (SELECT q.project_id FROM osgprod_data.projects q
                            WHERE q.project_id = p_project.project_id AND q.probe_at <= now()
                              FOR NO KEY UPDATE SKIP LOCKED)
       AND osgprod._live_since(p.project_id, greatest(p.paused_at, now() - make_interval(secs => 10 * p.retest_s))) = 0;
    IF FOUND THEN
        RETURN NULL;
    END IF;
    RETURN ARRAY['OG501', format('project %s has paused itself: %s', p_project.name, p_project.pause_reason),
        'it tries again with one job at a time, and resumes by itself; osgprod project resume ends the pause now'];
END
$fn$;

CREATE FUNCTION osgprod._why_unproven(p_project osgprod_data.projects)
RETURNS text[] LANGUAGE sql VOLATILE
AS $fn$
    -- Says that a project with a new work script has as many live attempts that got it as it may have until the first ones
    -- have succeeded.
    -- Parameters: p_project  the project's row, whose unproven is above 0
    -- Returns:    code (none), and message; NULL = the job may start
    -- Locks:      the project's first jobs (advisory: project_id, -3), tried: they start one after the other
    SELECT CASE WHEN NOT pg_try_advisory_xact_lock(p_project.project_id, -3)
                  OR osgprod._live_since(p_project.project_id, p_project.tested_since) >= p_project.probe_jobs
                THEN ARRAY[NULL, format('the first %s jobs of project %s are a test, and %s successes are still lacking',
                           p_project.probe_jobs, p_project.name, p_project.unproven)] END
$fn$;

CREATE FUNCTION osgprod._live_since(p_project_id int, p_since timestamptz)
RETURNS bigint LANGUAGE sql STABLE
AS $fn$
    -- Attempts that started after a time and hold a slice. (project_id + 0: found by time.)
    SELECT count(*) FROM osgprod_data.attempts a
      JOIN osgprod_data.slices s ON s.project_id = a.project_id AND s.rawdata_id = a.rawdata_id AND s.block1 = a.block1
                                AND s.cluster = a.cluster AND s.process = a.process AND s.nstart = a.nstart
                                AND s.state = 'leased'
     WHERE a.project_id + 0 = p_project_id AND a.started_at > p_since
$fn$;

CREATE FUNCTION osgprod._begin_test(p_project osgprod_data.projects, p_digest text)
RETURNS osgprod_data.projects LANGUAGE plpgsql VOLATILE
AS $fn$
-- Begins the test by the first jobs, since a job is about to get a work script of a content that no job had. The first
-- content that is known begins none: a new project has its test anyway, another one is under way.
-- Parameters: p_project  the project's row;  p_digest  of the script: 16 digits
-- Returns:    the project's row as it is now; as given while another session has it: the next job begins the test then
-- Locks:      the project's row, SKIP LOCKED
BEGIN
    UPDATE osgprod_data.projects p
       SET tested_scripts = (p_digest || p.tested_scripts)[:8],
           unproven = CASE p.tested_scripts WHEN '{}' THEN p.unproven ELSE p.probe_jobs END, tested_since = clock_timestamp()
     WHERE p.project_id = (SELECT q.project_id FROM osgprod_data.projects q
                            WHERE q.project_id = p_project.project_id AND p_digest <> ALL (q.tested_scripts)
                              FOR NO KEY UPDATE SKIP LOCKED)
    RETURNING p.unproven, p.tested_since INTO p_project.unproven, p_project.tested_since;
    RETURN p_project;
END
$fn$;
