CREATE FUNCTION osgprod.attempts_by_site(
    p_project text, p_hours int DEFAULT 24, p_limit int DEFAULT 100, p_site text DEFAULT NULL)
RETURNS TABLE (site text, attempts bigint, done bigint, failed bigint, node_faults bigint, lost bigint, superseded bigint,
    s_per_block float8)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Counts the attempts that ended in the last hours, by the site that the jobs named.
-- Parameters: p_project  project name;  p_hours  how far back [h; 1 .. 8760]
--             p_limit  sites at most [1 .. 100000];  p_site  only this site; NULL = all
-- Returns:    a row a site (NULL = none was named), the busiest first, and at last one for all others ("other"), so
--             that the sums are whole. A job chooses its site's name; s_per_block: time of successes for each of their
--             blocks [s], NULL = no success
-- Errors:     OG301 unknown project; OG108 hours or limit out of range
DECLARE
    v_project_id int := (osgprod._get_project(p_project)).project_id;
BEGIN
    PERFORM osgprod._limit(p_limit);
    RETURN QUERY
    WITH ended AS MATERIALIZED (
        SELECT * FROM osgprod._recent(v_project_id, osgprod._since(p_hours), true, p_site)
    ), named AS (
        SELECT e.site FROM ended e WHERE e.site <> 'other' GROUP BY e.site ORDER BY sum(e.reports) DESC, e.site LIMIT p_limit
    ), ranked AS (
        SELECT e.outcome, e.reports, e.blocks, e.ran_s,
               CASE WHEN e.site IS NOT NULL THEN coalesce(n.site, 'other') END AS site
          FROM ended e LEFT JOIN named n ON n.site = e.site
    )
    SELECT r.site, sum(r.reports)::bigint,
           coalesce(sum(r.reports) FILTER (WHERE r.outcome = 'done'), 0)::bigint,
           coalesce(sum(r.reports) FILTER (WHERE r.outcome = 'failed'), 0)::bigint,
           coalesce(sum(r.reports) FILTER (WHERE r.outcome = 'node-fault'), 0)::bigint,
           coalesce(sum(r.reports) FILTER (WHERE r.outcome = 'lost'), 0)::bigint,
           coalesce(sum(r.reports) FILTER (WHERE r.outcome = 'superseded'), 0)::bigint,
           (sum(r.ran_s) FILTER (WHERE r.outcome = 'done') / nullif(sum(r.blocks) FILTER (WHERE r.outcome = 'done'), 0))::float8
      FROM ranked r
     GROUP BY r.site ORDER BY r.site IS NOT DISTINCT FROM 'other', 2 DESC, r.site;
END
$fn$;

COMMENT ON FUNCTION osgprod.attempts_by_site(text, int, int, text) IS
'Counts the attempts that ended in the last p_hours [h], by site. For osgprod_worker and osgprod_operator.';
