CREATE FUNCTION osgprod.progress(p_project text DEFAULT NULL)
RETURNS TABLE (project text, state text, files bigint, files_finished bigint, blocks bigint, blocks_done bigint,
    blocks_leased bigint, blocks_ready bigint, blocks_quarantined bigint, blocks_unallocated bigint, merges_left bigint,
    is_complete boolean, files_suspended int, pause_reason text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Returns the progress of each project without counting millions of slices: complete files count as a whole, slices are
-- counted only in files that have unfinished ones.
-- Parameters: p_project  project name; NULL = all projects
-- Returns:    a row a project; blocks = done + leased + ready (requeued) + quarantined + unallocated; merges_left:
--             merges that are not done, those of files that are not complete included; is_complete: nothing is left to be
--             done, merges included; files_suspended: NULL = none; pause_reason: why the project has paused itself, NULL =
--             it has not
-- Errors:     OG301 unknown project
BEGIN
    PERFORM osgprod._get_project(p_project) WHERE p_project IS NOT NULL;
    RETURN QUERY
    SELECT p.name, p.state::text, f.files, f.finished, f.blocks,
           f.finished_blocks - q.in_finished + s.done, s.leased, s.ready, q.quarantined, f.open_blocks - s.allocated,
           m.merges_left, f.files > 0 AND f.files = f.finished AND m.merges_left = 0, nullif(p.nsuspended, 0),
           p.pause_reason
      FROM projects p
     CROSS JOIN LATERAL osgprod._merges_left(p) AS m (merges_left)
     CROSS JOIN LATERAL (
        SELECT count(*) AS files, count(*) FILTER (WHERE l.state = 'complete') AS finished,
               coalesce(sum(l.block2 - l.block1), 0) AS blocks,
               coalesce(sum(l.block2 - l.block1) FILTER (WHERE l.state = 'complete'), 0) AS finished_blocks,
               coalesce(sum(l.block2 - l.block1) FILTER (WHERE l.state <> 'complete'), 0) AS open_blocks
          FROM loaded_files l WHERE l.project_id = p.project_id) f
     CROSS JOIN LATERAL (
        SELECT coalesce(sum(c.block2 - c.block1) FILTER (WHERE c.state = 'done'), 0) AS done,
               coalesce(sum(c.block2 - c.block1) FILTER (WHERE c.state = 'leased'), 0) AS leased,
               coalesce(sum(c.block2 - c.block1) FILTER (WHERE c.state = 'ready'), 0) AS ready,
               coalesce(sum(c.block2 - c.block1), 0) AS allocated
          FROM osgprod._slices_in_flight(p.project_id) c) s
     CROSS JOIN LATERAL (
        SELECT count(*) AS quarantined, count(*) FILTER (WHERE l.state = 'complete') AS in_finished
          FROM slices i JOIN loaded_files l ON l.project_id = i.project_id AND l.rawdata_id = i.rawdata_id
         WHERE i.project_id = p.project_id AND i.is_ready IS FALSE AND i.not_before IS NULL) q
     WHERE p.name = coalesce(p_project, p.name)
     ORDER BY p.name;
END
$fn$;

COMMENT ON FUNCTION osgprod.progress(text) IS
'Returns the progress of each project in files and blocks: done, leased, ready, quarantined, unallocated. For osgprod_worker and osgprod_operator.';
