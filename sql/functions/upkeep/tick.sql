CREATE FUNCTION osgprod.tick()
RETURNS TABLE (project text, reclaimed int)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- The regular housekeeping: requeues slices and merges whose lease has ended, and slices whose backoff has, marks complete files,
-- plans merges and makes them ready, plans the tail, tries suspended files again, recounts live attempts, tallies reports,
-- measures how long a block takes, prunes rows that are kept for a time only, lets notifications go on after a restore. Each shim
-- process calls it every 10 s. Each call requeues, so that a call that is stuck keeps nothing from being requeued; all else is done
-- by one at a time.
-- Promise:    a repeated call does no harm. Without it jobs still get what is ready or unallocated, but no lease or backoff ends,
--             and no file becomes complete.
-- Returns:    a row for each project in which slices or merges were lost: how many
-- Errors:     OG901 isolation level. An error in one project's housekeeping is a warning, and ends only that
-- Locks:      advisory (0, 0), tried; see _requeue_project, _end_backoffs, _settle_files, _make_merges_ready and
--             _renumber_notifications; projects SKIP LOCKED. It waits for nothing
DECLARE
    v_project projects;
    v_is_due  boolean;
    v_looked  int[] := '{}'::int[];  -- projects whose leases were looked at
BEGIN
    PERFORM osgprod._require_read_committed();
    PERFORM osgprod._note_presence();
    FOR v_project IN SELECT p.* FROM projects p ORDER BY p.project_id LOOP
        BEGIN
            v_is_due := osgprod._is_due(v_project);
            reclaimed := 0;
            IF v_is_due THEN
                v_looked := v_looked || v_project.project_id;
                reclaimed := osgprod._requeue_project(v_project);
            ELSIF pg_try_advisory_xact_lock_shared(v_project.project_id, -1) THEN
                PERFORM osgprod._end_backoffs(v_project.project_id);
            END IF;
        EXCEPTION WHEN OTHERS THEN  -- of this project alone: the others are requeued
            reclaimed := 0;
            RAISE WARNING 'tick of project %: %', v_project.name, SQLERRM;
        END;
        project := v_project.name;
        IF reclaimed > 0 THEN
            RETURN NEXT;
        END IF;
    END LOOP;
    IF NOT pg_try_advisory_xact_lock(0, 0) THEN  -- no project has the number 0
        RETURN;
    END IF;
    FOR v_project IN SELECT p.* FROM projects p ORDER BY p.project_id LOOP
        BEGIN
            v_is_due := v_project.project_id = ANY (v_looked);
            -- Not while files are reset or unloaded, since a run's last one would be missed; nor while the project is removed.
            CONTINUE WHEN NOT pg_try_advisory_xact_lock_shared(v_project.project_id, -1);
            PERFORM osgprod._settle_files(v_project.project_id, v_is_due);  -- all while all slices are looked through anyway
            PERFORM osgprod._note_end(v_project.project_id);
            PERFORM osgprod._make_merges_ready(v_project.project_id);
            PERFORM osgprod._note_bans(v_project.project_id);
            PERFORM osgprod._note_suspended(v_project.project_id);
            PERFORM osgprod._probe_files(v_project) WHERE v_project.nsuspended > 0;
            DELETE FROM recent_failures r
             WHERE r.failure_id IN (SELECT x.failure_id FROM recent_failures x
                                     WHERE x.project_id = v_project.project_id AND x.failed_at < now() - interval '6 hours'
                                       FOR UPDATE SKIP LOCKED);
            PERFORM osgprod._plan_tail(p) FROM projects p WHERE p.project_id = v_project.project_id;
            UPDATE projects p SET nlive = osgprod._count_live(p.project_id)
             WHERE v_project.max_live IS NOT NULL
               AND p.project_id = (SELECT q.project_id FROM projects q
                                    WHERE q.project_id = v_project.project_id FOR NO KEY UPDATE SKIP LOCKED);
            PERFORM osgprod._tally(v_project);
            PERFORM osgprod._measure_pace(v_project);
        EXCEPTION WHEN OTHERS THEN  -- of this project alone: slices that are requeued stay so, and the other projects go on
            RAISE WARNING 'tick of project %: %', v_project.name, SQLERRM;
        END;
    END LOOP;
    PERFORM osgprod._prune_answers();
    PERFORM osgprod._prune_notifications();
    PERFORM osgprod._renumber_notifications();
END
$fn$;

COMMENT ON FUNCTION osgprod.tick() IS
'The regular housekeeping (lost slices, complete files, live attempts, tallies), called by every shim on a timer. Every call requeues; one call at a time does everything else. For osgprod_worker and osgprod_operator.';

CREATE FUNCTION osgprod._count_live(p_project_id int)
RETURNS int LANGUAGE sql STABLE
AS $fn$
    -- Live attempts of a project: those that hold a slice or a merge, and backups.
    SELECT count(*)::int FROM osgprod._leases(p_project_id)
$fn$;
