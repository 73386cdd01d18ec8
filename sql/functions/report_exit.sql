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
    OUT http_status  int,
    OUT status       text,
    OUT message      text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $fn$
-- Takes a job's word of how its attempt ended, and decides what becomes of the slice.
-- Promise:    the first success wins. The same report again changes nothing and gets the same answer. Whatever is
--             answered, the report is on record.
-- Parameters: p_project, p_magic, p_client, p_bearer  see _authorize
--             p_cluster, p_process  HTCondor's identity of the job [0 .. 2147483647]
--             p_exitcode            exit code of the work script [0 .. 255]; 128 + n = killed by signal n
--             p_token               the attempt's token; without it, where the project allows that, the job's last
--                                   attempt is meant, and only the address that it was lent to may report
--             p_events              events that the reconstruction read from the slice's file
--             p_outputs, p_output_bytes [bytes], p_output_adler32 [8 hex digits], p_output_url  what was sent where
--             p_host, p_site, p_reason  where it ran (if the checkout didn't say), and why it failed, in the job's words
-- Returns:    one row. http_status 200: status done, failed or node-fault; 409: status superseded (the outputs are void)
--             or contradicted (this attempt has reported another exit code); 403: status refused (token)
-- Errors:     OG101-OG103, OG105, OG107 bad parameter; OG2xx not allowed; OG301 unknown project; OG303 job without attempt;
--             OG502 files of the project are begun anew at this moment
-- Locks:      the job, its slice, then the file when the slice is split
-- Source:     docs/design.md "A slice's life", I3, I5, I6
DECLARE
    v_client  inet := osgprod._plain_address(p_client);
    v_project projects := osgprod._authorize(p_project, p_magic, v_client, p_bearer, p_cluster, p_process);
    v_attempt attempts := osgprod._find_attempt(v_project, p_cluster, p_process, p_token, v_client);
    v_report  reports;
    v_outcome outcome;
    v_reason  text;
BEGIN
    -- Written for few statements and expressions: each costs more than what it does (docs/performance.md).
    IF p_exitcode NOT BETWEEN 0 AND 255 OR p_exitcode IS NULL
       OR num_nonnulls(p_events, p_outputs, p_output_bytes, p_output_adler32) > 0 THEN
        PERFORM osgprod._check_report(p_exitcode, p_events, p_outputs, p_output_bytes, p_output_adler32);
    END IF;

    IF v_attempt.nstart IS NULL THEN
        SELECT f.* INTO http_status, status, message
          FROM osgprod._refuse(v_project, p_cluster, p_process, v_client, p_token) f;
        RETURN;
    END IF;
    v_outcome := osgprod._judge_exit(v_project, v_attempt.rawdata_id, v_attempt.block1, v_attempt.block2, p_exitcode::int,
        p_events, p_outputs::int, p_output_bytes, p_output_adler32);

    -- The common end at once: the success of the slice's holder (I3). Who holds a slice has not reported yet.
    UPDATE slices s SET state = 'done'
     WHERE v_outcome = 'done'
       AND s.project_id = v_attempt.project_id AND s.rawdata_id = v_attempt.rawdata_id AND s.block1 = v_attempt.block1
       AND s.state = 'leased'
       AND s.cluster = v_attempt.cluster AND s.process = v_attempt.process AND s.nstart = v_attempt.nstart;
    IF NOT FOUND THEN
        SELECT r.* INTO v_report FROM osgprod._all_reports(v_project.project_id) r
         WHERE r.cluster = v_attempt.cluster AND r.process = v_attempt.process AND r.nstart = v_attempt.nstart
           AND r.by_worker;
        IF FOUND THEN
            SELECT g.* INTO http_status, status, message FROM osgprod._say_again(v_report, p_exitcode) g;
            RETURN;
        END IF;
        IF v_outcome = 'failed' AND p_exitcode = 0 THEN
            v_reason := osgprod._missing_evidence(v_project, v_attempt.rawdata_id, v_attempt.block1, v_attempt.block2,
                p_events, p_outputs::int, p_output_bytes, p_output_adler32);
        END IF;
        v_outcome := osgprod._settle_attempt(v_project, v_attempt.cluster, v_attempt.process, v_attempt.nstart,
            v_outcome, osgprod._worker(v_attempt.client, coalesce(v_attempt.host, p_host)), p_exitcode::int);
    END IF;

    INSERT INTO reports AS r (project_id, cluster, process, nstart, by_worker, outcome, exit_code, reported_at, ran_s,
           nblocks, worker, site, events, outputs, output_bytes, output_adler32, output_url, reason)
    VALUES (v_attempt.project_id, v_attempt.cluster, v_attempt.process, v_attempt.nstart, true, v_outcome, p_exitcode,
           clock_timestamp(), greatest(extract(epoch FROM clock_timestamp() - v_attempt.started_at), 0),
           v_attempt.block2 - v_attempt.block1,
           -- The node that the slice was lent to has it on its account, whatever the report says of itself.
           osgprod._worker(v_attempt.client, coalesce(v_attempt.host, p_host)),
           coalesce(osgprod._label(p_site), v_attempt.site), p_events, p_outputs, p_output_bytes,
           lower(p_output_adler32), left(regexp_replace(p_output_url, '[[:cntrl:]]+', '', 'g'), 1024),
           coalesce(v_reason, osgprod._label(p_reason)))
    RETURNING osgprod._http_status(r.outcome), r.outcome, osgprod._answer(r.outcome, r.reason)
      INTO http_status, status, message;
    IF v_outcome IN ('failed', 'node-fault') THEN
        PERFORM osgprod._ban_if_black_hole(v_project, osgprod._worker(v_attempt.client, coalesce(v_attempt.host, p_host)));
    END IF;
END
$fn$;

COMMENT ON FUNCTION osgprod.report_exit(text, bigint, bigint, bigint, text, inet, text, bigint, bigint, bigint, text, text, text, text, text, jsonb) IS
'Takes a job''s word of how its attempt ended, and decides what becomes of the slice; one row with the HTTP status to answer. For osgprod_worker.';

CREATE FUNCTION osgprod._check_report(
    p_exitcode bigint, p_events bigint, p_outputs bigint, p_output_bytes bigint, p_output_adler32 text)
RETURNS void LANGUAGE plpgsql IMMUTABLE
AS $fn$
-- Raises unless what a job reports can be meant.
-- Parameters: see report_exit
-- Errors:     OG105 exitcode, OG107 evidence
BEGIN
    IF p_exitcode NOT BETWEEN 0 AND 255 OR p_exitcode IS NULL THEN
        RAISE EXCEPTION 'parameter exitcode must be a number from 0 to 255, not %', coalesce(p_exitcode::text, 'nothing')
            USING ERRCODE = 'OG105', HINT = 'pass the exit code of the work script';
    END IF;
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

CREATE FUNCTION osgprod._is_token(
    p_token text, p_required boolean, p_digest bytea, p_lent_to inet, p_client inet)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Is this the token of the attempt with that digest; or none, where none is required, from the address that it was
    -- lent to? (So the original did it, and for its exec script that is all there is.)
    SELECT CASE WHEN p_token IS NULL THEN NOT p_required AND p_lent_to = p_client
                ELSE p_digest = sha256(convert_to(lower(p_token), 'UTF8')) END
$fn$;

CREATE FUNCTION osgprod._find_attempt(
    p_project osgprod_data.projects, p_cluster bigint, p_process bigint, p_token text, p_client inet)
RETURNS osgprod_data.attempts LANGUAGE plpgsql STABLE
AS $fn$
-- Finds the attempt that a job means by its token; without one, where that is allowed, its last.
-- Parameters: p_project  the project's row;  p_cluster, p_process  the job;  p_token, p_client  see _is_token
-- Returns:    the attempt, from the archive if it is there; NULLs when there is no such one
DECLARE
    v_attempt osgprod_data.attempts;
BEGIN
    SELECT a.* INTO v_attempt FROM osgprod_data.attempts a
     WHERE a.project_id = p_project.project_id AND a.cluster = p_cluster AND a.process = p_process
       AND osgprod._is_token(p_token, p_project.token_required, a.token_digest, a.client, p_client)
     ORDER BY a.nstart DESC LIMIT 1;
    IF NOT FOUND THEN
        SELECT a.* INTO v_attempt FROM osgprod_data.archived_attempts a
         WHERE a.project_id = p_project.project_id AND a.cluster = p_cluster AND a.process = p_process
           AND osgprod._is_token(p_token, p_project.token_required, a.token_digest, a.client, p_client)
         ORDER BY a.nstart DESC LIMIT 1;
    END IF;
    RETURN v_attempt;
END
$fn$;

CREATE FUNCTION osgprod._refuse(
    p_project osgprod_data.projects, p_cluster bigint, p_process bigint, p_client inet, p_token text)
RETURNS TABLE (http_status int, status text, message text) LANGUAGE plpgsql VOLATILE
AS $fn$
-- Puts a call with a wrong or missing token on record. It raises nothing, since an error would undo the record.
-- Parameters: see report_exit
-- Returns:    one row as of report_exit: 403 refused
-- Errors:     OG303 the job has no attempt at all
DECLARE
    v_reason text := CASE WHEN p_token IS NULL AND p_project.token_required THEN 'parameter token is missing'
                          WHEN p_token IS NULL THEN 'without a token only the address that has the slice may report'
                          ELSE 'parameter token is not of this job' END;
BEGIN
    IF NOT EXISTS (SELECT FROM osgprod._all_attempts(p_project.project_id) a
                    WHERE a.cluster = p_cluster AND a.process = p_process) THEN
        RAISE EXCEPTION 'job %.% has no attempt in project %', p_cluster, p_process, p_project.name
            USING ERRCODE = 'OG303', HINT = 'nothing is lost: what it did is not counted and will be done again';
    END IF;
    INSERT INTO osgprod_data.refusals AS f (project_id, cluster, process, client, reason)
    VALUES (p_project.project_id, p_cluster, p_process, p_client, v_reason)
    ON CONFLICT ON CONSTRAINT refusals_pkey DO UPDATE SET times = f.times + 1, last_at = now();
    RETURN QUERY SELECT 403, 'refused', v_reason || '; the token is in the script that the job was given (osgprod_token)';
END
$fn$;

CREATE FUNCTION osgprod._say_again(p_report osgprod_data.reports, p_exitcode bigint)
RETURNS TABLE (http_status int, status text, message text) LANGUAGE sql STABLE
AS $fn$
    -- What a job is told that reports on an attempt once more; a report is never taken back (I6).
    -- Parameters: p_report  what it reported first;  p_exitcode  what it says now
    -- Returns:    one row as of report_exit: the same answer again, or 409 contradicted
    SELECT osgprod._http_status(p_report.outcome), p_report.outcome::text,
           osgprod._answer(p_report.outcome, p_report.reason)
     WHERE p_report.exit_code = p_exitcode
    UNION ALL
    SELECT 409, 'contradicted', format('attempt %s of job %s.%s has already reported exit code %s', p_report.nstart,
           p_report.cluster, p_report.process, p_report.exit_code)
     WHERE p_report.exit_code <> p_exitcode
$fn$;

CREATE FUNCTION osgprod._http_status(p_outcome osgprod_data.outcome)
RETURNS int LANGUAGE sql IMMUTABLE
AS $fn$
    -- The HTTP status that a job gets for a report with this outcome.
    SELECT CASE p_outcome WHEN 'superseded' THEN 409 ELSE 200 END
$fn$;

CREATE FUNCTION osgprod._answer(p_outcome osgprod_data.outcome, p_reason text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- What the job is told of how its report was taken; the same for a repeated report.
    SELECT CASE p_outcome
        WHEN 'done' THEN 'thank you, the slice is done'
        WHEN 'failed' THEN 'recorded as a failure' || coalesce(': ' || p_reason, '')
        WHEN 'node-fault' THEN 'recorded as a fault of the node, the slice goes to another one'
        ELSE 'too late: the slice was done or given to another meanwhile, these outputs do not count'
    END
$fn$;

CREATE FUNCTION osgprod._worker(p_client inet, p_host text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- The name under which a node's faults are counted: host@address, the host as it says itself. The address, which it
    -- can't choose, is in it so that nobody gets another address's nodes banned (docs/security.md).
    SELECT coalesce(osgprod._label(p_host), 'unnamed') || '@' || host(p_client)
$fn$;
