CREATE FUNCTION osgprod.resume_files(p_project text, p_runs int[] DEFAULT NULL, p_path text DEFAULT NULL)
RETURNS TABLE (path text, suspended_at timestamptz, suspend_reason text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Ends the suspension of files: their slices are assigned again. A file that still can't be processed is suspended again.
-- Promise:    a repeated call finds nothing more to do.
-- Parameters: p_project  project name;  p_runs  run numbers; NULL = all
--             p_path     path of one file, or an SQL LIKE pattern; NULL = all
-- Returns:    a row for each file that was suspended, in the order of run and number, with its suspension
-- Errors:     OG301 unknown project; OG502 an operator has the project alone
-- Locks:      the project, shared (advisory: project_id, -1), tried; the files' rows, in order: it waits for each; see _resume_file
DECLARE
    v_project projects := osgprod._get_project(p_project);
    v_path    text := osgprod._path_pattern(p_path);
    v_file    record;
    v_files   int := 0;
BEGIN
    PERFORM osgprod._enter_project(v_project.project_id, p_project);
    FOR v_file IN
        SELECT f.rawdata_id, w.path, f.suspended_at, f.suspend_reason
          FROM loaded_files f JOIN rawdata w ON w.rawdata_id = f.rawdata_id
         WHERE f.project_id = v_project.project_id AND f.suspended_at IS NOT NULL
           AND (p_runs IS NULL OR f.run = ANY (p_runs)) AND (v_path IS NULL OR w.path LIKE v_path)
         ORDER BY f.run, f.seqno, f.rawdata_id
           FOR NO KEY UPDATE OF f
    LOOP
        PERFORM osgprod._resume_file(v_project.project_id, v_file.rawdata_id, 'by the operator');
        path := v_file.path;
        suspended_at := v_file.suspended_at;
        suspend_reason := v_file.suspend_reason;
        v_files := v_files + 1;
        RETURN NEXT;
    END LOOP;
    PERFORM osgprod._log_operation('resume_files', p_project, jsonb_build_object('runs', osgprod._runs_text(p_runs), 'path', p_path),
        v_files);
END
$fn$;

COMMENT ON FUNCTION osgprod.resume_files(text, int[], text) IS
'Ends the suspension of files, chosen by runs and path: their slices are assigned again. For osgprod_operator.';
