CREATE FUNCTION osgprod._checkout(p_call osgprod.checkout_call, p_wait_ms int)
RETURNS osgprod.checkout_answer LANGUAGE plpgsql VOLATILE
AS $fn$
-- Claims a slice for a job: the whole of checkout_slice, for a call that is made alone and for each call of a batch.
-- Parameters: p_call     see checkout_slice
--             p_wait_ms  how long to wait for a file when others have locked all of them [ms]; NULL = a call that is made
--                        alone: it waits, for its job, its slice and a file, as long as lock_timeout says
-- Returns:    the answer; the error of a call is in it (status error, with code and hint), and it has no slice then; only
--             slices may have been requeued whose lease or backoff had ended
-- Locks:      see checkout_slice
-- Source:     docs/design.md "The claim"
DECLARE
    v_project  osgprod_data.projects;
    v_answer   osgprod.checkout_answer;
    v_problem  text[];
    v_nstart   int;      -- of the coming attempt
    v_is_ready boolean;  -- is any slice?
    v_job      record;
    v_follows  int;      -- the job's attempt before this one, of a job that processes several slices
    v_restart  record;
    v_slice    osgprod.claim;
    v_blocks   bigint;   -- of a slice for this job, at most
    v_file     record;
    v_can_merge boolean := false;  -- may this job get a merge?
