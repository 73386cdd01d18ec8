CREATE FUNCTION osgprod.idle_and_leased(p_project text DEFAULT NULL)
RETURNS TABLE (project text, leased bigint, ready bigint, quarantined bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Counts the slices that are leased, ready or quarantined. It counts no done ones, since there are millions, and no merges.
-- Parameters: p_project  project name; NULL = all projects
-- Returns:    a row a project: slices leased, ready (requeued) and quarantined
-- Errors:     OG301 unknown project
BEGIN
    PERFORM osgprod._get_project(p_project) WHERE p_project IS NOT NULL;
    RETURN QUERY
    SELECT p.name, (SELECT count(*) FROM osgprod._slices_in_flight(p.project_id) s WHERE s.state = 'leased'),
           (SELECT count(*) FROM slices s WHERE s.project_id = p.project_id AND s.is_ready)
               + (SELECT count(*) FROM slices s
                   WHERE s.project_id = p.project_id AND s.is_ready IS FALSE AND s.not_before IS NOT NULL),
           (SELECT count(*) FROM slices s
             WHERE s.project_id = p.project_id AND s.is_ready IS FALSE AND s.not_before IS NULL)
      FROM projects p WHERE p.name = coalesce(p_project, p.name) ORDER BY p.name;
END
$fn$;

COMMENT ON FUNCTION osgprod.idle_and_leased(text) IS
'Counts the slices of each project that are leased, ready or quarantined. For osgprod_worker and osgprod_operator.';
