CREATE FUNCTION osgprod._require_read_committed()
RETURNS void LANGUAGE plpgsql STABLE
AS $fn$
-- Refuses a transaction that would not see what another one committed while this one waited for its lock.
-- Errors:     OG901
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the isolation level of this transaction is %', current_setting('transaction_isolation')
            USING ERRCODE = 'OG901', HINT = 'osgprod needs read committed: SET default_transaction_isolation';
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._confirm_answer()
RETURNS pg_lsn LANGUAGE sql VOLATILE
AS $fn$
    -- Makes an answer as certain as one that changed something: with synchronous replication, its commit waits for a standby.
    -- A transaction that writes nothing commits without asking anybody. So a primary that was replaced and does not know it yet
    -- would answer from its old rows: "this job has no attempt", of a job that has got work from the new primary; or from rows
    -- of a commit whose wait for the standby was cut off, which the new primary never gets. (Inlined: see _why_rejected.)
    -- Promise:    writes a record of 60 bytes to the WAL, and only with synchronous_standby_names set, when the transaction has
    --             written nothing yet.
    -- Source:     PostgreSQL manual, 26.2.8 "Synchronous Replication"; docs/design.md "Failover"
    SELECT CASE WHEN pg_current_xact_id_if_assigned() IS NULL AND current_setting('synchronous_standby_names') <> ''
                THEN pg_logical_emit_message(true, 'osgprod', '') END
$fn$;

CREATE FUNCTION osgprod._why_rejected(
    p_project osgprod_data.projects, p_name text, p_cluster bigint, p_process bigint, p_magic text, p_client inet,
    p_bearer jsonb, p_may_wait boolean)
RETURNS text[] LANGUAGE sql VOLATILE
AS $fn$
    -- Says why a call of a job is rejected, or locks the job: until the end of the transaction no other call of this job goes on. Its
    -- callers inline it (no FROM, no SET), so that all these rules start as one expression; texts are constants in it, which cost
    -- nothing, and _worded fills the values of the call into them.
    -- Promise:    answers the same to every wrong magic.
    -- Parameters: p_project   the project's row, NULLs when there is none;  p_name  the project as the caller names it
    --             p_cluster, p_process  HTCondor's identity of the job [0 .. 2147483647]
    --             p_magic     the shared secret as the caller sent it; not needed with p_bearer
    --             p_client    the caller's address, v4-mapped ones as IPv4; NULL = not known, and so not inside
    --             p_bearer    claims of a bearer token whose signature the shim has verified; NULL = none
    --             p_may_wait  for the job's lock; false = when it is busy the answer is 55P03
    -- Returns:    code, message and hint, as _worded takes them; NULL = it may go on
    -- Locks:      the job, always the first one of a call (advisory, see _job_lock). Then the project, shared (advisory:
    --             project_id, -1), tried
    SELECT CASE
        -- Another level would not see what another session committed while this one waited for a lock.
        WHEN current_setting('transaction_isolation') <> 'read committed'
        THEN ARRAY['OG901', 'the isolation level of this transaction is {isolation}',
                   'osgprod needs read committed: SET default_transaction_isolation']
        WHEN p_project.project_id IS NULL AND coalesce(p_name, '') = ''
        THEN ARRAY['OG101', 'parameter project is missing', 'add project=NAME to the request']
        WHEN p_project.project_id IS NULL
        THEN ARRAY['OG301', 'parameter project: there is no project {name}', 'osgprod project list shows the projects']
        WHEN p_client IS NULL
        THEN ARRAY['OG207', 'the address of the client is not known',
                   'behind a proxy on a unix socket: OSGPROD_TRUSTED_PROXIES=unix, and the proxy sends X-Forwarded-For']
        WHEN NOT osgprod._is_inside(p_project.subnets, p_project.subnet_pattern, p_client)
        THEN ARRAY['OG201', 'address {client} is outside the subnets of project {project}',
                   'osgprod project set PROJECT subnet_pattern=... changes which addresses may ask']
        WHEN p_bearer IS NOT NULL AND osgprod._wrong_claim(p_project, p_bearer) IS NOT NULL
        THEN ARRAY['OG206', 'bearer token is not accepted by project {project}: {claim}',
                   'ask the operator which issuer, audience and scope are right']
        WHEN p_bearer IS NULL AND p_project.magic_digest IS NULL
        THEN ARRAY['OG203', 'project {project} has no magic yet, so nobody can work for it',
                   'osgprod project set-magic {project} --magic-file FILE gives it one']
        WHEN p_bearer IS NULL AND NOT osgprod._is_magic(p_project.magic_salt, p_project.magic_digest,
            p_project.old_magic_digest, p_project.old_magic_until, p_magic)
        THEN ARRAY['OG202', 'parameter magic is wrong or missing',
                   'ask the operator for the magic of this project; in a URL a + in it is written %2B']
        WHEN (p_cluster BETWEEN 0 AND 2147483647) IS NOT TRUE
        THEN ARRAY['OG102', 'parameter cluster must be a number from 0 to 2147483647, not {cluster}',
                   'pass HTCondor''s $(Cluster)']
        WHEN (p_process BETWEEN 0 AND 2147483647) IS NOT TRUE
        THEN ARRAY['OG103', 'parameter process must be a number from 0 to 2147483647, not {process}',
                   'pass HTCondor''s $(Process)']
        -- pg_advisory_xact_lock returns void, which IS NOT NULL.
        WHEN NOT CASE WHEN p_may_wait
            THEN pg_advisory_xact_lock(osgprod._job_lock(p_project.project_id, p_cluster, p_process)) IS NOT NULL
            ELSE pg_try_advisory_xact_lock(osgprod._job_lock(p_project.project_id, p_cluster, p_process)) END
        THEN osgprod._is_busy('job {cluster}.{process}')
        WHEN NOT pg_try_advisory_xact_lock_shared(p_project.project_id, -1)
        THEN ARRAY['OG502', 'an operator resets, unloads or removes files of project {project}',
                   'try again later'] END
