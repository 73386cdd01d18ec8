CREATE FUNCTION osgprod.list_next_files(p_project text DEFAULT NULL, p_limit int DEFAULT 100)
RETURNS TABLE (file_id int, run int, seqno int, path text, url text, size_bytes bigint, blocks_unallocated bigint,
    locality text, locality_at timestamptz, is_skipped boolean)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Lists the files of which jobs will get blocks, in the order of run and number: to stage them before jobs ask.
-- Parameters: p_project  project name; NULL = the only project that there is
--             p_limit    rows at most [1 .. 100000]
-- Returns:    a row a file with unallocated blocks, or with requeued slices, or that is allocated and skipped: its first URL for
--             jobs of any site, size_bytes [bytes]; locality: what storage said last, and when: online, nearline (on tape
--             only) or gone; is_skipped: it is skipped until it is online (setting skip_nearline)
-- Errors:     OG301 unknown project; OG108 limit out of range
DECLARE
    v_project projects := osgprod._get_project(coalesce(p_project, osgprod._only_project()));
BEGIN
    RETURN QUERY
    SELECT r.rawdata_id, f.run, f.seqno, r.path, u.url, r.size_bytes,
           (f.block2 - coalesce((SELECT max(s.block2) FROM slices s
                                  WHERE s.project_id = f.project_id AND s.rawdata_id = f.rawdata_id), f.block1))::bigint,
           r.locality, r.locality_at, f.on_tape
      FROM (SELECT l.* FROM loaded_files l
             WHERE l.project_id = v_project.project_id
               AND (l.state IN ('pending', 'in_progress') OR l.state = 'allocated' AND (l.on_tape OR l.rawdata_id IN (
                    SELECT s.rawdata_id FROM slices s WHERE s.project_id = v_project.project_id AND s.is_ready
                    UNION ALL
                    SELECT s.rawdata_id FROM slices s
                     WHERE s.project_id = v_project.project_id AND s.is_ready IS FALSE AND s.not_before IS NOT NULL)))
             ORDER BY l.run, l.seqno LIMIT osgprod._limit(p_limit)) f
      JOIN rawdata r ON r.rawdata_id = f.rawdata_id
     CROSS JOIN LATERAL osgprod._slice_file(r.rawdata_id, f.block1, f.block2, v_project.xrootd_prefix,
                                            v_project.strip_prefix) u
     ORDER BY f.run, f.seqno;
END
$fn$;

COMMENT ON FUNCTION osgprod.list_next_files(text, int) IS
'Lists the files of which jobs will get blocks, in their order, with their URLs and where storage has them, to stage them in time. For osgprod_operator.';
