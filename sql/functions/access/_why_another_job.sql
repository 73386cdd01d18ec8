CREATE FUNCTION osgprod._why_another_job(
    p_project osgprod_data.projects, p_call osgprod.checkout_call, p_last osgprod_data.attempts, p_due_at timestamptz,
    p_progress_at timestamptz)
RETURNS text LANGUAGE sql STABLE
AS $fn$
    -- Says why a caller does not prove to be the job whose attempt lives. Once the last attempt has ended no work is left to protect:
    -- the caller may start again under this job's number.
    -- Promise:    a key that came with the attempt decides alone. Without one the project's setting restart_proof decides: key,
    --             nobody proves it; address, the caller at the attempt's address and host does, and anybody once the attempt is
    --             silent; none, anybody does.
    -- Parameters: p_project  the project's row;  p_call  the call, whose job is locked
    --             p_last  the job's last attempt, which lives;  p_due_at, p_progress_at  of its slice, merge or backup
    -- Returns:    one phrase; NULL = it may go on
    -- Source:     docs/security.md "Job keys"
    SELECT CASE
        WHEN p_last.job_key_digest = osgprod._digest(p_project.magic_salt, p_call.job_key) THEN NULL
        WHEN p_last.job_key_digest IS NOT NULL AND p_call.job_key <> '' THEN 'parameter job_key is not of this job'
        WHEN p_last.job_key_digest IS NOT NULL THEN 'parameter job_key is missing'
        WHEN p_project.restart_proof = 'none' OR p_project.restart_proof = 'address' AND (
            p_last.client = p_call.client AND p_last.host IS NOT DISTINCT FROM osgprod._label(p_call.host)
            OR p_due_at < now() OR p_project.heartbeat_s > 0
               -- It is silent: the last sign of life is the latest of its start, its last progress, and the begin of its lease.
               AND greatest(p_last.started_at, p_progress_at, p_due_at - make_interval(secs => p_project.lease_s))
                   < now() - make_interval(secs => 3 * p_project.heartbeat_s)) THEN NULL
        ELSE 'the job runs elsewhere' END
$fn$;

CREATE FUNCTION osgprod._record_refusal(
    p_project_id int, p_cluster bigint, p_process bigint, p_client inet, p_reason text)
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Puts a refused call on record: one row for a job, an address and a reason, with how often and when last.
    INSERT INTO osgprod_data.refusals AS f (project_id, cluster, process, client, reason)
    VALUES (p_project_id, p_cluster, p_process, p_client, p_reason)
    ON CONFLICT ON CONSTRAINT refusals_pkey DO UPDATE SET times = f.times + 1, last_at = now()
$fn$;