$fn$;

CREATE FUNCTION osgprod._job_lock(p_project_id int, p_cluster bigint, p_process bigint)
RETURNS bigint LANGUAGE sql IMMUTABLE
AS $fn$
    -- The number of a job's lock: 64 bits of project, cluster, process. Two jobs that share one only wait for each other.
    SELECT (p_cluster << 32 | p_process) # (p_project_id::bigint << 48)
$fn$;

CREATE FUNCTION osgprod._worded(
    p_problem text[], p_project osgprod_data.projects, p_name text, p_cluster bigint, p_process bigint, p_client inet,
    p_bearer jsonb, p_number bigint DEFAULT NULL)
RETURNS text[] LANGUAGE plpgsql STABLE
AS $fn$
-- Fills the values of a rejected call into the texts of its problem.
-- Parameters: p_problem  code, message and hint, with {project}, {client}, {claim}, {cluster}, {process}, {number}, {isolation},
--             {name} for values;  p_number  the cores or the exit code of the call;  the others see _why_rejected
-- Returns:    code, message and hint
DECLARE
    v_value text[];
BEGIN
    FOREACH v_value SLICE 1 IN ARRAY ARRAY[
        ['{project}', p_project.name], ['{client}', host(p_client)], ['{claim}', osgprod._wrong_claim(p_project, p_bearer)],
        ['{cluster}', p_cluster::text], ['{process}', p_process::text], ['{number}', p_number::text],
        ['{isolation}', current_setting('transaction_isolation')], ['{name}', quote_literal(osgprod._label(p_name, 63))]] LOOP
        p_problem[2] := replace(p_problem[2], v_value[1], coalesce(v_value[2], 'nothing'));
        p_problem[3] := replace(p_problem[3], v_value[1], coalesce(v_value[2], 'nothing'));
    END LOOP;
    RETURN p_problem;
