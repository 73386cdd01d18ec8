-- Shows how much time is left for rules: in a database of its own, replaces checkout and report by functions that only make their
-- statements and take their locks. Callers see no difference: what surrounds these two functions, parameters, answers and batches, is the product's.
CREATE OR REPLACE FUNCTION osgprod._checkout(p_call osgprod.checkout_call, p_is_alone boolean, p_may_wait boolean)
RETURNS osgprod.checkout_answer LANGUAGE plpgsql VOLATILE
AS $fn$
-- The statements of a checkout of block after block: project, job, file, slice, attempt, and the slice as a file.
DECLARE
    v_project osgprod_data.projects;
    v_nstart  int;
    v_ready   boolean;
    v_file    record;
    v_slice   osgprod.claim;
    v_content osgprod.content;
    v_token   uuid;
    v_started_at timestamptz;
BEGIN
    v_project := (SELECT p FROM osgprod_data.projects p WHERE p.name = p_call.project);
    IF p_call.workscript <> v_project.workscript THEN  -- the shim has not read it yet
        RETURN osgprod._unassigned(NULL, NULL, 'template', 'slice', v_project.workscript);
    END IF;
    PERFORM pg_try_advisory_xact_lock(p_call.cluster << 32 | p_call.process),
            pg_try_advisory_xact_lock_shared(v_project.project_id, -1);
    SELECT coalesce((SELECT a.nstart FROM osgprod_data.attempts a
                      WHERE a.project_id = v_project.project_id AND a.cluster = p_call.cluster AND a.process = p_call.process
                      ORDER BY a.nstart DESC LIMIT 1), 0) + 1,
           EXISTS (SELECT FROM osgprod_data.slices s WHERE s.project_id = v_project.project_id AND s.is_ready)
      INTO v_nstart, v_ready;
    SELECT f.rawdata_id, f.run, f.seqno, f.block1, f.block2, f.state INTO v_file FROM osgprod_data.loaded_files f
     WHERE f.project_id = v_project.project_id AND f.is_open
     ORDER BY f.run, f.seqno LIMIT 1
       FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        SELECT f.rawdata_id, f.run, f.seqno, f.block1, f.block2, f.state INTO v_file FROM osgprod_data.loaded_files f
         WHERE f.project_id = v_project.project_id AND f.is_open
         ORDER BY f.run, f.seqno LIMIT 1
           FOR NO KEY UPDATE;
    END IF;
    v_slice := ROW(v_file.rawdata_id, coalesce((SELECT s.block2 FROM osgprod_data.slices s
        WHERE s.project_id = v_project.project_id AND s.rawdata_id = v_file.rawdata_id
        ORDER BY s.block1 DESC LIMIT 1), v_file.block1), NULL, clock_timestamp(), NULL)::osgprod.claim;
    v_slice.block2 := least(v_slice.block1 + v_project.maxblockspercore, v_file.block2);
    INSERT INTO osgprod_data.slices (project_id, rawdata_id, block1, block2, follows, run, seqno, cluster, process,
           nstart, opened_at, due_at)
    VALUES (v_project.project_id, v_slice.rawdata_id, v_slice.block1, v_slice.block2, nullif(v_slice.block1, v_file.block1),
           v_file.run, v_file.seqno, p_call.cluster, p_call.process, v_nstart, v_slice.opened_at,
           v_slice.opened_at + make_interval(secs => v_project.lease_s));
    IF v_slice.block2 = v_file.block2 OR v_file.state = 'pending' THEN
        UPDATE osgprod_data.loaded_files f
           SET state = CASE WHEN v_slice.block2 = f.block2 THEN 'allocated' ELSE 'in_progress' END::osgprod_data.file_state
         WHERE f.project_id = v_project.project_id AND f.rawdata_id = v_file.rawdata_id;
    END IF;
    v_token := gen_random_uuid();
    v_started_at := clock_timestamp();
    INSERT INTO osgprod_data.attempts (project_id, cluster, process, nstart, rawdata_id, block1, block2, opened_at, cpus,
           started_at, token_digest, client)
    VALUES (v_project.project_id, p_call.cluster, p_call.process, v_nstart, v_slice.rawdata_id, v_slice.block1,
           v_slice.block2, v_slice.opened_at, 1, v_started_at, sha256(convert_to(v_token::text, 'UTF8')), '127.0.0.1');
    v_content := osgprod._slice_file(v_slice.rawdata_id, v_slice.block1, v_slice.block2, v_project.xrootd_prefix,
                                     v_project.strip_prefix, NULL);
    RETURN ROW('assigned', NULL, NULL, v_project.workscript, v_nstart, v_token, v_project.lease_s, v_project.heartbeat_s,
        v_started_at, v_content.url, v_content.filename, v_slice.block1, v_slice.block2, v_content.size_bytes,
        v_content.events, v_content.pieces, NULL, NULL, NULL, 'slice', NULL, v_content.urls)::osgprod.checkout_answer;
END
$fn$;

CREATE OR REPLACE FUNCTION osgprod._report(p_call osgprod.report_call, p_may_wait boolean)
RETURNS osgprod.report_answer LANGUAGE plpgsql VOLATILE
AS $fn$
-- The statements of a report of its success.
DECLARE
    v_project osgprod_data.projects;
    v_attempt osgprod_data.attempts;
BEGIN
    v_project := (SELECT p FROM osgprod_data.projects p WHERE p.name = p_call.project);
    PERFORM pg_try_advisory_xact_lock(p_call.cluster << 32 | p_call.process),
            pg_try_advisory_xact_lock_shared(v_project.project_id, -1);
    SELECT a.* INTO v_attempt FROM osgprod_data.attempts a
     WHERE a.project_id = v_project.project_id AND a.cluster = p_call.cluster AND a.process = p_call.process
       AND a.token_digest = sha256(convert_to(p_call.token, 'UTF8'))
     ORDER BY a.nstart DESC LIMIT 1;
    UPDATE osgprod_data.slices s SET state = 'done'
     WHERE s.project_id = v_attempt.project_id AND s.rawdata_id = v_attempt.rawdata_id AND s.block1 = v_attempt.block1
       AND s.state = 'leased' AND s.cluster = v_attempt.cluster AND s.process = v_attempt.process
       AND s.nstart = v_attempt.nstart;
    INSERT INTO osgprod_data.reports (project_id, cluster, process, nstart, by_worker, outcome, exit_code, reported_at, ran_s,
           nblocks, worker)
    VALUES (v_attempt.project_id, v_attempt.cluster, v_attempt.process, v_attempt.nstart, true, 'done', 0,
           greatest(clock_timestamp(), v_project.tallied_until),
           greatest(date_part('epoch', clock_timestamp() - v_attempt.started_at), 0), v_attempt.block2 - v_attempt.block1,
           'unnamed@127.0.0.1');
    RETURN ROW(200, 'done', 'recorded', NULL, NULL, NULL, NULL)::osgprod.report_answer;
END
$fn$;
