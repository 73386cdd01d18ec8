CREATE FUNCTION osgprod.retry_merges(
    p_project text, p_runs int[] DEFAULT NULL, p_states text[] DEFAULT ARRAY['failed'], p_dry_run boolean DEFAULT false)
RETURNS TABLE (merge_id int, run int, seqno int, was text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Plans merges that failed as if they had never been tried; supersedes done ones, whose files then no longer count, and plans
-- others in their place. The next tick makes them ready (_make_merges_ready).
-- Promise:    all or nothing; leased merges, and those that another session has locked, are never touched. A merge whose slices are
--             not done waits for them. While merge_by is none failed ones wait, and others than done ones are made when it is set
--             again.
-- Parameters: p_project  project name;  p_runs  run numbers; NULL = all
--             p_states   which: failed, done;  p_dry_run  true = nothing is changed
-- Returns:    a row a merge, as it was
-- Errors:     OG301 unknown project; OG108 unknown state; OG502 an operator has the project alone; OG901 isolation level
-- Locks:      the project, shared (advisory: project_id, -1), tried; _hold_merge_settings; the merges, in order, SKIP LOCKED; see
--             _plan_merges
DECLARE
    v_project projects := osgprod._get_project(p_project);
    v_merge   merges;
    v_count   int := 0;
BEGIN
    PERFORM osgprod._require_read_committed();
    IF NOT coalesce(p_states <@ ARRAY['failed', 'done'], false) THEN
        RAISE EXCEPTION 'merges to retry are failed or done, not %', osgprod._shortened(p_states::text) USING ERRCODE = 'OG108',
            HINT = 'merges that are leased are requeued when their lease ends';
    END IF;
    PERFORM osgprod._enter_project(v_project.project_id, p_project);
    v_project := osgprod._hold_merge_settings(v_project.project_id, true);
    FOR v_merge IN
        SELECT m.* FROM merges m
         WHERE m.project_id = v_project.project_id AND m.state::text = ANY (p_states)
           AND (p_runs IS NULL OR m.run = ANY (p_runs))
         ORDER BY m.run, m.seqno
           FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        merge_id := v_merge.merge_id;
        run := v_merge.run;
        seqno := v_merge.seqno;
        was := v_merge.state;
        IF NOT p_dry_run AND v_merge.state = 'done' THEN
            PERFORM osgprod._redo_merge(v_project, v_merge.merge_id, v_merge.cluster, v_merge.process, v_merge.nstart, NULL);
        ELSIF NOT p_dry_run THEN
            UPDATE merges m
               SET state = 'waiting', is_ready = NULL, not_before = NULL, failures = 0, faults = 0, faulted_on = NULL,
                   repeats = 0, exit_codes = NULL
             WHERE m.merge_id = v_merge.merge_id;
            PERFORM osgprod._plan_merges(v_project, ARRAY[v_merge.run], v_merge.seqno);
        END IF;
        v_count := v_count + (NOT p_dry_run)::int;
        RETURN NEXT;
    END LOOP;
    PERFORM osgprod._log_operation('retry_merges', p_project, jsonb_build_object('runs', to_jsonb(p_runs), 'states',
        to_jsonb(p_states)), v_count);
END
$fn$;

COMMENT ON FUNCTION osgprod.retry_merges(text, int[], text[], boolean) IS
'Makes failed merges ready again, or done ones, chosen by runs; a row each; with p_dry_run it changes nothing. For osgprod_operator.';
