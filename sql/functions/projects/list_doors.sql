CREATE FUNCTION osgprod.list_doors(p_project text)
RETURNS TABLE (prefix text, site text, files bigint, problem text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Lists the prefixes that jobs read a project's files behind.
-- Parameters: p_project  project name
-- Returns:    a row for each prefix of the project, in order of preference, then for each that files have in its place:
--             the site whose jobs it is for (NULL = all), how many loaded files it is for, and why no job can read it
--             (NULL = jobs can)
-- Errors:     OG301 unknown project
DECLARE
    v_project projects := osgprod._get_project(p_project);
BEGIN
    RETURN QUERY
    SELECT i.prefix, i.site, g.files, osgprod._why_no_prefix(i.prefix)
      FROM (SELECT coalesce(r.prefix, v_project.xrootd_prefix) AS list, r.prefix IS NOT NULL AS is_own, count(r.path) AS files
              FROM (SELECT w.prefix, w.path FROM loaded_files f JOIN rawdata w ON w.rawdata_id = f.rawdata_id
                     WHERE f.project_id = v_project.project_id
                     UNION ALL SELECT NULL, NULL) r
             GROUP BY 1, 2) g
     CROSS JOIN osgprod._prefixes(g.list) i
     ORDER BY g.is_own, g.list, i.n;
END
$fn$;

COMMENT ON FUNCTION osgprod.list_doors(text) IS
'Lists the prefixes that jobs read a project''s files behind: site, files, and why no job can read it. For osgprod_operator.';
