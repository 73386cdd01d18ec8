CREATE FUNCTION osgprod._report(p_call osgprod.report_call, p_may_wait boolean)
RETURNS osgprod.report_answer LANGUAGE plpgsql VOLATILE
AS $fn$
-- Records one job's report and settles its slice or merge: the whole of report_exit, for a call that is made alone and for each
-- call of a batch.
-- Parameters: p_call  see report_exit
--             p_may_wait  for what others have locked: true for a call that is made alone
-- Returns:    the answer; the error of a call is in it, and slice, merge and attempt are as they were
-- Locks:      see report_exit
DECLARE
    v_project osgprod_data.projects;
    v_problem text[];
    v_attempt osgprod_data.attempts;
    v_worker  text;
    v_report  osgprod_data.reports;
    v_outcome osgprod_data.outcome;
    v_reason  text;
    v_kept    record;
    v_ignored text;  -- evidence that can't be kept, as a line for the answer
    v_contradiction text;
    v_is_settled boolean;
    v_settled record;
BEGIN
    v_project := (SELECT p FROM osgprod_data.projects p WHERE p.name = p_call.project);
    v_problem := coalesce(
        osgprod._why_rejected(v_project, p_call.project, p_call.cluster, p_call.process, p_call.magic, p_call.client,
                              p_call.bearer, p_may_wait),
        CASE WHEN (p_call.exitcode BETWEEN 0 AND 255) IS NOT TRUE
             THEN ARRAY['OG105', 'parameter exitcode must be a number from 0 to 255, not {number}',
                        'pass the exit code of the work script'] END);
    IF v_problem IS NOT NULL THEN
        RETURN osgprod._report_error(osgprod._worded(v_problem, v_project, p_call.project, p_call.cluster, p_call.process,
            p_call.client, p_call.bearer, p_call.exitcode));
    END IF;
    SELECT a.* INTO v_attempt FROM osgprod._attempt_of(v_project.project_id, v_project.token_required, p_call.cluster,
                                                       p_call.process, p_call.token, p_call.client,
                                                       osgprod._digest(v_project.magic_salt, p_call.job_key)) a;
    IF NOT FOUND THEN
        RETURN osgprod._refuse_token(v_project, p_call.cluster, p_call.process, p_call.client, p_call.token);
    END IF;
    IF v_attempt.events IS NULL AND v_attempt.merge_id IS NULL THEN
        v_attempt.events := osgprod._events_of(v_attempt);
    END IF;
    -- Evidence is nearly always as it is kept; then this function does not start.
    IF least(p_call.events, p_call.outputs, p_call.output_bytes, p_call.memory_bytes, p_call.wall_s, p_call.cpu_s,
             p_call.fetched_bytes, p_call.disk_bytes) < 0
        OR greatest(p_call.outputs, p_call.wall_s) > 2147483647 OR p_call.output_adler32 !~ '^[0-9a-f]{8}$' THEN
        v_kept := osgprod._kept_evidence(p_call);
        p_call := v_kept.kept;
        v_ignored := v_kept.ignored;
    END IF;
    -- It counts for the worker that got the lease, also when the report comes from another one.
    v_worker := osgprod._worker(v_attempt.client, coalesce(v_attempt.host, p_call.host));
    v_outcome := osgprod._judge_exit(v_project, p_call.exitcode::int, p_call.fault);
    IF v_outcome = 'done' AND v_attempt.merge_id IS NULL THEN
        IF v_project.demand_outputs OR v_project.demand_checksum OR v_project.demand_events THEN
            v_reason := osgprod._missing_evidence(v_project, v_attempt, p_call);
        END IF;
        IF v_reason IS NOT NULL THEN
            v_outcome := 'failed';
            p_call.reason := v_reason;
        ELSE
            IF p_call.events <> v_attempt.events THEN
                v_contradiction := format('%s of %s read', p_call.events, osgprod._counted(v_attempt.events, 'event'));
            END IF;
            -- I3, and nearly always: the success of the slice's holder, who can't have reported before. A batch waits for no
            -- slice, and has to look whether it has written it (_try_work); the shorter statement costs a lone report 3 % less.
            IF p_may_wait THEN
                UPDATE osgprod_data.slices s SET state = 'done'
                 WHERE (s.project_id, s.rawdata_id, s.block1, s.state, s.cluster, s.process, s.nstart) = (v_attempt.project_id,
                       v_attempt.rawdata_id, v_attempt.block1, 'leased', v_attempt.cluster, v_attempt.process, v_attempt.nstart);
            ELSE
                UPDATE osgprod_data.slices s SET state = 'done'
                 WHERE s.ctid = (SELECT x.ctid FROM osgprod_data.slices x
                    WHERE (x.project_id, x.rawdata_id, x.block1, x.state, x.cluster, x.process, x.nstart) = (v_attempt.project_id,
                          v_attempt.rawdata_id, v_attempt.block1, 'leased', v_attempt.cluster, v_attempt.process, v_attempt.nstart)
                      AND (x.xmin = pg_current_xact_id_if_assigned()::xid) IS NOT TRUE
                      FOR NO KEY UPDATE SKIP LOCKED);
            END IF;
            v_is_settled := FOUND;
        END IF;
    END IF;
    IF v_is_settled IS NOT TRUE THEN
        IF NOT p_may_wait AND NOT osgprod._try_work(v_attempt) THEN
            RETURN osgprod._report_error(osgprod._is_busy(format('the work of job %s.%s', p_call.cluster, p_call.process)));
        END IF;
        SELECT r.* INTO v_report FROM osgprod_data.reports r
         WHERE (r.project_id, r.cluster, r.process, r.nstart)
             = (v_attempt.project_id, v_attempt.cluster, v_attempt.process, v_attempt.nstart) AND r.by_worker;
        IF FOUND THEN  -- I6: a report is never taken back
            IF v_report.outcome = 'done' AND v_attempt.merge_id IS NOT NULL AND NOT EXISTS (
                SELECT FROM osgprod._work_of(v_attempt) w WHERE w.is_done) THEN
                v_report.outcome := 'superseded';  -- the job must not remove the inputs: another merge needs them
            END IF;
            IF v_report.exit_code = p_call.exitcode THEN
                RETURN osgprod._answer(v_report.outcome, v_report.reason, v_report.contradiction, v_attempt.merge_id IS NOT NULL, v_ignored);
            END IF;
            RETURN ROW(409, 'contradicted', concat(format('attempt %s of job %s.%s has already reported exit code %s',
                v_report.nstart, v_report.cluster, v_report.process, v_report.exit_code), v_ignored), NULL, NULL, NULL,
                NULL)::osgprod.report_answer;
        END IF;
        IF v_attempt.merge_id IS NULL THEN
            v_outcome := osgprod._settle_attempt(v_project, v_attempt, v_outcome, v_worker, p_call, p_may_wait);
        ELSE
            v_settled := osgprod._settle_merge(v_project, v_attempt, v_outcome, v_worker, p_call, p_may_wait);
            v_outcome := v_settled.outcome;
            v_reason := v_settled.reason;
        END IF;
        IF v_outcome IS NULL THEN
            RETURN osgprod._report_error(osgprod._is_busy(format('the file of job %s.%s', p_call.cluster, p_call.process)));
        END IF;
    END IF;
    v_reason := osgprod._reason(coalesce(v_reason, p_call.reason));
    INSERT INTO osgprod_data.reports (project_id, cluster, process, nstart, by_worker, outcome, exit_code, reported_at, ran_s,
           nblocks, worker, site, events, outputs, output_bytes, output_adler32, output_url, reason,
           contradiction, memory_bytes, wall_s, cpu_s, fetched_bytes, disk_bytes, software, door)
    VALUES (v_attempt.project_id, v_attempt.cluster, v_attempt.process, v_attempt.nstart, true, v_outcome,
           p_call.exitcode,
           -- Were the clock set back, a report with an earlier time would be taken for tallied (_tally).
           greatest(clock_timestamp(), v_project.tally_next),
           greatest(date_part('epoch', clock_timestamp() - v_attempt.started_at), 0),
           v_attempt.block2 - v_attempt.block1, v_worker, coalesce(osgprod._label(p_call.site), v_attempt.site),
           p_call.events, p_call.outputs, p_call.output_bytes, p_call.output_adler32,
           osgprod._label(p_call.output_url, 1024), v_reason, v_contradiction, p_call.memory_bytes, p_call.wall_s, p_call.cpu_s,
           p_call.fetched_bytes, p_call.disk_bytes, osgprod._label(p_call.software, 256),
           osgprod._label(p_call.door));
    IF p_call.outputs_list IS NOT NULL THEN  -- also of a failure or a late report: the files are in storage
        v_ignored := concat(v_ignored, osgprod._record_outputs(v_attempt, p_call.outputs_list));
    END IF;
    IF v_outcome = 'done' THEN
        IF v_attempt.merge_id IS NOT NULL OR v_project.pause_cause IS NOT NULL OR v_project.nsuspended > 0
            OR v_project.unproven > 0 THEN
            PERFORM osgprod._note_success(v_project, v_attempt, true);
        END IF;
    ELSIF v_outcome IN ('failed', 'node-fault') THEN
        IF p_call.log_tail IS NOT NULL AND v_project.keep_log_tail THEN
            PERFORM osgprod._keep_log_tail(v_attempt, p_call.log_tail);
        END IF;
        IF v_attempt.merge_id IS NULL THEN
            PERFORM osgprod._ban_if_black_hole(v_project, v_worker,
                osgprod._fault(v_outcome, p_call.exitcode::int, p_call.fault));
        END IF;
    END IF;
    RETURN osgprod._answer(v_outcome, v_reason, v_contradiction, v_attempt.merge_id IS NOT NULL, v_ignored);
