CREATE FUNCTION osgprod.heartbeat(
    p_project text,
    p_cluster bigint,
    p_process bigint,
    p_magic   text   DEFAULT NULL,
    p_client  inet   DEFAULT coalesce(inet_client_addr(), '127.0.0.1'),
    p_token   text   DEFAULT NULL,
    p_bytes   bigint DEFAULT NULL,
    p_cpu_s   bigint DEFAULT NULL,
    p_bearer  jsonb  DEFAULT NULL,
    p_job_key text   DEFAULT NULL,
    OUT http_status int,
    OUT status      text,
    OUT message     text,
    OUT lease_s     int)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $fn$
-- Renews the lease of a living attempt, or tells a dead one to stop.
-- Promise:    a repeated call renews again. An attempt that was silent past its lease gets its slice back by beating as
--             long as nobody else has it and its job has not started again; one that is told to stop stays dead.
-- Parameters: p_project, p_magic, p_client, p_bearer  see _authorize
--             p_cluster, p_process  HTCondor's identity of the job [0 .. 2147483647];  p_token  the attempt's token
--             p_job_key  see _find_attempt: needed only where no token is sent
--             p_bytes  bytes fetched so far;  p_cpu_s  CPU seconds used so far; NULL = not told
-- Returns:    one row. http_status 200: status alive, lease_s [s] from now; 409: status superseded (another holds the
--             slice, or it is done) or wedged (no progress for the project's wedged_s): stop the work; 403: refused
-- Errors:     OG101-OG103 bad parameter; OG2xx not allowed; OG301 unknown project; OG303 job without attempt;
--             OG502 files of the project are begun anew at this moment
-- Locks:      the job, the slice, then the file when a wedged one is split
-- Source:     docs/design.md "A slice's life", I3
DECLARE
    v_client  inet := osgprod._plain_address(p_client);
    v_project projects := osgprod._authorize(p_project, p_magic, v_client, p_bearer, p_cluster, p_process);
    v_attempt attempts := osgprod._find_attempt(v_project, p_cluster, p_process, p_token, v_client, p_job_key);
    v_slice   slices;
BEGIN
    IF v_attempt.nstart IS NULL THEN
        SELECT f.* INTO http_status, status, message
          FROM osgprod._refuse(v_project, p_cluster, p_process, v_client, p_token) f;
        RETURN;
    END IF;
    SELECT s.* INTO v_slice FROM slices s
     WHERE s.project_id = v_attempt.project_id AND s.rawdata_id = v_attempt.rawdata_id AND s.block1 = v_attempt.block1
       AND s.state = 'leased'
       AND s.cluster = v_attempt.cluster AND s.process = v_attempt.process AND s.nstart = v_attempt.nstart
       FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        v_slice := osgprod._lost_slice(v_attempt);
        DELETE FROM idle_slices i
         WHERE i.project_id = v_slice.project_id AND i.rawdata_id = v_slice.rawdata_id AND i.block1 = v_slice.block1;
    END IF;
    IF v_slice.block1 IS NULL THEN
        http_status := 409;
        SELECT d.status, d.message INTO status, message FROM osgprod._why_dead(v_attempt) d;
        RETURN;
    END IF;
    -- Progress is anything that grew since the last beat; an attempt that has told nothing yet counts from its start.
    IF p_bytes > coalesce(v_slice.bytes_fetched, -1) OR p_cpu_s > coalesce(v_slice.cpu_s, -1) THEN
        v_slice.progress_at := now();
    ELSIF coalesce(v_slice.progress_at, v_attempt.started_at) < now() - make_interval(secs => v_project.wedged_s) THEN
        -- It will be silent from now on: no need to wait for its lease.
        PERFORM osgprod._lose_slice(v_project, v_slice, 'lost', format('no progress for more than %s s', v_project.wedged_s));
        http_status := 409;
        SELECT d.status, d.message INTO status, message FROM osgprod._why_dead(v_attempt) d;
        RETURN;
    END IF;
    -- A lost slice is leased again here, or lost once more above, not before: a row that is updated twice in a transaction
    -- is checked against its foreign key, which fails while somebody splits the slice before it.
    UPDATE slices s
       SET state = 'leased', due_at = now() + make_interval(secs => v_project.lease_s), progress_at = v_slice.progress_at,
           bytes_fetched = greatest(p_bytes, v_slice.bytes_fetched), cpu_s = greatest(p_cpu_s, v_slice.cpu_s)
     WHERE s.project_id = v_slice.project_id AND s.rawdata_id = v_slice.rawdata_id AND s.block1 = v_slice.block1;
    http_status := 200;
    status := 'alive';
    message := 'go on';
    lease_s := v_project.lease_s;
END
$fn$;

COMMENT ON FUNCTION osgprod.heartbeat(text, bigint, bigint, text, inet, text, bigint, bigint, jsonb, text) IS
'Renews the lease of a living attempt, or tells one that lost its slice to stop; one row with the HTTP status to answer. For osgprod_worker.';

CREATE FUNCTION osgprod.heartbeats(p_calls json)
RETURNS TABLE (n int, http_status int, status text, message text, lease_s int)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $fn$
-- Does heartbeat for several jobs in one transaction.
-- Promise:    that of heartbeat, for each. When one is in error, nothing happens for any.
-- Parameters: p_calls  list of objects, each with a number n and the parameters of heartbeat, without their p_; what is
--                      missing is null, other names don't matter
-- Returns:    one row for each: its n and what heartbeat gives, in any order
-- Errors:     those of heartbeat, OG1xx to OG5xx
-- Locks:      those of heartbeat; the jobs in the order of project and numbers
-- Source:     docs/design.md "Together"
BEGIN
    RETURN QUERY
    SELECT r.n, h.*
      FROM (SELECT q.* FROM json_to_recordset(p_calls) AS q (n int, project text, cluster bigint, process bigint,
                   magic text, client inet, token text, bytes bigint, cpu_s bigint, bearer jsonb,
                   job_key text)
             ORDER BY q.project, q.cluster, q.process, q.n) r
     CROSS JOIN LATERAL osgprod.heartbeat(r.project, r.cluster, r.process, r.magic, r.client, r.token, r.bytes, r.cpu_s,
                                          r.bearer, r.job_key) h;
END
$fn$;

COMMENT ON FUNCTION osgprod.heartbeats(json) IS
'Does heartbeat for several jobs at once, in one transaction; one row for each. For osgprod_worker.';

CREATE FUNCTION osgprod._lost_slice(p_attempt osgprod_data.attempts)
RETURNS osgprod_data.slices LANGUAGE plpgsql VOLATILE
AS $fn$
-- Finds the slice that an attempt which was silent past its lease, and lives after all, may have back.
-- Parameters: p_attempt  the attempt, its job locked
-- Returns:    the slice, locked; NULLs when it is lent, done, split or recycled, when the attempt has reported
--             or was told to stop, or when its job has started again (I3: a job holds one slice)
-- Locks:      the slice
DECLARE
    v_slice osgprod_data.slices;
BEGIN
    SELECT s.* INTO v_slice FROM osgprod_data.slices s
     WHERE s.project_id = p_attempt.project_id AND s.rawdata_id = p_attempt.rawdata_id AND s.block1 = p_attempt.block1
       AND s.state = 'ready' AND s.due_at IS NOT NULL AND s.opened_at = p_attempt.opened_at
       AND s.cluster = p_attempt.cluster AND s.process = p_attempt.process AND s.nstart = p_attempt.nstart
       AND NOT EXISTS (SELECT FROM osgprod_data.reports r
                        WHERE r.project_id = s.project_id AND r.cluster = s.cluster AND r.process = s.process
                          AND r.nstart = s.nstart AND r.by_worker)
       AND NOT EXISTS (SELECT FROM osgprod_data.attempts a
                        WHERE a.project_id = s.project_id AND a.cluster = s.cluster AND a.process = s.process
                          AND a.nstart > s.nstart)
       FOR NO KEY UPDATE;
    RETURN v_slice;
END
$fn$;

CREATE FUNCTION osgprod._why_dead(p_attempt osgprod_data.attempts)
RETURNS TABLE (status text, message text) LANGUAGE sql STABLE
AS $fn$
    -- What an attempt that has lost its slice is told: the server's verdict on it, if it gave a reason, or that others were
    -- faster; the same each time.
    SELECT CASE WHEN v.reason IS NULL THEN 'superseded' ELSE 'wedged' END,
           'stop: ' || coalesce(v.reason, 'this slice was done or given to another meanwhile')
      FROM (SELECT 1) one
      LEFT JOIN osgprod._all_reports(p_attempt.project_id) v
        ON v.cluster = p_attempt.cluster AND v.process = p_attempt.process AND v.nstart = p_attempt.nstart
       AND NOT v.by_worker
$fn$;
