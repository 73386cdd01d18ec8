CREATE FUNCTION osgprod.checkout_slice(
    p_project    text,
    p_cluster    bigint,
    p_process    bigint,
    p_cpus       bigint DEFAULT 1,
    p_magic      text   DEFAULT NULL,
    p_client     inet   DEFAULT coalesce(inet_client_addr(), '127.0.0.1'),
    p_workscript text   DEFAULT NULL,
    p_host       text   DEFAULT NULL,
    p_site       text   DEFAULT NULL,
    p_bearer     jsonb  DEFAULT NULL,
    OUT status      text,
    OUT message     text,
    OUT retry_s     int,
    OUT workscript  text,
    OUT nstarts     int,
    OUT token       uuid,
    OUT lease_s     int,
    OUT heartbeat_s int,
    OUT started_at  timestamptz,
    OUT url         text,
    OUT filename    text,
    OUT block1      int,
    OUT block2      int,
    OUT size_bytes  bigint,
    OUT events      bigint,
    OUT pieces      text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $fn$
-- Lends a job its slice: its own one again after a restart, else one that came back, else the next of a file.
-- Promise:    a repeated call by the same job gives the same slice with nstarts counted up and a new token, so a lost
--             answer loses nothing. Two calls at once by one job give one slice. Nothing changes unless status is
--             assigned.
-- Parameters: p_project            project name
--             p_cluster, p_process HTCondor's identity of the job [0 .. 2147483647]
--             p_cpus               cores the job has [1 .. 4096]; the slice has at most maxblockspercore blocks a core
--             p_magic, p_client, p_bearer  see _authorize
--             p_workscript         the template that the caller holds in hand; a slice is lent only when it is the
--                                  project's; NULL = don't ask
--             p_host, p_site       where the job runs, as it says
-- Returns:    always one row. status:
--             assigned   the slice is yours until lease_s [s] after your last heartbeat
--             completed  this job's work is done
--             wait       nothing now, but work may come back: ask again in retry_s [s]
--             no-work    nothing left
--             template   fetch the template named in workscript first, then call again
--             block1, block2: half-open range of blocks, 0-based; size_bytes [bytes], events: of the slice as a file of
--             its own, preamble and trailer counted; pieces: lines 'range OFFSET LENGTH' [bytes] of url or 'hex ...',
--             whose concatenation is that file
-- Errors:     OG101-OG104 bad parameter; OG2xx not allowed; OG301 unknown project; OG501 project paused;
--             OG502 its files are begun anew at this moment; OG601 worker banned; OG602 job starts too often; OG603 project has too many live attempts
-- Locks:      the job, then one row of idle_slices SKIP LOCKED and its slice, or one file (advisory: project_id, rawdata_id)
-- Source:     docs/design.md "A slice's life", I1-I4
DECLARE
    v_client  inet := osgprod._plain_address(p_client);
    v_project projects := osgprod._authorize(p_project, p_magic, v_client, p_bearer, p_cluster, p_process);
    v_work    record;
    v_end     int;  -- of the file's last slice
BEGIN
    -- Written for few statements and expressions: each costs more than what it does (docs/performance.md).
    IF p_cpus NOT BETWEEN 1 AND 4096 OR p_cpus IS NULL OR p_workscript <> v_project.workscript
       OR v_project.state = 'paused' OR v_project.banned_until > now() THEN
        status := osgprod._check_checkout(v_project, p_cpus, p_workscript, osgprod._worker(v_client, p_host));
        workscript := v_project.workscript;
        IF status IS NOT NULL THEN
            RETURN;
        END IF;
    END IF;

    -- The common case at once: a job that is new, nothing that came back, a file that nobody else is cutting.
    SELECT f.rawdata_id, f.block1, f.block2, NULL::timestamptz AS opened_at, f.is_fresh, 1 AS nstart
      INTO v_work
      FROM osgprod._free_file(v_project.project_id) f
     WHERE v_project.state = 'active' AND coalesce(v_project.nlive < v_project.max_live, true)
       AND NOT EXISTS (SELECT FROM attempts a
                        WHERE a.project_id = v_project.project_id AND a.cluster = p_cluster AND a.process = p_process)
       AND NOT EXISTS (SELECT FROM idle_slices i
                        WHERE i.project_id = v_project.project_id AND i.not_before <= clock_timestamp());
    LOOP
        IF v_work.rawdata_id IS NULL THEN
            v_work := osgprod._find_work(v_project, p_cluster::int, p_process::int,
                least(p_cpus * v_project.maxblockspercore, 2147483647)::int);
            IF v_work.rawdata_id IS NULL THEN
                SELECT w.status, w.message, w.retry_s INTO status, message, retry_s
                  FROM osgprod._why_no_work(v_project, p_cluster, p_process, v_work.is_completed) w;
                RETURN;
            END IF;
        END IF;
        EXIT WHEN v_work.opened_at IS NOT NULL;
        -- I1: a new slice begins where the file's last one ends, read under its lock and after it was taken. Nothing
        -- that the next cut reads is updated, so a snapshot held by pg_dump slows nothing.
        v_end := (SELECT l.block2 FROM slices l
                   WHERE l.project_id = v_project.project_id AND l.rawdata_id = v_work.rawdata_id
                   ORDER BY l.block1 DESC LIMIT 1);
        EXIT WHEN v_end IS NULL OR v_end < v_work.block2;
        -- The file was cut to its end before its lock was ours. We hold that now: see _may_hold_file.
        PERFORM pg_current_xact_id();
        v_work.rawdata_id := NULL;
    END LOOP;

    token := gen_random_uuid();
    started_at := clock_timestamp();  -- not now(): the transaction may have waited for a lock since it began
    IF v_work.opened_at IS NULL THEN
        INSERT INTO slices AS s (project_id, rawdata_id, block1, block2, follows, cluster, process, nstart, opened_at,
               due_at)
        VALUES (v_project.project_id, v_work.rawdata_id, coalesce(v_end, v_work.block1),
               least(coalesce(v_end, v_work.block1) + p_cpus * v_project.maxblockspercore, v_work.block2), v_end,
               p_cluster, p_process, v_work.nstart, started_at, started_at + make_interval(secs => v_project.lease_s))
        RETURNING s.block1, s.block2, s.opened_at INTO block1, block2, v_work.opened_at;
        IF v_work.is_fresh OR block2 = v_work.block2 THEN
            UPDATE loaded_files f
               SET state = CASE WHEN checkout_slice.block2 = v_work.block2 THEN 'cut' ELSE 'begun' END::file_state
             WHERE f.project_id = v_project.project_id AND f.rawdata_id = v_work.rawdata_id
               AND f.state IN ('fresh', 'begun');
        END IF;
        v_work.block1 := block1;
        v_work.block2 := block2;
    END IF;
    INSERT INTO attempts (project_id, cluster, process, nstart, rawdata_id, block1, block2, opened_at, cpus, started_at,
           token_digest, client, host, site)
    VALUES (v_project.project_id, p_cluster, p_process, v_work.nstart, v_work.rawdata_id, v_work.block1, v_work.block2,
           v_work.opened_at, p_cpus, checkout_slice.started_at, sha256(convert_to(token::text, 'UTF8')), v_client,
           osgprod._label(p_host), osgprod._label(p_site));
    SELECT 'assigned', v_project.workscript, v_project.lease_s, v_project.heartbeat_s, v_work.nstart, v_work.block1,
           v_work.block2, f.url, f.filename, f.size_bytes, f.events, f.pieces
      INTO status, workscript, lease_s, heartbeat_s, nstarts, block1, block2, url, filename, size_bytes, events, pieces
      FROM osgprod._slice_file(v_work.rawdata_id, v_work.block1, v_work.block2, v_project.xrootd_prefix,
                               v_project.strip_prefix) f;
END
$fn$;

COMMENT ON FUNCTION osgprod.checkout_slice(text, bigint, bigint, bigint, text, inet, text, text, text, jsonb) IS
'Lends a job its slice: its own one again after a restart, else one that came back, else the next of a file; one row, whose status says what to do. For osgprod_worker.';

CREATE FUNCTION osgprod._check_checkout(
    p_project osgprod_data.projects, p_cpus bigint, p_workscript text, p_worker text)
RETURNS text LANGUAGE plpgsql STABLE
AS $fn$
-- Finds out what stands against a checkout, called when something may.
-- Parameters: p_project  the project's row;  p_worker  see _worker;  the others see checkout_slice
-- Returns:    template when the caller holds another work script than the project's; NULL = nothing stands against it
-- Errors:     OG104 cpus, OG501 paused, OG601 banned
BEGIN
    IF p_cpus NOT BETWEEN 1 AND 4096 OR p_cpus IS NULL THEN
        RAISE EXCEPTION 'parameter cpus must be a number from 1 to 4096, not %', coalesce(p_cpus::text, 'nothing')
            USING ERRCODE = 'OG104', HINT = 'pass the cores that the job has, or leave cpus out for 1';
    END IF;
    IF p_workscript <> p_project.workscript THEN
        RETURN 'template';
    END IF;
    IF p_project.state = 'paused' THEN
        RAISE EXCEPTION 'project % is paused', p_project.name USING ERRCODE = 'OG501', HINT = 'try again later';
    END IF;
    PERFORM osgprod._check_worker(p_project, p_worker);
    RETURN NULL;
END
$fn$;

CREATE FUNCTION osgprod._check_start_rate(
    p_project osgprod_data.projects, p_cluster bigint, p_process bigint, p_nstart int)
RETURNS void LANGUAGE plpgsql STABLE
AS $fn$
-- Raises when a job has started max_starts_per_min times within a minute: a machine gone mad.
-- Parameters: p_project  the project's row;  p_cluster, p_process  the job;  p_nstart  its last start
-- Errors:     OG602
BEGIN
    IF EXISTS (
        SELECT FROM osgprod_data.attempts a
         WHERE a.project_id = p_project.project_id AND a.cluster = p_cluster AND a.process = p_process
           AND a.nstart = p_nstart - p_project.max_starts_per_min + 1
           AND a.started_at > now() - interval '1 minute')
    THEN
        RAISE EXCEPTION 'job %.% has started % times within a minute', p_cluster, p_process,
            p_project.max_starts_per_min USING ERRCODE = 'OG602', HINT = 'wait a minute; see why the job restarts';
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._is_completed(p_project_id int, p_cluster bigint, p_process bigint, p_nstart int)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Did this attempt end its job's work, and does that still hold (the slice not recycled since)?
    SELECT EXISTS (
        SELECT FROM osgprod._all_reports(p_project_id) r
          JOIN osgprod._all_attempts(p_project_id) a
            ON a.cluster = r.cluster AND a.process = r.process AND a.nstart = r.nstart
          JOIN osgprod._all_slices(p_project_id) s ON s.rawdata_id = a.rawdata_id AND s.block1 = a.block1
         WHERE r.cluster = p_cluster AND r.process = p_process AND r.nstart = p_nstart
           AND r.by_worker AND r.outcome = 'done' AND s.state = 'done')
$fn$;

CREATE FUNCTION osgprod._why_no_work(
    p_project osgprod_data.projects, p_cluster bigint, p_process bigint, p_is_completed boolean)
RETURNS TABLE (status text, message text, retry_s int) LANGUAGE plpgsql VOLATILE
AS $fn$
-- Says whether an empty-handed job should wait (work may come back) or go.
-- Parameters: p_project  the project's row;  p_cluster, p_process  the job;  p_is_completed  it has done its work
-- Returns:    one row: status wait with retry_s [s], completed or no-work
-- Locks:      files that turn out to be finished
BEGIN
    IF p_project.state = 'archived' THEN  -- the job's last attempt may be in the archive
        p_is_completed := osgprod._is_completed(p_project.project_id, p_cluster, p_process, (
            SELECT max(a.nstart) FROM osgprod._all_attempts(p_project.project_id) a
             WHERE a.cluster = p_cluster AND a.process = p_process));
    END IF;
    IF p_is_completed THEN
        RETURN QUERY SELECT 'completed', format('job %s.%s has already completed its work', p_cluster, p_process),
            NULL::int;
    ELSIF p_project.state = 'archived' THEN
        RETURN QUERY SELECT 'no-work', format('project %s has ended and is archived', p_project.name), 0;
    ELSIF p_project.state = 'draining' THEN
        RETURN QUERY SELECT 'no-work', format('project %s is draining, no new work is lent out', p_project.name), 0;
    ELSIF EXISTS (SELECT FROM osgprod_data.loaded_files f
                   WHERE f.project_id = p_project.project_id AND f.state IN ('fresh', 'begun')) THEN
        -- Not empty, only crowded: every file was being cut by somebody else at that moment.
        RETURN QUERY SELECT 'wait', format('project %s is busy, ask again at once', p_project.name), 1;
    ELSIF EXISTS (SELECT FROM osgprod_data.idle_slices i
                   WHERE i.project_id = p_project.project_id AND i.not_before <= clock_timestamp()) THEN
        -- Work came back, but somebody had that slice or its file.
        RETURN QUERY SELECT 'wait', format('project %s is busy, ask again soon', p_project.name), least(p_project.wait_s, 5);
    ELSIF osgprod._settle_files(p_project.project_id, false) THEN
        RETURN QUERY SELECT 'wait', format('all remaining work of project %s is out on lease, some may come back',
            p_project.name), p_project.wait_s;
    ELSE
        RETURN QUERY SELECT 'no-work', format('no work left in project %s', p_project.name), 0;
    END IF;
END
$fn$;