END
$fn$;

CREATE FUNCTION osgprod._answer(
    p_outcome osgprod_data.outcome, p_reason text, p_contradiction text, p_is_merge boolean, p_ignored text)
RETURNS osgprod.report_answer LANGUAGE sql STABLE
AS $fn$
    -- The answer to the report of a slice or a merge; the same for a repeated report. (Inlined: see _why_rejected.)
    -- Parameters: p_outcome, p_reason, p_contradiction  as recorded;  p_is_merge  not a slice?
    --             p_ignored  evidence that can't be kept, as lines
    SELECT ROW(CASE p_outcome WHEN 'superseded' THEN 409 ELSE 200 END, p_outcome,
        CASE WHEN p_outcome = 'done' AND NOT p_is_merge AND p_contradiction IS NULL AND p_ignored IS NULL
             THEN 'thank you, the slice is done'
             ELSE osgprod._answer_text(p_outcome, p_reason, p_contradiction, p_is_merge, p_ignored) END,
        NULL, NULL, NULL, NULL)::osgprod.report_answer
$fn$;

CREATE FUNCTION osgprod._answer_text(
    p_outcome osgprod_data.outcome, p_reason text, p_contradiction text, p_is_merge boolean, p_ignored text)
RETURNS text LANGUAGE plpgsql IMMUTABLE
AS $fn$
-- The texts of _answer except the usual "the slice is done". (A separate function, so that the usual answer does not initialize it.)
-- Parameters: see _answer
DECLARE
    v_work text := CASE WHEN p_is_merge THEN 'merge' ELSE 'slice' END;
