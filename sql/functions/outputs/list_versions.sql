CREATE FUNCTION osgprod.list_versions(p_project text)
RETURNS TABLE (script text, digest text, exec_version text, image text, first_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Lists the versions that took part in a production, the earliest first.
-- Parameters: p_project  project name
-- Returns:    a row for each combination of script, SHA-256 of its template, version of the exec script and image; empty
--             texts = unknown
-- Errors:     OG301 unknown project
DECLARE
    v_project_id int := (osgprod._get_project(p_project)).project_id;
BEGIN
    RETURN QUERY
    SELECT v.script, v.digest, v.exec_version, v.image, min(v.first_at) FROM versions v WHERE v.project_id = v_project_id
     GROUP BY 1, 2, 3, 4 ORDER BY 5, 1, 2;
END
$fn$;

COMMENT ON FUNCTION osgprod.list_versions(text) IS
'Lists the versions of scripts, exec script and image that took part in a production. For osgprod_operator.';