BEGIN
    -- (a) May it ask, and now? Its job is locked then.
    p_call.client := osgprod._plain_address(p_call.client);
    v_project := (SELECT p FROM osgprod_data.projects p WHERE p.name = p_call.project);
    v_answer.workscript := v_project.workscript;
    v_problem := osgprod._why_rejected(v_project, p_call.project, p_call.cluster, p_call.process, p_call.magic,
                                       p_call.client, p_call.bearer, p_wait_ms IS NULL);
    IF v_problem IS NULL THEN
        v_problem := osgprod._why_not_now(v_project, p_call.cpus, p_call.client, p_call.host, p_call.site, p_call.job_key);
    END IF;
    IF v_problem IS NULL AND v_project.pause_cause IS NOT NULL THEN
        v_problem := osgprod._why_no_probe(v_project);
        v_project.state := 'active';
    END IF;
    IF v_problem IS NOT NULL THEN
        RETURN osgprod._checkout_error(v_answer, v_problem);
    ELSIF p_call.workscript <> v_project.workscript THEN
        v_answer.status := 'template';
        v_answer.task := 'slice';
        RETURN v_answer;
    ELSIF v_project.merge_by <> 'none' THEN
        v_can_merge := osgprod._can_merge(v_project, p_call.templates);
        IF v_can_merge IS NULL THEN
            v_answer.status := 'template';
            v_answer.task := 'merge';
            v_answer.workscript := v_project.mergescript;
            RETURN v_answer;
        END IF;
    END IF;

    -- (b) Its own slice again, if it has started before.
    SELECT (SELECT a.nstart FROM osgprod_data.attempts a
             WHERE a.project_id = v_project.project_id AND a.cluster = p_call.cluster AND a.process = p_call.process
             ORDER BY a.nstart DESC LIMIT 1),
           EXISTS (SELECT FROM osgprod_data.slices s WHERE s.project_id = v_project.project_id AND s.is_ready)
      INTO v_nstart, v_is_ready;
    v_nstart := coalesce(v_nstart, 0) + 1;
    v_answer.nstarts := v_nstart;
    IF v_nstart > 1 OR p_call.after <> '' THEN
        v_job := osgprod._job_so_far(v_project, p_call);
        IF v_job.problem IS NOT NULL THEN
            RETURN osgprod._checkout_error(v_answer, v_job.problem);
        END IF;
        v_answer.nstarts := v_job.starts + 1;
        v_follows := v_job.follows;
        IF v_job.last IS NOT NULL THEN
            v_answer.message := osgprod._refuse_restart(v_project, p_call, v_job.last);
            IF v_answer.message IS NOT NULL THEN
                v_answer.status := 'wait';
                v_answer.retry_s := v_project.wait_s;
                v_answer.nstarts := NULL;
                RETURN v_answer;
            END IF;
            v_restart := osgprod._restart(v_project, p_call, v_job.last, v_nstart, v_can_merge, p_wait_ms IS NULL);
            v_slice := v_restart.slice;
            IF v_restart.problem IS NOT NULL THEN
                RETURN osgprod._checkout_error(v_answer, v_restart.problem);
            ELSIF v_restart.is_completed THEN
                v_answer.status := 'completed';
                v_answer.nstarts := NULL;
                v_answer.message := format('job %s.%s has already completed its work', p_call.cluster, p_call.process);
                RETURN v_answer;
            END IF;
        END IF;
    END IF;

    IF v_slice.block1 IS NULL AND v_project.state = 'active' THEN
        v_blocks := osgprod._blocks_for(v_project, p_call.cpus);
        IF v_project.target_s IS NOT NULL OR p_call.time_left_s IS NOT NULL THEN
            v_blocks := least(v_blocks, (osgprod._slice_size(v_project, p_call.cpus, p_call.site,
                                                             p_call.time_left_s)).blocks);
            v_can_merge := v_can_merge AND p_call.time_left_s < 1 IS NOT TRUE;
            IF v_blocks = 0 AND NOT v_can_merge THEN
                RETURN osgprod._no_time(v_project, v_answer, p_call);
            END IF;
        END IF;
        IF v_project.pause_cause IS NOT NULL THEN
            v_blocks := least(v_blocks, 1);  -- it is the probe
        ELSIF v_project.unproven > 0 THEN
            v_answer.message := osgprod._why_unproven(v_project);
            IF v_answer.message IS NOT NULL THEN
                v_answer.status := 'wait';
                v_answer.retry_s := v_project.wait_s;
                v_answer.nstarts := NULL;
                RETURN v_answer;
            END IF;
        END IF;
        IF v_project.nlive >= v_project.max_live THEN
            v_problem := osgprod._why_too_many(v_project);
            IF v_problem IS NOT NULL THEN
                RETURN osgprod._checkout_error(v_answer, v_problem);
            END IF;
            v_is_ready := true;  -- it has requeued slices, perhaps
        END IF;
        -- (c) A merge, so that files are delivered early; else a requeued slice, so that files are completed in order.
        IF v_can_merge THEN
            v_slice := osgprod._claim_merge(v_project, p_call.cluster::int, p_call.process::int, v_nstart);
        END IF;
        IF v_blocks = 0 AND v_slice.block1 IS NULL THEN
            RETURN osgprod._no_time(v_project, v_answer, p_call);
        ELSIF v_is_ready AND v_slice.block1 IS NULL THEN
            v_slice := osgprod._claim_ready(v_project, p_call, v_nstart, v_blocks);
        END IF;
        -- (d) Else the next blocks of the first file that is free.
        IF v_slice.block1 IS NULL THEN
            SELECT f.rawdata_id, f.run, f.seqno, f.block1, f.block2, f.state = 'pending' AS is_fresh INTO v_file
              FROM osgprod_data.loaded_files f
             WHERE f.project_id = v_project.project_id AND f.state IN ('pending', 'in_progress') AND NOT f.on_tape
               AND f.suspended_at IS NULL
             ORDER BY f.run, f.seqno LIMIT 1
               FOR NO KEY UPDATE SKIP LOCKED;
            IF NOT FOUND THEN
                v_file := osgprod._wait_for_file(v_project.project_id, p_wait_ms);
            END IF;
            IF v_file.rawdata_id IS NOT NULL THEN
                v_slice.rawdata_id := v_file.rawdata_id;
                -- I1: it begins where the file's last slice ends, read while the file's row is locked, in a statement that
                -- began after that. It updates no row that a later one of these claims reads, so that a snapshot held by
                -- pg_dump does not slow them.
                v_slice.block1 := coalesce((SELECT s.block2 FROM osgprod_data.slices s
                                             WHERE s.project_id = v_project.project_id AND s.rawdata_id = v_file.rawdata_id
                                             ORDER BY s.block1 DESC LIMIT 1), v_file.block1);
                v_slice.block2 := least(v_slice.block1 + v_blocks, v_file.block2);
                v_slice.opened_at := clock_timestamp();
                INSERT INTO osgprod_data.slices (project_id, rawdata_id, block1, block2, follows, run, seqno, cluster, process,
                       nstart, opened_at, due_at)
                VALUES (v_project.project_id, v_file.rawdata_id, v_slice.block1, v_slice.block2,
                       nullif(v_slice.block1, v_file.block1), v_file.run, v_file.seqno, p_call.cluster, p_call.process,
                       v_nstart, v_slice.opened_at, v_slice.opened_at + make_interval(secs => v_project.lease_s));
                IF v_slice.block2 = v_file.block2 OR v_file.is_fresh THEN
                    UPDATE osgprod_data.loaded_files f
                       SET state = CASE WHEN v_slice.block2 = f.block2 THEN 'allocated'
                                        ELSE 'in_progress' END::osgprod_data.file_state
                     WHERE f.project_id = v_project.project_id AND f.rawdata_id = v_file.rawdata_id;
                END IF;
            -- (e) Else requeue slices whose lease or backoff has ended.
            ELSIF osgprod._requeue_due(v_project.project_id) THEN
                v_slice := osgprod._claim_ready(v_project, p_call, v_nstart, v_blocks);
            END IF;
        END IF;
        IF v_can_merge AND v_slice.block1 IS NULL THEN  -- the last file may be complete now
            PERFORM osgprod._settle_files(v_project.project_id, false);
            v_slice := osgprod._claim_merge(v_project, p_call.cluster::int, p_call.process::int, v_nstart);
        END IF;
        -- In the tail: a second attempt on a slice that would end late.
        IF v_slice.block1 IS NULL AND v_project.max_backups > 0 THEN
            v_slice := osgprod._claim_backup(v_project, p_call.cluster::int, p_call.process::int, v_nstart,
                osgprod._worker(p_call.client, p_call.host), p_call.cpus * v_project.maxblockspercore);
        END IF;
    END IF;
    IF v_slice.block1 IS NULL THEN
        v_answer.nstarts := NULL;
        RETURN osgprod._why_no_work(v_project, v_answer, v_can_merge, p_wait_ms);
    END IF;

    -- (f) The attempt, and what its slice is as a file.
    v_answer.token := gen_random_uuid();
    v_answer.started_at := clock_timestamp();  -- not now(): the transaction may have waited for a lock since it began
    INSERT INTO osgprod_data.attempts (project_id, cluster, process, nstart, rawdata_id, block1, block2, opened_at, cpus,
           started_at, token_digest, client, host, site, job_key_digest, schedd, qdate, job_start, follows, time_left_s,
           merge_id, version_id)
    VALUES (v_project.project_id, p_call.cluster, p_call.process, v_nstart, v_slice.rawdata_id, v_slice.block1,
           v_slice.block2, v_slice.opened_at, p_call.cpus, v_answer.started_at,
           sha256(convert_to(v_answer.token::text, 'UTF8')), p_call.client, osgprod._label(p_call.host),
           osgprod._label(p_call.site), osgprod._job_key_digest(v_project.magic_salt, p_call.job_key),
           osgprod._label(p_call.schedd), p_call.qdate, nullif(v_answer.nstarts, v_nstart), v_follows, p_call.time_left_s,
           v_slice.merge_id,
           CASE WHEN coalesce(p_call.templates::text, p_call.exec_version, p_call.image) IS NOT NULL
                THEN osgprod._version_of(v_project, p_call, v_slice.merge_id IS NOT NULL) END);

    IF v_slice.merge_id IS NULL THEN
        v_file := osgprod._slice_file(v_slice.rawdata_id, v_slice.block1, v_slice.block2, v_project.xrootd_prefix,
                                      v_project.strip_prefix, p_call.site);
        v_answer.url := v_file.url;
        v_answer.urls := v_file.urls;
        v_answer.filename := v_file.filename;
        v_answer.size_bytes := v_file.size_bytes;
        v_answer.events := v_file.events;
        v_answer.pieces := v_file.pieces;
        v_answer.task := 'slice';
    ELSE
        v_answer := osgprod._merge_answer(v_project, v_answer, v_slice.merge_id);
    END IF;
    v_answer.status := 'assigned';
    v_answer.block1 := v_slice.block1;
    v_answer.block2 := v_slice.block2;
    v_answer.lease_s := v_project.lease_s;
    v_answer.heartbeat_s := v_project.heartbeat_s;
    RETURN v_answer;
