CREATE FUNCTION osgprod.checkout_slice(
    p_project    text,
    p_cluster    bigint,
    p_process    bigint,
    p_cpus       bigint DEFAULT 1,
    p_magic      text   DEFAULT NULL,
    p_client     inet   DEFAULT NULL,
    p_workscript text   DEFAULT NULL,
    p_host       text   DEFAULT NULL,
    p_site       text   DEFAULT NULL,
    p_bearer     jsonb  DEFAULT NULL)
RETURNS TABLE (
    status       text,
    message      text,
    retry_s      int,
    workscript   text,
    nstarts      int,
    token        uuid,
    lease_s      int,
    heartbeat_s  int,
    started_at   timestamptz,
    url          text,
    filename     text,
    block1       int,
    block2       int,
    size_bytes   bigint,
    events       bigint,
    pieces       text[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
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
--             its own, preamble and trailer counted; pieces: 'range OFFSET LENGTH' [bytes] of url or 'hex ...', whose
--             concatenation is that file
-- Errors:     OG101-OG104 bad parameter; OG2xx not allowed; OG301 unknown project; OG501 project paused;
--             OG601 worker banned; OG602 job starts too often; OG603 project has too many live attempts
-- Locks:      the job, then one row of idle_slices SKIP LOCKED and its slice, or one file (advisory)
-- Source:     docs/design.md "A slice's life", I1-I4
DECLARE
    v_project osgprod_data.projects;
    v_last    osgprod_data.attempts;
    v_slice   record;
    v_client  inet := osgprod._plain_address(p_client);
BEGIN
    v_project := osgprod._authorize(p_project, p_magic, v_client, p_bearer);
    PERFORM osgprod._check_job(p_cluster, p_process);
    IF p_cpus NOT BETWEEN 1 AND 4096 OR p_cpus IS NULL THEN
        RAISE EXCEPTION 'parameter cpus must be a number from 1 to 4096, not %', coalesce(p_cpus::text, 'nothing')
            USING ERRCODE = 'OG104', HINT = 'pass the cores that the job has, or leave cpus out for 1';
    END IF;
    workscript := v_project.workscript;
    IF p_workscript <> v_project.workscript THEN
        status := 'template';
        RETURN NEXT;
        RETURN;
    END IF;
    IF v_project.state = 'paused' THEN
        RAISE EXCEPTION 'project % is paused', v_project.name USING ERRCODE = 'OG501', HINT = 'try again later';
    END IF;
    PERFORM osgprod._check_worker(v_project, osgprod._worker(v_client, p_host));
    PERFORM osgprod._lock_job(v_project.project_id, p_cluster, p_process);

    SELECT a.* INTO v_last FROM attempts a
     WHERE a.project_id = v_project.project_id AND a.cluster = p_cluster AND a.process = p_process
     ORDER BY a.nstart DESC LIMIT 1;
    IF FOUND THEN
        PERFORM osgprod._check_start_rate(v_project, v_last);
        IF osgprod._is_completed(v_last) THEN
            status := 'completed';
            message := format('job %s.%s has already completed its work', p_cluster, p_process);
            RETURN NEXT;
            RETURN;
        END IF;
    END IF;
    nstarts := coalesce(v_last.nstart, 0) + 1;

    SELECT s.* INTO v_slice FROM osgprod._take_slice(v_project, v_last, p_cluster::int, p_process::int, nstarts,
        least(p_cpus * v_project.maxblockspercore, 2147483647)::int) s;
    IF v_slice.rawdata_id IS NULL THEN
        SELECT w.status, w.message, w.retry_s INTO status, message, retry_s FROM osgprod._why_no_slice(v_project) w;
        nstarts := NULL;
        RETURN NEXT;
        RETURN;
    END IF;

    status := 'assigned';
    token := gen_random_uuid();
    started_at := clock_timestamp();  -- not now(): the transaction may have waited for a lock since it began
    lease_s := v_project.lease_s;
    heartbeat_s := v_project.heartbeat_s;
    block1 := v_slice.block1;
    block2 := v_slice.block2;
    INSERT INTO attempts (project_id, cluster, process, nstart, rawdata_id, block1, block2, cpus, started_at,
            token_digest, client, host, site)
    VALUES (v_project.project_id, p_cluster, p_process, nstarts, v_slice.rawdata_id, v_slice.block1, v_slice.block2,
            p_cpus, started_at, sha256(convert_to(token::text, 'UTF8')), v_client, osgprod._label(p_host), osgprod._label(p_site));
    SELECT d.url, d.filename, d.size_bytes, d.events, d.pieces INTO url, filename, size_bytes, events, pieces
      FROM osgprod._slice_file(v_project, v_slice.rawdata_id, v_slice.block1, v_slice.block2) d;
    RETURN NEXT;
END
$fn$;

COMMENT ON FUNCTION osgprod.checkout_slice(text, bigint, bigint, bigint, text, inet, text, text, text, jsonb) IS
'Lends a job its slice: its own one again after a restart, else one that came back, else the next of a file; one row, whose status says what to do. For osgprod_worker.';

CREATE FUNCTION osgprod._check_start_rate(p_project osgprod_data.projects, p_last osgprod_data.attempts)
RETURNS void LANGUAGE plpgsql STABLE
AS $fn$
-- Raises when a job has started max_starts_per_min times within a minute: a machine gone mad.
-- Parameters: p_project  the project's row;  p_last  the job's last attempt
-- Errors:     OG602
BEGIN
    IF p_last.nstart < p_project.max_starts_per_min THEN
        RETURN;
    END IF;
    IF EXISTS (
        SELECT FROM osgprod_data.attempts a
         WHERE a.project_id = p_last.project_id AND a.cluster = p_last.cluster AND a.process = p_last.process
           AND a.nstart = p_last.nstart - p_project.max_starts_per_min + 1
           AND a.started_at > now() - interval '1 minute')
    THEN
        RAISE EXCEPTION 'job %.% has started % times within a minute', p_last.cluster, p_last.process,
            p_project.max_starts_per_min USING ERRCODE = 'OG602', HINT = 'wait a minute; see why the job restarts';
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._is_completed(p_last osgprod_data.attempts)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Did this attempt end its job's work, and does that still hold (the slice not recycled since)?
    SELECT EXISTS (
        SELECT FROM osgprod_data.reports r
         WHERE r.project_id = p_last.project_id AND r.cluster = p_last.cluster AND r.process = p_last.process
           AND r.nstart = p_last.nstart AND r.by_worker AND r.outcome = 'done')
       AND EXISTS (
        SELECT FROM osgprod_data.slices s
         WHERE s.project_id = p_last.project_id AND s.rawdata_id = p_last.rawdata_id AND s.block1 = p_last.block1
           AND s.state = 'done')
$fn$;

CREATE FUNCTION osgprod._why_no_slice(p_project osgprod_data.projects)
RETURNS TABLE (status text, message text, retry_s int) LANGUAGE plpgsql VOLATILE
AS $fn$
-- Says whether an empty-handed job should wait (work may come back) or go.
-- Parameters: p_project  the project's row
-- Returns:    one row: status wait with retry_s [s], or no-work
-- Locks:      files that turn out to be finished
BEGIN
    IF p_project.state = 'draining' THEN
        RETURN QUERY SELECT 'no-work', format('project %s is draining, no new work is lent out', p_project.name), 0;
    ELSIF EXISTS (SELECT FROM osgprod_data.loaded_files f
                   WHERE f.project_id = p_project.project_id AND f.state IN ('fresh', 'begun')) THEN
        -- Not empty, only crowded: every file was being cut by somebody else at that moment.
        RETURN QUERY SELECT 'wait', format('project %s is busy, ask again at once', p_project.name), 1;
    ELSIF osgprod._settle_files(p_project.project_id) THEN
        RETURN QUERY SELECT 'wait', format('all remaining work of project %s is out on lease, some may come back',
            p_project.name), p_project.wait_s;
    ELSE
        RETURN QUERY SELECT 'no-work', format('no work left in project %s', p_project.name), 0;
    END IF;
END
$fn$;
