CREATE FUNCTION osgprod._settle_merge(
    p_project osgprod_data.projects, p_attempt osgprod_data.attempts, p_outcome osgprod_data.outcome, p_worker text,
    p_call osgprod.report_call, p_may_wait boolean, OUT outcome osgprod_data.outcome, OUT reason text)
LANGUAGE plpgsql VOLATILE
AS $fn$
-- Settles the merge of a reported attempt. A success lists merged files with size and checksum, or is a failure. A failure may
-- name bad inputs: then their slices are requeued, and the merge waits for them, until it has failed max_failures times.
-- Parameters: p_project  the project's row;  p_attempt  the attempt;  p_outcome  done, failed or node-fault, as judged
--             p_worker  see _worker;  p_call  the report;  p_may_wait  for what others have locked; a call that may not has the
--             merge's row already
-- Returns:    the outcome; superseded when the attempt no longer counts; NULL = busy, nothing is changed. reason: why a
--             success is taken for a failure, or the bad inputs, or those that may still come; NULL = as the job reports
-- Locks:      of bad inputs see _reopen_bad_inputs; then the merge, for which it waits; after another failure see _blame
-- Source:     docs/design.md I8, docs/merging.md "A merge's life"
DECLARE
    v_merge    osgprod_data.merges;
    v_is_last  boolean;  -- has no other attempt had the merge since?
    v_bad      text;
    v_awaited  text;
    v_failures int := (SELECT m.failures + 1 FROM osgprod_data.merges m WHERE m.merge_id = p_attempt.merge_id);
BEGIN
    IF p_outcome = 'done' THEN
        reason := osgprod._why_not_merged(p_call.outputs_list);
        p_outcome := CASE WHEN reason IS NULL THEN 'done' ELSE 'failed' END::osgprod_data.outcome;
    ELSIF p_call.bad_inputs IS NOT NULL THEN
        IF NOT p_may_wait THEN
            RETURN;  -- to be called again, alone
        END IF;
        SELECT b.bad, b.awaited INTO v_bad, v_awaited
          FROM osgprod._reopen_bad_inputs(p_project, p_attempt, p_call.bad_inputs) b;
    END IF;
    SELECT m.* INTO v_merge FROM osgprod_data.merges m WHERE m.merge_id = p_attempt.merge_id FOR NO KEY UPDATE;
    v_is_last := (v_merge.cluster, v_merge.process, v_merge.nstart) = (p_attempt.cluster, p_attempt.process, p_attempt.nstart);
    outcome := 'superseded';
    IF p_outcome = 'done' THEN
        -- I8: a late success counts when no other attempt has had the merge since (it may have replaced its files), and the inputs are
        -- those that it was given.
        IF v_is_last AND v_merge.opened_at = p_attempt.opened_at AND v_merge.state IN ('ready', 'leased', 'failed') THEN
            UPDATE osgprod_data.merges m SET state = 'done', is_ready = NULL, not_before = NULL, done_at = clock_timestamp()
             WHERE m.merge_id = v_merge.merge_id;
            PERFORM osgprod._notify_of_merge(v_merge, 'merge-done');
            outcome := 'done';
        END IF;
    ELSIF v_bad IS NOT NULL THEN
        UPDATE osgprod_data.merges m
           SET failures = v_failures,
               state = CASE WHEN v_failures >= p_project.max_failures THEN 'failed' ELSE 'waiting' END::osgprod_data.merge_state,
               is_ready = CASE WHEN v_failures >= p_project.max_failures THEN false END, not_before = NULL
         WHERE m.merge_id = v_merge.merge_id;
        PERFORM osgprod._notify_of_merge(v_merge, 'merge-failed') WHERE v_failures >= p_project.max_failures;
        outcome := 'failed';
        reason := v_bad;
    ELSIF NOT v_is_last OR v_merge.state <> 'leased' THEN
        RETURN;
    ELSIF v_awaited IS NOT NULL THEN
        UPDATE osgprod_data.merges m
           SET state = 'ready', is_ready = false, not_before = now() + interval '5 min', due_at = NULL
         WHERE m.merge_id = v_merge.merge_id;
        outcome := 'node-fault';
        reason := v_awaited;
    ELSE
        outcome := p_outcome;
        IF osgprod._blame(p_project, p_attempt, v_merge.exit_codes IS NULL, p_outcome, p_worker, p_call) THEN
            -- Something else is to blame: nothing counts, and what it failed before may be taken off.
            SELECT m.* INTO v_merge FROM osgprod_data.merges m WHERE m.merge_id = p_attempt.merge_id;
            p_outcome := 'superseded';
        END IF;
        PERFORM osgprod._fail_merge(p_project, v_merge, p_outcome, p_worker, p_call.exitcode::int);
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._reopen_bad_inputs(
    p_project osgprod_data.projects, p_attempt osgprod_data.attempts, p_bad_inputs text, OUT bad text, OUT awaited text)
