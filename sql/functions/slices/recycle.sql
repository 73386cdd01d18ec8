CREATE FUNCTION osgprod.recycle(
    p_project   text,
    p_states    text[]  DEFAULT ARRAY['quarantined', 'failed'],
    p_runs      int[]   DEFAULT NULL,
    p_path      text    DEFAULT NULL,
    p_exit_code int     DEFAULT NULL,
    p_dry_run   boolean DEFAULT false,
    p_client    inet    DEFAULT NULL,
    p_since     timestamptz DEFAULT NULL,
    p_cluster   int     DEFAULT NULL,
    p_process   int     DEFAULT NULL)
RETURNS TABLE (run int, seqno int, path text, block1 int, block2 int, was text, exit_code int)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
-- Slices are found by state, and all else by key, with any statistics of the planner.
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $fn$
-- Requeues slices with counts of failures of 0, to be assigned at once unless their file is suspended or on tape only.
-- Promise:    leased slices, and those that another session has locked at this moment, are never touched; reports of attempts from
--             before no longer count. A repeated call finds nothing more to do.
-- Parameters: p_project    project name
--             p_states     which: quarantined, failed (in a backoff, or ready with failures or faults counted), done
--             p_runs       run numbers; NULL = all
--             p_path       path of one file, or an SQL LIKE pattern; NULL = all
--             p_exit_code  only slices whose last report had this exit code [0 .. 255]; NULL = any
--             p_dry_run    true = nothing is changed
--             p_client     only slices that were last leased to this address or network; NULL = any. So what somebody did
--                          with a stolen magic is undone
--             p_since      only slices whose last report came at this time or later; NULL = any
--             p_cluster    only slices that were last leased to jobs of this cluster [0 .. 2147483647]; NULL = any
--             p_process    only to this one of them [0 .. 2147483647]; NULL = all of the cluster
-- Returns:    a row a slice, as it was
-- Errors:     OG301 unknown project; OG108 unknown state, or a process without a cluster; OG502 an operator has the project alone; OG901 isolation level
-- Locks:      the project, shared (advisory: project_id, -1), tried; the slices in their order, SKIP LOCKED; then their files, in
--             order; then see _reopen_slice
DECLARE
    v_project_id int := (osgprod._get_project(p_project)).project_id;
    v_path       text := osgprod._path_pattern(p_path);
    v_slice      record;
    v_files      int[] := '{}'::int[];  -- of each slice the file
    v_blocks     int[] := '{}'::int[];  -- and the first block
