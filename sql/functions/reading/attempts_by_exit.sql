CREATE FUNCTION osgprod.attempts_by_exit(p_project text, p_hours int DEFAULT 24, p_site text DEFAULT NULL)
RETURNS TABLE (outcome text, exit_code int, attempts bigint, blocks bigint, mean_s float8, last_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Counts the attempts that ended in the last hours, by outcome and exit code.
-- Parameters: p_project  project name;  p_hours  how far back [h; 1 .. 8760];  p_site  only at this site; NULL = all
-- Returns:    a row for each outcome and exit code (NULL = lost), the most frequent first: attempts, blocks of their
--             slices, how long attempts at slices ran [s; mean; NULL = all were at merges], and when the last one ended
-- Errors:     OG301 unknown project; OG108 hours out of range
DECLARE
    v_project_id int := (osgprod._get_project(p_project)).project_id;
BEGIN
    RETURN QUERY
    SELECT r.outcome::text, r.exit_code, sum(r.reports)::bigint, sum(r.blocks)::bigint,
           (sum(r.ran_s) FILTER (WHERE r.blocks > 0) / sum(r.reports) FILTER (WHERE r.blocks > 0))::float8, max(r.last_at)
      FROM osgprod._recent(v_project_id, osgprod._since(p_hours), p_site IS NOT NULL, p_site) r
     GROUP BY r.outcome, r.exit_code ORDER BY 3 DESC, r.outcome, r.exit_code;
END
$fn$;

COMMENT ON FUNCTION osgprod.attempts_by_exit(text, int, text) IS
'Counts the attempts that ended in the last p_hours [h], by outcome and exit code. For osgprod_worker and osgprod_operator.';