END
$fn$;

CREATE FUNCTION osgprod._checkout_error(p_answer osgprod.checkout_answer, p_problem text[])
RETURNS osgprod.checkout_answer LANGUAGE plpgsql IMMUTABLE
AS $fn$
-- The answer to a call that is in error.
-- Parameters: p_answer  as far as it is;  p_problem  code, message and hint
BEGIN
    p_answer.status := 'error';
    p_answer.nstarts := NULL;
    p_answer.code := p_problem[1];
    p_answer.message := p_problem[2];
    p_answer.hint := p_problem[3];
    RETURN p_answer;
END
$fn$;

CREATE FUNCTION osgprod._why_not_now(
    p_project osgprod_data.projects, p_cpus bigint, p_client inet, p_host text, p_site text, p_job_key text)
RETURNS text[] LANGUAGE plpgsql STABLE
AS $fn$
-- Says why an accepted job gets no work at this moment.
-- Parameters: p_project  the project's row;  the others see checkout_slice
-- Returns:    code, message and hint; NULL = nothing is against it
--             OG104 cpus; OG110 job key; OG501 the project is paused; OG601 the worker is banned
DECLARE
    v_worker text;
    v_ban    record;
BEGIN
    IF p_cpus NOT BETWEEN 1 AND 4096 OR p_cpus IS NULL THEN
        RETURN ARRAY['OG104', 'parameter cpus must be a number from 1 to 4096, not ' || coalesce(p_cpus::text, 'nothing'),
            'pass the cores that the job has, or leave cpus out for 1'];
    END IF;
    IF octet_length(p_job_key) > 256 THEN
        RETURN ARRAY['OG110', 'parameter job_key is longer than 256 bytes',
            'the submit file draws a random number for each job: condor/osgprod.sub'];
    END IF;
    IF p_project.state = 'paused' AND p_project.pause_cause IS NULL THEN
        RETURN ARRAY['OG501', format('project %s is paused', p_project.name), 'try again later'];
    END IF;
    IF p_project.banned_until > now() THEN  -- some worker is
        v_worker := osgprod._worker(p_client, p_host);
        SELECT b.until, b.reason INTO v_ban FROM osgprod_data.worker_bans b
         WHERE b.project_id = p_project.project_id AND b.worker = ANY (osgprod._worker_names(v_worker, p_site))
           AND osgprod._is_in_force(b.banned_at, b.until)
         ORDER BY b.until DESC LIMIT 1;
        IF FOUND THEN
            RETURN ARRAY['OG601', format('worker %s is banned until %s UTC: %s', v_worker,
                to_char(v_ban.until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'), v_ban.reason),
                'the operator can end the ban: osgprod workers unban'];
        END IF;
    END IF;
    RETURN NULL;
END
$fn$;

CREATE FUNCTION osgprod._restart(
    p_project osgprod_data.projects, p_call osgprod.checkout_call, p_last int, p_nstart int, p_can_merge boolean, p_may_wait boolean,
    OUT slice osgprod.claim, OUT is_completed boolean, OUT problem text[])
LANGUAGE plpgsql VOLATILE
AS $fn$
-- Gives a job that has started before the slice, or the merge, of its last attempt again.
-- Parameters: p_project  the project's row;  p_call  the call, whose job is locked;  p_last  the job's last attempt
--             p_nstart  the coming attempt;  p_can_merge  see _can_merge;  p_may_wait  for the slice
-- Returns:    the slice; NULLs when the job no longer has one. is_completed: its work is done. problem: OG602 it starts
--             too often, 55P03 the slice is busy
-- Locks:      the slice
-- Source:     docs/design.md I3
DECLARE
    v_last  record;
    v_slice record;
BEGIN
    -- Two statements: joined in one, its plan might read all slices of the project.
    SELECT a.rawdata_id, a.block1, a.opened_at, a.merge_id, r.outcome INTO v_last
      FROM osgprod_data.attempts a
      LEFT JOIN osgprod_data.reports r ON r.project_id = a.project_id AND r.cluster = a.cluster AND r.process = a.process
                                      AND r.nstart = a.nstart AND r.by_worker
     WHERE a.project_id = p_project.project_id AND a.cluster = p_call.cluster AND a.process = p_call.process
       AND a.nstart = p_last;
    SELECT s.state INTO v_slice FROM osgprod_data.slices s
     WHERE s.project_id = p_project.project_id AND s.rawdata_id = v_last.rawdata_id AND s.block1 = v_last.block1;
    IF v_last.outcome = 'done' AND (v_slice.state = 'done'  -- and not recycled since
            OR v_last.merge_id IS NOT NULL AND osgprod._is_merged(v_last.merge_id)) THEN
        is_completed := true;
        RETURN;
    END IF;
    IF p_last >= p_project.max_starts_per_min AND (
        SELECT a.started_at FROM osgprod_data.attempts a
         WHERE a.project_id = p_project.project_id AND a.cluster = p_call.cluster AND a.process = p_call.process
           AND osgprod._is_of_job(a, p_call)
         ORDER BY a.nstart DESC OFFSET p_project.max_starts_per_min - 1 LIMIT 1) > now() - interval '1 minute'
    THEN
        problem := ARRAY['OG602', format('job %s.%s has started %s times within a minute', p_call.cluster, p_call.process,
            p_project.max_starts_per_min), 'wait a minute; see why the job restarts'];
        RETURN;
    END IF;
    IF NOT p_may_wait AND NOT osgprod._try_slice(p_project.project_id, v_last.rawdata_id, v_last.block1) THEN
        problem := osgprod._is_busy(format('the slice of job %s.%s', p_call.cluster, p_call.process));
        RETURN;
    END IF;
    IF v_last.merge_id IS NOT NULL THEN
        slice := osgprod._restart_merge(p_project, v_last.merge_id, p_call, p_last, p_nstart, p_can_merge);
        RETURN;
    END IF;
    IF p_last >= p_project.max_starts AND EXISTS (
        SELECT FROM osgprod_data.attempts a
         WHERE a.project_id = p_project.project_id AND a.cluster = p_call.cluster AND a.process = p_call.process
           AND a.nstart = p_last - p_project.max_starts + 1 AND a.opened_at = v_last.opened_at)
    THEN
        IF NOT (SELECT osgprod._lose_slice(p_project, s, 'lost', format('its job has started %s times on it without a report',
                           p_project.max_starts), p_may_wait)
                  FROM osgprod._lock_held(p_project.project_id, v_last.rawdata_id, v_last.block1, p_call.cluster::int,
                           p_call.process::int, p_last) s)
        THEN
            problem := osgprod._is_busy(format('the file of job %s.%s', p_call.cluster, p_call.process));
        END IF;
        RETURN;
    END IF;
    IF p_last >= 3 OR p_call.time_left_s IS NOT NULL THEN
        PERFORM osgprod._shrink_slice(p_project, p_call, a, p_may_wait) FROM osgprod_data.attempts a
          WHERE a.project_id = p_project.project_id AND a.cluster = p_call.cluster AND a.process = p_call.process
            AND a.nstart = p_last;
    END IF;
    UPDATE osgprod_data.slices s
       SET nstart = p_nstart, due_at = clock_timestamp() + make_interval(secs => p_project.lease_s),
           progress_at = NULL, bytes_fetched = NULL, cpu_s = NULL
     WHERE s.project_id = p_project.project_id AND s.rawdata_id = v_last.rawdata_id AND s.block1 = v_last.block1
       AND s.state = 'leased' AND s.cluster = p_call.cluster AND s.process = p_call.process AND s.nstart = p_last  -- I3
    RETURNING s.rawdata_id, s.block1, s.block2, s.opened_at, NULL::int INTO slice;
    IF NOT FOUND AND v_slice.state = 'leased' THEN  -- by another: this job may have its backup
        slice := (SELECT osgprod._renew_backup(p_project, a, p_nstart) FROM osgprod_data.attempts a
                   WHERE a.project_id = p_project.project_id AND a.cluster = p_call.cluster AND a.process = p_call.process
                     AND a.nstart = p_last);
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._lock_held(
    p_project_id int, p_rawdata_id int, p_block1 int, p_cluster int, p_process int, p_nstart int)
RETURNS SETOF osgprod_data.slices LANGUAGE sql VOLATILE
AS $fn$
    -- Locks the slice of an attempt if the attempt holds it (I3); no row when it doesn't.
    -- Parameters: p_project_id, p_rawdata_id, p_block1  the slice;  p_cluster, p_process, p_nstart  the attempt
    SELECT s.* FROM osgprod_data.slices s
     WHERE s.project_id = p_project_id AND s.rawdata_id = p_rawdata_id AND s.block1 = p_block1
       AND s.state = 'leased' AND s.cluster = p_cluster AND s.process = p_process AND s.nstart = p_nstart
       FOR NO KEY UPDATE
$fn$;

CREATE FUNCTION osgprod._why_too_many(p_project osgprod_data.projects)
RETURNS text[] LANGUAGE plpgsql VOLATILE
AS $fn$
-- Says that the project has as many live attempts as it may, recounted when it is time.
-- Parameters: p_project  the project's row
-- Returns:    code, message and hint (OG603); NULL = there is room again
-- Locks:      see _requeue_due
BEGIN
    PERFORM osgprod._requeue_due(p_project.project_id);
    SELECT p.nlive INTO p_project.nlive FROM osgprod_data.projects p WHERE p.project_id = p_project.project_id;
    IF p_project.nlive < p_project.max_live THEN
        RETURN NULL;
    END IF;
    RETURN ARRAY['OG603', format('project %s has %s live attempts of at most %s', p_project.name, p_project.nlive,
        p_project.max_live), 'try again later; osgprod project set PROJECT max_live=... changes it'];
END
$fn$;

CREATE FUNCTION osgprod._claim_ready(
    p_project osgprod_data.projects, p_call osgprod.checkout_call, p_nstart int, p_blocks bigint)
RETURNS osgprod.claim LANGUAGE plpgsql VOLATILE
AS $fn$
-- Claims the first ready slice. If it is too long for the job, its end stays ready as another slice.
-- Promise:    a slice that had a fault on this worker is left to others for wait_s. A job that doesn't name its
--             host can't be distinguished from its neighbours, and gets any slice.
-- Parameters: p_project  the project's row;  p_call, p_nstart  the coming attempt;  p_blocks  at most so many
-- Returns:    the slice; NULLs when none is free, or when the first one needs its file and somebody has that
-- Locks:      the slice SKIP LOCKED; the file's row, SKIP LOCKED, when the slice is split, or when this transaction has
--             written it (requeued it, for an earlier call of the batch maybe): PostgreSQL checks a row that is updated
--             twice in a transaction against its foreign key again, which fails while another session splits the slice
--             before it
DECLARE
    v_slice  osgprod.claim;
    v_found  record;
    v_worker text := CASE WHEN osgprod._label(p_call.host) IS NOT NULL THEN osgprod._worker(p_call.client, p_call.host) END;
BEGIN
    SELECT s.rawdata_id, s.block1, s.block2, s.xmin = pg_current_xact_id_if_assigned()::xid AS is_written INTO v_found
      FROM osgprod_data.slices s
     WHERE s.project_id = p_project.project_id AND s.is_ready
       AND (s.faulted_on = v_worker AND s.due_at IS NULL
            AND s.not_before > now() - make_interval(secs => p_project.wait_s)) IS NOT TRUE
     ORDER BY s.run, s.seqno, s.block1 LIMIT 1
       FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND OR (v_found.is_written IS TRUE OR v_found.block2 - v_found.block1 > p_blocks)
                    AND NOT osgprod._try_file(p_project.project_id, v_found.rawdata_id) THEN
        RETURN NULL;
    END IF;
    IF v_found.block2 - v_found.block1 > p_blocks THEN
        PERFORM osgprod._split_slice(p_project.project_id, v_found.rawdata_id, v_found.block1,
            v_found.block1 + p_blocks::int);
    END IF;
    UPDATE osgprod_data.slices s
       SET state = 'leased', is_ready = NULL, not_before = NULL, cluster = p_call.cluster, process = p_call.process, nstart = p_nstart,
           due_at = clock_timestamp() + make_interval(secs => p_project.lease_s),
           progress_at = NULL, bytes_fetched = NULL, cpu_s = NULL
     WHERE s.project_id = p_project.project_id AND s.rawdata_id = v_found.rawdata_id AND s.block1 = v_found.block1
    RETURNING s.rawdata_id, s.block1, s.block2, s.opened_at, NULL::int INTO v_slice;
    RETURN v_slice;
END
$fn$;

CREATE FUNCTION osgprod._wait_for_file(
    p_project_id int, p_wait_ms int,
    OUT rawdata_id int, OUT run int, OUT seqno int, OUT block1 int, OUT block2 int, OUT is_fresh boolean)
LANGUAGE plpgsql VOLATILE
AS $fn$
-- Locks the first file with unallocated blocks as soon as it is free: that all files are locked does not mean that there are
-- none. A transaction that has written something may hold a file, and does not wait: two that held one each could wait for
-- each other.
-- Parameters: p_project_id  project;  p_wait_ms  for each lock [ms], see _checkout. The wait ends after that
--             time unless the file is freed, and is longer only while other sessions take the file first: PostgreSQL has
--             two locks for the wait for a row, and goes on to the next file when this one has been allocated to its end
-- Returns:    the file; NULLs when none has unallocated blocks any more, or when the first is still locked
-- Locks:      its row
DECLARE
    v_timeout text := current_setting('lock_timeout');
BEGIN
    IF p_wait_ms = 0 OR pg_current_xact_id_if_assigned() IS NOT NULL OR NOT osgprod._has_unallocated(p_project_id) THEN
        RETURN;
    END IF;
    IF p_wait_ms > 0 THEN
        PERFORM set_config('lock_timeout', p_wait_ms || 'ms', true);
    END IF;
    SELECT f.rawdata_id, f.run, f.seqno, f.block1, f.block2, f.state = 'pending'
      INTO rawdata_id, run, seqno, block1, block2, is_fresh
      FROM osgprod_data.loaded_files f
     WHERE f.project_id = p_project_id AND f.state IN ('pending', 'in_progress') AND NOT f.on_tape
               AND f.suspended_at IS NULL
     ORDER BY f.run, f.seqno LIMIT 1
       FOR NO KEY UPDATE;
    PERFORM set_config('lock_timeout', v_timeout, true);  -- an error restores it by itself
EXCEPTION WHEN lock_not_available THEN
    IF p_wait_ms IS NULL THEN
        RAISE;
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._has_unallocated(p_project_id int)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Has any file of the project unallocated blocks that may be assigned?
    SELECT EXISTS (SELECT FROM osgprod_data.loaded_files f
                    WHERE f.project_id = p_project_id AND f.state IN ('pending', 'in_progress') AND NOT f.on_tape
                      AND f.suspended_at IS NULL)
$fn$;

CREATE FUNCTION osgprod._why_no_work(
    p_project osgprod_data.projects, p_answer osgprod.checkout_answer, p_can_merge boolean, p_wait_ms int)
RETURNS osgprod.checkout_answer LANGUAGE plpgsql VOLATILE
AS $fn$
-- Says whether a job that gets nothing should wait, since work may be requeued, or end.
-- Parameters: p_project  the project's row;  p_answer  as far as it is;  p_can_merge  see _can_merge
--             p_wait_ms  see _checkout
-- Returns:    status wait with retry_s [s], no-work, or error (55P03)
-- Locks:      see _settle_files
BEGIN
    p_answer.status := 'wait';
    IF p_project.state = 'draining' THEN
        p_answer.status := 'no-work';
        p_answer.retry_s := 0;
        p_answer.message := format('project %s is draining, no new work is assigned', p_project.name);
    ELSIF osgprod._has_unallocated(p_project.project_id) THEN  -- others have all these files
        IF p_wait_ms IS NOT NULL THEN
            RETURN osgprod._checkout_error(p_answer, osgprod._is_busy('each file of project ' || p_project.name));
        END IF;
        p_answer.retry_s := 1;
        p_answer.message := format('project %s is busy, ask again at once', p_project.name);
    ELSIF EXISTS (SELECT FROM osgprod_data.slices s WHERE s.project_id = p_project.project_id AND s.is_ready) THEN
        p_answer.retry_s := least(p_project.wait_s, 5);  -- others have these slices, or their files
        p_answer.message := format('project %s is busy, ask again soon', p_project.name);
    ELSIF osgprod._settle_files(p_project.project_id, false) THEN
        p_answer.retry_s := p_project.wait_s;
        p_answer.message := format('all remaining work of project %s is leased%s', p_project.name,
            CASE WHEN p_project.skip_nearline THEN ' or on tape' ELSE ', some may be requeued' END);
    ELSIF p_can_merge AND osgprod._has_open_merges(p_project.project_id) THEN
        p_answer.retry_s := p_project.wait_s;
        p_answer.message := format('all merges of project %s are leased, some may be requeued', p_project.name);
    ELSE
        p_answer.status := 'no-work';
        p_answer.retry_s := 0;
        p_answer.message := format('no work left in project %s', p_project.name);
    END IF;
    RETURN p_answer;
END
$fn$;
