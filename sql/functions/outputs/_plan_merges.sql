CREATE FUNCTION osgprod._hold_merge_settings(p_project_id int, p_may_wait boolean)
RETURNS osgprod_data.projects LANGUAGE plpgsql VOLATILE
AS $fn$
-- Keeps the settings merge_by and merge_incomplete of a project as they are until the end of the transaction.
-- Otherwise a session that changes them would miss the merges that this transaction plans by them.
-- Parameters: p_project_id  project;  p_may_wait  for a session that changes them
-- Returns:    the project's row, read under the lock; NULLs = another session changes them, and this one may not wait
-- Locks:      these settings, shared (advisory: project_id, -4). Who waits for them has no slice, file or merge locked
-- Source:     docs/design.md "Who waits for whom"
DECLARE
    v_project osgprod_data.projects;
BEGIN
    IF NOT pg_try_advisory_xact_lock_shared(p_project_id, -4) THEN
        IF NOT p_may_wait THEN
            RETURN NULL;
        END IF;
        PERFORM pg_advisory_xact_lock_shared(p_project_id, -4);
    END IF;
    SELECT p.* INTO v_project FROM osgprod_data.projects p WHERE p.project_id = p_project_id;
    RETURN v_project;
END
$fn$;

CREATE FUNCTION osgprod._try_merges(p_project_id int, p_run int, p_seqno int)
RETURNS boolean LANGUAGE sql VOLATILE
AS $fn$
    -- Locks the merges of a file and of its run, those that are superseded left out, so that _plan_merges need not wait for them.
    -- Parameters: p_project_id, p_run, p_seqno  the file; p_run NULL = all merges of the project
    -- Returns:    are they locked? false: another session has one of them
    SELECT coalesce(bool_and(EXISTS (SELECT FROM osgprod_data.merges x
                                      WHERE x.merge_id = m.merge_id AND x.state <> 'superseded' FOR NO KEY UPDATE SKIP LOCKED)), true)
      FROM osgprod_data.merges m
     WHERE m.project_id = p_project_id AND m.state <> 'superseded'
       AND m.run >= coalesce(p_run, 0) AND m.run <= coalesce(p_run, 2147483647) AND coalesce(m.seqno = p_seqno, true)
$fn$;

