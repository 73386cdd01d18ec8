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
-- Says how far a job is that has started before, or that asks for another slice after the success of one; and gives it again
-- what it has.
-- Promise:    a job that asks again after the same success, since the answer was lost, gets the same slice again.
-- Parameters: p_project  the project's row;  p_call  the call, whose job is locked;  p_nstart, p_can_merge, p_may_wait  see _restart
-- Returns:    starts: how often it has started. follows: see attempts. slice: NULLs = it has none, and gets a new one.
--             problem: OG111 after is not the token of an attempt of this job, OG409 that attempt has not succeeded,
--             OG410 the job has started again since; else, with status, see _restart
-- Locks:      see _restart
-- Source:     docs/protocol.md "Several slices a job"
DECLARE
    v_last  osgprod_data.attempts;
    v_named record;
BEGIN
    SELECT a.* INTO v_last FROM osgprod_data.attempts a
     WHERE (a.project_id, a.cluster, a.process) = (p_project.project_id, p_call.cluster, p_call.process)
       AND osgprod._is_of_job(a, p_call)
     ORDER BY a.nstart DESC LIMIT 1;
    job.starts := coalesce(v_last.job_start, v_last.nstart, 0);
    job.follows := v_last.follows;
    IF p_call.after <> '' THEN
        SELECT a.nstart, coalesce(a.job_start, a.nstart) AS job_start, r.outcome INTO v_named
          FROM osgprod_data.attempts a LEFT JOIN osgprod_data.reports r
            ON (r.project_id, r.cluster, r.process, r.nstart, r.by_worker) = (a.project_id, a.cluster, a.process, a.nstart, true)
         WHERE (a.project_id, a.cluster, a.process) = (p_project.project_id, p_call.cluster, p_call.process)
           AND osgprod._is_of_job(a, p_call) AND a.token_digest = sha256(convert_to(lower(p_call.after), 'UTF8'));
        IF NOT FOUND THEN
            job.problem := ARRAY['OG111', format('parameter after is not the token of an attempt of job %s.%s', p_call.cluster,
                p_call.process), 'send the Osgprod-Token of the success that was reported last, or ask without after'];
        ELSIF v_named.outcome IS DISTINCT FROM 'done' THEN
            job.problem := ARRAY['OG409', format('parameter after: start %s of job %s.%s has not succeeded, it %s', v_named.job_start,
                p_call.cluster, p_call.process, coalesce('is ' || v_named.outcome, 'has not reported')),
                'report its success first, or ask without after'];
        ELSIF v_named.nstart = v_last.nstart THEN
            v_last := NULL;
            job.follows := v_named.nstart;
        ELSIF job.follows IS DISTINCT FROM v_named.nstart THEN
            job.problem := ARRAY['OG410', format('parameter after: job %s.%s has started again since start %s',
                p_call.cluster, p_call.process, v_named.job_start),
                'send the Osgprod-Token of the success that was reported last, or ask without after'];
        END IF;
    END IF;
    IF job.problem IS NULL AND v_last.nstart IS NOT NULL THEN
        job := osgprod._restart(p_project, p_call, v_last, p_nstart, p_can_merge, p_may_wait, job);
    END IF;
END
$fn$;