END
$fn$;

CREATE FUNCTION osgprod._is_busy(p_what text)
RETURNS text[] LANGUAGE sql IMMUTABLE
AS $fn$
    -- The problem of a call in a batch that would have to wait: the caller makes it again, alone.
    -- Parameters: p_what  for what
    SELECT ARRAY['55P03', p_what || ' is busy with another call', 'make this call again, alone']
$fn$;

CREATE FUNCTION osgprod._work_of(p_attempt osgprod_data.attempts)
RETURNS TABLE (task text, is_done boolean, due_at timestamptz, progress_at timestamptz) LANGUAGE sql STABLE
AS $fn$
    -- What an attempt works at, or has done; no row when it has nothing any more. What was requeued or superseded since it was done is
    -- not done by this attempt: another one has it, or had it.
    -- Parameters: p_attempt  the attempt
    -- Returns:    task: slice or merge, which it holds or has done; or backup: another attempt holds the slice. due_at: when its
    --             lease ends; progress_at: its last progress, NULL = it has reported none
    SELECT 'slice', s.state = 'done', s.due_at, s.progress_at FROM osgprod_data.slices s
     WHERE (s.project_id, s.rawdata_id, s.block1, s.cluster, s.process, s.nstart) = (p_attempt.project_id, p_attempt.rawdata_id,
           p_attempt.block1, p_attempt.cluster, p_attempt.process, p_attempt.nstart) AND s.state IN ('leased', 'done')
    UNION ALL
    SELECT 'merge', m.state = 'done', m.due_at, m.progress_at FROM osgprod_data.merges m
     WHERE (m.merge_id, m.cluster, m.process, m.nstart)
         = (p_attempt.merge_id, p_attempt.cluster, p_attempt.process, p_attempt.nstart) AND m.state IN ('leased', 'done')
    UNION ALL
    SELECT 'backup', false, b.due_at, NULL FROM osgprod_data.backups b
      JOIN osgprod_data.slices s USING (project_id, rawdata_id, block1, opened_at)
     WHERE (b.project_id, b.rawdata_id, b.block1, s.state, b.cluster, b.process, b.nstart) = (p_attempt.project_id,
           p_attempt.rawdata_id, p_attempt.block1, 'leased', p_attempt.cluster, p_attempt.process, p_attempt.nstart)
       AND b.due_at IS NOT NULL
$fn$;

CREATE FUNCTION osgprod._try_work(p_attempt osgprod_data.attempts)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Locks the slice or the merge of an attempt for a call of a batch, if no other session has it and no earlier call of the batch
-- has written the slice.
-- Promise:    a batch writes a slice again only while it has the slice's file. PostgreSQL checks a row that is updated twice in a
--             transaction against its foreign key again; that waits, and then fails, while another session splits the slice before it.
-- Parameters: p_attempt  the attempt
-- Returns:    is it locked now? false: another session has it, this transaction has written it, or it is not there any more
BEGIN
    IF p_attempt.merge_id IS NOT NULL THEN
        PERFORM FROM osgprod_data.merges m WHERE m.merge_id = p_attempt.merge_id FOR NO KEY UPDATE SKIP LOCKED;
    ELSE
        PERFORM FROM osgprod_data.slices s
         WHERE (s.project_id, s.rawdata_id, s.block1) = (p_attempt.project_id, p_attempt.rawdata_id, p_attempt.block1)
           AND (s.xmin = pg_current_xact_id_if_assigned()::xid) IS NOT TRUE
           FOR NO KEY UPDATE SKIP LOCKED;
    END IF;
    RETURN FOUND;
END
$fn$;

