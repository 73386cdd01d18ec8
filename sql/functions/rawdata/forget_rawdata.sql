CREATE FUNCTION osgprod.forget_rawdata(p_path text)
RETURNS TABLE (path text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Forgets raw data files that were registered by mistake, at a wrong path or before they were whole, so that they can be
-- registered again.
-- Promise:    where one of the files is work of a project, none is forgotten. A repeated call is in error, since the file is
--             not registered any more.
-- Parameters: p_path  path of one file; or, where there is none such, an SQL LIKE pattern
-- Returns:    a row for each file that was forgotten
-- Errors:     OG302 no such file is registered; OG407 one of them is work of a project
-- Locks:      the rows of these files: it waits for a call that loads or registers one of them at this moment
DECLARE
    v_count bigint;
    v_path text := osgprod._path_pattern(p_path);
    v_used text;
BEGIN
    SELECT format('%s is work of project %s', r.path, p.name) INTO v_used
      FROM rawdata r CROSS JOIN projects p
      JOIN loaded_files f ON f.project_id = p.project_id AND f.rawdata_id = r.rawdata_id
     WHERE r.path LIKE v_path
     ORDER BY r.path, p.name LIMIT 1;
    IF v_used IS NOT NULL THEN
        RAISE EXCEPTION 'raw data file %', v_used USING ERRCODE = 'OG407',
            HINT = 'a file is forgotten only before a project loads it (osgprod slices unload PROJECT --path PATH); nothing was forgotten';
    END IF;
    RETURN QUERY DELETE FROM rawdata r WHERE r.path LIKE v_path RETURNING r.path;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    IF v_count = 0 THEN
        RAISE EXCEPTION 'no raw data file is registered as %', coalesce(osgprod._label(p_path, 512), 'nothing') USING ERRCODE = 'OG302',
            HINT = 'osgprod rawdata list shows the files';
    END IF;
    PERFORM osgprod._log_operation('forget_rawdata', NULL, jsonb_build_object('path', p_path), v_count);
EXCEPTION
    WHEN foreign_key_violation THEN
        RAISE EXCEPTION 'raw data files like % have just been loaded', osgprod._label(p_path, 512) USING ERRCODE = 'OG407',
            HINT = 'nothing was forgotten; osgprod slices unload PROJECT --path PATH takes them out of it';
END
$fn$;

COMMENT ON FUNCTION osgprod.forget_rawdata(text) IS
'Forgets raw data files that were registered by mistake and are work of no project; returns a row for each. For osgprod_operator.';
