CREATE FUNCTION osgprod.heartbeat(
    p_project text,
    p_cluster bigint,
    p_process bigint,
    p_magic   text   DEFAULT NULL,
    p_client  inet   DEFAULT coalesce(inet_client_addr(), '127.0.0.1'),
    p_token   text   DEFAULT NULL,
    p_bytes   bigint DEFAULT NULL,
    p_cpu_s   bigint DEFAULT NULL,
    p_bearer  jsonb  DEFAULT NULL,
    p_job_key text   DEFAULT NULL)
RETURNS osgprod.report_answer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $fn$
-- Renews the lease of a living attempt, or tells one that lost its slice or merge, or has to stop, to stop.
-- Promise:    a repeated call renews again. An attempt whose lease has expired gets its slice or merge again by a heartbeat, as
--             long as that is as it was, nobody else has it, and its job has not started again. Not one
--             that was wedged, or that stop_jobs stopped.
-- Parameters: p_project, p_magic, p_client, p_bearer  see _why_rejected
--             p_cluster, p_process  HTCondor's identity of the job [0 .. 2147483647];  p_token  the attempt's token
--             p_bytes  bytes fetched so far;  p_cpu_s  CPU seconds used so far; NULL = not reported
--             p_job_key  see _is_token: needed only where no token is sent
-- Returns:    one row. http_status 200: status alive, lease_s [s] from now; 409: stop the work; status superseded (the
--             attempt no longer has its slice or merge, or an operator has stopped it) or wedged (the server ended it: no progress
--             for the project's wedged_s, or the job gave the work up after max_starts starts); 403: refused
-- Errors:     OG101-OG103 bad parameter; OG2xx not allowed; OG301 unknown project; OG303 job without attempt;
--             OG502 an operator has the project alone; OG901 isolation level
-- Locks:      the table of docs/design.md "Who waits for whom" has them in order
-- Source:     docs/design.md "A slice's life", I3
DECLARE
    v_answer osgprod.report_answer;
BEGIN
    v_answer := osgprod._renew_lease(ROW(NULL, p_project, p_cluster, p_process, p_magic, osgprod._plain_address(p_client), p_token, p_bytes,
        p_cpu_s, p_bearer, p_job_key)::osgprod.heartbeat_call, true);
    -- An error rolls back, so it can't be confirmed: a primary that was replaced may raise OG303. Errors of a batch are rows.
    IF v_answer.code IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = v_answer.code, MESSAGE = v_answer.message, HINT = v_answer.hint;
    END IF;
    PERFORM osgprod._confirm_answer();
    RETURN v_answer;
END
$fn$;

COMMENT ON FUNCTION osgprod.heartbeat(text, bigint, bigint, text, inet, text, bigint, bigint, jsonb, text) IS
'Renews the lease of a living attempt, or tells one that lost its slice or merge, or has to stop, to stop; one row with the HTTP status to answer. For osgprod_worker and osgprod_operator.';
