CREATE FUNCTION osgprod.list_slices(
    p_project text,
    p_state   text  DEFAULT NULL,
    p_runs    int[] DEFAULT NULL,
    p_path    text  DEFAULT NULL,
    p_file_id int   DEFAULT NULL,
    p_limit   int   DEFAULT 100)
RETURNS TABLE (run int, seqno int, file_id int, path text, block1 int, block2 int, state text, failures int, faults int,
    not_before timestamptz, cluster int, process int, nstart int, since timestamptz, lease_left_s int,
    output_bytes bigint, output_adler32 text, output_url text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Lists the slices of a project, in the order of their files.
-- Parameters: p_project  project name
--             p_state    leased, done, ready or quarantined; NULL = all;  p_runs  run numbers; NULL = all
--             p_path     path of one file, or an SQL LIKE pattern; NULL = all
--             p_file_id  one file, as the lists name it; NULL = all;  p_limit  rows at most [1 .. 100000]
-- Returns:    a row a slice: blocks [block1, block2), failures and faults that count against it, when a ready one may be
--             leased, the attempt that holds it or held it last, when it was allocated, split or recycled (since),
--             the remainder of its lease [s]; of a done one the output that its job reported: size [bytes], checksum,
--             and URL, without secrets
-- Errors:     OG301 unknown project; OG108 state or limit out of range
DECLARE
    v_project_id int := (osgprod._get_project(p_project)).project_id;
BEGIN
    IF p_state NOT IN ('leased', 'done', 'ready', 'quarantined') THEN
        RAISE EXCEPTION 'the state of a slice is leased, done, ready or quarantined, not %', osgprod._quoted(p_state)
            USING ERRCODE = 'OG108', HINT = 'leave it out for all';
    END IF;
    RETURN QUERY
    SELECT f.*, o.output_bytes, o.output_adler32, o.output_url
      FROM (
        SELECT f.run, f.seqno, f.rawdata_id, w.path, s.block1, s.block2, s.state::text, s.failures::int, s.faults::int,
               s.not_before, s.cluster, s.process, s.nstart, s.opened_at,
               CASE s.state WHEN 'leased' THEN extract(epoch FROM s.due_at - now())::int END
          FROM loaded_files f
          JOIN rawdata w ON w.rawdata_id = f.rawdata_id
          JOIN slices s ON s.project_id = f.project_id AND s.rawdata_id = f.rawdata_id
         WHERE f.project_id = v_project_id
           -- Read only files that can have such slices, not millions of done ones for a few others.
           AND CASE WHEN p_state IN ('leased', 'ready') THEN f.state IN ('in_progress', 'allocated')
                    WHEN p_state = 'quarantined' THEN f.rawdata_id IN (
                        SELECT q.rawdata_id FROM slices q
                         WHERE q.project_id = v_project_id AND q.is_ready IS FALSE AND q.not_before IS NULL)
                    ELSE f.state <> 'pending' END
           AND (p_state IS NULL OR s.state = p_state::slice_state)
           AND (p_runs IS NULL OR f.run = ANY (p_runs))
           AND (p_path IS NULL OR w.path = p_path OR w.path LIKE osgprod._pattern(p_path))
           AND (p_file_id IS NULL OR f.rawdata_id = p_file_id)
         ORDER BY f.run, f.seqno, f.rawdata_id, s.block1
         LIMIT osgprod._limit(p_limit)) f
      -- One by one: only for the rows that are returned.
      LEFT JOIN LATERAL (
        SELECT r.output_bytes, r.output_adler32, osgprod._without_secrets(r.output_url) AS output_url
          FROM reports r
         WHERE f.state = 'done' AND r.project_id = v_project_id AND r.cluster = f.cluster AND r.process = f.process
           AND r.nstart = f.nstart AND r.by_worker LIMIT 1) o ON true
     ORDER BY f.run, f.seqno, f.rawdata_id, f.block1;
END
$fn$;

COMMENT ON FUNCTION osgprod.list_slices(text, text, int[], text, int, int) IS
'Lists slices, chosen by state, runs and path, with failures, the attempts that hold them, and the outputs of done ones. For osgprod_worker and osgprod_operator.';
