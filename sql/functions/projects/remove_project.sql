CREATE FUNCTION osgprod.remove_project(p_project text, p_force boolean DEFAULT false, p_dry_run boolean DEFAULT false)
RETURNS TABLE (files bigint, slices bigint, blocks_done bigint, attempts bigint, reports bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Removes a project with all that is recorded of it; registered raw data files stay, and what operators changed (list_operations).
-- Promise:    all or nothing. A repeated call raises OG301.
-- Parameters: p_project  project name
--             p_force    also when work was done: export it first (osgprod project export)
--             p_dry_run  only count what would be removed
-- Returns:    one row: loaded files, slices, blocks done, attempts and reports that were removed, or would be
-- Errors:     OG301 unknown project; OG408 some attempts are live, or work was done and neither p_force nor p_dry_run is given;
--             OG505 a call that moves slices does not end within 10 s; OG901 isolation level
-- Locks:      with p_dry_run none; else the project (advisory: project_id, -1), alone: it waits for calls that move slices now,
--             and those that come get OG502; then the project's row and all that refers to it
DECLARE
    v_project projects := osgprod._get_project(p_project);
    v_live    bigint;
BEGIN
    PERFORM osgprod._require_read_committed();
    IF NOT p_dry_run THEN
        PERFORM osgprod._enter_alone(v_project);
        PERFORM FROM projects p WHERE p.project_id = v_project.project_id FOR NO KEY UPDATE;
    END IF;
    SELECT count(*), coalesce(sum(s.block2 - s.block1) FILTER (WHERE s.state = 'done'), 0),
           count(*) FILTER (WHERE s.state = 'leased')
      INTO slices, blocks_done, v_live FROM slices s WHERE s.project_id = v_project.project_id;
    v_live := v_live + (SELECT count(*) FROM merges m WHERE m.project_id = v_project.project_id AND m.state = 'leased');
    SELECT count(*) INTO files FROM loaded_files f WHERE f.project_id = v_project.project_id;
    SELECT count(*) INTO attempts FROM attempts a WHERE a.project_id = v_project.project_id;
    SELECT count(*) INTO reports FROM reports r WHERE r.project_id = v_project.project_id;
    IF v_live > 0 THEN
        RAISE EXCEPTION 'project % has %', p_project, osgprod._counted(v_live, 'live attempt') USING ERRCODE = 'OG408',
            HINT = format('remove its jobs from the queue, then: osgprod reclaim %s --cluster N', p_project);
    END IF;
    IF blocks_done > 0 AND NOT p_force AND NOT p_dry_run THEN
        RAISE EXCEPTION 'project % has % done', p_project, osgprod._counted(blocks_done, 'block') USING ERRCODE = 'OG408',
            HINT = format('osgprod project export %s DIR keeps its record; then remove it with --force', p_project);
    END IF;
    IF NOT p_dry_run THEN
        PERFORM osgprod._log_operation('remove_project', p_project, jsonb_build_object('files', files, 'slices', slices,
            'blocks_done', blocks_done, 'attempts', attempts, 'force', p_force), 1);
        PERFORM osgprod._remove_history(v_project.project_id, v_project.name);
        DELETE FROM merges m WHERE m.project_id = v_project.project_id;
        DELETE FROM slices s WHERE s.project_id = v_project.project_id;
        DELETE FROM loaded_files f WHERE f.project_id = v_project.project_id;
        DELETE FROM projects p WHERE p.project_id = v_project.project_id;  -- with its bans, tallies and refusals
    END IF;
    RETURN NEXT;
END
$fn$;

COMMENT ON FUNCTION osgprod.remove_project(text, boolean, boolean) IS
'Removes a project with all that is recorded of it, unless attempts are live; with work done only with p_force; p_dry_run only counts. For osgprod_operator.';

CREATE FUNCTION osgprod._remove_history(p_project_id int, p_project text)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Deletes the attempts, reports and outputs of a project: the only function that may (I6). The server's log names who did it.
-- Parameters: p_project_id, p_project  which project, alone (see _enter_alone)
BEGIN
    RAISE LOG 'history of project % removed by %', p_project, session_user;
    PERFORM set_config('osgprod.removes_history', 'on', true);
    DELETE FROM osgprod_data.outputs o WHERE o.project_id = p_project_id;
    DELETE FROM osgprod_data.lost_outputs o WHERE o.project_id = p_project_id;
    DELETE FROM osgprod_data.reports r WHERE r.project_id = p_project_id;
    DELETE FROM osgprod_data.attempts a WHERE a.project_id = p_project_id;
    PERFORM set_config('osgprod.removes_history', '', true);
END
$fn$;
