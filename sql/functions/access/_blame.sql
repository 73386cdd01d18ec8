CREATE FUNCTION osgprod._blame(
    p_project osgprod_data.projects, p_attempt osgprod_data.attempts, p_is_first boolean, p_outcome osgprod_data.outcome,
    p_worker text, p_call osgprod.report_call)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Notes a failure of a slice or a merge, looks for its cause beyond the slice and the worker, and acts on the widest one that
-- it finds: the project pauses itself, a file is suspended, a site, network or address is banned; or merges are, everywhere, at a
-- site or on a worker.
-- Promise:    a cause is blamed only while nothing succeeds that it would have made fail as well. Failures with such a cause
--             count neither against slices nor against workers. Failures of merges stop merges alone, those of slices both.
-- Parameters: p_project  the project's row;  p_attempt  the attempt, which holds its slice or merge;  p_is_first  had nothing
--             of that failed before?;  p_outcome  failed or node-fault;  p_worker  see _worker;  p_call  the report
-- Returns:    true when something other than the slice and its worker, or than the merge, is to blame
-- Locks:      see _act. Nothing here waits, but for 1 ms (_try_reopen_file)
-- Source:     docs/design.md "Outages: who is blamed"
DECLARE
    v_failure osgprod_data.recent_failures := osgprod._note_failure(p_project, p_attempt, p_is_first, p_outcome, p_worker, p_call);
    v_cause   osgprod.cause;
BEGIN
    -- Jobs get merges before slices: a wrong setting for merges would keep each job from slices.
    IF p_project.state <> 'active' OR v_failure.blamed IS NOT NULL AND (v_failure.blamed <> 'setting' OR v_failure.merge_id IS NULL) THEN
        RETURN v_failure.blamed IS NOT NULL;
    END IF;
    FOR v_cause IN SELECT c.* FROM osgprod._causes(p_project, v_failure) c WHERE v_failure.blamed IS NULL OR c.scope = 'project' LOOP
        IF NOT osgprod._is_disproved(p_project, v_failure, v_cause) AND osgprod._act(p_project, v_failure, v_cause) THEN
            RETURN true;
        END IF;
    END LOOP;
    RETURN v_failure.blamed IS NOT NULL;
END
$fn$;

CREATE FUNCTION osgprod._note_failure(
    p_project osgprod_data.projects, p_attempt osgprod_data.attempts, p_is_first boolean, p_outcome osgprod_data.outcome,
    p_worker text, p_call osgprod.report_call)
RETURNS osgprod_data.recent_failures LANGUAGE sql VOLATILE
AS $fn$
    -- Writes a failure down, and its cause if that is known already: a pause that ended after its attempt began, a ban that
    -- began after it, a pause that still lasts, the suspension of its file that still lasts, or a wrong setting.
    -- Parameters: see _blame
    INSERT INTO osgprod_data.recent_failures (project_id, started_at, fault, exit_code, is_failure, is_first, worker, address,
           place, rawdata_id, block1, block2, opened_at, merge_id, reason, blamed)
    SELECT p_project.project_id, p_attempt.started_at, w.fault, p_call.exitcode, p_outcome = 'failed', p_is_first, p_worker,
           host(p_attempt.client), w.place, p_attempt.rawdata_id, p_attempt.block1, p_attempt.block2, p_attempt.opened_at,
           p_attempt.merge_id, osgprod._reason(p_call.reason),
           CASE WHEN p_attempt.merge_id IS NULL
                     AND (p_project.pause_cause IS NOT NULL OR p_attempt.started_at <= p_project.resumed_at) THEN 'project'
                WHEN EXISTS (SELECT FROM osgprod_data.worker_bans b
                              WHERE b.project_id = p_project.project_id AND b.times > 0 AND b.banned_at >= p_attempt.started_at
                                AND b.worker = ANY (CASE WHEN p_attempt.merge_id IS NULL THEN ARRAY[osgprod._ban_of_place(w.place)]
                                    ELSE ARRAY['merges:all', 'merges:' || osgprod._ban_of_place(w.place), 'merges:' || p_worker] END))
                     THEN 'place'
                WHEN p_attempt.merge_id IS NULL AND w.fault IN ('fetch', 'work') AND EXISTS (
                    SELECT FROM osgprod_data.loaded_files f
                     WHERE f.project_id = p_project.project_id AND f.rawdata_id = p_attempt.rawdata_id
                       AND f.suspended_at IS NOT NULL) THEN 'file'
                -- A wrong setting is that of the project or of the submit file: it counts against no slice and no node.
                WHEN w.fault = 'setting' THEN 'setting' END
      FROM (SELECT osgprod._fault(p_outcome, p_call.exitcode::int, p_call.fault) AS fault,
                   osgprod._place(p_attempt.client, coalesce(osgprod._label(p_call.site), p_attempt.site)) AS place) w
    RETURNING *
