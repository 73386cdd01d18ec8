CREATE FUNCTION osgprod._renew_lease(p_call osgprod.heartbeat_call, p_may_wait boolean)
RETURNS osgprod.report_answer LANGUAGE plpgsql VOLATILE
AS $fn$
-- Records one job's heartbeat: the whole of heartbeat, for a call that is made alone and for each call of a batch.
-- Parameters: p_call      see heartbeat
--             p_may_wait  for what others have locked: true for a call that is made alone
-- Returns:    the answer; the error of a call is in it, and slice, merge and attempt are as they were
-- Locks:      see heartbeat
DECLARE
    v_project osgprod_data.projects;
    v_problem text[];
    v_attempt osgprod_data.attempts;
    v_slice   osgprod_data.slices;
    v_stop    text;  -- why it has to end
    v_lives   boolean := false;
    v_verdict record;
BEGIN
    v_project := (SELECT p FROM osgprod_data.projects p WHERE p.name = p_call.project);
    v_problem := osgprod._why_rejected(v_project, p_call.project, p_call.cluster, p_call.process, p_call.magic, p_call.client,
                                       p_call.bearer, p_may_wait);
    IF v_problem IS NOT NULL THEN
        RETURN osgprod._report_error(osgprod._worded(v_problem, v_project, p_call.project, p_call.cluster, p_call.process,
            p_call.client, p_call.bearer));
    END IF;
    SELECT a.* INTO v_attempt FROM osgprod._attempt_of(v_project.project_id, v_project.token_required, p_call.cluster,
                                                       p_call.process, p_call.token, p_call.client,
                                                       osgprod._digest(v_project.magic_salt, p_call.job_key)) a;
    IF NOT FOUND THEN
        RETURN osgprod._refuse_token(v_project, p_call.cluster, p_call.process, p_call.client, p_call.token);
    END IF;
    IF NOT p_may_wait AND NOT osgprod._try_work(v_attempt) THEN
        RETURN osgprod._report_error(osgprod._is_busy(format('the work of job %s.%s', p_call.cluster, p_call.process)));
    END IF;
    SELECT s.* INTO v_slice FROM osgprod_data.slices s
     WHERE (s.project_id, s.rawdata_id, s.block1, s.cluster, s.process, s.nstart) = (v_attempt.project_id,
           v_attempt.rawdata_id, v_attempt.block1, v_attempt.cluster, v_attempt.process, v_attempt.nstart)
       FOR NO KEY UPDATE;
    IF v_attempt.merge_id IS NOT NULL THEN
        v_lives := osgprod._renew_merge_lease(v_project, v_attempt, p_call);
    ELSIF FOUND AND (v_slice.state = 'leased'
                     OR osgprod._is_lost(v_slice.state = 'ready', v_slice.due_at, v_slice.opened_at, v_attempt)) THEN
        -- Progress is anything that grew since the last heartbeat; an attempt that has reported none counts from its start.
        IF p_call.bytes > coalesce(v_slice.bytes_fetched, -1) OR p_call.cpu_s > coalesce(v_slice.cpu_s, -1) THEN
            v_slice.progress_at := now();
        END IF;
        v_stop := osgprod._why_stop(v_project, v_attempt, v_slice.progress_at);
        v_lives := v_stop IS NULL;
        IF v_lives THEN
            UPDATE osgprod_data.slices s
               SET state = 'leased', is_ready = NULL, not_before = NULL,
                   due_at = now() + make_interval(secs => v_project.lease_s), progress_at = v_slice.progress_at,
                   bytes_fetched = greatest(p_call.bytes, v_slice.bytes_fetched),
                   cpu_s = greatest(p_call.cpu_s, v_slice.cpu_s)
             WHERE (s.project_id, s.rawdata_id, s.block1) = (v_slice.project_id, v_slice.rawdata_id, v_slice.block1);
            IF (v_project.pause_cause = 'input' OR v_project.nsuspended > 0)
                AND osgprod._has_arrived(v_slice.rawdata_id, v_slice.block2 - v_slice.block1, p_call.bytes)
            THEN
                PERFORM osgprod._note_success(v_project, v_attempt, false);
            END IF;
        -- The job stops, so nobody has to wait for its lease.
        ELSIF NOT osgprod._lose_slice(v_project, v_slice, osgprod._verdict_of_stop(v_project), v_stop, p_may_wait) THEN
            RETURN osgprod._report_error(osgprod._is_busy(format('the file of job %s.%s', p_call.cluster, p_call.process)));
        END IF;
    ELSE
        v_lives := (osgprod._renew_work(v_attempt, v_attempt.nstart,
            now() + make_interval(secs => v_project.lease_s))).block1 IS NOT NULL;
        IF v_lives AND v_project.stopped_at IS NOT NULL THEN
            v_lives := NOT osgprod._end_backup(v_attempt, 'superseded');
            PERFORM osgprod._record_verdict(v_project, v_attempt, 'superseded', osgprod._why_stop(v_project, v_attempt, NULL));
        END IF;
    END IF;
    IF v_lives THEN
        RETURN ROW(200, 'alive', 'go on', v_project.lease_s, NULL, NULL, NULL)::osgprod.report_answer;
    END IF;
    SELECT v.outcome, v.reason INTO v_verdict FROM osgprod_data.reports v
     WHERE (v.project_id, v.cluster, v.process, v.nstart, v.by_worker)
         = (v_attempt.project_id, v_attempt.cluster, v_attempt.process, v_attempt.nstart, false);
    RETURN ROW(409, CASE WHEN v_verdict.outcome = 'lost' AND v_verdict.reason IS NOT NULL THEN 'wedged' ELSE 'superseded' END,
        'stop: ' || coalesce(v_verdict.reason, 'this attempt no longer has the ' || CASE WHEN v_attempt.merge_id IS NULL
            THEN 'slice' ELSE 'merge' END), NULL, NULL, NULL, NULL)::osgprod.report_answer;
