CREATE FUNCTION osgprod.import_merge(
    p_project    text,
    p_path       text,
    p_ended_at   timestamptz,
    p_started_at timestamptz DEFAULT NULL,
    p_bad_inputs text        DEFAULT NULL)
RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Takes over that another dispatcher has merged the outputs of a file, or found some of them bad.
-- Promise:    a repeated call changes nothing more. A merge counts only when all slices of the file are done or quarantined.
-- Parameters: p_project     project name;  p_path  of a file that is loaded
--             p_ended_at, p_started_at  when the merge ran; p_started_at NULL = unknown
--             p_bad_inputs  block1,block2 of slices whose outputs were bad, joined by ':'; outputs that were reported after p_ended_at
--                           are not meant; NULL = it succeeded
-- Returns:    done: the merge is on record, by attempt 1 of job 0.FILE_ID, and no merged file, since their URLs are not known;
--             requeued: the slices of the bad inputs are; unchanged: there is a merge of the file, or was one that this call has
--             put on record, or the project merges whole runs, or its slices are not all settled, or another session has one of
--             the locks that are tried, or none of the bad ones is done
-- Errors:     OG301 unknown project; OG302 the file is not loaded; OG502 an operator has the project alone; OG901 isolation
--             level
-- Locks:      the project, shared (advisory: project_id, -1), tried; _hold_merge_settings; of bad inputs their slices,
--             in order, then see _reopen_file; else the file's row and its merge. It waits for each. Before the merge, what
--             _settle_file tries
DECLARE
    v_project  projects := osgprod._get_project(p_project);
    v_file     loaded_files;
    v_slice    record;
    v_merge_id int;
    v_count    int := 0;
BEGIN
    PERFORM osgprod._require_read_committed();
    SELECT f.* INTO v_file FROM loaded_files f JOIN rawdata w ON w.rawdata_id = f.rawdata_id
     WHERE f.project_id = v_project.project_id AND w.path = p_path;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'file % is not loaded into project %', coalesce(osgprod._label(p_path, 512), 'NULL'), p_project USING ERRCODE = 'OG302',
            HINT = 'take its slices over first: osgprod import-original PROJECT --from DSN';
    END IF;
    PERFORM osgprod._enter_project(v_project.project_id, p_project);
    v_project := osgprod._hold_merge_settings(v_project.project_id, true);
    IF p_bad_inputs IS NOT NULL THEN
        FOR v_slice IN  -- sorted again, and so all of them are locked before the file
            SELECT l.* FROM (
                SELECT s.block1 FROM slices s
                 WHERE s.project_id = v_file.project_id AND s.rawdata_id = v_file.rawdata_id AND s.state = 'done'
                   AND format('%s,%s', s.block1, s.block2) = ANY (string_to_array(replace(p_bad_inputs, ' ', ''), ':'))
                   AND EXISTS (  -- an output that came later is not what that merge found bad
                       SELECT FROM reports r
                        WHERE r.project_id = s.project_id AND r.cluster = s.cluster AND r.process = s.process
                          AND r.nstart = s.nstart AND r.by_worker AND r.reported_at <= p_ended_at)
                 ORDER BY s.block1
                   FOR NO KEY UPDATE OF s) l
             ORDER BY l.block1
        LOOP
            PERFORM osgprod._lose_output(v_project.project_id, v_file.rawdata_id, v_slice.block1,
                                         'bad input of a merge of the original');
            v_count := v_count + 1;
        END LOOP;
        PERFORM osgprod._log_operation('import_merge', p_project, '{}', v_count);
        RETURN CASE WHEN v_count > 0 THEN 'requeued' ELSE 'unchanged' END;
    END IF;
    -- I8: a session that makes a slice of the file ready has ended, or takes the merge back.
    PERFORM osgprod._lock_files(v_project.project_id, ARRAY[v_file.rawdata_id]);
    PERFORM osgprod._settle_file(v_project.project_id, v_file.rawdata_id);
    IF v_project.merge_by = 'run' OR osgprod._merges_runs(v_project.project_id)
        OR EXISTS (SELECT FROM merges m WHERE m.project_id = v_file.project_id AND m.run = v_file.run
                      AND coalesce(m.seqno, v_file.seqno) = v_file.seqno AND m.state IN ('leased', 'done'))
        OR (osgprod._attempt(v_project.project_id, 0, v_file.rawdata_id, 1)).nstart IS NOT NULL
        OR NOT EXISTS (SELECT FROM loaded_files f WHERE f.project_id = v_file.project_id
                          AND f.rawdata_id = v_file.rawdata_id AND f.state = 'complete')
    THEN
        RETURN 'unchanged';
    END IF;
    UPDATE merges m SET state = 'superseded', is_ready = NULL, not_before = NULL  -- the one that was planned when it was completed
     WHERE m.project_id = v_file.project_id AND m.run = v_file.run AND m.seqno = v_file.seqno AND m.state <> 'superseded';
    INSERT INTO merges (project_id, run, seqno, rawdata_id, state, cluster, process, nstart, opened_at, done_at, inputs, missing)
    SELECT v_file.project_id, v_file.run, v_file.seqno, v_file.rawdata_id, 'done', 0, v_file.rawdata_id, 1, p_ended_at, p_ended_at,
           i.inputs, i.missing
      FROM osgprod._slices_of_merge(v_file.project_id, v_file.run, v_file.seqno) i
    RETURNING merges.merge_id INTO v_merge_id;
    INSERT INTO attempts (project_id, cluster, process, nstart, rawdata_id, block1, block2, cpus, opened_at, started_at,
           token_digest, client, merge_id)
    VALUES (v_file.project_id, 0, v_file.rawdata_id, 1, v_file.rawdata_id, -1, -1, 1, p_ended_at,
            coalesce(p_started_at, p_ended_at), sha256(uuid_send(gen_random_uuid())), '0.0.0.0', v_merge_id);
    INSERT INTO reports (project_id, cluster, process, nstart, by_worker, outcome, exit_code, reported_at, ran_s, nblocks, worker)
    VALUES (v_file.project_id, 0, v_file.rawdata_id, 1, true, 'done', 0, greatest(clock_timestamp(), v_project.tally_next),
            least(greatest(extract(epoch FROM p_ended_at - coalesce(p_started_at, p_ended_at)), 0), 2147483647), 0, '0.0.0.0');
    PERFORM osgprod._log_operation('import_merge', p_project, '{}', 1);
    RETURN 'done';
END
$fn$;

COMMENT ON FUNCTION osgprod.import_merge(text, text, timestamptz, timestamptz, text) IS
'Takes over that another dispatcher has merged the outputs of a file, or which of them it found bad. For osgprod_operator.';