BEGIN
    RETURN concat(CASE p_outcome
        WHEN 'done' THEN format('thank you, the %s is done', v_work)
            || coalesce('; but this contradicts the index and is on record: ' || p_contradiction, '')
        WHEN 'failed' THEN 'recorded as a failure' || coalesce(': ' || p_reason, '')
        WHEN 'node-fault' THEN 'recorded as node-fault'
        ELSE format('too late: this attempt no longer has the %s; these outputs do not count', v_work)
    END, p_ignored);
END
$fn$;

CREATE FUNCTION osgprod._judge_exit(p_project osgprod_data.projects, p_exit_code int, p_fault text)
RETURNS osgprod_data.outcome LANGUAGE sql STABLE
AS $fn$
    -- Tells whose fault an exit code is, if anybody's: done, node-fault (killed by a signal, or a code that the project
    -- lists, or a cause that the job names: p_fault) or failed (the data, maybe).
    SELECT CASE WHEN p_exit_code = 0 THEN 'done'::osgprod_data.outcome
                WHEN p_exit_code > 128 OR p_exit_code = ANY (p_project.node_fault_codes)
                     OR p_fault IN ('fetch', 'delivery', 'program', 'setting') THEN 'node-fault'
                ELSE 'failed' END
$fn$;

CREATE FUNCTION osgprod._missing_evidence(
    p_project osgprod_data.projects, p_attempt osgprod_data.attempts, p_call osgprod.report_call)
RETURNS text LANGUAGE plpgsql STABLE
AS $fn$
-- Names the missing or wrong part of the proof that the project demands of a success; exit 0 alone proves nothing.
-- Parameters: p_project  the project's row;  p_attempt  who reports;  p_call  what
-- Returns:    one phrase; NULL = nothing is lacking
BEGIN
    IF p_project.demand_outputs AND coalesce(p_call.outputs, 0) < 1 THEN
        RETURN 'exit code 0 without outputs';
    END IF;
    IF p_project.demand_checksum AND (p_call.output_adler32 IS NULL OR coalesce(p_call.output_bytes, 0) = 0) THEN
        RETURN 'exit code 0 without size and checksum of the outputs';
    END IF;
    IF p_project.demand_events AND p_call.events IS DISTINCT FROM p_attempt.events THEN
        RETURN format('exit code 0 with %s of %s read', coalesce(p_call.events::text, 'unknown'), osgprod._counted(p_attempt.events, 'event'));
    END IF;
    RETURN NULL;