CREATE FUNCTION osgprod._is_token(
    p_token text, p_required boolean, p_digest bytea, p_attempt_key bytea, p_leased_to inet, p_client inet, p_key_digest bytea)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Is this the token of the attempt with that digest? It decides alone: with it no job key is needed. Or no token, where
    -- none is required, from the address that the attempt was leased to, with the attempt's job key if it has one. (So the
    -- original did it, and for its exec script the address is all there is.)
    SELECT CASE WHEN p_token IS NULL
                THEN NOT p_required AND p_leased_to = p_client
                     AND (p_attempt_key IS NULL OR coalesce(p_attempt_key = p_key_digest, false))
                ELSE p_digest = sha256(convert_to(lower(p_token), 'UTF8')) END
$fn$;

CREATE FUNCTION osgprod._attempt_of(
    p_project_id int, p_token_required boolean, p_cluster bigint, p_process bigint, p_token text, p_client inet,
    p_key_digest bytea)
RETURNS SETOF osgprod_data.attempts LANGUAGE sql STABLE
AS $fn$
    -- The attempt that a job means by its token; without one, where that is allowed, the last one that _is_token accepts and
    -- whose job named neither access point nor time of submission; no row when there is none. (STABLE is what lets its callers
    -- inline it.)
    -- Parameters: p_project_id, p_token_required  the project's;  p_cluster, p_process  the job;
    --             p_token, p_client, p_key_digest  see _is_token
    SELECT a.* FROM osgprod_data.attempts a
     WHERE a.project_id = p_project_id AND a.cluster = p_cluster AND a.process = p_process
       AND osgprod._is_token(p_token, p_token_required, a.token_digest, a.job_key_digest, a.client, p_client, p_key_digest)
       AND (p_token IS NOT NULL OR coalesce(a.schedd, a.qdate::text) IS NULL)
     ORDER BY a.nstart DESC LIMIT 1
$fn$;

CREATE FUNCTION osgprod._report_error(p_problem text[])
RETURNS osgprod.report_answer LANGUAGE sql IMMUTABLE
AS $fn$
    -- The answer to a report or a heartbeat that is in error.
    -- Parameters: p_problem  code, message and hint
    SELECT ROW(NULL, 'error', p_problem[2], NULL, NULL, p_problem[1], p_problem[3])::osgprod.report_answer
$fn$;

CREATE FUNCTION osgprod._refuse_token(
    p_project osgprod_data.projects, p_cluster bigint, p_process bigint, p_client inet, p_token text)
RETURNS osgprod.report_answer LANGUAGE plpgsql VOLATILE
AS $fn$
-- Records a call with a wrong or missing token. It raises nothing, since an error would undo the record.
-- Parameters: see report_exit
-- Returns:    403 refused; when the job has no attempt at all OG303, and nothing is recorded
DECLARE
    v_reason text := CASE WHEN p_token IS NULL AND p_project.token_required THEN 'parameter token is missing'
                          WHEN p_token IS NULL THEN 'without a token only the address that has the slice may report'
                          ELSE 'parameter token is not of this job' END;
BEGIN
    IF NOT EXISTS (SELECT FROM osgprod_data.attempts a
                    WHERE a.project_id = p_project.project_id AND a.cluster = p_cluster AND a.process = p_process) THEN
        RETURN osgprod._report_error(ARRAY['OG303', format('job %s.%s has no attempt in project %s', p_cluster, p_process,
            p_project.name), 'nothing is lost: what it did is not counted and will be done again']);
    END IF;
    PERFORM osgprod._record_refusal(p_project.project_id, p_cluster, p_process, p_client, v_reason);
    RETURN ROW(403, 'refused', v_reason || '; the token is in the script that the job was given (osgprod_token)', NULL, NULL,
               NULL, NULL)::osgprod.report_answer;
END
$fn$;

CREATE FUNCTION osgprod._worker(p_client inet, p_host text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- The name under which a node's faults are counted: host@address, the host as it says itself. The address, which it
    -- can't choose, is in it so that nobody gets another address's nodes banned (docs/security.md).
    SELECT coalesce(osgprod._label(p_host), 'unnamed') || '@' || host(p_client)
$fn$;
