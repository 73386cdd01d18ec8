CREATE FUNCTION osgprod.amounts(p_project text DEFAULT NULL)
RETURNS TABLE (project text, running bigint, events bigint, events_done bigint, bytes bigint, bytes_done bigint,
    core_hours_done float8, core_hours_left float8, is_idle boolean)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Returns what the blocks of each project amount to: running jobs, events, bytes, core hours.
-- Parameters: p_project  project name; NULL = all projects
-- Returns:    a row a project. running: live attempts, backups included; events in the files, NULL = the events of a file are not
--             known; bytes: sizes of the files [bytes]; events_done and bytes_done: of a complete file all but the share of its
--             quarantined blocks, of a file in flight the share of its done blocks; core hours [h]: blocks done, and blocks
--             left, at the median time that recent attempts took for a block on one core, NULL = not measured; is_idle:
--             nothing runs, and nothing will be assigned: no files, complete with its merges, or paused or draining by hand
-- Errors:     OG301 unknown project
BEGIN
    PERFORM osgprod._get_project(p_project) WHERE p_project IS NOT NULL;
    RETURN QUERY
    SELECT p.name, r.running, f.events, f.events_done, f.bytes, f.bytes_done,
           g.blocks_done * c.s_per_block / 3600, (g.blocks - g.blocks_done - g.blocks_quarantined) * c.s_per_block / 3600,
           r.running = 0 AND ((g.blocks = g.blocks_done + g.blocks_quarantined AND g.merges_left = 0)
                              OR (p.state <> 'active' AND p.pause_cause IS NULL))
      FROM projects p
      JOIN osgprod.progress(p_project => p_project) g ON g.project = p.name
      LEFT JOIN paces c ON c.project_id = p.project_id AND c.site = ''
     CROSS JOIN LATERAL (SELECT count(*) AS running FROM osgprod._leases(p.project_id)) r
     CROSS JOIN LATERAL (
        SELECT CASE WHEN count(*) = count(w.events) THEN coalesce(sum(w.events), 0)::bigint END AS events,
               CASE WHEN count(*) = count(w.events) THEN coalesce(sum(floor(w.events * x.share)), 0)::bigint END
                   AS events_done,
               coalesce(sum(w.size_bytes), 0)::bigint AS bytes,
               coalesce(sum(floor(w.size_bytes * x.share)), 0)::bigint AS bytes_done
          FROM loaded_files l
          JOIN rawdata w ON w.rawdata_id = l.rawdata_id
          LEFT JOIN (SELECT s.rawdata_id, sum(s.block2 - s.block1) AS done FROM osgprod._slices_in_flight(p.project_id) s
                      WHERE s.state = 'done' GROUP BY s.rawdata_id) d ON d.rawdata_id = l.rawdata_id
          LEFT JOIN (SELECT s.rawdata_id, sum(s.block2 - s.block1) AS bad FROM slices s
                      WHERE s.project_id = p.project_id AND s.is_ready IS FALSE AND s.not_before IS NULL
                      GROUP BY s.rawdata_id) q ON q.rawdata_id = l.rawdata_id
         CROSS JOIN LATERAL (
            SELECT CASE l.state WHEN 'complete' THEN l.block2 - l.block1 - coalesce(q.bad, 0)
                                ELSE coalesce(d.done, 0) END::numeric / (l.block2 - l.block1) AS share) x
         WHERE l.project_id = p.project_id) f
     WHERE p.name = coalesce(p_project, p.name)
     ORDER BY p.name;
END
$fn$;

COMMENT ON FUNCTION osgprod.amounts(text) IS
'Returns what the work of each project amounts to: running jobs; events and bytes, done and in all; core hours [h], done and left. For osgprod_worker and osgprod_operator.';