LANGUAGE plpgsql VOLATILE
AS $fn$
-- Requeues the slices of a leased merge whose outputs its attempt found bad, except those that may still come.
-- Parameters: p_project  the project's row;  p_attempt  which must hold the merge
--             p_bad_inputs  block1,block2 of each, as the script was given them, joined by ':'
-- Returns:    bad: which are requeued; awaited: which HTCondor may still bring; in words, for the report. Both NULL = none of
--             them is an input of the merge, or the attempt no longer holds it
-- Locks:      the slices, in order; then their files, in order; then see _reopen_file. It waits for each
DECLARE
    v_bad   osgprod_data.merge_input[];
    v_input osgprod_data.merge_input;
    v_name  text;
BEGIN
    -- All slices before the first file, and all files before the first merge.
    SELECT array_agg(ROW(l.rawdata_id, l.block1, l.block2, l.starts_at, l.cluster, l.process, l.nstart)::osgprod_data.merge_input)
      INTO v_bad FROM (
        SELECT i.* FROM osgprod_data.merges m
         CROSS JOIN LATERAL unnest(m.inputs) i
          JOIN osgprod_data.slices s ON s.project_id = m.project_id AND s.rawdata_id = i.rawdata_id AND s.block1 = i.block1
                                    AND s.state = 'done' AND s.cluster = i.cluster AND s.process = i.process AND s.nstart = i.nstart
         WHERE m.merge_id = p_attempt.merge_id AND m.state = 'leased' AND m.cluster = p_attempt.cluster
           AND m.process = p_attempt.process AND m.nstart = p_attempt.nstart
           AND format('%s,%s', i.starts_at, i.starts_at + i.block2 - i.block1)
               = ANY (string_to_array(replace(p_bad_inputs, ' ', ''), ':'))
         ORDER BY s.run, s.seqno, s.block1
           FOR NO KEY UPDATE OF s) l;
    PERFORM osgprod._lock_files(p_project.project_id, (SELECT array_agg(i.rawdata_id) FROM unnest(v_bad) i));
    FOREACH v_input IN ARRAY coalesce(v_bad, '{}') LOOP
        v_name := format('%s,%s', v_input.starts_at, v_input.starts_at + v_input.block2 - v_input.block1);
        IF osgprod._may_still_come(p_project, v_input.cluster, v_input.process, v_input.nstart) THEN
            awaited := coalesce(awaited || ':', 'HTCondor may still bring ') || v_name;
            CONTINUE;
        END IF;
        bad := coalesce(bad || ':', 'bad inputs ') || v_name;
        PERFORM osgprod._lose_output(p_project.project_id, v_input.rawdata_id, v_input.block1,
            format('bad input of merge %s', p_attempt.merge_id));
    END LOOP;
END
$fn$;

