CREATE FUNCTION osgprod.load_slices(
    p_project    text    DEFAULT NULL,
    p_runs       int[]   DEFAULT NULL,
    p_start_over boolean DEFAULT false)
RETURNS TABLE (files int, blocks bigint, files_already int, files_double int, blocks_forgotten bigint,
    files_without_bor int)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Makes registered files the work of a project; their blocks are allocated when jobs ask.
-- Promise:    files loaded already are left as they are, unless p_start_over resets them: then all work on them is
--             forgotten (the attempts stay on record) and everything is assigned again. A file is known by run and number: of two with the same, at two
--             paths, the project gets the one that was registered first, so that no event is processed twice.
-- Parameters: p_project     project name; NULL = the only project that there is
--             p_runs        run numbers; NULL = all registered files
--             p_start_over  begin again with files loaded already
-- Returns:    one row: files and blocks loaded or reset by this call; files_already were loaded before and are unchanged, or have no
--             block that is work;
--             files_double were left out, since the project has their run and number at another path; blocks_forgotten were
--             done or on lease before they were reset; files_without_bor were left out, since the project demands a
--             begin-of-run record (demand_bor)
-- Errors:     OG301 unknown project; OG302 no file is registered for the runs, or one was forgotten meanwhile; OG502 an operator has the
--             project alone; OG505 a call that moves slices does not end; OG901 isolation level
-- Locks:      which files are on tape only, shared (advisory: 0, -3); the project (advisory: project_id, -1), shared, tried; with
--             p_start_over alone: then it waits up to 10 s for calls that move slices, and those that come get OG502; the merges of reset files.
--             Then (project_id, -2), against other calls that load files, and the merges of whole runs that get more files
DECLARE
    v_project    projects := osgprod._get_project(coalesce(p_project, osgprod._only_project()));
    v_project_id int := v_project.project_id;
    v_registered int;
    v_runs       int[];
BEGIN
    PERFORM osgprod._require_read_committed();
    PERFORM pg_advisory_xact_lock_shared(0, -3);  -- see _mark_on_tape
    files_double := 0;
    blocks_forgotten := 0;
    files_without_bor := 0;
    SELECT count(*) INTO v_registered FROM rawdata r WHERE p_runs IS NULL OR r.run = ANY (p_runs);
    IF v_registered = 0 THEN
        RAISE EXCEPTION 'no raw data file is registered%', coalesce(' for runs ' || array_to_string(p_runs, ', '), '')
            USING ERRCODE = 'OG302', HINT = 'osgprod rawdata load registers files';
    END IF;
    IF p_start_over THEN
        PERFORM osgprod._enter_alone(v_project);
        WITH reset AS (
            UPDATE loaded_files f
               SET state = 'pending', loaded_at = now(), suspended_at = NULL, suspend_reason = NULL, retest_at = NULL,
                   retest_s = NULL
             WHERE f.project_id = v_project_id AND (p_runs IS NULL OR f.run = ANY (p_runs))
            RETURNING f.rawdata_id, f.block2 - f.block1 AS nblocks
        ), forgotten AS (
            DELETE FROM slices s USING reset a WHERE s.project_id = v_project_id AND s.rawdata_id = a.rawdata_id
            RETURNING s.state, s.block2 - s.block1 AS nblocks
        )
        SELECT count(*), coalesce(sum(a.nblocks), 0),
               (SELECT coalesce(sum(g.nblocks), 0) FROM forgotten g WHERE g.state IN ('done', 'leased'))
          INTO files, blocks, blocks_forgotten FROM reset a;
        PERFORM osgprod._reopen_merges(v_project_id, p_runs, NULL);
    ELSE
        PERFORM osgprod._enter_project(v_project_id, v_project.name);
    END IF;
    PERFORM pg_advisory_xact_lock(v_project_id, -2);  -- one after the other: cheaper than ON CONFLICT for each row
    WITH loaded AS (
        INSERT INTO loaded_files (project_id, rawdata_id, run, seqno, block1, block2, on_tape)
        SELECT DISTINCT ON (r.run, r.seqno) v_project_id, r.rawdata_id, r.run, r.seqno, r.first_block, r.nblocks,
               p.skip_nearline AND r.locality IS NOT DISTINCT FROM 'nearline'
          FROM rawdata r JOIN projects p ON p.project_id = v_project_id
         WHERE (p_runs IS NULL OR r.run = ANY (p_runs)) AND r.first_block < r.nblocks
           AND (r.has_bor OR NOT v_project.demand_bor)
           AND NOT EXISTS (SELECT FROM loaded_files f
                            WHERE f.project_id = v_project_id AND f.run = r.run AND f.seqno = r.seqno)
         ORDER BY r.run, r.seqno, r.rawdata_id
        RETURNING run, block2 - block1 AS nblocks
    )
    SELECT coalesce(files, 0) + count(*), coalesce(blocks, 0) + coalesce(sum(l.nblocks), 0), array_agg(DISTINCT l.run)
      INTO files, blocks, v_runs FROM loaded l;
    PERFORM osgprod._reopen_merges(v_project_id, coalesce(v_runs, '{}'), -1);  -- of whole runs, which have more files now
    IF files < v_registered THEN
        SELECT count(*) FILTER (WHERE r.has_bor OR NOT v_project.demand_bor),
               count(*) FILTER (WHERE v_project.demand_bor AND r.has_bor IS NOT TRUE)
          INTO files_double, files_without_bor FROM rawdata r
         WHERE (p_runs IS NULL OR r.run = ANY (p_runs)) AND r.first_block < r.nblocks
           AND NOT EXISTS (SELECT FROM loaded_files f WHERE f.project_id = v_project_id AND f.rawdata_id = r.rawdata_id);
    END IF;
    PERFORM osgprod._log_operation('load_slices', v_project.name, jsonb_build_object('runs', osgprod._runs_text(p_runs),
        'start_over', nullif(p_start_over, false), 'blocks', blocks, 'blocks_forgotten', nullif(blocks_forgotten, 0)), files);
    files_already := v_registered - files - files_double - files_without_bor;
    RETURN NEXT;
EXCEPTION
    WHEN foreign_key_violation THEN
        RAISE EXCEPTION 'raw data files have just been forgotten that were to be loaded into project %', v_project.name USING ERRCODE = 'OG302',
            HINT = 'nothing was loaded; osgprod rawdata list shows the files that are left';
END
$fn$;

COMMENT ON FUNCTION osgprod.load_slices(text, int[], boolean) IS
'Makes registered files (of some runs) the work of a project and says how many files and blocks; files loaded already are left alone unless p_start_over. For osgprod_operator.';

CREATE FUNCTION osgprod._runs_text(p_runs int[])
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- Run numbers as an operator writes them, '1001,1005-1010', at most 200 characters; NULL = all.
    SELECT left(string_agg(CASE WHEN g.first = g.last THEN g.first::text ELSE g.first || '-' || g.last END, ',' ORDER BY g.first),
                200)
      FROM (SELECT min(r.run) AS first, max(r.run) AS last
              FROM (SELECT x.run, x.run - row_number() OVER (ORDER BY x.run) AS island
                      FROM (SELECT DISTINCT u.run FROM unnest(p_runs) AS u (run)) x) r
             GROUP BY r.island) g
$fn$;

CREATE FUNCTION osgprod._only_project()
RETURNS text LANGUAGE sql STABLE
AS $fn$
    -- The name of the only project; NULL when there are several or none.
    SELECT min(p.name) FROM osgprod_data.projects p HAVING count(*) = 1
$fn$;
