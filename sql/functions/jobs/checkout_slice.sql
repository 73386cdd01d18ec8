CREATE FUNCTION osgprod.checkout_slice(
    p_project    text,
    p_cluster    bigint,
    p_process    bigint,
    p_cpus       bigint DEFAULT 1,
    p_magic      text   DEFAULT NULL,
    p_client     inet   DEFAULT coalesce(inet_client_addr(), '127.0.0.1'),
    p_workscript text   DEFAULT NULL,
    p_host       text   DEFAULT NULL,
    p_site       text   DEFAULT NULL,
    p_bearer     jsonb  DEFAULT NULL,
    p_job_key    text   DEFAULT NULL,
    p_schedd     text   DEFAULT NULL,
    p_qdate      bigint DEFAULT NULL,
    p_time_left_s bigint DEFAULT NULL,
    p_after      text   DEFAULT NULL,
    p_exec_version text DEFAULT NULL,
    p_image      text   DEFAULT NULL,
    p_templates  jsonb  DEFAULT NULL)
RETURNS osgprod.checkout_answer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $fn$
-- Leases work to a job: its own slice or merge again after a restart; else a ready merge, a requeued slice, the next blocks of
-- a file, or a backup attempt.
-- Promise:    a lost answer loses nothing: while the job holds its work, a repeated call gives the same work, unless that is too long
--             for the job (_job_so_far), with nstarts counted up and a new token. Two calls at once by one job give one slice. Unless
--             status is assigned, the call leases nothing. It may then record a refusal, end the job's own lease or give its slice
--             back, and write notes into the project's row.
-- Parameters: p_project            project name
--             p_cluster, p_process HTCondor's identity of the job [0 .. 2147483647]
--             p_cpus               cores the job has [1 .. 4096]; a new slice has at most maxblockspercore blocks a core
--             p_magic, p_client, p_bearer  see _why_rejected
--             p_workscript         the work script that the caller holds; only a caller that holds the project's gets work;
--                                  NULL = any
--             p_host, p_site       where the job runs, as it reports
--             p_job_key            secret that proves after a restart that this is the same job [1 .. 256 bytes];
--                                  NULL or empty = none: see the project's setting restart_proof
--             p_schedd, p_qdate    the job's access point, and when it was submitted there [s since 1970]
--             p_time_left_s        until the job must end [s]
--             p_after              token of the attempt whose success this job has just reported; NULL or empty = none
--             p_exec_version, p_image  version of the exec script, and the container image
--             p_templates          templates that the caller holds: {name: SHA-256 as 64 hexadecimal digits, or why it can't
--                                  be read}; NULL = any, and their digests are not known
-- Returns:    always one row. status:
--             assigned   the job has a lease until lease_s [s] after the start or its last heartbeat
--             completed  this job's work is done
--             wait       nothing now, but work may be requeued: ask again in retry_s [s]. Also for a caller that does not
--                        prove to be the job whose attempt lives: then the call is in refusals
--             no-work    nothing left, or the project is draining
--             no-time    the job ends before it could process a block
--             template   fetch the template named in workscript first, then call again; task says what it is for
--             Of assigned and template, task: slice or merge. A merge has no blocks (-1); its inputs, run, seqno, output_url
--             and cleanup are in the column merge (docs/outputs.md).
--             block1, block2: half-open range of blocks, 0-based; size_bytes [bytes], events: of the slice as a file of
--             its own, preamble and trailer counted, or of all inputs of a merge; pieces: lines 'range OFFSET LENGTH' [bytes] of
--             url or 'hex ...', whose concatenation is that file
-- Errors:     OG101-OG104, OG110, OG111 bad parameter; OG2xx not allowed; OG301 unknown project; OG409, OG410 parameter
--             after names another attempt than the job's last success; OG501 project paused;
--             OG502 an operator has the project alone; OG601 worker banned; OG602 job starts too often; OG603 project has too many
--             live attempts; OG901 isolation level
-- Locks:      the table of docs/design.md "Who waits for whom" has them in order
-- Source:     docs/design.md "The claim", I1-I4
DECLARE
    v_answer osgprod.checkout_answer;
BEGIN
    v_answer := osgprod._checkout(ROW(NULL, p_project, p_cluster, p_process, p_cpus, p_magic, osgprod._plain_address(p_client),
        p_workscript, p_host, p_site, p_bearer, p_job_key, p_schedd, p_qdate, p_time_left_s, p_after, p_exec_version,
        p_image, p_templates)::osgprod.checkout_call, true, true);
    -- An error rolls back, so it can't be confirmed. Errors of a batch are rows.
    IF v_answer.code IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = v_answer.code, MESSAGE = v_answer.message, HINT = v_answer.hint;
    END IF;
    PERFORM osgprod._confirm_answer();
    RETURN v_answer;
END
$fn$;

COMMENT ON FUNCTION osgprod.checkout_slice(text, bigint, bigint, bigint, text, inet, text, text, text, jsonb, text, text, bigint, bigint, text, text, text, jsonb) IS
'Leases work to a job: its own slice or merge again after a restart; else a ready merge, a requeued slice, the next blocks of a file, or a backup attempt; one row, whose status says what to do. For osgprod_worker and osgprod_operator.';