CREATE FUNCTION osgprod._plan_merges(p_project osgprod_data.projects, p_runs int[], p_seqno int)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Plans the merges of complete files, or runs: new ones, and those that wait. The next tick lets jobs have them
-- (_make_merges_ready). With quarantined blocks a merge waits, unless the project merges incomplete files; then a file or run
-- without a done slice gets no merge, and the one that it has is superseded.
-- Promise:    a repeated call changes nothing. Merges that are leased or done stay as they are, and so do failed ones but for those
--             that are superseded.
-- Parameters: p_project  the project's row, read under _hold_merge_settings;  p_runs  run numbers; NULL = all;  p_seqno  one file; NULL = all
-- Locks:      the merges of these files or runs that are not superseded, in order; it waits for each. That a file is complete may
--             have changed when this commits: see _make_merges_ready
BEGIN
    INSERT INTO osgprod_data.merges AS m (project_id, run, seqno, rawdata_id, state, is_ready, not_before)
    SELECT p_project.project_id, w.run, w.seqno, w.rawdata_id,
           CASE WHEN w.is_whole THEN 'ready' ELSE 'waiting' END::osgprod_data.merge_state, CASE WHEN w.is_whole THEN false END,
           CASE WHEN w.is_whole THEN now() END
      FROM (SELECT f.run, CASE p_project.merge_by WHEN 'file' THEN f.seqno END AS seqno,
                   (array_agg(f.rawdata_id ORDER BY f.seqno))[1] AS rawdata_id,
                   bool_and(p_project.merge_incomplete OR NOT EXISTS (
                       SELECT FROM osgprod_data.slices s WHERE s.project_id = f.project_id AND s.rawdata_id = f.rawdata_id
                                                           AND s.is_ready IS FALSE AND s.not_before IS NULL)) AS is_whole
              FROM osgprod_data.loaded_files f
             WHERE f.project_id = p_project.project_id AND p_project.merge_by <> 'none' AND (p_runs IS NULL OR f.run = ANY (p_runs))
               AND (p_project.merge_by = 'run' OR p_seqno IS NULL OR f.seqno = p_seqno)
             GROUP BY 1, 2 HAVING bool_and(f.state = 'complete')
                AND (NOT p_project.merge_incomplete OR bool_or(EXISTS (
                       SELECT FROM osgprod_data.slices s WHERE s.project_id = f.project_id AND s.rawdata_id = f.rawdata_id
                                                           AND s.state = 'done')))) w
     ORDER BY w.run, w.seqno
    ON CONFLICT (project_id, run, coalesce(seqno, -1)) WHERE state <> 'superseded' DO UPDATE
       SET state = excluded.state, is_ready = excluded.is_ready, not_before = excluded.not_before
     WHERE m.state IN ('waiting', 'ready') AND m.state <> excluded.state;
    UPDATE osgprod_data.merges m
       SET state = 'superseded', is_ready = NULL, not_before = NULL, opened_at = clock_timestamp()
      FROM osgprod._without_outputs(p_project, p_runs) w
     WHERE m.project_id = p_project.project_id AND m.run = w.run AND m.seqno IS NOT DISTINCT FROM w.seqno
       AND coalesce(m.seqno = p_seqno, true) AND m.state IN ('waiting', 'ready', 'failed');
END
$fn$;

CREATE FUNCTION osgprod._unplanned(p_project osgprod_data.projects)
RETURNS TABLE (run int, rawdata_id int) LANGUAGE sql STABLE
AS $fn$
    -- The complete files, or runs, that need a merge and have none. There are none, but for a fault: what calls a file complete
    -- plans its merge.
    -- Parameters: p_project  the project's row
    -- Returns:    a row for each, with its first file
    SELECT f.run, min(f.rawdata_id)
      FROM osgprod_data.loaded_files f
      LEFT JOIN osgprod_data.merges m ON m.project_id = f.project_id AND m.run = f.run AND m.state <> 'superseded'
                                     AND coalesce(m.seqno, -1) = CASE p_project.merge_by WHEN 'run' THEN -1 ELSE f.seqno END
      LEFT JOIN osgprod._without_outputs(p_project, NULL) w ON w.run = f.run AND w.seqno IS NOT DISTINCT FROM
                                                               CASE p_project.merge_by WHEN 'file' THEN f.seqno END
     WHERE f.project_id = p_project.project_id AND p_project.merge_by <> 'none'
     GROUP BY f.run, CASE p_project.merge_by WHEN 'file' THEN f.seqno END
    HAVING bool_and(f.state = 'complete' AND m.merge_id IS NULL AND w.run IS NULL)
$fn$;

CREATE FUNCTION osgprod._without_outputs(p_project osgprod_data.projects, p_runs int[])
RETURNS TABLE (run int, seqno int) LANGUAGE sql STABLE
AS $fn$
    -- The complete files, or runs, that need no merge: the project merges incomplete files, and of these every block is
    -- quarantined.
    -- Parameters: p_project  the project's row;  p_runs  run numbers; NULL = all
    -- Returns:    a row for each; seqno NULL = the whole run. None where incomplete files are not merged: their merges wait
    SELECT f.run, CASE p_project.merge_by WHEN 'file' THEN f.seqno END
      FROM osgprod_data.loaded_files f
     WHERE f.project_id = p_project.project_id AND p_project.merge_incomplete AND p_project.merge_by <> 'none'
       AND (p_runs IS NULL OR f.run = ANY (p_runs))
       AND f.run IN (SELECT s.run FROM osgprod_data.slices s
                      WHERE s.project_id = p_project.project_id AND s.is_ready IS FALSE AND s.not_before IS NULL)
     GROUP BY 1, 2
    HAVING bool_and(f.state = 'complete' AND NOT EXISTS (
               SELECT FROM osgprod_data.slices s
                WHERE s.project_id = f.project_id AND s.rawdata_id = f.rawdata_id AND s.state = 'done'))
