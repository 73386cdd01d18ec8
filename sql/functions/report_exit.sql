CREATE FUNCTION osgprod.report_exit(
    p_project        text,
    p_cluster        bigint,
    p_process        bigint,
    p_exitcode       bigint,
    p_magic          text   DEFAULT NULL,
    p_client         inet   DEFAULT NULL,
    p_token          text   DEFAULT NULL,
    p_events         bigint DEFAULT NULL,
    p_outputs        bigint DEFAULT NULL,
    p_output_bytes   bigint DEFAULT NULL,
    p_output_adler32 text   DEFAULT NULL,
    p_output_url     text   DEFAULT NULL,
    p_host           text   DEFAULT NULL,
    p_site           text   DEFAULT NULL,
    p_reason         text   DEFAULT NULL,
    p_bearer         jsonb  DEFAULT NULL)
RETURNS TABLE (http_status int, status text, message text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Takes a job's word of how its attempt ended, and decides what becomes of the slice.
-- Promise:    the first success wins. The same report again changes nothing and gets the same answer. Whatever is
--             answered, the report is on record.
-- Parameters: p_project, p_magic, p_client, p_bearer  see _authorize
--             p_cluster, p_process  HTCondor's identity of the job [0 .. 2147483647]
--             p_exitcode            exit code of the work script [0 .. 255]; 128 + n = killed by signal n
--             p_token               the attempt's token; without it the job's last attempt is meant
--             p_events              events that the reconstruction read from the slice's file
--             p_outputs, p_output_bytes [bytes], p_output_adler32 [8 hex digits], p_output_url  what was sent where
--             p_host, p_site, p_reason  where it ran, and why it failed, in the job's words
-- Returns:    one row. http_status 200: status done, failed or node-fault; 409: status superseded (the outputs are void)
--             or contradicted (this attempt has reported another exit code); 403: status refused (token)
-- Errors:     OG101-OG103, OG105, OG107 bad parameter; OG2xx not allowed; OG301 unknown project; OG303 job without attempt
-- Locks:      the job, its slice, then the file when the slice is split
-- Source:     docs/design.md "A slice's life", I3, I5, I6
DECLARE
    v_project osgprod_data.projects;
    v_attempt osgprod_data.attempts;
    v_report  osgprod_data.reports;
    v_earlier record;
    v_client  inet := osgprod._plain_address(p_client);
BEGIN
    v_project := osgprod._authorize(p_project, p_magic, v_client, p_bearer);
    PERFORM osgprod._check_job(p_cluster, p_process);
    IF p_exitcode NOT BETWEEN 0 AND 255 OR p_exitcode IS NULL THEN
        RAISE EXCEPTION 'parameter exitcode must be a number from 0 to 255, not %', coalesce(p_exitcode::text, 'nothing')
            USING ERRCODE = 'OG105', HINT = 'pass the exit code of the work script';
    END IF;
    PERFORM osgprod._check_evidence(p_events, p_outputs, p_output_bytes, p_output_adler32);
    PERFORM osgprod._lock_job(v_project.project_id, p_cluster, p_process);

    v_attempt := osgprod._find_attempt(v_project, p_cluster, p_process, p_token);
    IF v_attempt.nstart IS NULL THEN
        RETURN QUERY SELECT f.http_status, f.status, f.message
          FROM osgprod._refuse(v_project, p_cluster, p_process, v_client, p_token) f;
        RETURN;
    END IF;
    SELECT r.outcome, r.exit_code, r.reason INTO v_earlier FROM reports r
     WHERE r.project_id = v_project.project_id AND r.cluster = p_cluster AND r.process = p_process
       AND r.nstart = v_attempt.nstart AND r.by_worker;
    IF FOUND AND v_earlier.exit_code <> p_exitcode THEN
        -- I6: a report is never taken back
        RETURN QUERY SELECT 409, 'contradicted', format('attempt %s of job %s.%s has already reported exit code %s',
            v_attempt.nstart, p_cluster, p_process, v_earlier.exit_code);
        RETURN;
    ELSIF FOUND THEN
        RETURN QUERY SELECT a.http_status, a.status, a.message FROM osgprod._answer(v_earlier.outcome, v_earlier.reason) a;
        RETURN;
    END IF;

    v_report.project_id := v_project.project_id;
    v_report.cluster := p_cluster;
    v_report.process := p_process;
    v_report.nstart := v_attempt.nstart;
    v_report.by_worker := true;
    v_report.exit_code := p_exitcode;
    v_report.reported_at := clock_timestamp();
    v_report.ran_s := greatest(extract(epoch FROM v_report.reported_at - v_attempt.started_at), 0);
    v_report.nblocks := v_attempt.block2 - v_attempt.block1;
    v_report.worker := osgprod._worker(v_client, coalesce(p_host, v_attempt.host));
    v_report.site := coalesce(osgprod._label(p_site), v_attempt.site);
    v_report.events := p_events;
    v_report.outputs := p_outputs;
    v_report.output_bytes := p_output_bytes;
    v_report.output_adler32 := lower(p_output_adler32);
    v_report.output_url := left(p_output_url, 1024);
    v_report.reason := osgprod._label(p_reason);
    v_report := osgprod._settle_attempt(v_project, v_attempt, v_report);
    INSERT INTO reports SELECT v_report.*;
    IF v_report.outcome IN ('failed', 'node-fault') THEN
        PERFORM osgprod._ban_if_black_hole(v_project, v_report.worker);
    END IF;
    RETURN QUERY SELECT a.http_status, a.status, a.message FROM osgprod._answer(v_report.outcome, v_report.reason) a;
END
$fn$;

COMMENT ON FUNCTION osgprod.report_exit(text, bigint, bigint, bigint, text, inet, text, bigint, bigint, bigint, text, text, text, text, text, jsonb) IS
'Takes a job''s word of how its attempt ended, and decides what becomes of the slice; one row with the HTTP status to answer. For osgprod_worker.';

CREATE FUNCTION osgprod._check_evidence(p_events bigint, p_outputs bigint, p_output_bytes bigint, p_output_adler32 text)
RETURNS void LANGUAGE plpgsql IMMUTABLE
AS $fn$
-- Raises unless what a job says of its outputs can be meant.
-- Parameters: see report_exit; NULL = not said
-- Errors:     OG107 naming the parameter
BEGIN
    IF p_events < 0 OR p_outputs NOT BETWEEN 0 AND 2147483647 OR p_output_bytes < 0 THEN
        RAISE EXCEPTION 'parameter % must not be negative or beyond its range', CASE WHEN p_events < 0 THEN 'events'
            WHEN p_output_bytes < 0 THEN 'output_bytes' ELSE 'outputs' END
            USING ERRCODE = 'OG107', HINT = 'leave out what is not known';
    END IF;
    IF p_output_adler32 !~ '^[0-9A-Fa-f]{8}$' THEN
        RAISE EXCEPTION 'parameter output_adler32 must be 8 hexadecimal digits' USING ERRCODE = 'OG107',
            HINT = 'xrdadler32 prints it; leave it out when it is not known';
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._find_attempt(
    p_project osgprod_data.projects, p_cluster bigint, p_process bigint, p_token text)
RETURNS osgprod_data.attempts LANGUAGE plpgsql STABLE
AS $fn$
-- Finds the attempt that a report or heartbeat speaks of.
-- Parameters: p_project  the project's row;  p_cluster, p_process  the job;  p_token  its token, NULL = none sent
-- Returns:    the attempt; NULLs when the token is another's, or is missing and the project demands one
-- Errors:     OG303 the job has no attempt at all
DECLARE
    v_attempt osgprod_data.attempts;
    v_digest  bytea := sha256(convert_to(lower(p_token), 'UTF8'));
BEGIN
    FOR v_attempt IN
        SELECT a.* FROM osgprod_data.attempts a
         WHERE a.project_id = p_project.project_id AND a.cluster = p_cluster AND a.process = p_process
         ORDER BY a.nstart DESC
    LOOP
        IF v_attempt.token_digest = v_digest OR (p_token IS NULL AND NOT p_project.token_required) THEN
            RETURN v_attempt;
        END IF;
    END LOOP;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'job %.% has no attempt in project %', p_cluster, p_process, p_project.name
            USING ERRCODE = 'OG303', HINT = 'nothing is lost: what it did is not counted and will be done again';
    END IF;
    RETURN NULL;
END
$fn$;

CREATE FUNCTION osgprod._refuse(
    p_project osgprod_data.projects, p_cluster bigint, p_process bigint, p_client inet, p_token text)
RETURNS TABLE (http_status int, status text, message text) LANGUAGE plpgsql VOLATILE
AS $fn$
-- Puts a call with a wrong or missing token on record and says so. It returns, since an error would undo the record.
-- Parameters: see report_exit
-- Returns:    one row for the caller to answer
DECLARE
    v_reason text := CASE WHEN p_token IS NULL THEN 'parameter token is missing'
                          ELSE 'parameter token is not of this job' END;
BEGIN
    INSERT INTO osgprod_data.refusals AS f (project_id, cluster, process, client, reason)
    VALUES (p_project.project_id, p_cluster, p_process, p_client, v_reason)
    ON CONFLICT ON CONSTRAINT refusals_pkey DO UPDATE SET times = f.times + 1, last_at = now();
    RETURN QUERY SELECT 403, 'refused', v_reason;
END
$fn$;

CREATE FUNCTION osgprod._answer(p_outcome osgprod_data.outcome, p_reason text)
RETURNS TABLE (http_status int, status text, message text) LANGUAGE sql IMMUTABLE
AS $fn$
    -- What the job is told of how its report was taken; the same for a repeated report.
    SELECT CASE WHEN p_outcome = 'superseded' THEN 409 ELSE 200 END, p_outcome::text,
           CASE p_outcome
               WHEN 'done' THEN 'thank you, the slice is done'
               WHEN 'failed' THEN coalesce('recorded as a failure: ' || p_reason, 'recorded as a failure')
               WHEN 'node-fault' THEN 'recorded as a fault of the node, the slice goes to another one'
               ELSE 'too late: the slice was done or given to another meanwhile, these outputs do not count'
           END
$fn$;

CREATE FUNCTION osgprod._worker(p_client inet, p_host text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- The name under which a node's faults are counted: the host it says it is, else its address.
    SELECT coalesce(osgprod._label(p_host), host(p_client))
$fn$;
