CREATE FUNCTION osgprod._is_of_job(p_attempt osgprod_data.attempts, p_call osgprod.checkout_call)
RETURNS boolean LANGUAGE sql IMMUTABLE
AS $fn$
    -- Is an attempt of the job that calls, and not of another one with the same numbers? Two access points, or a queue that
    -- was set up again and counts from 1, give the same numbers to different jobs: their access point or the time of their
    -- submission differs. Jobs that send neither are known by their numbers alone.
    -- Parameters: p_attempt  an attempt with the caller's project, cluster and process;  p_call  the call
    SELECT (p_attempt.schedd, p_attempt.qdate) IS NOT DISTINCT FROM (osgprod._label(p_call.schedd), p_call.qdate)
$fn$;

CREATE FUNCTION osgprod._job_so_far(
    p_project osgprod_data.projects, p_call osgprod.checkout_call, p_nstart int, p_can_merge boolean, p_may_wait boolean,
    OUT job osgprod.job_so_far)
LANGUAGE plpgsql VOLATILE
AS $fn$
-- Says how far a job is that has started before, or that asks for another slice after a success. Gives it the slice or merge of its
-- last attempt again, as primary or as backup. A job that was evicted from its slice three times, or has too little time left for
-- it, gives the slice back and gets a shorter one, nearly always the beginning of the same; nothing counts as a failure. After
-- max_starts starts without a report the lease ends.
-- Promise:    a job that asks again after the same success, since the answer was lost, gets the same slice again.
-- Parameters: p_project  the project's row;  p_call  the call, whose job is locked;  p_nstart  the coming attempt
--             p_can_merge  may this job get a merge?;  p_may_wait  for the slice or merge
-- Returns:    starts: how often it has started. follows: see attempts. slice: the slice or merge, NULLs = it has none, and gets a new
--             one. most: blocks of the new one at most, NULL = no such limit. gave_back: has it just given its slice back? problem, why it gets nothing: OG111 after is not the
--             token of an attempt of this job, OG409 that attempt has not succeeded, OG410 the job has started again since, OG602 it
--             starts too often, 55P03 its work is busy; without a code its work is done (status completed), it may be another
--             job, or it gives its work up
-- Locks:      the slice or merge (see _renew_work); the file's row, FOR KEY SHARE SKIP LOCKED (_may_be_assigned), of a slice that is
--             given back; the project's row, SKIP LOCKED, for next_due_at when work is given up: else the work waits for the next
--             look at all leases
-- Source:     docs/protocol.md "Several slices a job"; docs/design.md I3
DECLARE
    v_name   text := format('job %s.%s', p_call.cluster, p_call.process);
    v_last   osgprod_data.attempts;
    v_named  record;
    v_work   record;
    v_starts record;