$fn$;

CREATE FUNCTION osgprod._reopen_merges(p_project_id int, p_runs int[], p_seqno int)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Takes merges back whose slices are processed again, are gone, or are more now: one that is done is superseded, any other
-- waits, and an attempt on it no longer counts.
-- Promise:    a repeated call changes nothing.
-- Parameters: p_project_id  project;  p_runs  run numbers; NULL = all
--             p_seqno  NULL = all merges of these runs; the number of a file = its merge, and the run's; -1 = the runs' only
-- Locks:      the merges, in order; it waits for each. Callers have the rows of these files, the project alone, or, when they load more
--             files of a run, (advisory: project_id, -2) alone
BEGIN
    WITH held AS (
        SELECT m.merge_id FROM osgprod_data.merges m
         WHERE m.project_id = p_project_id AND m.state NOT IN ('waiting', 'superseded')
           AND (p_runs IS NULL OR m.run = ANY (p_runs)) AND (p_seqno IS NULL OR m.seqno IS NULL OR m.seqno = p_seqno)
         ORDER BY m.run, m.seqno
           FOR NO KEY UPDATE
    )
    UPDATE osgprod_data.merges m
       SET state = CASE m.state WHEN 'done' THEN 'superseded' ELSE 'waiting' END::osgprod_data.merge_state, is_ready = NULL,
           not_before = NULL, opened_at = clock_timestamp(), due_at = NULL, failures = 0, faults = 0, faulted_on = NULL,
           repeats = 0, exit_codes = NULL, inputs = CASE m.state WHEN 'done' THEN m.inputs END,
           missing = CASE m.state WHEN 'done' THEN m.missing END
      FROM held h WHERE m.merge_id = h.merge_id;
END
$fn$;

CREATE FUNCTION osgprod._notify_of_merge(p_merge osgprod_data.merges, p_event text)
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Notifies of what became of a merge.
    -- Parameters: p_merge  the merge;  p_event  merge-done or merge-failed
    SELECT osgprod._notify(p_merge.project_id, p_event, jsonb_build_object('merge',
        osgprod._merge_name(p_merge.run, p_merge.seqno), 'run', p_merge.run, 'seqno', p_merge.seqno))
$fn$;

CREATE FUNCTION osgprod._note_end(p_project_id int)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Notifies that all files of a project are complete (project-done), and that their merges are done as well
-- (production-delivered), and notes it in the project's row. Only a tick does this, since it sees all committed reports: of two
-- calls that end the last two merges at once, each sees the other's merge as leased. It also plans merges that are missing then.
-- Promise:    each is notified once, and again when more work has come and is done, too.
-- Parameters: p_project_id  project
-- Locks:      to plan merges _hold_merge_settings and the merges; the project's row: all tried. The caller has the project, shared,
--             against unload_slices
DECLARE
    v_project osgprod_data.projects;
    v_end     text;
    v_left    bigint;