END
$fn$;

CREATE FUNCTION osgprod._renew_work(p_attempt osgprod_data.attempts, p_nstart int, p_due_at timestamptz)
RETURNS osgprod.claim LANGUAGE plpgsql VOLATILE
AS $fn$
-- Gives an attempt what it has, with another end of its lease: its slice, as holder or as backup, or its merge. For the next start of
-- its job, and for the heartbeat of a backup.
-- Promise:    a backup that gets its slice while this call waits for it goes on, as its holder (I3).
-- Parameters: p_attempt  the attempt;  p_nstart  its number, or that of the next start;  p_due_at  the end of its lease; in the
--             past: the next tick ends it
-- Returns:    the slice or merge; NULLs when the attempt has none any more: it is settled, split or requeued, or the backup has failed
--             or is deleted
-- Locks:      the slice or merge, for which it waits; the backup's row, SKIP LOCKED: what deletes backups without their slice may have it
DECLARE
    v_claim osgprod.claim;
BEGIN
    IF p_attempt.merge_id IS NOT NULL THEN
        UPDATE osgprod_data.merges m
           SET nstart = p_nstart, due_at = p_due_at, progress_at = NULL, bytes_fetched = NULL, cpu_s = NULL
         WHERE (m.merge_id, m.state, m.cluster, m.process, m.nstart)
             = (p_attempt.merge_id, 'leased', p_attempt.cluster, p_attempt.process, p_attempt.nstart)
        RETURNING m.rawdata_id, -1, -1, m.opened_at, m.merge_id INTO v_claim;
        RETURN v_claim;
    END IF;
    -- Whoever holds it: the statements after this one see what the session did for which this one waited.
    SELECT s.rawdata_id, s.block1, s.block2, s.opened_at, NULL::int INTO v_claim FROM osgprod_data.slices s
     WHERE (s.project_id, s.rawdata_id, s.block1, s.state)
         = (p_attempt.project_id, p_attempt.rawdata_id, p_attempt.block1, 'leased')
       FOR NO KEY UPDATE;
    UPDATE osgprod_data.slices s
       SET nstart = p_nstart, due_at = p_due_at, progress_at = NULL, bytes_fetched = NULL, cpu_s = NULL
     WHERE (s.project_id, s.rawdata_id, s.block1, s.cluster, s.process, s.nstart) = (p_attempt.project_id, v_claim.rawdata_id,
           v_claim.block1, p_attempt.cluster, p_attempt.process, p_attempt.nstart);
    IF NOT FOUND THEN
        UPDATE osgprod_data.backups b SET nstart = p_nstart, due_at = p_due_at
         WHERE (b.project_id, b.rawdata_id, b.block1) = (
            SELECT x.project_id, x.rawdata_id, x.block1 FROM osgprod_data.backups x
             WHERE (x.project_id, x.rawdata_id, x.block1, x.opened_at, x.cluster, x.process, x.nstart)
                 = (p_attempt.project_id, v_claim.rawdata_id, v_claim.block1, v_claim.opened_at, p_attempt.cluster,
                    p_attempt.process, p_attempt.nstart) AND x.due_at IS NOT NULL
               FOR UPDATE SKIP LOCKED);  -- another session is about to delete a locked one
    END IF;
    RETURN CASE WHEN FOUND THEN v_claim END;