CREATE FUNCTION osgprod._may_still_come(p_project osgprod_data.projects, p_cluster int, p_process int, p_nstart int)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- May HTCondor still bring the tarball of a success to output_home? It does so when the job has ended, that is, after the
    -- report: a job that runs on another slice keeps it till then. An hour is left for the transfer.
    -- Parameters: p_project  the project's row;  p_cluster, p_process, p_nstart  the attempt that succeeded
    SELECT p_project.output_home IS NOT NULL AND EXISTS (
        SELECT FROM osgprod_data.reports r
         WHERE r.project_id = p_project.project_id AND r.cluster = p_cluster AND r.process = p_process AND r.nstart = p_nstart
           AND r.by_worker AND r.output_url IS NULL
           AND NOT EXISTS (SELECT FROM osgprod_data.outputs o
                            WHERE o.project_id = r.project_id AND o.cluster = r.cluster AND o.process = r.process
                              AND o.nstart = r.nstart))
       AND EXISTS (  -- an attempt that was replaced without a report is not live, and other jobs may have the same numbers
        SELECT FROM osgprod_data.attempts o
          JOIN osgprod_data.attempts a ON a.project_id = o.project_id AND a.cluster = o.cluster AND a.process = o.process
                                      AND a.nstart >= o.nstart AND a.schedd IS NOT DISTINCT FROM o.schedd
                                      AND a.qdate IS NOT DISTINCT FROM o.qdate
         WHERE o.project_id = p_project.project_id AND o.cluster = p_cluster AND o.process = p_process AND o.nstart = p_nstart
           AND (EXISTS (SELECT FROM osgprod._work_of(a) w WHERE NOT w.is_done)
                OR EXISTS (SELECT FROM osgprod_data.reports r
                            WHERE r.project_id = a.project_id AND r.cluster = a.cluster AND r.process = a.process
                              AND r.nstart = a.nstart AND r.reported_at > now() - interval '1 h')))
$fn$;

CREATE FUNCTION osgprod._lose_output(p_project_id int, p_rawdata_id int, p_block1 int, p_reason text)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Notes that the outputs of the attempt that has done a slice are lost, and requeues the slice.
-- Parameters: p_project_id, p_rawdata_id, p_block1  the slice, done and locked;  p_reason  who found it, and the fault
-- Locks:      see _reopen_slice
BEGIN
    INSERT INTO osgprod_data.lost_outputs (project_id, cluster, process, nstart, reason)
    SELECT s.project_id, s.cluster, s.process, s.nstart, osgprod._label(p_reason, 512) FROM osgprod_data.slices s
     WHERE s.project_id = p_project_id AND s.rawdata_id = p_rawdata_id AND s.block1 = p_block1
    ON CONFLICT DO NOTHING;
    PERFORM osgprod._reopen_slice(p_project_id, p_rawdata_id, p_block1);
END
$fn$;

CREATE FUNCTION osgprod._fail_merge(
    p_project osgprod_data.projects, p_merge osgprod_data.merges, p_outcome osgprod_data.outcome, p_worker text,
    p_exit_code int)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Requeues a leased merge after a failure, a node fault or a loss, or since its job is gone: ready after a backoff, or failed.
-- What counts as a failure is as with slices (_fail_slice); a merge can't be split.
-- Parameters: p_project  the project's row;  p_merge  the merge, locked;  p_outcome  failed, node-fault, lost or superseded
--             p_worker   on whom;  p_exit_code  as reported; NULL = lost, or gone
DECLARE
    v_is_failure boolean;
    v_not_before timestamptz;
BEGIN
    SELECT c.is_failure, c.not_before, c.failures, c.faults, c.faulted_on, c.repeats, c.exit_codes
      INTO v_is_failure, v_not_before, p_merge.failures, p_merge.faults, p_merge.faulted_on, p_merge.repeats, p_merge.exit_codes
      FROM osgprod._count_failure(p_project, p_outcome, p_worker, p_exit_code, false, p_merge.failures, p_merge.faults,
                                  p_merge.faulted_on, p_merge.repeats, p_merge.exit_codes) c;
    IF v_is_failure AND p_merge.failures >= p_project.max_failures THEN
        v_not_before := NULL;
        PERFORM osgprod._notify_of_merge(p_merge, 'merge-failed');
    END IF;
    UPDATE osgprod_data.merges m
       SET state = CASE WHEN v_not_before IS NULL THEN 'failed' ELSE 'ready' END::osgprod_data.merge_state,
           is_ready = coalesce(v_not_before <= now(), false), not_before = v_not_before, failures = p_merge.failures,
           faults = p_merge.faults, faulted_on = p_merge.faulted_on, repeats = p_merge.repeats, exit_codes = p_merge.exit_codes,
           due_at = CASE WHEN p_outcome IN ('lost', 'superseded') THEN m.due_at END
     WHERE m.merge_id = p_merge.merge_id;