BEGIN
    SELECT a.* INTO v_last FROM osgprod_data.attempts a
     WHERE (a.project_id, a.cluster, a.process) = (p_project.project_id, p_call.cluster, p_call.process)
       AND osgprod._is_of_job(a, p_call)
     ORDER BY a.nstart DESC LIMIT 1;
    job.starts := coalesce(v_last.job_start, v_last.nstart, 0);
    job.follows := v_last.follows;
    IF p_call.after <> '' THEN
        -- Nearly always the last one; a subquery, since a join would read all reports of the job.
        SELECT a.nstart, coalesce(a.job_start, a.nstart) AS job_start, (SELECT r.outcome FROM osgprod_data.reports r
                WHERE (r.project_id, r.cluster, r.process, r.nstart) = (a.project_id, a.cluster, a.process, a.nstart) AND r.by_worker) AS outcome
          INTO v_named FROM osgprod_data.attempts a
         WHERE (a.project_id, a.cluster, a.process) = (p_project.project_id, p_call.cluster, p_call.process)
           AND osgprod._is_of_job(a, p_call) AND a.token_digest = sha256(convert_to(lower(p_call.after), 'UTF8'))
         ORDER BY a.nstart DESC LIMIT 1;
        IF NOT FOUND THEN
            job.problem := ARRAY['OG111', 'parameter after is not the token of an attempt of ' || v_name,
                'send the Osgprod-Token of the success that was reported last, or ask without after'];
        ELSIF v_named.outcome IS DISTINCT FROM 'done' THEN
            job.problem := ARRAY['OG409', format('parameter after: start %s of %s has not succeeded, it %s', v_named.job_start, v_name,
                coalesce('is ' || v_named.outcome, 'has not reported')),
                'report its success first, or ask without after'];
        ELSIF v_named.nstart = v_last.nstart THEN
            v_last := NULL;
            job.follows := v_named.nstart;
        ELSIF job.follows IS DISTINCT FROM v_named.nstart THEN
            job.problem := ARRAY['OG410', format('parameter after: %s has started again since start %s', v_name, v_named.job_start),
                'send the Osgprod-Token of the success that was reported last, or ask without after'];
        END IF;
    END IF;
    IF job.problem IS NOT NULL OR v_last.nstart IS NULL THEN
        RETURN;
    END IF;
    -- The work of its last attempt as it is now, unlocked: the conditions of the statements below are what counts.
    SELECT w.task, w.is_done, CASE WHEN NOT w.is_done THEN osgprod._why_another_job(p_project, p_call, v_last, w.due_at, w.progress_at)
           END AS refusal INTO v_work FROM osgprod._work_of(v_last) w;
    -- Its last starts: those within a minute, those on this work of the last max_starts, and evictions from it. One that ended at
    -- once was no eviction: an answer was lost, or the node is bad.
    SELECT count(*) FILTER (WHERE x.started_at > now() - interval '1 minute') AS in_a_minute,
           count(*) FILTER (WHERE x.is_on_work AND x.n <= p_project.max_starts) AS on_work,
           count(*) FILTER (WHERE x.is_on_work AND x.ran >= make_interval(secs => p_project.fast_failure_s)) AS evicted
      INTO v_starts
      FROM (SELECT a.started_at, a.opened_at = v_last.opened_at AS is_on_work,
                   lag(a.started_at, 1, clock_timestamp()) OVER (ORDER BY a.nstart DESC) - a.started_at AS ran,
                   row_number() OVER (ORDER BY a.nstart DESC) AS n
              FROM osgprod_data.attempts a
             WHERE (a.project_id, a.cluster, a.process) = (p_project.project_id, p_call.cluster, p_call.process)
               AND osgprod._is_of_job(a, p_call)
             ORDER BY a.nstart DESC LIMIT greatest(p_project.max_starts_per_min, p_project.max_starts, 20)) x;
    IF v_work.refusal IS NOT NULL THEN
        PERFORM osgprod._record_refusal(p_project.project_id, p_call.cluster, p_call.process, p_call.client, v_work.refusal);
        job.problem := ARRAY[NULL, format('%s has a living attempt, and this request does not prove to be the same job: %s', v_name,
            v_work.refusal)];
    ELSIF v_work.is_done THEN
        job.status := 'completed';
        job.problem := ARRAY[NULL, v_name || ' has already completed its ' || CASE v_work.task WHEN 'slice' THEN 'work' ELSE v_work.task END];
    ELSIF v_starts.in_a_minute >= p_project.max_starts_per_min THEN
        job.problem := ARRAY['OG602', format('%s has started too often within a minute (max_starts_per_min = %s)', v_name, p_project.max_starts_per_min),
            'wait a minute; see why the job restarts'];
    ELSIF v_work.task IS NULL THEN  -- perhaps it gave its slice back, and got no other then
        job.most := CASE WHEN v_starts.evicted >= 3 AND v_last.merge_id IS NULL THEN (v_last.block2 - v_last.block1 + 1) / 2 END;
    ELSIF NOT p_may_wait AND NOT osgprod._try_work(v_last) THEN
        job.problem := osgprod._is_busy('the work of ' || v_name);
    ELSIF v_starts.on_work = p_project.max_starts
          AND (osgprod._renew_work(v_last, v_last.nstart, '2000-01-01 00:00+00')).block1 IS NOT NULL THEN
        -- The next tick requeues the work as lost, and says so (_why_given_up).
        UPDATE osgprod_data.projects p SET next_due_at = '-infinity'
         WHERE p.project_id = (SELECT q.project_id FROM osgprod_data.projects q
                                WHERE q.project_id = p_project.project_id FOR NO KEY UPDATE SKIP LOCKED);
        job.problem := ARRAY[NULL, format('%s has started too often on its work without a report (max_starts = %s): ask again for other work', v_name,
            p_project.max_starts)];
    ELSE
        IF v_work.task = 'slice' AND (v_starts.evicted >= 3 OR p_call.time_left_s IS NOT NULL) THEN
            job.most := least(v_last.block2 - v_last.block1, CASE WHEN v_starts.evicted >= 3 THEN (v_last.block2 - v_last.block1 + 1) / 2 END,
                osgprod._blocks_in_time(osgprod._pace_at(p_project.project_id, p_call.site), p_call.cpus, p_call.time_left_s));
            -- It keeps the slice while the project assigns nothing new, and where a backup attempt on it would be in vain.
            UPDATE osgprod_data.slices s
               SET state = 'ready', is_ready = osgprod._may_be_assigned(s.project_id, s.rawdata_id), not_before = now(), due_at = NULL
             WHERE (s.project_id, s.rawdata_id, s.block1, s.state, s.cluster, s.process, s.nstart) = (v_last.project_id,
                   v_last.rawdata_id, v_last.block1, 'leased', v_last.cluster, v_last.process, v_last.nstart)  -- I3
               AND s.block2 - s.block1 > job.most AND p_project.state = 'active' AND NOT EXISTS (
                SELECT FROM osgprod_data.backups b
                 WHERE (b.project_id, b.rawdata_id, b.block1) = (s.project_id, s.rawdata_id, s.block1) AND b.nstart IS NOT NULL);
            job.gave_back := FOUND;
        ELSIF v_work.task = 'merge' AND NOT p_can_merge THEN  -- no merge script, or too little time: another job gets it
            UPDATE osgprod_data.merges m SET state = 'ready', is_ready = true, not_before = now(), due_at = NULL
             WHERE (m.merge_id, m.state, m.cluster, m.process, m.nstart)
                 = (v_last.merge_id, 'leased', v_last.cluster, v_last.process, v_last.nstart);  -- I3
        END IF;
        job.slice := osgprod._renew_work(v_last, p_nstart, clock_timestamp() + make_interval(secs => p_project.lease_s));
    END IF;
END
$fn$;
