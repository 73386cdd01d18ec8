CREATE FUNCTION osgprod.totals(p_project text DEFAULT NULL)
RETURNS TABLE (project text, outcome text, reports bigint, blocks bigint, ran_s bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Counts the attempts of a project by outcome since it began; the counts never decrease.
-- Parameters: p_project  project name; NULL = all projects
-- Returns:    a row for each project and outcome (done, failed, node-fault, lost, superseded), also where there are none:
--             reports, also of merges; blocks and the sum of the times ran_s of slices [s]
-- Errors:     OG301 unknown project
BEGIN
    PERFORM osgprod._get_project(p_project) WHERE p_project IS NOT NULL;
    RETURN QUERY
    SELECT p.name, o.outcome::text, coalesce(t.reports, 0) + coalesce(sum(r.reports), 0)::bigint,
           coalesce(t.blocks, 0) + coalesce(sum(r.blocks), 0)::bigint,
           coalesce(t.ran_s, 0) + coalesce(sum(r.ran_s), 0)::bigint
      FROM projects p
     CROSS JOIN unnest(enum_range(NULL::outcome)) AS o (outcome)
      LEFT JOIN totals t ON t.project_id = p.project_id AND t.outcome = o.outcome
      LEFT JOIN LATERAL osgprod._recent(p.project_id, p.tallied_until) r ON r.outcome = o.outcome
     WHERE p.name = coalesce(p_project, p.name)
     GROUP BY p.name, o.outcome, t.reports, t.blocks, t.ran_s
     ORDER BY p.name, o.outcome;
END
$fn$;

COMMENT ON FUNCTION osgprod.totals(text) IS
'Counts the attempts of a project by outcome since it began, with blocks and time [s]. For osgprod_worker and osgprod_operator.';