BEGIN
    PERFORM osgprod._require_read_committed();
    IF NOT coalesce(p_states <@ ARRAY['quarantined', 'failed', 'done'], false) THEN
        RAISE EXCEPTION 'states to recycle are quarantined, failed and done, not %', osgprod._shortened(p_states::text)
            USING ERRCODE = 'OG108', HINT = 'leased slices are requeued by themselves when their lease expires';
    END IF;
    IF p_process IS NOT NULL AND p_cluster IS NULL THEN
        RAISE EXCEPTION 'process % is given without its cluster', p_process USING ERRCODE = 'OG108',
            HINT = format('add the cluster: osgprod slices recycle %s --cluster N --process %s', p_project, p_process);
    END IF;
    PERFORM osgprod._enter_project(v_project_id, p_project);
    FOR v_slice IN
        SELECT f.run, f.seqno, w.path, s.rawdata_id, s.block1, s.block2, s.state, r.exit_code, f.state AS file_state
          FROM (  -- by state, so that the partial indexes serve; the states are compared again when the slices are locked
            SELECT x.rawdata_id, x.block1 FROM slices x
             WHERE x.project_id = v_project_id AND x.is_ready IS FALSE AND x.not_before IS NULL AND 'quarantined' = ANY (p_states)
            UNION ALL
            SELECT x.rawdata_id, x.block1 FROM slices x
             WHERE x.project_id = v_project_id AND x.is_ready IS FALSE AND x.not_before IS NOT NULL AND 'failed' = ANY (p_states)
            UNION ALL
            SELECT x.rawdata_id, x.block1 FROM slices x
             WHERE x.project_id = v_project_id AND x.is_ready AND 'failed' = ANY (p_states)
            UNION ALL
            SELECT x.rawdata_id, x.block1 FROM slices x
             WHERE x.project_id = v_project_id AND x.state = 'done' AND 'done' = ANY (p_states)) c
          JOIN slices s ON s.project_id = v_project_id AND s.rawdata_id = c.rawdata_id AND s.block1 = c.block1
          JOIN loaded_files f ON f.project_id = s.project_id AND f.rawdata_id = s.rawdata_id
          JOIN rawdata w ON w.rawdata_id = s.rawdata_id
          LEFT JOIN reports r ON r.project_id = s.project_id AND r.cluster = s.cluster AND r.process = s.process
                             AND r.nstart = s.nstart AND r.by_worker
         WHERE CASE s.state WHEN 'ready' THEN (s.failures + s.faults > 0 OR s.not_before > now()) AND 'failed' = ANY (p_states)
                            WHEN 'leased' THEN false ELSE s.state::text = ANY (p_states) END
           AND (p_runs IS NULL OR f.run = ANY (p_runs))
           AND (v_path IS NULL OR w.path LIKE v_path)
           AND (p_exit_code IS NULL OR r.exit_code = p_exit_code)
           AND (p_since IS NULL OR r.reported_at >= p_since)
           AND (p_cluster IS NULL OR s.cluster = p_cluster) AND (p_process IS NULL OR s.process = p_process)
           AND (p_client IS NULL OR EXISTS (
                SELECT FROM attempts a
                 WHERE a.project_id = s.project_id AND a.cluster = s.cluster AND a.process = s.process
                   AND a.nstart = s.nstart AND a.client <<= p_client))
         ORDER BY f.run, f.seqno, s.rawdata_id, s.block1
           FOR NO KEY UPDATE OF s SKIP LOCKED
    LOOP
        run := v_slice.run;
        seqno := v_slice.seqno;
        path := v_slice.path;
        block1 := v_slice.block1;
        block2 := v_slice.block2;
        was := CASE v_slice.state WHEN 'ready' THEN 'failed' ELSE v_slice.state::text END;
        exit_code := v_slice.exit_code;
        v_files := v_files || v_slice.rawdata_id;
        v_blocks := v_blocks || v_slice.block1;
        RETURN NEXT;
    END LOOP;
    IF NOT p_dry_run THEN
        PERFORM osgprod._lock_files(v_project_id, v_files);
        PERFORM osgprod._reopen_slice(v_project_id, x.rawdata_id, x.block1) FROM unnest(v_files, v_blocks) AS x (rawdata_id, block1);
    END IF;
    PERFORM osgprod._log_operation('recycle', p_project, jsonb_build_object('states', array_to_string(p_states, ','),
        'runs', osgprod._runs_text(p_runs), 'path', p_path, 'exit_code', p_exit_code, 'client', p_client, 'since', p_since,
        'cluster', p_cluster, 'process', p_process),
        CASE WHEN NOT p_dry_run THEN cardinality(v_files) END);
END
$fn$;

COMMENT ON FUNCTION osgprod.recycle(text, text[], int[], text, int, boolean, inet, timestamptz, int, int) IS
'Requeues quarantined, failed or done slices, chosen by state, run, path, last exit code, client, time and job; with p_dry_run it changes nothing. For osgprod_operator.';

CREATE FUNCTION osgprod._path_pattern(p_path text)
RETURNS text LANGUAGE sql STABLE
AS $fn$
    -- The LIKE pattern for the files that an operator's call means: the file of that path and no other, even where the path looks
    -- like a pattern; a pattern only where no registered file has that path.
    SELECT CASE WHEN EXISTS (SELECT FROM osgprod_data.rawdata w WHERE w.path = p_path)
                THEN regexp_replace(p_path, '([\\%_])', '\\\1', 'g') ELSE osgprod._pattern(p_path) END
$fn$;

CREATE FUNCTION osgprod._pattern(p_text text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- A LIKE pattern; a single escape character at its end, which LIKE refuses, means that character.
    SELECT p_text || CASE WHEN p_text ~ '(^|[^\\])(\\\\)*\\$' THEN '\' ELSE '' END
$fn$;