BEGIN
    SELECT p.* INTO v_project FROM osgprod_data.projects p WHERE p.project_id = p_project_id;
    -- ORDER BY: the first entry of an index, with any statistics of the planner.
    IF (SELECT f.rawdata_id FROM osgprod_data.loaded_files f
         WHERE f.project_id = p_project_id AND f.state IN ('in_progress', 'allocated') ORDER BY f.run, f.seqno LIMIT 1) IS NULL
       AND (SELECT f.rawdata_id FROM osgprod_data.loaded_files f
             WHERE f.project_id = p_project_id AND f.state IN ('pending', 'in_progress')
             ORDER BY f.on_tape, f.run, f.seqno LIMIT 1) IS NULL
       AND (SELECT f.rawdata_id FROM osgprod_data.loaded_files f
             WHERE f.project_id = p_project_id ORDER BY f.run, f.seqno LIMIT 1) IS NOT NULL
    THEN
        v_end := 'project-done';
        IF v_project.merge_by <> 'none' AND NOT osgprod._has_open_merges(p_project_id)
           AND NOT EXISTS (SELECT FROM osgprod_data.merges m WHERE m.project_id = p_project_id AND m.is_ready IS FALSE)
        THEN
            v_left := CASE WHEN v_project.noted_end = 'production-delivered' THEN 0 ELSE osgprod._merges_left(v_project) END;
            IF v_left = 0 THEN
                v_end := 'production-delivered';
            ELSIF v_left > (SELECT count(*) FROM osgprod_data.merges m
                             WHERE m.project_id = p_project_id AND m.state NOT IN ('done', 'superseded')) THEN
                PERFORM osgprod._plan_merges(p, NULL, NULL) FROM osgprod._hold_merge_settings(p_project_id, false) p
                  WHERE p.project_id IS NOT NULL AND osgprod._try_merges(p_project_id, NULL, NULL);
            END IF;
        END IF;
    END IF;
    IF v_end IS NOT DISTINCT FROM v_project.noted_end THEN
        RETURN;
    END IF;
    UPDATE osgprod_data.projects p SET noted_end = v_end
     WHERE p.project_id = (SELECT q.project_id FROM osgprod_data.projects q
                            WHERE q.project_id = p_project_id FOR NO KEY UPDATE SKIP LOCKED);
    IF FOUND THEN
        PERFORM osgprod._notify(p_project_id, 'project-done', '{}') WHERE v_end IS NOT NULL AND v_project.noted_end IS NULL;
        PERFORM osgprod._notify(p_project_id, v_end, '{}') WHERE v_end = 'production-delivered';
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._change_merges(p_project osgprod_data.projects)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Brings the merges of a project in line with its settings merge_by and merge_incomplete: merges by something else are
-- superseded, and those of complete files are planned. With merge_by none, merges stay as they are and no more are assigned.
-- Parameters: p_project  the project's row, as it is to be
-- Errors:     OG420 merges by something else are done: their files are delivered
-- Locks:      all merges, in order; it waits for each. The caller has (advisory: project_id, -4), alone
DECLARE
    v_done bigint;
BEGIN
    IF p_project.merge_by = 'none' THEN
        RETURN;
    END IF;
    -- A report may be about to do one of them: what it has not committed would be superseded unseen.
    PERFORM FROM osgprod_data.merges m
      WHERE m.project_id = p_project.project_id AND m.state <> 'superseded'
      ORDER BY m.run, m.seqno FOR NO KEY UPDATE;
    SELECT count(*) INTO v_done FROM osgprod_data.merges m
     WHERE m.project_id = p_project.project_id AND m.state = 'done' AND (m.seqno IS NULL) <> (p_project.merge_by = 'run');
    IF v_done > 0 THEN
        RAISE EXCEPTION 'project % has % done merges by %', p_project.name, v_done,
            CASE p_project.merge_by WHEN 'run' THEN 'file' ELSE 'run' END USING ERRCODE = 'OG420',
            HINT = 'load the remaining runs into a project of their own, and merge that differently';
    END IF;
    UPDATE osgprod_data.merges m
       SET state = 'superseded', is_ready = NULL, not_before = NULL, opened_at = clock_timestamp()
     WHERE m.project_id = p_project.project_id AND m.state <> 'superseded'
       AND (m.seqno IS NULL) <> (p_project.merge_by = 'run');
    PERFORM osgprod._plan_merges(p_project, NULL, NULL);
END
$fn$;