END
$fn$;

CREATE FUNCTION osgprod._settle_attempt(
    p_project osgprod_data.projects, p_attempt osgprod_data.attempts, p_outcome osgprod_data.outcome, p_worker text,
    p_call osgprod.report_call, p_may_wait boolean)
RETURNS osgprod_data.outcome LANGUAGE plpgsql VOLATILE
AS $fn$
-- Settles the slice of a reported attempt: of a failure, and of a success that comes late or from a backup. (A success of the
-- slice's holder, the usual case, _report has settled itself.)
-- Parameters: p_project  the project's row;  p_attempt  the attempt;  p_outcome  done, failed or node-fault, as judged
--             p_worker  see _worker;  p_call  the report;  p_may_wait  for the file
-- Returns:    the outcome; superseded when the attempt no longer counts; NULL = a call of a batch would have to wait for the file
--             or its merge: the slice is as it was
-- Locks:      the slice, for which it waits; after a late success on a quarantined slice see _reopen_file; after a failure see _blame,
--             then _fail_slice; of a backup its row, SKIP LOCKED
-- Source:     docs/design.md I3 (one holder), I5 (first success wins)
DECLARE
    v_is_excused boolean;
    v_slice osgprod_data.slices;
BEGIN
    SELECT s.* INTO v_slice FROM osgprod_data.slices s
     WHERE s.project_id = p_attempt.project_id AND s.rawdata_id = p_attempt.rawdata_id AND s.block1 = p_attempt.block1
       FOR NO KEY UPDATE;
    IF p_outcome = 'done' THEN
        -- I5: a late success counts when nobody was faster and the slice is the one that was leased: not split, recycled
        -- or reset since. No clock is trusted for that: opened_at is compared for being the same.
        IF v_slice.block2 = p_attempt.block2 AND v_slice.opened_at = p_attempt.opened_at AND v_slice.state <> 'done' THEN
            IF v_slice.state = 'quarantined' THEN  -- I8: a merge may be planned, or done, without it
                IF NOT p_may_wait THEN
                    RETURN NULL;
                END IF;
                PERFORM osgprod._reopen_file(v_slice.project_id, v_slice.rawdata_id);
            END IF;
            UPDATE osgprod_data.slices s
               SET state = 'done', is_ready = NULL, not_before = NULL, cluster = p_attempt.cluster,
                   process = p_attempt.process, nstart = p_attempt.nstart, due_at = now()
             WHERE s.project_id = v_slice.project_id AND s.rawdata_id = v_slice.rawdata_id AND s.block1 = v_slice.block1;
            RETURN 'done'::osgprod_data.outcome;
        END IF;
    ELSIF (v_slice.state, v_slice.cluster, v_slice.process, v_slice.nstart)
          = ('leased', p_attempt.cluster, p_attempt.process, p_attempt.nstart) THEN
        -- A worker that is banned proves nothing about the data either.
        IF p_outcome = 'failed' AND p_project.banned_until > now()
            AND EXISTS (SELECT FROM osgprod._ban_of(p_project.project_id, p_worker, coalesce(p_call.site, p_attempt.site))) THEN
            p_outcome := 'node-fault';
        END IF;
        v_is_excused := osgprod._blame(p_project, p_attempt, v_slice.exit_codes IS NULL, p_outcome, p_worker, p_call);
        IF v_is_excused THEN  -- what it failed before may be taken off
            SELECT s.* INTO v_slice FROM osgprod_data.slices s
             WHERE s.project_id = p_attempt.project_id AND s.rawdata_id = p_attempt.rawdata_id AND s.block1 = p_attempt.block1;
        END IF;
        IF NOT osgprod._fail_slice(p_project, v_slice, p_outcome, p_worker, p_call.exitcode::int, p_may_wait, v_is_excused) THEN
            DELETE FROM osgprod_data.recent_failures r
             WHERE r.project_id = p_attempt.project_id AND r.started_at = p_attempt.started_at AND r.worker = p_worker;
            RETURN NULL;
        END IF;
        RETURN p_outcome;
    ELSIF v_slice.state = 'leased' AND osgprod._end_backup(p_attempt, p_outcome) THEN
        -- The slice has another attempt: this one counts for the node alone, and a wrong setting for nothing.
        PERFORM osgprod._note_failure(p_project, p_attempt, false, p_outcome, p_worker, p_call) WHERE p_call.fault = 'setting';
        RETURN 'node-fault'::osgprod_data.outcome;
    END IF;
    RETURN 'superseded'::osgprod_data.outcome;
END
$fn$;
