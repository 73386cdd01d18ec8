CREATE FUNCTION osgprod.quarantined(p_project text, p_limit int DEFAULT 1000)
RETURNS TABLE (run int, seqno int, path text, block int, offset_bytes bigint, size_bytes bigint, events bigint,
    exit_code int, exit_codes int[], reason text, worker text, site text, reported_at timestamptz, log_url text, job text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Lists the blocks that can't be done, with everything needed to look into them. What quarantines a block: _fail_slice.
-- Parameters: p_project  project name;  p_limit  rows at most [1 .. 100000]
-- Returns:    a row a block: its file, byte range [bytes] and events there, the exit codes of its last 5 failures and node
--             faults (exit_codes, the newest last), and the last report on it: exit code, reason,
--             where, when, the URL of its output or log, and the job (cluster.process, start)
-- Errors:     OG301 unknown project; OG108 limit out of range
DECLARE
    v_project_id int := (osgprod._get_project(p_project)).project_id;
BEGIN
    RETURN QUERY
    SELECT w.run, w.seqno, w.path, s.block1, osgprod._int8_at(w.block_index, 12 * s.block1),
           osgprod._int8_at(w.block_index, 12 * s.block2) - osgprod._int8_at(w.block_index, 12 * s.block1),
           osgprod._int4_at(w.block_index, 12 * s.block2 + 8) - osgprod._int4_at(w.block_index, 12 * s.block1 + 8),
           r.exit_code, s.exit_codes, r.reason, r.worker, r.site, r.reported_at, osgprod._without_secrets(r.output_url),
           format('%s.%s start %s', s.cluster, s.process, s.nstart)
      FROM slices s
      JOIN rawdata w ON w.rawdata_id = s.rawdata_id
      LEFT JOIN LATERAL (
          SELECT x.* FROM reports x
           WHERE x.project_id = s.project_id AND x.cluster = s.cluster AND x.process = s.process AND x.nstart = s.nstart
           ORDER BY x.by_worker DESC LIMIT 1) r ON true
     WHERE s.project_id = v_project_id AND s.is_ready IS FALSE AND s.not_before IS NULL
     ORDER BY s.run, s.seqno, s.block1
     LIMIT osgprod._limit(p_limit);
END
$fn$;

COMMENT ON FUNCTION osgprod.quarantined(text, int) IS
'Lists the blocks that can''t be done: file, byte range, events, last exit codes, where, and the URL of the log. For osgprod_worker and osgprod_operator.';
