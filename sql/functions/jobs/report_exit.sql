CREATE FUNCTION osgprod.report_exit(
    p_project        text,
    p_cluster        bigint,
    p_process        bigint,
    p_exitcode       bigint,
    p_magic          text   DEFAULT NULL,
    p_client         inet   DEFAULT coalesce(inet_client_addr(), '127.0.0.1'),
    p_token          text   DEFAULT NULL,
    p_events         bigint DEFAULT NULL,
    p_outputs        bigint DEFAULT NULL,
    p_output_bytes   bigint DEFAULT NULL,
    p_output_adler32 text   DEFAULT NULL,
    p_output_url     text   DEFAULT NULL,
    p_host           text   DEFAULT NULL,
    p_site           text   DEFAULT NULL,
    p_reason         text   DEFAULT NULL,
    p_bearer         jsonb  DEFAULT NULL,
    p_job_key        text   DEFAULT NULL,
    p_fault          text   DEFAULT NULL,
    p_door           text   DEFAULT NULL,
    p_bad_inputs     text   DEFAULT NULL,
    p_outputs_list   text   DEFAULT NULL,
    p_software       text   DEFAULT NULL,
    p_memory_bytes   bigint DEFAULT NULL,
    p_wall_s         bigint DEFAULT NULL,
    p_cpu_s          bigint DEFAULT NULL,
    p_fetched_bytes  bigint DEFAULT NULL,
    p_disk_bytes     bigint DEFAULT NULL,
    p_log_tail       text   DEFAULT NULL)
RETURNS osgprod.report_answer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $fn$
-- Records a job's report on how its attempt ended, and settles the slice or merge.
-- Promise:    the first success wins. The same report again changes nothing and gets the same answer (but 409 if it was
--             the success of a merge that has been superseded since). The first report of an attempt is recorded whatever its
--             outcome, unless the call is refused or ends with an error. Evidence and texts never keep it from being recorded:
--             numbers and checksums that can't be kept are ignored, and the answer names them; texts are shortened.
-- Parameters: p_project, p_magic, p_client, p_bearer  see _why_rejected
--             p_cluster, p_process  HTCondor's identity of the job [0 .. 2147483647]
--             p_exitcode            exit code of the work script [0 .. 255]; 128 + n = killed by signal n
--             p_token               the attempt's token; without it, where the project allows that, the job's last
--                                   attempt at the caller's address is meant; not of a job that sends schedd or qdate
--             p_job_key             see _is_token: needed only where no token is sent
--             p_events              events that the reconstruction read from the slice's file; another number than the
--                                   index has is recorded as a contradiction, or makes a failure (demand_events)
--             p_outputs, p_output_bytes [bytes], p_output_adler32 [1 to 8 hex digits], p_output_url  the outputs, and where they are
--             p_fault               what failed: fetch, delivery, program or setting; node = neither fetch nor delivery, although the
--                                   exit code is 75 or 74;  p_door  scheme and host that the slice was read from
--             p_bad_inputs          of a merge: block1,block2 of each, joined by ':'
--             p_outputs_list        delivered files, JSON: [{"kind", "url", "bytes", "adler32", "events"}]
--             p_software            what the reconstruction calls its version
--             p_memory_bytes [bytes at the peak], p_wall_s [s], p_cpu_s [s], p_fetched_bytes, p_disk_bytes [bytes]  used
--             p_log_tail            last lines of a failed attempt's log
--             p_host, p_site        where it ran: a host counts only if the checkout named none, a site replaces the checkout's
--             p_reason              why it failed, in the job's words
-- Returns:    one row. http_status 200: status done, failed or node-fault; 409: status superseded (the outputs are void)
--             or contradicted (this attempt has reported another exit code); 403: status refused (token)
-- Errors:     OG101-OG103, OG105 bad parameter; OG2xx not allowed; OG301 unknown project; OG303 job without attempt;
--             OG502 an operator has the project alone; OG901 isolation level
-- Locks:      the table of docs/design.md "Who waits for whom" has them in order
-- Source:     docs/design.md "A slice's life", I3, I5, I6
DECLARE
    v_answer osgprod.report_answer;
BEGIN
    v_answer := osgprod._report(ROW(NULL, p_project, p_cluster, p_process, p_exitcode, p_magic, osgprod._plain_address(p_client),
        p_token, p_events, p_outputs, p_output_bytes, p_output_adler32, p_output_url, p_host, p_site, p_reason, p_bearer, p_job_key, p_fault,
        p_door, p_bad_inputs, p_outputs_list, p_software, p_memory_bytes, p_wall_s, p_cpu_s, p_fetched_bytes, p_disk_bytes,
        p_log_tail)::osgprod.report_call, true);
    -- An error rolls back, so it can't be confirmed: a primary that was replaced may raise OG303. Errors of a batch are rows.
    IF v_answer.code IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = v_answer.code, MESSAGE = v_answer.message, HINT = v_answer.hint;
    END IF;
    PERFORM osgprod._confirm_answer();
    RETURN v_answer;
END
$fn$;

COMMENT ON FUNCTION osgprod.report_exit(text, bigint, bigint, bigint, text, inet, text, bigint, bigint, bigint, text, text, text, text, text, jsonb, text, text, text, text, text, text, bigint, bigint, bigint, bigint, bigint, text) IS
'Records a job''s report on how its attempt ended, and settles the slice or merge; one row with the HTTP status to answer. For osgprod_worker and osgprod_operator.';