END
$fn$;

CREATE FUNCTION osgprod._why_stop(
    p_project osgprod_data.projects, p_attempt osgprod_data.attempts, p_progress_at timestamptz)
RETURNS text LANGUAGE sql STABLE
AS $fn$
    -- Says why an attempt that lives has to stop, at a slice or a merge; NULL = it goes on.
    -- Parameters: p_project  the project's row;  p_attempt  the attempt
    --             p_progress_at  when it last reported progress, at this heartbeat included; NULL = it has reported none
    SELECT CASE WHEN p_project.stopped_at IS NOT NULL THEN 'the operator has stopped this project'
                WHEN coalesce(p_progress_at, p_attempt.started_at) < now() - make_interval(secs => p_project.wedged_s)
                THEN format('no progress for more than %s s', p_project.wedged_s) END
$fn$;

CREATE FUNCTION osgprod._verdict_of_stop(p_project osgprod_data.projects)
RETURNS osgprod_data.outcome LANGUAGE sql STABLE
AS $fn$
    -- The verdict on an attempt that has to stop (_why_stop): superseded when the operator wants it, which is nobody's fault.
    -- Parameters: p_project  the project's row
    SELECT CASE WHEN p_project.stopped_at IS NULL THEN 'lost' ELSE 'superseded' END::osgprod_data.outcome
$fn$;

CREATE FUNCTION osgprod._is_lost(
    p_is_ready boolean, p_due_at timestamptz, p_opened_at timestamptz, p_attempt osgprod_data.attempts)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- May an attempt whose lease expired, and that lives after all, have its slice or merge again? Not when that is leased,
    -- done, split, recycled or superseded, when the attempt has reported, was wedged or was stopped by
    -- stop_jobs, or when its job has started again (I3: a job holds one slice or merge).
    -- Parameters: p_is_ready, p_due_at, p_opened_at  of the slice or merge, locked, which this attempt held last: its state is
    --             ready, backoff included;  p_attempt  the attempt
    SELECT p_is_ready AND p_due_at IS NOT NULL AND p_opened_at = p_attempt.opened_at
       AND NOT EXISTS (SELECT FROM osgprod_data.reports r
                        WHERE r.project_id = p_attempt.project_id AND r.cluster = p_attempt.cluster
                          AND r.process = p_attempt.process AND r.nstart = p_attempt.nstart AND r.by_worker)
       AND NOT EXISTS (SELECT FROM osgprod_data.attempts a
                        WHERE a.project_id = p_attempt.project_id AND a.cluster = p_attempt.cluster
                          AND a.process = p_attempt.process AND a.nstart > p_attempt.nstart
                          AND (a.schedd, a.qdate) IS NOT DISTINCT FROM (p_attempt.schedd, p_attempt.qdate))
$fn$;
