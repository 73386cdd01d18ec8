CREATE FUNCTION osgprod.attempts_by_site(p_project text, p_hours int DEFAULT 24)
RETURNS TABLE (site text, attempts bigint, done bigint, failed bigint, node_faults bigint, lost bigint, superseded bigint,
    s_per_block float8)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Counts the attempts that ended in the last hours, by the site that the jobs named.
-- Parameters: p_project  project name;  p_hours  how far back [h; 1 .. 8760]
-- Returns:    a row a site (NULL = none was named), the busiest first; s_per_block: time of successes for each of their
--             blocks [s], NULL = no success
-- Errors:     OG301 unknown project; OG108 hours out of range
DECLARE
    v_project_id int := (osgprod._get_project(p_project)).project_id;
BEGIN
    RETURN QUERY
    SELECT r.site, sum(r.reports)::bigint,
           coalesce(sum(r.reports) FILTER (WHERE r.outcome = 'done'), 0)::bigint,
           coalesce(sum(r.reports) FILTER (WHERE r.outcome = 'failed'), 0)::bigint,
           coalesce(sum(r.reports) FILTER (WHERE r.outcome = 'node-fault'), 0)::bigint,
           coalesce(sum(r.reports) FILTER (WHERE r.outcome = 'lost'), 0)::bigint,
           coalesce(sum(r.reports) FILTER (WHERE r.outcome = 'superseded'), 0)::bigint,
           (sum(r.ran_s) FILTER (WHERE r.outcome = 'done') / sum(r.blocks) FILTER (WHERE r.outcome = 'done'))::float8
      FROM osgprod._recent(v_project_id, osgprod._since(p_hours)) r
     GROUP BY r.site ORDER BY 2 DESC, r.site;
END
$fn$;

COMMENT ON FUNCTION osgprod.attempts_by_site(text, int) IS
'Counts the attempts that ended in the last p_hours [h], by site. For osgprod_worker and osgprod_operator.';