END
$fn$;

CREATE FUNCTION osgprod._requeue_merges(
    p_project osgprod_data.projects, p_cluster int, p_process int, p_schedd text, p_since timestamptz, p_hold timestamptz)
RETURNS int LANGUAGE plpgsql VOLATILE
AS $fn$
-- Requeues the merges of a project whose lease has ended, or those of jobs that are gone; see _requeue_project.
-- Parameters: as of _requeue_project;  p_since, p_hold  see _has_expired
-- Returns:    how many
-- Locks:      merges, SKIP LOCKED
DECLARE
    v_merge osgprod_data.merges;
    v_lost  int := 0;
BEGIN
    FOR v_merge IN
        SELECT m.* FROM osgprod_data.merges m
         WHERE m.project_id = p_project.project_id AND m.state = 'leased'
           AND CASE WHEN p_cluster IS NULL THEN osgprod._has_expired(m.due_at, p_since, p_hold)
                    ELSE m.cluster = p_cluster AND m.process = coalesce(p_process, m.process)
                         AND osgprod._is_of_schedd(m.project_id, m.cluster, m.process, m.nstart, p_schedd) END
           FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        v_lost := v_lost + 1;
        PERFORM osgprod._lose_merge(p_project, v_merge,
            CASE WHEN p_cluster IS NULL THEN 'lost' ELSE 'superseded' END::osgprod_data.outcome,
            osgprod._why_given_up(v_merge.due_at));
    END LOOP;
    RETURN v_lost;
END
$fn$;

CREATE FUNCTION osgprod._lose_merge(
    p_project osgprod_data.projects, p_merge osgprod_data.merges, p_outcome osgprod_data.outcome, p_reason text)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Writes the server's own verdict on the attempt that holds a merge, and requeues the merge; see _lose_slice.
-- Parameters: as of _lose_slice;  p_merge  locked
DECLARE
    v_attempt osgprod_data.attempts := osgprod._attempt(p_merge.project_id, p_merge.cluster, p_merge.process, p_merge.nstart);
BEGIN
    PERFORM osgprod._fail_merge(p_project, p_merge, CASE WHEN p_outcome = 'lost' AND p_reason IS NOT NULL
                                                    THEN 'node-fault' ELSE p_outcome END,
                                osgprod._worker(v_attempt.client, v_attempt.host), NULL);
    PERFORM osgprod._record_verdict(p_project, v_attempt, p_outcome, p_reason);
END
$fn$;

CREATE FUNCTION osgprod._renew_merge_lease(
    p_project osgprod_data.projects, p_attempt osgprod_data.attempts, p_call osgprod.heartbeat_call)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Records the heartbeat of a job that works on a merge; the rules are those of _renew_lease.
-- Parameters: p_project  the project's row;  p_attempt  the attempt;  p_call  see heartbeat
-- Returns:    does it go on? Otherwise it has to stop
-- Locks:      the merge
DECLARE
    v_merge osgprod_data.merges;
    v_stop  text;
BEGIN
    SELECT m.* INTO v_merge FROM osgprod_data.merges m
     WHERE m.merge_id = p_attempt.merge_id AND m.cluster = p_attempt.cluster AND m.process = p_attempt.process
       AND m.nstart = p_attempt.nstart
       FOR NO KEY UPDATE;
    IF NOT FOUND OR v_merge.state <> 'leased'
                    AND NOT osgprod._is_lost(v_merge.state = 'ready', v_merge.due_at, v_merge.opened_at, p_attempt) THEN
        RETURN false;
    END IF;
    IF p_call.bytes > coalesce(v_merge.bytes_fetched, -1) OR p_call.cpu_s > coalesce(v_merge.cpu_s, -1) THEN
        v_merge.progress_at := now();
    END IF;
    v_stop := osgprod._why_stop(p_project, p_attempt, v_merge.progress_at);
    IF v_stop IS NOT NULL THEN
        PERFORM osgprod._lose_merge(p_project, v_merge, osgprod._verdict_of_stop(p_project), v_stop);
        RETURN false;
    END IF;
    UPDATE osgprod_data.merges m
       SET state = 'leased', is_ready = NULL, not_before = NULL,
           due_at = now() + make_interval(secs => p_project.lease_s), progress_at = v_merge.progress_at,
           bytes_fetched = greatest(p_call.bytes, v_merge.bytes_fetched), cpu_s = greatest(p_call.cpu_s, v_merge.cpu_s)
     WHERE m.merge_id = v_merge.merge_id;
    RETURN true;
