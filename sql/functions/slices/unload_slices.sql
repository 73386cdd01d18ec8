CREATE FUNCTION osgprod.unload_slices(
    p_project text, p_runs int[] DEFAULT NULL, p_path text DEFAULT NULL, p_dry_run boolean DEFAULT false)
RETURNS TABLE (files bigint, blocks bigint, files_kept bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Takes files out of a project's work again, of which nothing was done: the way back from load_slices. They stay registered.
-- Promise:    a file of which a block is done or on lease stays. Attempts that failed stay on record. A repeated call finds
--             only files that stay, or raises OG302.
-- Parameters: p_project  project name
--             p_runs     run numbers; NULL = all;  p_path  path of one file, or an SQL LIKE pattern; NULL = all. One of the
--                        two has to be given
--             p_dry_run  only count
-- Returns:    one row: files and blocks that were taken out; files_kept: that were meant, and stay, since blocks of them are
--             done or on lease
-- Errors:     OG301 unknown project; OG108 neither runs nor a path; OG302 no such file is loaded; OG505 a call that moves
--             slices does not end; OG901 isolation level
-- Locks:      none with p_dry_run; else the project (advisory: project_id, -1), alone: it waits for calls that move slices now, 10 s at
--             most, and those that come get OG502; then _hold_merge_settings, and the merges of these runs
DECLARE
    v_project projects := osgprod._get_project(p_project);
    v_path    text := osgprod._path_pattern(p_path);
    v_meant   int[];
    v_gone    int[];
    v_runs    int[];
    v_open    int[];  -- of these, those of which a file that was not complete is gone
BEGIN
    PERFORM osgprod._require_read_committed();
    IF p_runs IS NULL AND p_path IS NULL THEN
        RAISE EXCEPTION 'neither runs nor a path are given for project %', p_project USING ERRCODE = 'OG108',
            HINT = format('name runs or a path; osgprod project remove %s removes all', p_project);
    END IF;
    IF NOT p_dry_run THEN
        PERFORM osgprod._enter_alone(v_project);
        v_project := osgprod._hold_merge_settings(v_project.project_id, true);
    END IF;
    SELECT array_agg(f.rawdata_id) INTO v_meant
      FROM loaded_files f JOIN rawdata w ON w.rawdata_id = f.rawdata_id
     WHERE f.project_id = v_project.project_id AND (p_runs IS NULL OR f.run = ANY (p_runs))
       AND (v_path IS NULL OR w.path LIKE v_path);
    IF v_meant IS NULL THEN
        RAISE EXCEPTION 'no such file is work of project %', p_project USING ERRCODE = 'OG302',
            HINT = format('osgprod files %s lists them', p_project);
    END IF;
    SELECT array_agg(f.rawdata_id), count(*), coalesce(sum(f.block2 - f.block1), 0) INTO v_gone, files, blocks
      FROM loaded_files f
     WHERE f.project_id = v_project.project_id AND f.rawdata_id = ANY (v_meant)
       AND NOT EXISTS (SELECT FROM slices s WHERE s.project_id = f.project_id AND s.rawdata_id = f.rawdata_id
                          AND s.state IN ('leased', 'done'));
    files_kept := cardinality(v_meant) - files;
    IF NOT p_dry_run THEN
        DELETE FROM slices s WHERE s.project_id = v_project.project_id AND s.rawdata_id = ANY (v_gone);
        WITH gone AS (
            DELETE FROM loaded_files f WHERE f.project_id = v_project.project_id AND f.rawdata_id = ANY (v_gone)
            RETURNING f.run, f.state
        )
        SELECT array_agg(DISTINCT g.run), array_agg(DISTINCT g.run) FILTER (WHERE g.state <> 'complete') INTO v_runs, v_open
          FROM gone g;
        -- Whole runs have fewer files now, and may be complete; nothing would ever make merges of files ready that are gone.
        PERFORM osgprod._reopen_merges(v_project.project_id, coalesce(v_runs, '{}'), -1);
        UPDATE merges m SET state = 'superseded', is_ready = NULL, not_before = NULL, opened_at = clock_timestamp()
         WHERE m.project_id = v_project.project_id AND m.run = ANY (v_runs) AND m.state <> 'superseded'
           AND NOT EXISTS (SELECT FROM loaded_files f
                            WHERE f.project_id = m.project_id AND f.run = m.run AND f.seqno = coalesce(m.seqno, f.seqno));
        PERFORM osgprod._plan_merges(v_project, coalesce(v_runs, '{}'), NULL);
        PERFORM osgprod._notify(v_project.project_id, 'run-finished', jsonb_build_object('run', f.run)) FROM loaded_files f
          WHERE f.project_id = v_project.project_id AND f.run = ANY (v_open) GROUP BY f.run HAVING bool_and(f.state = 'complete');
        PERFORM osgprod._log_operation('unload_slices', p_project, jsonb_build_object('runs', osgprod._runs_text(p_runs),
            'path', p_path, 'blocks', blocks, 'files_kept', nullif(files_kept, 0)), files);
    END IF;
    RETURN NEXT;
END
$fn$;

COMMENT ON FUNCTION osgprod.unload_slices(text, int[], text, boolean) IS
'Takes files of which nothing was done out of a project''s work again, chosen by runs or path; p_dry_run only counts. For osgprod_operator.';
