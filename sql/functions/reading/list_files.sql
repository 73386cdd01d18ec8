CREATE FUNCTION osgprod.list_files(
    p_project text,
    p_runs    int[] DEFAULT NULL,
    p_path    text  DEFAULT NULL,
    p_state   text  DEFAULT NULL,
    p_file_id int   DEFAULT NULL,
    p_limit   int   DEFAULT 100)
RETURNS TABLE (file_id int, run int, seqno int, path text, state text, blocks int, blocks_done bigint, blocks_leased bigint,
    blocks_ready bigint, blocks_quarantined bigint, blocks_unallocated bigint, size_bytes bigint, loaded_at timestamptz,
    has_bor boolean, locality text, suspended_at timestamptz, suspend_reason text, retest_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Lists the files of a project with the progress of each, in the order in which they are assigned.
-- Parameters: p_project  project name;  p_runs  run numbers; NULL = all
--             p_path     path of one file, or an SQL LIKE pattern; NULL = all
--             p_state    pending, in_progress, allocated, complete, open (in_progress or allocated) or suspended; NULL = all
--             p_file_id  one file, as the lists name it; NULL = all;  p_limit  rows at most [1 .. 100000]
-- Returns:    a row a file; blocks = done + leased + ready (requeued) + quarantined + unallocated; has_bor: do its slices begin
--             with a begin-of-run record? NULL = not known;
--             locality: what storage said last: online, nearline (on tape only) or gone; NULL = not known;
--             suspended_at, suspend_reason, retest_at: since when and why it is suspended, and when one slice is tried again; NULL =
--             it is not suspended
-- Errors:     OG301 unknown project; OG108 state or limit out of range
DECLARE
    v_project_id int := (osgprod._get_project(p_project)).project_id;
BEGIN
    IF p_state NOT IN ('pending', 'in_progress', 'allocated', 'complete', 'open', 'suspended') THEN
        RAISE EXCEPTION 'the state of a file is pending, in_progress, allocated, complete, open or suspended, not %', osgprod._quoted(p_state)
            USING ERRCODE = 'OG108', HINT = 'leave it out for all';
    END IF;
    RETURN QUERY
    SELECT f.rawdata_id, f.run, f.seqno, f.path, f.state::text, f.block2 - f.block1,
           CASE f.state WHEN 'complete' THEN f.block2 - f.block1 - q.quarantined ELSE coalesce(c.done, 0) END,
           coalesce(c.leased, 0), coalesce(c.ready, 0), q.quarantined,
           CASE f.state WHEN 'complete' THEN 0 ELSE f.block2 - f.block1 - coalesce(c.allocated, 0) END, f.size_bytes, f.loaded_at,
           f.has_bor, f.locality, f.suspended_at, f.suspend_reason, f.retest_at
      FROM (SELECT l.*, w.path, w.size_bytes, w.has_bor, w.locality FROM loaded_files l JOIN rawdata w ON w.rawdata_id = l.rawdata_id
             WHERE l.project_id = v_project_id
               AND (p_runs IS NULL OR l.run = ANY (p_runs))
               AND (p_path IS NULL OR w.path = p_path OR w.path LIKE osgprod._pattern(p_path))
               AND (p_file_id IS NULL OR l.rawdata_id = p_file_id)
               AND CASE p_state WHEN 'open' THEN l.state IN ('in_progress', 'allocated')
                   WHEN 'suspended' THEN l.suspended_at IS NOT NULL
                   ELSE l.state::text = coalesce(p_state, l.state::text) END
             ORDER BY l.run, l.seqno, l.rawdata_id LIMIT osgprod._limit(p_limit)) f
      LEFT JOIN LATERAL (
        SELECT sum(s.block2 - s.block1) FILTER (WHERE s.state = 'done') AS done,
               sum(s.block2 - s.block1) FILTER (WHERE s.state = 'leased') AS leased,
               sum(s.block2 - s.block1) FILTER (WHERE s.state = 'ready') AS ready,
               sum(s.block2 - s.block1) AS allocated
          FROM slices s
         WHERE s.project_id = f.project_id AND s.rawdata_id = f.rawdata_id AND f.state IN ('in_progress', 'allocated')) c ON true
     CROSS JOIN LATERAL (
        SELECT count(*) AS quarantined FROM slices i
         WHERE i.project_id = f.project_id AND i.rawdata_id = f.rawdata_id AND i.is_ready IS FALSE
           AND i.not_before IS NULL) q
     ORDER BY f.run, f.seqno, f.rawdata_id;
END
$fn$;

COMMENT ON FUNCTION osgprod.list_files(text, int[], text, text, int, int) IS
'Lists the files of a project with their progress in blocks, chosen by runs, path and state. For osgprod_worker and osgprod_operator.';