$fn$;

CREATE FUNCTION osgprod._fault(p_outcome osgprod_data.outcome, p_exit_code int, p_fault text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- What went wrong: fetch, delivery, program or setting as the job reports it, or as the exit codes of the shipped scripts
    -- say (75, 74, and 126 and 127 of the shell); node, another node fault; work, the script's own failure.
    SELECT CASE WHEN p_outcome = 'failed' THEN 'work'
                WHEN p_fault IN ('fetch', 'delivery', 'program', 'setting') THEN p_fault
                WHEN coalesce(p_fault, '') = '' AND p_exit_code = 75 THEN 'fetch'
                WHEN coalesce(p_fault, '') = '' AND p_exit_code = 74 THEN 'delivery'
                WHEN p_exit_code IN (126, 127) THEN 'program'
                ELSE 'node' END
$fn$;

CREATE FUNCTION osgprod._place(p_client inet, p_site text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- Where a job runs, as far as its failures have a cause in common: its site, else the network of its address.
    -- It is called for each attempt of an hour: p_site is a site as attempts and reports store it (_label).
    SELECT coalesce(p_site, osgprod._network(p_client))
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
    -- Did an attempt of a project with probe_jobs start in a test in which none has succeeded yet?
    SELECT p_project.probe_jobs > 0 AND p_project.unproven = p_project.probe_jobs
       AND p_started_at > coalesce(p_project.tested_since, '-infinity')
$fn$;

CREATE FUNCTION osgprod._causes(p_project osgprod_data.projects, p_failure osgprod_data.recent_failures)
RETURNS SETOF osgprod.cause LANGUAGE plpgsql STABLE
AS $fn$
-- Finds the causes that the newest failure may have in common with others, the widest first. Each is a scope with counts of
-- its newest failures; _suffices says which counts make a cause.
-- Promise:    reads the last 1000 failures of the hour, of slices or of merges, once for all scopes.
-- Parameters: p_project  the project's row;  p_failure  the newest failure
DECLARE
    v_is_untried boolean := osgprod._is_untried(p_project, p_failure.started_at) AND p_failure.fault <> 'fetch';
    v_files_left int := (SELECT count(*) FROM (SELECT FROM osgprod_data.loaded_files f
                                                WHERE f.project_id = p_failure.project_id AND f.state = 'allocated' LIMIT 3) x)
                      + (SELECT count(*) FROM (SELECT FROM osgprod_data.loaded_files f
                                                WHERE f.project_id = p_failure.project_id
                                                  AND f.state IN ('pending', 'in_progress') LIMIT 3) x);
BEGIN
    RETURN QUERY
    WITH recent AS MATERIALIZED (
        SELECT r.*, r.fault = p_failure.fault AND (NOT v_is_untried OR osgprod._is_untried(p_project, r.started_at))
                    AND (r.fault NOT IN ('work', 'node')
                         OR r.exit_code = p_failure.exit_code AND (r.is_first OR v_is_untried OR r.merge_id IS NOT NULL)) AS is_alike
          FROM osgprod_data.recent_failures r
         WHERE r.project_id = p_failure.project_id AND r.failed_at > now() - interval '1 hour'
           AND (r.merge_id IS NULL) = (p_failure.merge_id IS NULL)
         ORDER BY r.failed_at DESC, r.failure_id DESC LIMIT 1000
    ), scopes AS MATERIALIZED (
        SELECT v.width, v.scope, v.most, n.name, coalesce(b.banned_at, '-infinity') AS banned_at,
               CASE WHEN osgprod._is_on_probation(b, v.location, p_failure.merge_id IS NOT NULL) THEN b.times ELSE 0 END AS times
          FROM (VALUES  -- widest first; of how many failures at most; where, and the name that is banned; of slices, of merges?
                (1, 'project', 100, NULL, 'all', true, true),
                (2, 'place', 20, p_failure.place, osgprod._ban_of_place(p_failure.place), true, true),
                (3, 'file', 30, NULL, NULL, p_failure.fault IN ('fetch', 'work'), false),
                (4, 'address', 100, p_failure.address, p_failure.address, true, false),
                (5, 'worker', 100, p_failure.worker, p_failure.worker, false, true)
               ) AS v (width, scope, most, location, name, of_slices, of_merges)
         CROSS JOIN LATERAL (
            SELECT CASE WHEN p_failure.merge_id IS NOT NULL THEN 'merges:' || v.name ELSE nullif(v.name, 'all') END AS name) n
          LEFT JOIN osgprod_data.worker_bans b ON b.project_id = p_failure.project_id AND b.worker = n.name
         WHERE CASE WHEN p_failure.merge_id IS NULL THEN v.of_slices ELSE v.of_merges END
    ), newest AS (
        SELECT s.width, s.scope, s.most, s.name, s.times, r.*,
               row_number() OVER (PARTITION BY s.width ORDER BY r.failed_at DESC, r.failure_id DESC) AS n
          FROM recent r CROSS JOIN scopes s
         WHERE r.started_at > s.banned_at AND CASE s.scope
            WHEN 'project' THEN r.is_alike AND coalesce(r.blamed, 'file') IN ('file', 'setting')
            WHEN 'place' THEN r.place = p_failure.place AND coalesce(r.blamed, 'file') = 'file'
            -- A worker that failed on another suspended file does not count against this one: it may be the worker.
            WHEN 'file' THEN r.is_alike AND r.rawdata_id = p_failure.rawdata_id AND r.blamed IS NULL
                AND (r.fault = 'work' OR r.worker NOT IN (
                    SELECT o.worker FROM recent o
                     WHERE o.rawdata_id <> p_failure.rawdata_id AND o.fault = 'fetch' AND o.blamed = 'file'))
            -- Slices that failed before may be to blame: those that failed elsewhere as well, and where there is no
            -- elsewhere all of them.
            WHEN 'address' THEN r.address = p_failure.address AND r.blamed IS NULL
                AND r.failed_at - r.started_at <= make_interval(secs => p_project.fast_failure_s)
                AND (r.is_first OR (r.rawdata_id, r.fault) NOT IN (
                        SELECT o.rawdata_id, o.fault FROM recent o WHERE o.address <> p_failure.address)
                     AND EXISTS (SELECT FROM osgprod_data.attempts a
                                  WHERE a.project_id + 0 = p_failure.project_id AND a.started_at > now() - interval '1 hour'
                                    AND host(a.client) <> p_failure.address))
            ELSE r.worker = p_failure.worker AND r.blamed IS NULL END
    ), marked AS (
        SELECT f.*, row_number() OVER (PARTITION BY f.width, f.worker ORDER BY f.n) = 1 AS has_new_worker,
               row_number() OVER (PARTITION BY f.width, f.address ORDER BY f.n) = 1 AS has_new_address,
               row_number() OVER (PARTITION BY f.width, f.place ORDER BY f.n) = 1 AS has_new_place,
               row_number() OVER (PARTITION BY f.width, f.rawdata_id ORDER BY f.n) = 1 AS has_new_file,
               row_number() OVER (PARTITION BY f.width, f.rawdata_id, f.block1 ORDER BY f.n) = 1 AS has_new_slice
          FROM newest f WHERE f.n <= f.most
    ), counted AS (  -- a row for the newest failure alone, the newest two, and so on
        SELECT m.width, m.n, ROW(m.scope, m.name, m.times, count(*) OVER w, count(*) FILTER (WHERE m.has_new_worker) OVER w,
                   count(*) FILTER (WHERE m.has_new_address) OVER w, count(*) FILTER (WHERE m.has_new_file) OVER w,
                   count(*) FILTER (WHERE m.has_new_slice) OVER w, NULL,
                   array_agg(m.place) FILTER (WHERE m.has_new_place) OVER w,
                   min(CASE p_failure.fault WHEN 'delivery' THEN m.failed_at ELSE m.started_at END) OVER w,
                   array_agg(m.failure_id) OVER w)::osgprod.cause AS cause
          FROM marked m WINDOW w AS (PARTITION BY m.width ORDER BY m.n)
    ), sufficient AS (  -- for a pause the newest failures that suffice at three places; else all
        SELECT DISTINCT ON (c.width) c.width, (c.cause).* FROM counted c
         WHERE osgprod._suffices(p_project, p_failure, c.cause, v_is_untried, v_files_left)
         ORDER BY c.width, CASE WHEN c.width = 1 AND cardinality((c.cause).places) >= 3 THEN c.n ELSE 1000 - c.n END
    )
    SELECT s.scope, s.name, s.times, s.failures, s.workers, s.addresses, s.files, s.slices,
           (SELECT count(DISTINCT o.worker) FROM recent o
             WHERE o.fault = p_failure.fault AND o.failed_at > s.since AND o.place <> p_failure.place
               AND coalesce(o.blamed, 'file') = 'file'), s.places, s.since, s.ids
      FROM sufficient s ORDER BY s.width;
END
$fn$;

CREATE FUNCTION osgprod._suffices(
    p_project osgprod_data.projects, p_failure osgprod_data.recent_failures, p_cause osgprod.cause, p_is_untried boolean,
    p_files_left int)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Are these failures enough to suspect a cause? The table of docs/design.md "Outages: who is blamed".
    -- Parameters: p_project  the project's row;  p_failure  the newest failure;  p_cause  the counts
    --             p_is_untried  has nothing succeeded in the test by the first jobs?;  p_files_left  files that have work; exact below 3
    SELECT CASE p_cause.scope
        WHEN 'project' THEN CASE
            WHEN p_failure.merge_id IS NOT NULL
            THEN p_cause.times > 0 OR p_failure.fault = 'setting'  -- the probe of a ban failed, or it is no matter of chance
              OR p_cause.workers >= p_project.suspend_after AND (p_cause.slices >= 3 OR p_failure.fault = 'delivery')
            ELSE p_cause.workers >= p_project.suspend_after AND CASE p_failure.fault
                    WHEN 'fetch' THEN p_cause.files >= greatest(least(3, p_files_left), 2)
                    WHEN 'delivery' THEN true
                    WHEN 'program' THEN p_cause.slices >= 5
                    ELSE p_cause.slices >= 5 AND p_cause.files >= 3 END
              OR p_is_untried AND p_cause.failures >= p_project.probe_jobs
                 AND (p_failure.fault IN ('delivery', 'program') OR p_cause.files >= least(2, p_files_left)) END
        WHEN 'place' THEN p_cause.failures >= 5 AND p_cause.workers >= 5 OR p_cause.failures >= 2 AND p_cause.times > 0
        WHEN 'file' THEN CASE p_failure.fault
            WHEN 'fetch' THEN p_cause.workers >= p_project.suspend_after
            ELSE p_cause.slices >= 5 AND p_cause.workers >= p_project.suspend_after
              OR p_is_untried AND p_cause.slices >= p_project.probe_jobs END
        WHEN 'address' THEN p_cause.workers >= 3
            AND p_cause.failures >= p_project.max_fast_failures * CASE p_cause.times WHEN 0 THEN 2 ELSE 1 END
        ELSE p_cause.failures >= CASE p_cause.times WHEN 0 THEN p_project.max_fast_failures ELSE 1 END END
$fn$;

CREATE FUNCTION osgprod._is_disproved(
    p_project osgprod_data.projects, p_failure osgprod_data.recent_failures, p_cause osgprod.cause)
RETURNS boolean LANGUAGE plpgsql STABLE
AS $fn$
-- Does anything speak against a cause: a success that it would have prevented, a wider cause, or a narrower one?
-- Parameters: p_project  the project's row;  p_failure  the newest failure;  p_cause  the suspected cause
DECLARE
    v_id       int := p_failure.project_id;
    v_is_merge boolean := p_failure.merge_id IS NOT NULL;
    v_fault    text := p_failure.fault;
    v_since    timestamptz := p_cause.since;
BEGIN
    RETURN CASE p_cause.scope
        WHEN 'project' THEN p_cause.times = 0 AND cardinality(p_cause.places) < 3 AND osgprod._has_outsiders(v_id, v_is_merge, p_cause.places)
            OR osgprod._has_succeeded(v_id, v_is_merge, v_fault, v_since)
        WHEN 'place' THEN osgprod._has_succeeded(v_id, v_is_merge, v_fault, v_since, p_failure.place)
            OR NOT osgprod._has_outsiders(v_id, v_is_merge, ARRAY[p_failure.place])
            -- The input or the output of all, until others succeed; or what others fail alike from.
            OR (v_fault IN ('fetch', 'delivery') OR p_cause.others >= p_project.suspend_after)
               AND NOT osgprod._has_succeeded(v_id, v_is_merge, v_fault, v_since)
            -- One file, unless others succeed with it or work on it.
            OR p_cause.times = 0 AND p_cause.files < 2 AND v_fault NOT IN ('program', 'delivery')
               AND NOT osgprod._has_succeeded(v_id, v_is_merge, v_fault, v_since, NULL, p_failure.rawdata_id)
               AND NOT (v_fault = 'node' AND p_cause.slices >= 5
                        AND osgprod._is_leased_elsewhere(v_id, ARRAY[p_failure.place], p_failure.rawdata_id))
            -- One address can call itself by any site's name: it is not the site when that has others.
            OR p_cause.addresses = 1 AND EXISTS (
                SELECT FROM osgprod_data.attempts a
                 WHERE a.project_id + 0 = v_id AND a.started_at > now() - interval '1 hour'
                   AND osgprod._place(a.client, a.site) = p_failure.place AND host(a.client) <> p_failure.address)
            -- Some of its nodes, while jobs on as many others run on and on there.
            OR NOT v_is_merge AND p_cause.times = 0 AND v_fault NOT IN ('fetch', 'delivery')
               AND osgprod._has_steady_jobs(p_project, p_failure.place, p_cause)
        WHEN 'file' THEN osgprod._has_succeeded(v_id, v_is_merge, v_fault, v_since, NULL, p_failure.rawdata_id)
        WHEN 'address' THEN osgprod._has_succeeded(v_id, v_is_merge, v_fault, v_since, p_failure.address)
            OR osgprod._others_fail_alike(v_id, v_is_merge, p_failure.address, v_fault, v_since)
        ELSE osgprod._has_succeeded(v_id, v_is_merge, v_fault, v_since, p_failure.worker)
            OR osgprod._others_fail_alike(v_id, v_is_merge, p_failure.worker, v_fault, v_since) END;
END
$fn$;

CREATE FUNCTION osgprod._act(
    p_project osgprod_data.projects, p_failure osgprod_data.recent_failures, p_cause osgprod.cause)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Acts on a cause: a pause, a suspension or a ban. Then it takes back what the cause did: failures counted against slices and
-- workers, automatic bans, and suspensions of files.
-- Parameters: p_project  the project's row;  p_failure  the newest failure;  p_cause  the cause to blame
-- Returns:    false when another session has the row that this needs, or has acted already
-- Locks:      see _pause_project, _suspend_file, _ban, _resume_file and _clear_failures
DECLARE
    v_is_merge boolean := p_failure.merge_id IS NOT NULL;
    v_reason   text := CASE p_cause.scope
        WHEN 'project' THEN CASE p_failure.fault
            WHEN 'fetch' THEN 'the input can''t be read: ' || osgprod._counted(p_cause.files, 'file')
            WHEN 'delivery' THEN 'outputs can''t be delivered: ' || osgprod._counted(p_cause.failures, 'attempt')
            WHEN 'setting' THEN 'a setting is wrong: ' || osgprod._counted(p_cause.failures, 'attempt')
            ELSE format('all attempts fail alike with exit code %s: %s', p_failure.exit_code, osgprod._counted(p_cause.failures, 'attempt')) END
            || format(' by %s at %s', osgprod._counted(p_cause.workers, 'worker'), CASE WHEN cardinality(p_cause.places) <= 3
                THEN array_to_string(p_cause.places, ', ') ELSE cardinality(p_cause.places) || ' places' END)
        WHEN 'place' THEN format('%s by %s failed there, none succeeded', osgprod._counted(p_cause.failures, 'attempt'), osgprod._counted(p_cause.workers, 'worker'))
        WHEN 'file' THEN CASE p_failure.fault WHEN 'fetch' THEN osgprod._counted(p_cause.workers, 'worker') || ' can''t read it'
            ELSE format('%s of its slices failed at their first attempts with exit code %s', p_cause.slices, p_failure.exit_code) END
        WHEN 'address' THEN format('%s under %s failed within %s s', osgprod._counted(p_cause.failures, 'attempt'),
            osgprod._counted(p_cause.workers, 'name'), p_project.fast_failure_s)
        ELSE format('%s of its merges failed, none succeeded', p_cause.failures) END
        || coalesce('; the last: ' || p_failure.reason, '');
BEGIN
    IF NOT (CASE WHEN p_cause.scope = 'file' THEN osgprod._suspend_file(p_project, p_failure.rawdata_id, v_reason)
                WHEN p_cause.scope = 'project' AND NOT v_is_merge
                THEN osgprod._pause_project(p_project, p_failure.fault, v_reason)
                ELSE osgprod._ban(p_project, p_cause.name, p_cause.times + 1, v_reason) END)
    THEN
        RETURN false;
    END IF;
    IF p_cause.scope = 'project' AND p_failure.fault IN ('fetch', 'delivery') THEN
        p_cause.since := least(p_cause.since, osgprod._begin_of_outage(p_failure.project_id, v_is_merge, p_failure.fault));
    END IF;
    IF p_cause.scope IN ('project', 'place') AND NOT v_is_merge THEN
        PERFORM osgprod._resume_file(f.project_id, f.rawdata_id, coalesce('not the file, but ' || p_cause.name,
                                                                          'it is not this file alone'))
           FROM osgprod_data.loaded_files f
          WHERE f.project_id = p_failure.project_id AND f.suspended_at >= p_cause.since
            AND (p_cause.scope = 'project' OR NOT EXISTS (
                SELECT FROM osgprod_data.recent_failures r
                 WHERE r.project_id = f.project_id AND r.fault = p_failure.fault AND r.failed_at > p_cause.since
                   AND r.rawdata_id = f.rawdata_id AND r.place <> p_failure.place));
    END IF;
    IF p_cause.scope = 'project' THEN  -- all failures with this fault since the first, not only those that sufficed
        p_cause.ids := ARRAY(
            SELECT r.failure_id FROM osgprod_data.recent_failures r
             WHERE r.project_id = p_failure.project_id AND r.fault = p_failure.fault AND r.failed_at >= p_cause.since
               AND (r.started_at >= p_cause.since OR r.fault = 'delivery' AND r.started_at >= p_cause.since - interval '1 hour')
               AND (r.merge_id IS NULL) <> v_is_merge);
    END IF;
    PERFORM osgprod._clear_failures(p_project, p_cause, p_failure);
    RETURN true;
END
$fn$;

CREATE FUNCTION osgprod._has_outsiders(p_project_id int, p_is_merge boolean, p_places text[])
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Have jobs started at other places than these in the last hour, or do such hold slices? Not at a place that is banned:
    -- nothing can succeed there, so it tells nothing of the others. (project_id + 0: found by time.)
    -- Parameters: p_project_id  project;  p_is_merge  with merges? else with slices;  p_places  see _place
    SELECT EXISTS (SELECT FROM osgprod_data.attempts a
                    WHERE a.project_id + 0 = p_project_id AND a.started_at > now() - interval '1 hour'
                      AND (a.merge_id IS NOT NULL) = p_is_merge AND osgprod._place(a.client, a.site) <> ALL (p_places)
                      AND osgprod._ban_of_place(osgprod._place(a.client, a.site)) <> ALL (ARRAY(
                          SELECT osgprod._banned_places(p_project_id, p_is_merge))))
        OR NOT p_is_merge AND osgprod._is_leased_elsewhere(p_project_id, p_places)
$fn$;

CREATE FUNCTION osgprod._banned_places(p_project_id int, p_is_merge boolean)
RETURNS SETOF text LANGUAGE sql STABLE
AS $fn$
    -- The sites and networks that are banned, by the names of their bans (_ban_of_place).
    -- Parameters: p_project_id  project;  p_is_merge  also those that are banned from merges only
    SELECT CASE WHEN p_is_merge THEN regexp_replace(b.worker, '^merges:', '') ELSE b.worker END
      FROM osgprod_data.worker_bans b
     WHERE b.project_id = p_project_id AND b.worker ~ '^(merges:)?(site:|[0-9a-f:.]+/)'
       AND osgprod._is_in_force(b.banned_at, b.until)
$fn$;

CREATE FUNCTION osgprod._has_steady_jobs(
    p_project osgprod_data.projects, p_place text, p_cause osgprod.cause)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Do jobs at a place run on at least as many workers as have failed there, at least twice as long as the failures took, and
    -- a minute? A few bad nodes that fail fast are not the site, whose good jobs may run for hours before they succeed.
    -- Only jobs that sent a heartbeat in the last two intervals, or had no time to: others may be gone.
    -- Parameters: p_project  the project's row;  p_place  see _place;  p_cause  the failures there
    SELECT count(DISTINCT osgprod._worker(a.client, a.host)) >= p_cause.workers
      FROM osgprod._slices_in_flight(p_project.project_id) s
     CROSS JOIN LATERAL (
        SELECT t.client, t.host, t.site, t.started_at FROM osgprod_data.attempts t
         WHERE t.project_id = s.project_id AND t.cluster = s.cluster AND t.process = s.process AND t.nstart = s.nstart
         LIMIT 1) a
     WHERE s.state = 'leased' AND osgprod._place(a.client, a.site) = p_place
       AND s.due_at > now() + make_interval(secs => p_project.lease_s - 2 * p_project.heartbeat_s)
       AND a.started_at < now() - (SELECT greatest(2 * max(r.failed_at - r.started_at), interval '1 min')
                                     FROM osgprod_data.recent_failures r WHERE r.failure_id = ANY (p_cause.ids))
$fn$;

CREATE FUNCTION osgprod._is_leased_elsewhere(p_project_id int, p_places text[], p_rawdata_id int DEFAULT NULL)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Do jobs at other places hold slices? Not at a place that is banned.
    -- Parameters: p_project_id  project;  p_places  see _place;  p_rawdata_id  only of this file
    SELECT EXISTS (
        SELECT FROM osgprod._slices_in_flight(p_project_id) s
         CROSS JOIN LATERAL (
            SELECT t.client, t.site FROM osgprod_data.attempts t
             WHERE t.project_id = s.project_id AND t.cluster = s.cluster AND t.process = s.process AND t.nstart = s.nstart
             LIMIT 1) a
         WHERE s.state = 'leased' AND (p_rawdata_id IS NULL OR s.rawdata_id = p_rawdata_id)
           AND osgprod._place(a.client, a.site) <> ALL (p_places)
           AND osgprod._ban_of_place(osgprod._place(a.client, a.site)) <> ALL (ARRAY(
               SELECT osgprod._banned_places(p_project_id, false))))
$fn$;

CREATE FUNCTION osgprod._has_succeeded(
    p_project_id int, p_is_merge boolean, p_fault text, p_since timestamptz, p_where text DEFAULT NULL,
    p_rawdata_id int DEFAULT NULL)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Has something succeeded that would have failed if the cause of some failures were a wide one? For a delivery that is a
    -- success that was reported since; for anything else one of an attempt that started since. A slice that has arrived at
    -- a running job disproves that the input can't be read.
    -- Parameters: p_project_id  project;  p_is_merge  merges? else slices. (A report of a merge has no blocks.)
    --             p_fault  see _fault;  p_since  start of the first failure, of a delivery its report
    --             p_where  only there: a place, an address, or a worker;  p_rawdata_id  only in this file
    SELECT EXISTS (
        SELECT FROM osgprod_data.reports r
         CROSS JOIN LATERAL (  -- LIMIT: by key, never by reading all attempts of the project
            SELECT t.* FROM osgprod_data.attempts t
             WHERE t.project_id = r.project_id AND t.cluster = r.cluster AND t.process = r.process AND t.nstart = r.nstart
             LIMIT 1) a
         WHERE r.project_id + 0 = p_project_id AND r.reported_at > p_since AND r.by_worker AND r.outcome = 'done'
           AND (r.nblocks = 0) = p_is_merge
           AND (p_where IS NULL OR r.site IS NULL OR p_where IN (r.site, r.worker, substring(r.worker FROM '[^@]*$')))
           AND (r.site IS NOT NULL OR p_where IN (osgprod._network(a.client), r.worker, host(a.client))) IS NOT FALSE
           AND (p_fault = 'delivery' OR a.started_at > p_since)
           AND (p_rawdata_id IS NULL OR a.rawdata_id = p_rawdata_id))
      OR p_fault = 'fetch' AND NOT p_is_merge AND EXISTS (
        SELECT FROM osgprod_data.attempts a
          JOIN osgprod_data.slices s ON s.project_id = a.project_id AND s.rawdata_id = a.rawdata_id AND s.block1 = a.block1
                                    AND s.cluster = a.cluster AND s.process = a.process AND s.nstart = a.nstart
         WHERE a.project_id + 0 = p_project_id AND a.started_at > p_since AND s.state = 'leased'
           AND osgprod._has_arrived(s.rawdata_id, s.block2 - s.block1, s.bytes_fetched)
           AND (p_where IS NULL OR p_where IN (osgprod._place(a.client, a.site), host(a.client)))
           AND (p_rawdata_id IS NULL OR s.rawdata_id = p_rawdata_id))
$fn$;

CREATE FUNCTION osgprod._begin_of_outage(p_project_id int, p_is_merge boolean, p_fault text)
RETURNS timestamptz LANGUAGE sql STABLE
AS $fn$
    -- Since when, within the last hour, have inputs or outputs only failed? The first of these failures may have been at too few
    -- places for a pause. What counts as a success, and from when, see _has_succeeded. NULL = a success came after all failures
    -- Parameters: p_project_id  project;  p_is_merge  merges? else slices;  p_fault  fetch or delivery
    WITH failed AS MATERIALIZED (
        SELECT CASE p_fault WHEN 'delivery' THEN r.failed_at ELSE r.started_at END AS since
          FROM osgprod_data.recent_failures r
         WHERE r.project_id = p_project_id AND r.fault = p_fault AND r.failed_at > now() - interval '1 hour'
           AND (r.merge_id IS NOT NULL) = p_is_merge
         ORDER BY r.failed_at DESC LIMIT 1000
    ), succeeded AS (
        SELECT CASE p_fault WHEN 'delivery' THEN r.reported_at ELSE a.started_at END AS at
          FROM osgprod_data.reports r
         CROSS JOIN LATERAL (
            SELECT t.started_at FROM osgprod_data.attempts t
             WHERE t.project_id = r.project_id AND t.cluster = r.cluster AND t.process = r.process AND t.nstart = r.nstart
             LIMIT 1) a
         WHERE r.project_id + 0 = p_project_id AND r.reported_at > (SELECT min(f.since) FROM failed f) AND r.by_worker
           AND r.outcome = 'done' AND (r.nblocks = 0) = p_is_merge
         UNION ALL
        SELECT a.started_at
          FROM osgprod_data.attempts a
          JOIN osgprod_data.slices s ON s.project_id = a.project_id AND s.rawdata_id = a.rawdata_id AND s.block1 = a.block1
                                    AND s.cluster = a.cluster AND s.process = a.process AND s.nstart = a.nstart
         WHERE p_fault = 'fetch' AND NOT p_is_merge AND a.project_id + 0 = p_project_id
           AND a.started_at > (SELECT min(f.since) FROM failed f) AND s.state = 'leased'
           AND osgprod._has_arrived(s.rawdata_id, s.block2 - s.block1, s.bytes_fetched)
    )
    SELECT min(f.since) FROM failed f WHERE f.since >= coalesce((SELECT max(s.at) FROM succeeded s), '-infinity')
$fn$;

CREATE FUNCTION osgprod._has_arrived(p_rawdata_id int, p_nblocks int, p_bytes bigint)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Has a job fetched so much that its slice must be there? Blocks differ in size: nine tenths of what that many blocks have
    -- on average.
    SELECT p_bytes >= 0.9 * w.size_bytes * p_nblocks / w.nblocks FROM osgprod_data.rawdata w WHERE w.rawdata_id = p_rawdata_id
$fn$;

CREATE FUNCTION osgprod._clear_failures(
    p_project osgprod_data.projects, p_cause osgprod.cause, p_failure osgprod_data.recent_failures)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Takes failures off the slices (or merges) and the workers that had them, since something else is to blame: counts,
-- backoffs, quarantine and, unless an address or a worker is to blame, automatic bans.
-- Parameters: p_project  the project's row;  p_cause  the cause to blame
--             p_failure  the newest failure, which is not counted yet: nothing is taken off for it. Of a merge: merges are meant
-- Locks:      rows of recent_failures, merges, slices (see _lower_failure_counts), bans and the project's, SKIP LOCKED: a locked
--             one stays as it is
DECLARE
    v_is_merge boolean := p_failure.merge_id IS NOT NULL;
    v_cleared  bigint[];
    v_slice    record;
BEGIN
    WITH cleared AS (
        UPDATE osgprod_data.recent_failures r SET blamed = p_cause.scope
         WHERE r.failure_id IN (SELECT x.failure_id FROM osgprod_data.recent_failures x
                                 WHERE x.failure_id = ANY (p_cause.ids) AND x.blamed IS NULL FOR NO KEY UPDATE SKIP LOCKED)
        RETURNING r.failure_id
    )
    SELECT array_agg(c.failure_id) INTO v_cleared FROM cleared c WHERE c.failure_id <> p_failure.failure_id;
    IF v_is_merge THEN
        UPDATE osgprod_data.merges m
           SET failures = greatest(m.failures - c.failures, 0), faults = greatest(m.faults - c.faults, 0),
               state = CASE m.state WHEN 'failed' THEN 'ready' ELSE m.state END,
               not_before = CASE WHEN m.is_ready IS NOT NULL THEN now() END  -- the next tick lets jobs have it
          FROM (SELECT r.merge_id, r.opened_at, count(*) FILTER (WHERE r.is_failure) AS failures,
                       count(*) FILTER (WHERE NOT r.is_failure) AS faults
                  FROM osgprod_data.recent_failures r WHERE r.failure_id = ANY (v_cleared)
                 GROUP BY r.merge_id, r.opened_at) c
         WHERE m.opened_at = c.opened_at AND m.merge_id = (
            SELECT x.merge_id FROM osgprod_data.merges x
             WHERE x.merge_id = c.merge_id AND x.state IN ('ready', 'failed', 'leased')
               FOR NO KEY UPDATE SKIP LOCKED);
    END IF;
    FOR v_slice IN
        SELECT s.rawdata_id, s.block1, greatest(s.failures - c.failures, 0) AS failures,
               greatest(s.faults - c.faults, 0) AS faults
          FROM (SELECT r.rawdata_id, r.block1, r.opened_at, count(*) FILTER (WHERE r.is_failure) AS failures,
                       count(*) FILTER (WHERE NOT r.is_failure) AS faults
                  FROM osgprod_data.recent_failures r WHERE r.failure_id = ANY (v_cleared) AND NOT v_is_merge
                 GROUP BY r.rawdata_id, r.block1, r.opened_at) c
          JOIN osgprod_data.slices s ON s.project_id = p_project.project_id AND s.rawdata_id = c.rawdata_id
                                    AND s.block1 = c.block1 AND s.opened_at = c.opened_at
         WHERE s.state <> 'done'
         ORDER BY s.run, s.seqno, s.block1
           FOR NO KEY UPDATE OF s SKIP LOCKED
    LOOP
        PERFORM osgprod._lower_failure_counts(p_project, v_slice.rawdata_id, v_slice.block1, v_slice.failures::int,
            v_slice.faults::int);
    END LOOP;
    UPDATE osgprod_data.worker_bans b SET until = now(), banned_at = now(), times = 0, reason = 'not its fault'
     WHERE p_cause.scope IN ('project', 'place', 'file') AND (b.project_id, b.worker) IN (
        SELECT c.project_id, c.worker FROM osgprod_data.worker_bans c
         WHERE c.project_id = p_project.project_id AND c.times > 0 AND c.banned_at >= p_cause.since AND c.worker IN (
               SELECT CASE WHEN v_is_merge THEN 'merges:' ELSE '' END || n.name FROM osgprod_data.recent_failures r
                CROSS JOIN LATERAL (VALUES (r.worker), (r.address),
                    (CASE p_cause.scope WHEN 'project' THEN osgprod._ban_of_place(r.place) END)) AS n (name)
                WHERE r.failure_id = ANY (p_cause.ids))
           FOR NO KEY UPDATE SKIP LOCKED);
    IF FOUND THEN
        PERFORM osgprod._note_bans(p_project.project_id);
    END IF;
END
$fn$;
