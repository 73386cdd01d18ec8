CREATE FUNCTION osgprod.lose_outputs(p_project text, p_attempts jsonb, p_dry_run boolean DEFAULT false)
RETURNS TABLE (run int, seqno int, block1 int, block2 int, merge_id int)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Notes that storage no longer has the outputs of attempts as reported, and requeues their slices and merges. While merge_by
-- is none a merge is superseded only: no other is made until merge_by is set again.
-- Promise:    all or nothing; a repeated call changes nothing. The outputs stay on record, as lost. Those that HTCondor may still
--             bring to output_home are left alone: see _may_still_come.
-- Parameters: p_project   project name
--             p_attempts  array of objects with cluster, process, nstart of an attempt, and reason: the fault
--             p_dry_run   true = nothing is changed
-- Returns:    a row for each slice that was requeued, and for each merge that was requeued or superseded
-- Errors:     OG301 unknown project; OG108 p_attempts is not such an array; OG502 an operator has the project alone; OG901
--             isolation level
-- Locks:      the project, shared (advisory: project_id, -1), tried; _hold_merge_settings; the slices, in order; then their files,
--             in order; then the merges of these, and those that are lost, in order. It waits for each
DECLARE
    v_project projects := osgprod._get_project(p_project);
    v_lost    record;
    v_count   int := 0;
BEGIN
    PERFORM osgprod._require_read_committed();
    IF jsonb_typeof(p_attempts) IS DISTINCT FROM 'array' THEN
        RAISE EXCEPTION 'p_attempts is not an array of attempts' USING ERRCODE = 'OG108',
            HINT = '[{"cluster": 1, "process": 2, "nstart": 1, "reason": "not there"}]';
    END IF;
    PERFORM osgprod._enter_project(v_project.project_id, p_project);
    v_project := osgprod._hold_merge_settings(v_project.project_id, true);
    IF NOT p_dry_run THEN  -- all slices before the first file, and all files before the first merge
        PERFORM osgprod._lock_files(v_project.project_id, array_agg(l.rawdata_id)) FROM (
            SELECT s.rawdata_id FROM jsonb_to_recordset(p_attempts) AS l (cluster int, process int, nstart int)
              JOIN attempts a ON a.project_id = v_project.project_id AND a.cluster = l.cluster AND a.process = l.process
                             AND a.nstart = l.nstart
              JOIN slices s ON s.project_id = a.project_id AND s.rawdata_id = a.rawdata_id AND s.block1 = a.block1
                           AND s.state = 'done'
             ORDER BY s.run, s.seqno, s.block1
               FOR NO KEY UPDATE OF s) l;
    END IF;
    FOR v_lost IN
        SELECT a.cluster, a.process, a.nstart, a.rawdata_id, a.block1, a.block2, a.merge_id, coalesce(m.run, f.run) AS run,
               CASE WHEN a.merge_id IS NULL THEN f.seqno ELSE m.seqno END AS seqno,
               coalesce(l.reason, 'unknown') AS reason
          FROM (SELECT DISTINCT ON (1, 2, 3) g.* FROM jsonb_to_recordset(p_attempts)
                       AS g (cluster int, process int, nstart int, reason text)) l
          JOIN attempts a ON a.project_id = v_project.project_id AND a.cluster = l.cluster AND a.process = l.process
                         AND a.nstart = l.nstart
          LEFT JOIN loaded_files f ON f.project_id = a.project_id AND f.rawdata_id = a.rawdata_id
          LEFT JOIN merges m ON m.merge_id = a.merge_id
          LEFT JOIN slices s ON s.project_id = a.project_id AND s.rawdata_id = a.rawdata_id AND s.block1 = a.block1
         WHERE CASE WHEN a.merge_id IS NULL
                    THEN s.state = 'done' AND (s.cluster, s.process, s.nstart) = (a.cluster, a.process, a.nstart)
                    ELSE m.state = 'done' AND (m.cluster, m.process, m.nstart) = (a.cluster, a.process, a.nstart) END
         ORDER BY 8, 9, a.merge_id IS NOT NULL, a.block1
    LOOP
        run := v_lost.run;
        seqno := v_lost.seqno;
        block1 := nullif(v_lost.block1, -1);
        block2 := nullif(v_lost.block2, -1);
        merge_id := v_lost.merge_id;
        CONTINUE WHEN osgprod._may_still_come(v_project, v_lost.cluster, v_lost.process, v_lost.nstart);
        IF NOT p_dry_run AND merge_id IS NULL THEN
            PERFORM osgprod._lose_output(v_project.project_id, v_lost.rawdata_id, v_lost.block1, v_lost.reason);
        ELSIF NOT p_dry_run THEN
            CONTINUE WHEN NOT osgprod._redo_merge(v_project, merge_id, v_lost.cluster, v_lost.process, v_lost.nstart, v_lost.reason);
        END IF;
        v_count := v_count + 1;
        RETURN NEXT;
    END LOOP;
    PERFORM osgprod._log_operation('lose_outputs', p_project, '{}', v_count) WHERE NOT p_dry_run;
EXCEPTION WHEN data_exception THEN
    RAISE EXCEPTION 'p_attempts is not an array of attempts: %', SQLERRM USING ERRCODE = 'OG108',
        HINT = '[{"cluster": 1, "process": 2, "nstart": 1, "reason": "not there"}]';
END
$fn$;

COMMENT ON FUNCTION osgprod.lose_outputs(text, jsonb, boolean) IS
'Notes that storage no longer has the outputs of attempts, and requeues their slices and merges (with merge_by none merges are only superseded); a row each; with p_dry_run it changes nothing. For osgprod_operator.';

CREATE FUNCTION osgprod._redo_merge(
    p_project osgprod_data.projects, p_merge_id int, p_cluster int, p_process int, p_nstart int, p_reason text)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Supersedes a done merge, and plans another one of the same file or run, unless merge_by is none.
-- Parameters: p_project  the project's row, read under _hold_merge_settings;  p_merge_id  the merge;  p_cluster, p_process, p_nstart  the attempt that did it
--             p_reason   the fault of its files; NULL = none, it shall be made again
-- Returns:    is it superseded? false: it is not done by this attempt
-- Locks:      the merge, for which it waits; see _plan_merges
DECLARE
    v_merge record;
BEGIN
    UPDATE osgprod_data.merges m SET state = 'superseded', opened_at = clock_timestamp()
     WHERE m.merge_id = p_merge_id AND m.state = 'done' AND m.cluster = p_cluster AND m.process = p_process
       AND m.nstart = p_nstart
    RETURNING m.run, m.seqno INTO v_merge;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF p_reason IS NOT NULL THEN
        INSERT INTO osgprod_data.lost_outputs (project_id, cluster, process, nstart, reason)
        VALUES (p_project.project_id, p_cluster, p_process, p_nstart, osgprod._label(p_reason, 512))
        ON CONFLICT DO NOTHING;
    END IF;
    PERFORM osgprod._plan_merges(p_project, ARRAY[v_merge.run], v_merge.seqno);
    RETURN true;
END
$fn$;
