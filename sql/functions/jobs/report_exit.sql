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
    p_job_key        text   DEFAULT NULL)
RETURNS osgprod.report_answer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $fn$
-- Takes a job's word of how its attempt ended, and decides what becomes of the slice.
-- Promise:    the first success wins. The same report again changes nothing and gets the same answer. Whatever is
--             answered, the report is on record. Evidence and texts never keep a report from being recorded: what can't
--             be kept is ignored, and the answer says so.
-- Parameters: p_project, p_magic, p_client, p_bearer  see _authorize
--             p_cluster, p_process  HTCondor's identity of the job [0 .. 2147483647]
--             p_exitcode            exit code of the work script [0 .. 255]; 128 + n = killed by signal n
--             p_token               the attempt's token; without it, where the project allows that, the job's last
--                                   attempt is meant, and only the address that it was lent to may report
--             p_job_key             see _find_attempt: needed only where no token is sent
--             p_events              events that the reconstruction read from the slice's file; another number than the
--                                   index has is recorded as a contradiction
--             p_outputs, p_output_bytes [bytes], p_output_adler32 [1 to 8 hex digits], p_output_url  what was sent where
--             p_host, p_site, p_reason  where it ran (if the checkout didn't say), and why it failed, in the job's words
-- Returns:    one row. http_status 200: status done, failed or node-fault; 409: status superseded (the outputs are void)
--             or contradicted (this attempt has reported another exit code); 403: status refused (token)
-- Errors:     OG101-OG103, OG105 bad parameter; OG2xx not allowed; OG301 unknown project; OG303 job without attempt;
--             OG502 files of the project are begun anew at this moment
-- Locks:      the job, its slice, then the file when the slice is split
-- Source:     docs/design.md "A slice's life", I3, I5, I6
BEGIN
    RETURN (osgprod._report(ARRAY[ROW(1, p_project, p_cluster, p_process, p_exitcode, p_magic,
        osgprod._plain_address(p_client), p_token, osgprod._evidence_number(p_events, 9223372036854775807),
        osgprod._evidence_number(p_outputs, 2147483647), osgprod._evidence_number(p_output_bytes, 9223372036854775807),
        osgprod._evidence_adler32(p_output_adler32), p_output_url, p_host, p_site, p_reason, p_bearer, p_job_key,
        osgprod._ignored_evidence(p_events, p_outputs, p_output_bytes, p_output_adler32))::osgprod.report]))[1];
END
$fn$;

COMMENT ON FUNCTION osgprod.report_exit(text, bigint, bigint, bigint, text, inet, text, bigint, bigint, bigint, text, text, text, text, text, jsonb, text) IS
'Takes a job''s word of how its attempt ended, and decides what becomes of the slice; one row with the HTTP status to answer. For osgprod_worker.';

CREATE FUNCTION osgprod.report_exits(p_calls json)
RETURNS TABLE (n int, http_status int, status text, message text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $fn$
-- Does report_exit for several jobs in one transaction, at a fraction of the cost (docs/performance.md).
-- Promise:    that of report_exit, for each. When one is in error, nothing happens for any.
-- Parameters: p_calls  list of objects, each with a number n and the parameters of report_exit, without their p_; what
--                      is missing is null, other names don't matter
-- Returns:    one row for each: its n and what report_exit gives, in any order
-- Errors:     those of report_exit, OG1xx to OG5xx
-- Locks:      those of report_exit; all jobs of a project in the order of their numbers
-- Source:     docs/design.md "Together"
BEGIN
    RETURN QUERY
    SELECT g.ns[a.ordinality], a.http_status, a.status, a.message
      FROM (SELECT array_agg(ROW(r.ordinality, r.project, r.cluster, r.process, r.exitcode, r.magic,
                       osgprod._plain_address(r.client), r.token,
                       osgprod._evidence_number(r.events, 9223372036854775807),
                       osgprod._evidence_number(r.outputs, 2147483647),
                       osgprod._evidence_number(r.output_bytes, 9223372036854775807),
                       osgprod._evidence_adler32(r.output_adler32), r.output_url, r.host, r.site, r.reason, r.bearer,
                       r.job_key, osgprod._ignored_evidence(r.events, r.outputs, r.output_bytes, r.output_adler32)
                       )::osgprod.report
                       ORDER BY r.cluster, r.process, r.n) AS calls,
                   array_agg(r.n ORDER BY r.cluster, r.process, r.n) AS ns
              FROM json_populate_recordset(NULL::osgprod.report, p_calls) WITH ORDINALITY r
             GROUP BY r.project ORDER BY r.project) g
     CROSS JOIN LATERAL unnest(osgprod._report(g.calls)) WITH ORDINALITY a;
END
$fn$;

COMMENT ON FUNCTION osgprod.report_exits(json) IS
'Does report_exit for several jobs at once, in one transaction; one row for each. For osgprod_worker.';

CREATE FUNCTION osgprod._report(p_calls osgprod.report[])
RETURNS osgprod.report_answer[] LANGUAGE plpgsql VOLATILE
AS $fn$
-- Takes what jobs report at the same moment. The common end for all of them at once: the success of the slice's holder
-- (I3), who has not reported yet. The others one by one.
-- Parameters: p_calls  of one project, in the order of the jobs' numbers; each has another n
-- Returns:    the answer to each, in the same order
-- Errors:     see report_exit
-- Locks:      see report_exit
DECLARE
    v_project osgprod_data.projects;
    v_done    int[];  -- which of them
    v_call    osgprod.report;
    v_answer  osgprod.report_answer;
    v_answers osgprod.report_answer[];
BEGIN
    -- Written for few statements and expressions: each costs more than what it does (docs/performance.md).
    v_project := (SELECT p FROM osgprod_data.projects p
                   WHERE p.name = p_calls[1].project
                     AND NOT EXISTS (
                         SELECT FROM unnest(p_calls) c
                          WHERE NOT coalesce(osgprod._let_in(p, c.magic, c.client, c.bearer, c.cluster, c.process)
                                AND osgprod._check_exitcode(c.exitcode), false)));
    IF v_project.project_id IS NOT NULL THEN
        WITH done AS (
            UPDATE osgprod_data.slices s SET state = 'done'
              FROM unnest(p_calls) c
             CROSS JOIN LATERAL osgprod._attempt_of(v_project.project_id, v_project.token_required, c.cluster, c.process,
                                                    c.token, c.client,
                                                    osgprod._job_key_digest(v_project.magic_salt, c.job_key)) a
             WHERE osgprod._judge_exit(v_project, a.rawdata_id, a.block1, a.block2, c.exitcode::int, c.events,
                                       c.outputs::int, c.output_bytes, c.output_adler32) = 'done'
               AND (c.events IS NULL
                    OR osgprod._contradicted_events(a.rawdata_id, a.block1, a.block2, c.events) IS NULL)
               AND s.project_id = v_project.project_id AND s.rawdata_id = a.rawdata_id AND s.block1 = a.block1
               AND s.state = 'leased' AND s.cluster = a.cluster AND s.process = a.process AND s.nstart = a.nstart
            RETURNING c AS call, a AS attempt),
        recorded AS (
            INSERT INTO osgprod_data.reports
            SELECT r.* FROM done d CROSS JOIN LATERAL osgprod._report_row(d.attempt, d.call, 'done', NULL, NULL) r)
        SELECT array_agg((d.call).n) INTO v_done FROM done d;
    END IF;
    IF cardinality(v_done) IS DISTINCT FROM cardinality(p_calls) THEN
        FOREACH v_call IN ARRAY p_calls LOOP  -- all jobs are locked before anything else is
            v_project := osgprod._authorize(v_call.project, v_call.magic, v_call.client, v_call.bearer, v_call.cluster,
                                            v_call.process);
        END LOOP;
    END IF;
    FOREACH v_call IN ARRAY p_calls LOOP
        IF v_call.n = ANY (v_done) THEN
            v_answers := v_answers || ROW(osgprod._http_status('done'), 'done', osgprod._answer('done', NULL, NULL)
                                          || coalesce(v_call.ignored, ''))::osgprod.report_answer;
        ELSE
            v_answer := osgprod._report_alone(v_project, v_call);
            v_answer.message := v_answer.message || coalesce(v_call.ignored, '');
            v_answers := v_answers || v_answer;
        END IF;
    END LOOP;
    RETURN v_answers;
END
$fn$;

CREATE FUNCTION osgprod._report_alone(p_project osgprod_data.projects, p_call osgprod.report)
RETURNS osgprod.report_answer LANGUAGE plpgsql VOLATILE
AS $fn$
-- Takes one job's report, whatever it says.
-- Parameters: p_project  the project's row;  p_call  the report of a job that is let in and locked
-- Returns:    the answer
-- Errors:     see report_exit
-- Locks:      see report_exit
DECLARE
    v_attempt osgprod_data.attempts := osgprod._find_attempt(p_project, p_call.cluster, p_call.process, p_call.token,
                                                             p_call.client, p_call.job_key);
    v_worker  text := osgprod._worker(v_attempt.client, coalesce(v_attempt.host, p_call.host));
    v_report  osgprod_data.reports;
    v_outcome osgprod_data.outcome;
    v_reason  text;
    v_contradiction text;
    v_answer  osgprod.report_answer;
BEGIN
    PERFORM osgprod._check_exitcode(p_call.exitcode);
    IF v_attempt.nstart IS NULL THEN
        SELECT f.* INTO v_answer
          FROM osgprod._refuse(p_project, p_call.cluster, p_call.process, p_call.client, p_call.token) f;
        RETURN v_answer;
    END IF;
    SELECT r.* INTO v_report FROM osgprod._all_reports(p_project.project_id) r
     WHERE r.cluster = v_attempt.cluster AND r.process = v_attempt.process AND r.nstart = v_attempt.nstart AND r.by_worker;
    IF FOUND THEN
        SELECT g.* INTO v_answer FROM osgprod._say_again(v_report, p_call.exitcode) g;
        RETURN v_answer;
    END IF;
    v_outcome := osgprod._judge_exit(p_project, v_attempt.rawdata_id, v_attempt.block1, v_attempt.block2,
        p_call.exitcode::int, p_call.events, p_call.outputs::int, p_call.output_bytes, p_call.output_adler32);
    IF v_outcome = 'failed' AND p_call.exitcode = 0 THEN
        v_reason := osgprod._missing_evidence(p_project, v_attempt.rawdata_id, v_attempt.block1, v_attempt.block2,
            p_call.events, p_call.outputs::int, p_call.output_bytes, p_call.output_adler32);
    END IF;
    IF v_outcome = 'done' THEN
        v_contradiction := osgprod._contradicted_events(v_attempt.rawdata_id, v_attempt.block1, v_attempt.block2,
            p_call.events);
    END IF;
    v_outcome := osgprod._settle_attempt(p_project, v_attempt.cluster, v_attempt.process, v_attempt.nstart, v_outcome,
        v_worker, p_call.exitcode::int);
    INSERT INTO osgprod_data.reports AS i
    SELECT r.* FROM osgprod._report_row(v_attempt, p_call, v_outcome, v_reason, v_contradiction) r
    RETURNING osgprod._http_status(i.outcome), i.outcome, osgprod._answer(i.outcome, i.reason, i.contradiction)
      INTO v_answer;
    IF v_outcome IN ('failed', 'node-fault') THEN
        PERFORM osgprod._ban_if_black_hole(p_project, v_worker);
    END IF;
    RETURN v_answer;
END
$fn$;

CREATE FUNCTION osgprod._report_row(
    p_attempt osgprod_data.attempts, p_call osgprod.report, p_outcome osgprod_data.outcome, p_reason text,
    p_contradiction text)
RETURNS SETOF osgprod_data.reports LANGUAGE sql STABLE
AS $fn$
    -- A job's report as it goes on record. (STABLE is what lets its callers inline it.)
    -- Parameters: p_attempt  whose;  p_call  what the job says;  p_outcome, p_reason  what was decided, and why;
    --             p_contradiction  see _contradicted_events
    SELECT p_attempt.project_id, p_attempt.cluster, p_attempt.process, p_attempt.nstart, true, p_outcome,
           p_call.exitcode::int, clock_timestamp(),
           greatest(extract(epoch FROM clock_timestamp() - p_attempt.started_at), 0)::int,
           p_attempt.block2 - p_attempt.block1,
           -- The node that the slice was lent to has it on its account, whatever the report says of itself.
           osgprod._worker(p_attempt.client, coalesce(p_attempt.host, p_call.host)),
           coalesce(osgprod._label(p_call.site), p_attempt.site), p_call.events, p_call.outputs::int,
           p_call.output_bytes, p_call.output_adler32, osgprod._label(p_call.output_url, 1024),
           coalesce(p_reason, osgprod._label(p_call.reason)), p_contradiction
$fn$;

CREATE FUNCTION osgprod._check_exitcode(p_exitcode bigint)
RETURNS boolean LANGUAGE plpgsql IMMUTABLE
AS $fn$
-- Raises unless this can be the exit code of a program.
-- Parameters: p_exitcode  as reported
-- Returns:    true
-- Errors:     OG105
BEGIN
    IF p_exitcode NOT BETWEEN 0 AND 255 OR p_exitcode IS NULL THEN
        RAISE EXCEPTION 'parameter exitcode must be a number from 0 to 255, not %', coalesce(p_exitcode::text, 'nothing')
            USING ERRCODE = 'OG105', HINT = 'pass the exit code of the work script';
    END IF;
    RETURN true;
END
$fn$;

CREATE FUNCTION osgprod._is_token(
    p_token text, p_required boolean, p_digest bytea, p_attempt_key bytea, p_lent_to inet, p_client inet, p_key_digest bytea)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Is this the token of the attempt with that digest? It decides alone: who has it needs no job key. Or no token, where
    -- none is required, from the address that the attempt was leased to, with the attempt's job key if it has one. (So the
    -- original did it, and for its exec script the address is all there is.)
    SELECT CASE WHEN p_token IS NULL
                THEN NOT p_required AND p_lent_to = p_client
                     AND (p_attempt_key IS NULL OR coalesce(p_attempt_key = p_key_digest, false))
                ELSE p_digest = sha256(convert_to(lower(p_token), 'UTF8')) END
$fn$;

CREATE FUNCTION osgprod._attempt_of(
    p_project_id int, p_token_required boolean, p_cluster bigint, p_process bigint, p_token text, p_client inet,
    p_key_digest bytea)
RETURNS SETOF osgprod_data.attempts LANGUAGE sql STABLE
AS $fn$
    -- The attempt that a job means by its token; without one, where that is allowed, its last; no row when there is no such
    -- one, or only in the archive. (STABLE is what lets its callers inline it.)
    -- Parameters: p_project_id, p_token_required  the project's;  p_cluster, p_process  the job;
    --             p_token, p_client, p_key_digest  see _is_token
    SELECT a.* FROM osgprod_data.attempts a
     WHERE a.project_id = p_project_id AND a.cluster = p_cluster AND a.process = p_process
       AND osgprod._is_token(p_token, p_token_required, a.token_digest, a.job_key_digest, a.client, p_client, p_key_digest)
     ORDER BY a.nstart DESC LIMIT 1
$fn$;

CREATE FUNCTION osgprod._find_attempt(
    p_project osgprod_data.projects, p_cluster bigint, p_process bigint, p_token text, p_client inet, p_job_key text)
RETURNS osgprod_data.attempts LANGUAGE plpgsql STABLE
AS $fn$
-- Finds the attempt that a job means by its token; without one, where that is allowed, its last.
-- Parameters: p_project  the project's row;  p_cluster, p_process  the job;  p_token, p_client  see _is_token
--             p_job_key  as the job sent it; needed only where no token is sent and the attempt has a job key
-- Returns:    the attempt, from the archive if it is there; NULLs when there is no such one
DECLARE
    v_key     bytea := CASE WHEN p_token IS NULL THEN osgprod._job_key_digest(p_project.magic_salt, p_job_key) END;
    v_attempt osgprod_data.attempts;
BEGIN
    SELECT a.* INTO v_attempt
      FROM osgprod._attempt_of(p_project.project_id, p_project.token_required, p_cluster, p_process, p_token, p_client,
                               v_key) a;
    IF NOT FOUND THEN
        SELECT a.* INTO v_attempt FROM osgprod_data.archived_attempts a
         WHERE a.project_id = p_project.project_id AND a.cluster = p_cluster AND a.process = p_process
           AND osgprod._is_token(p_token, p_project.token_required, a.token_digest, a.job_key_digest, a.client, p_client,
                                 v_key)
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
    PERFORM osgprod._record_refusal(p_project.project_id, p_cluster, p_process, p_client, v_reason);
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
           osgprod._answer(p_report.outcome, p_report.reason, p_report.contradiction)
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

CREATE FUNCTION osgprod._answer(p_outcome osgprod_data.outcome, p_reason text, p_contradiction text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- What the job is told of how its report was taken; the same for a repeated report.
    SELECT CASE p_outcome
        WHEN 'done' THEN 'thank you, the slice is done'
            || coalesce('; but this contradicts the index and is on record: ' || p_contradiction, '')
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