END
$fn$;

CREATE FUNCTION osgprod._listed_outputs(p_outputs_list text)
RETURNS TABLE (n smallint, kind text, url text, bytes bigint, adler32 text, events bigint) LANGUAGE plpgsql IMMUTABLE
AS $fn$
-- The files that a report lists as delivered.
-- Parameters: p_outputs_list  JSON array of objects with kind, url, bytes, adler32, events, as the job sent it
-- Returns:    a row for each of the first 1000 objects that has a kind and a URL, as far as it can be kept; none when the text is
--             not such an array
DECLARE
    v_list jsonb;
BEGIN
    v_list := p_outputs_list::jsonb;
    RETURN QUERY
    SELECT o.place::smallint, osgprod._label(o.file ->> 'kind', 64), osgprod._label(o.file ->> 'url', 1024),
           CASE WHEN o.file ->> 'bytes' ~ '^[0-9]{1,18}$' THEN (o.file ->> 'bytes')::bigint END,
           osgprod._evidence_adler32(o.file ->> 'adler32'),
           CASE WHEN o.file ->> 'events' ~ '^[0-9]{1,18}$' THEN (o.file ->> 'events')::bigint END
      FROM jsonb_array_elements(CASE jsonb_typeof(v_list) WHEN 'array' THEN v_list ELSE '[]' END)
           WITH ORDINALITY AS o (file, place)
     WHERE o.place <= 1000 AND jsonb_typeof(o.file) = 'object' AND osgprod._label(o.file ->> 'kind', 64) IS NOT NULL
       AND osgprod._label(o.file ->> 'url', 1024) IS NOT NULL;
EXCEPTION WHEN data_exception THEN
    RETURN;
END
$fn$;

CREATE FUNCTION osgprod._why_not_merged(p_outputs_list text)
RETURNS text LANGUAGE sql STABLE
AS $fn$
    -- Names the missing part of the proof that a merge was done: a list of merged files, each with its size and checksum.
    -- Parameters: p_outputs_list  as reported
    -- Returns:    one phrase; NULL = nothing is lacking
    SELECT CASE WHEN count(*) = 0 THEN 'exit code 0 without a list of merged files (outputs_list)'
                WHEN count(o.bytes) < count(*) OR count(o.adler32) < count(*)
                THEN 'exit code 0 without size and checksum of each merged file' END
      FROM osgprod._listed_outputs(p_outputs_list) o
$fn$;

CREATE FUNCTION osgprod._record_outputs(p_attempt osgprod_data.attempts, p_outputs_list text)
RETURNS text LANGUAGE plpgsql VOLATILE
AS $fn$
-- Records the files that a report lists as delivered. They are outputs if the report is accepted.
-- Parameters: p_attempt  which;  p_outputs_list  as reported
-- Returns:    a line for the answer when nothing of it can be kept; else ''
BEGIN
    INSERT INTO osgprod_data.outputs (project_id, cluster, process, nstart, n, kind, url, bytes, adler32, events)
    SELECT p_attempt.project_id, p_attempt.cluster, p_attempt.process, p_attempt.nstart, o.n, o.kind, o.url, o.bytes, o.adler32,
           o.events
      FROM osgprod._listed_outputs(p_outputs_list) o;
    RETURN CASE WHEN FOUND THEN '' ELSE E'\nignored: outputs_list (no JSON array of objects with kind and url)' END;
END
$fn$;
