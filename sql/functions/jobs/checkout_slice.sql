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
    p_job_key    text   DEFAULT NULL)
RETURNS osgprod.checkout_answer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $fn$
-- Lends a job its slice: its own one again after a restart, else one that came back, else the next of a file.
-- Promise:    a repeated call by the same job gives the same slice with nstarts counted up and a new token, so a lost
--             answer loses nothing. Two calls at once by one job give one slice. Nothing changes unless status is
--             assigned.
-- Parameters: p_project            project name
--             p_cluster, p_process HTCondor's identity of the job [0 .. 2147483647]
--             p_cpus               cores the job has [1 .. 4096]; the slice has at most maxblockspercore blocks a core
--             p_magic, p_client, p_bearer  see _authorize
--             p_workscript         the template that the caller holds in hand; a slice is lent only when it is the
--                                  project's; NULL = don't ask
--             p_host, p_site       where the job runs, as it says
--             p_job_key            secret that proves after a restart that this is the same job [1 .. 256 bytes];
--                                  NULL or empty = none: see the project's setting restart_proof
-- Returns:    always one row. status:
--             assigned   the slice is yours until lease_s [s] after your last heartbeat
--             completed  this job's work is done
--             wait       nothing now, but work may come back: ask again in retry_s [s]. Also for a caller that does not
--                        prove to be the job whose attempt lives: then the call is in refusals
--             no-work    nothing left
--             template   fetch the template named in workscript first, then call again
--             block1, block2: half-open range of blocks, 0-based; size_bytes [bytes], events: of the slice as a file of
--             its own, preamble and trailer counted; pieces: lines 'range OFFSET LENGTH' [bytes] of url or 'hex ...',
--             whose concatenation is that file
-- Errors:     OG101-OG104, OG110 bad parameter; OG2xx not allowed; OG301 unknown project; OG501 project paused;
--             OG502 its files are begun anew at this moment; OG601 worker banned; OG602 job starts too often; OG603 project has too many live attempts
-- Locks:      the job, then one row of idle_slices SKIP LOCKED and its slice, or one file (advisory: project_id, rawdata_id)
-- Source:     docs/design.md "A slice's life", I1-I4
BEGIN
    RETURN (osgprod._checkout(ARRAY[ROW(1, p_project, p_cluster, p_process, p_cpus, p_magic,
        osgprod._plain_address(p_client), p_workscript, p_host, p_site, p_bearer, p_job_key,
        NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::osgprod.checkout]))[1];
END
$fn$;

COMMENT ON FUNCTION osgprod.checkout_slice(text, bigint, bigint, bigint, text, inet, text, text, text, jsonb, text) IS
'Lends a job its slice: its own one again after a restart, else one that came back, else the next of a file; one row, whose status says what to do. For osgprod_worker.';

CREATE FUNCTION osgprod.checkout_slices(p_calls json)
RETURNS TABLE (n int, status text, message text, retry_s int, workscript text, nstarts int, token uuid, lease_s int,
    heartbeat_s int, started_at timestamptz, url text, filename text, block1 int, block2 int, size_bytes bigint,
    events bigint, pieces text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $fn$
-- Does checkout_slice for several jobs in one transaction, at a fraction of the cost (docs/performance.md).
-- Promise:    that of checkout_slice, for each. When one is in error, nothing happens for any.
-- Parameters: p_calls  list of objects, each with a number n and the parameters of checkout_slice, without their p_; what
--                      is missing is null, other names don't matter
-- Returns:    one row for each: its n and what checkout_slice gives, in any order
-- Errors:     those of checkout_slice, OG1xx to OG6xx
-- Locks:      those of checkout_slice; all jobs of a project in the order of their numbers
-- Source:     docs/design.md "Together"
BEGIN
    RETURN QUERY
    SELECT g.calls[a.ordinality].n, a.status, a.message, a.retry_s, a.workscript, a.nstarts, a.token, a.lease_s,
           a.heartbeat_s, a.started_at, a.url, a.filename, a.block1, a.block2, a.size_bytes, a.events, a.pieces
      FROM (SELECT array_agg(ROW(r.n, r.project, r.cluster, r.process, r.cpus, r.magic, osgprod._plain_address(r.client),
                       r.workscript, r.host, r.site, r.bearer, r.job_key,
                       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::osgprod.checkout
                       ORDER BY r.cluster, r.process, r.n) AS calls
              FROM json_to_recordset(p_calls) AS r (n int, project text, cluster bigint, process bigint, cpus bigint,
                   magic text, client inet, workscript text, host text, site text, bearer jsonb, job_key text)
             GROUP BY r.project ORDER BY r.project) g
     CROSS JOIN LATERAL unnest(osgprod._checkout(g.calls)) WITH ORDINALITY a;
END
$fn$;

COMMENT ON FUNCTION osgprod.checkout_slices(json) IS
'Does checkout_slice for several jobs at once, in one transaction; one row for each. For osgprod_worker.';

CREATE FUNCTION osgprod._checkout(p_calls osgprod.checkout[])
RETURNS osgprod.checkout_answer[] LANGUAGE plpgsql VOLATILE
AS $fn$
-- Lends slices to jobs that ask at the same moment. The common case for all of them at once: jobs that are new and may
-- work, nothing that came back, a file with a slice for each. Else one by one.
-- Parameters: p_calls  of one project, in the order of the jobs' numbers
-- Returns:    the answer to each, in the same order
-- Errors:     see checkout_slice
-- Locks:      see checkout_slice
DECLARE
    v_project osgprod_data.projects;
    v_file    record;
    v_end     int;  -- where the next slice begins
    v_call    osgprod.checkout;
    v_job     bigint;
    v_calls   osgprod.checkout[];
    v_answers osgprod.checkout_answer[];
    v_now     timestamptz;
BEGIN
    -- Written for few statements and expressions: each costs more than what it does (docs/performance.md).
    v_project := (SELECT p FROM osgprod_data.projects p
                   WHERE p.name = p_calls[1].project AND p.state = 'active' AND p.banned_until <= now()
                     AND coalesce(p.nlive < p.max_live, true)
                     AND NOT EXISTS (
                         SELECT FROM unnest(p_calls) c
                          WHERE NOT coalesce(c.cpus BETWEEN 1 AND 4096 AND coalesce(c.workscript = p.workscript, true)
                                AND coalesce(octet_length(c.job_key) <= 256, true)
                                AND osgprod._let_in(p, c.magic, c.client, c.bearer, c.cluster, c.process), false)));
    SELECT f.* INTO v_file
      FROM osgprod._if_common(v_project.project_id, p_calls) CROSS JOIN osgprod._free_file(v_project.project_id) f;
    IF v_file IS NULL THEN  -- or others are cutting every file
        SELECT f.* INTO v_file
          FROM osgprod._if_common(v_project.project_id, p_calls) CROSS JOIN osgprod._lock_file(v_project.project_id) f;
    END IF;
    IF v_file.rawdata_id IS NOT NULL THEN
        v_end := (SELECT e.block2 FROM osgprod._cut_until(v_project.project_id, v_file.rawdata_id) e);
        v_end := coalesce(v_end, v_file.block1);
        FOREACH v_call IN ARRAY p_calls LOOP
            EXIT WHEN v_call.cluster << 32 | v_call.process = v_job;  -- it asks twice: see below
            v_job := v_call.cluster << 32 | v_call.process;
            v_call.status := 'assigned';
            v_call.nstart := 1;
            v_call.rawdata_id := v_file.rawdata_id;
            v_call.block1 := v_end;
            v_end := least(v_end + v_call.cpus * v_project.maxblockspercore, v_file.block2);
            v_call.block2 := v_end;
            v_call.opened_at := clock_timestamp();
            v_call.token := gen_random_uuid();
            v_calls := v_calls || v_call;
        END LOOP;
    END IF;
    IF v_calls[cardinality(p_calls)].block1 < v_file.block2 THEN
        -- Assigned, since PERFORM would be a statement more.
        v_end := osgprod._cut(v_project.project_id, v_project.lease_s, v_file.block1, v_file.block2, v_file.is_fresh, v_calls);
    ELSE
        IF v_file.rawdata_id IS NOT NULL THEN
            PERFORM pg_current_xact_id();  -- the file is locked now: see _may_hold_file
        END IF;
        FOREACH v_call IN ARRAY p_calls LOOP  -- all jobs are locked before anything else is
            v_project := osgprod._authorize(v_call.project, v_call.magic, v_call.client, v_call.bearer, v_call.cluster,
                                            v_call.process);
        END LOOP;
        -- When a job asks twice its later call is a restart, of an attempt that has to be there.
        IF (SELECT count(DISTINCT (c.cluster, c.process)) FROM unnest(p_calls) c) < cardinality(p_calls) THEN
            FOREACH v_call IN ARRAY p_calls LOOP
                v_answers := v_answers || osgprod._checkout(ARRAY[v_call]);
            END LOOP;
            RETURN v_answers;
        END IF;
        v_calls := NULL;
        FOREACH v_call IN ARRAY p_calls LOOP
            v_calls := v_calls || osgprod._find_slice(v_project, v_call);
        END LOOP;
    END IF;

    v_now := clock_timestamp();  -- not now(): the transaction may have waited for a lock since it began
    INSERT INTO osgprod_data.attempts (project_id, cluster, process, nstart, rawdata_id, block1, block2, opened_at, cpus,
           started_at, token_digest, client, host, site, job_key_digest)
    SELECT v_project.project_id, c.cluster, c.process, c.nstart, c.rawdata_id, c.block1, c.block2, c.opened_at, c.cpus,
           v_now, sha256(convert_to(c.token::text, 'UTF8')), c.client, osgprod._label(c.host), osgprod._label(c.site),
           osgprod._job_key_digest(v_project.magic_salt, c.job_key)
      FROM unnest(v_calls) c
     WHERE c.status = 'assigned';
    RETURN ARRAY(
        SELECT ROW(c.status, c.message, c.retry_s, v_project.workscript, c.nstart, c.token, f.lease_s, f.heartbeat_s,
                   f.started_at, f.url, f.filename, c.block1, c.block2, f.size_bytes, f.events, f.pieces
                   )::osgprod.checkout_answer
          FROM unnest(v_calls) c
          LEFT JOIN LATERAL (
               SELECT v_project.lease_s, v_project.heartbeat_s, v_now AS started_at, x.*
                 FROM osgprod._slice_file(c.rawdata_id, c.block1, c.block2, v_project.xrootd_prefix,
                                          v_project.strip_prefix) x
               ) f ON true);
END
$fn$;

CREATE FUNCTION osgprod._if_common(p_project_id int, p_calls osgprod.checkout[])
RETURNS TABLE (is_common boolean) LANGUAGE sql STABLE
AS $fn$
    -- One row when none of these jobs has ever started and nothing that came back waits for a job; else none. (STABLE is
    -- what lets its callers inline it.)
    -- Parameters: p_project_id, p_calls  see _checkout; the jobs are locked
    SELECT true
     WHERE NOT EXISTS (SELECT FROM unnest(p_calls) c
                        CROSS JOIN LATERAL (  -- LIMIT: job by job, never by reading all attempts of the project
                             SELECT FROM osgprod_data.attempts a
                              WHERE a.project_id = p_project_id AND a.cluster = c.cluster AND a.process = c.process
                              LIMIT 1) known)
       AND NOT EXISTS (SELECT FROM osgprod_data.idle_slices i
                        WHERE i.project_id = p_project_id AND i.not_before <= now())  -- by index, unlike clock_timestamp()
$fn$;

CREATE FUNCTION osgprod._find_slice(p_project osgprod_data.projects, p_call osgprod.checkout)
RETURNS osgprod.checkout LANGUAGE plpgsql VOLATILE
AS $fn$
-- Finds a slice for one job, whatever is uncommon about it, and makes it the job's.
-- Parameters: p_project  the project's row;  p_call  the job, let in and locked
-- Returns:    the same with what it gets
-- Errors:     see checkout_slice
-- Locks:      see checkout_slice
DECLARE
    v_blocks bigint;
    v_work   record;
    v_end    int;  -- of the file's last slice
BEGIN
    p_call.status := osgprod._check_checkout(p_project, p_call.cpus, p_call.workscript,
                                             osgprod._worker(p_call.client, p_call.host));
    IF p_call.status IS NOT NULL THEN
        RETURN p_call;
    END IF;
    p_call.message := osgprod._refuse_restart(p_project, p_call.cluster, p_call.process, p_call.client, p_call.host,
                                              p_call.job_key);
    IF p_call.message IS NOT NULL THEN
        p_call.status := 'wait';
        p_call.retry_s := p_project.wait_s;
        RETURN p_call;
    END IF;
    v_blocks := least(p_call.cpus * p_project.maxblockspercore, 2147483647);
    LOOP
        v_work := osgprod._find_work(p_project, p_call.cluster::int, p_call.process::int, v_blocks::int);
        IF v_work.rawdata_id IS NULL THEN
            SELECT w.status, w.message, w.retry_s INTO p_call.status, p_call.message, p_call.retry_s
              FROM osgprod._why_no_work(p_project, p_call.cluster, p_call.process, v_work.is_completed) w;
            RETURN p_call;
        END IF;
        EXIT WHEN v_work.opened_at IS NOT NULL;
        v_end := coalesce((SELECT e.block2 FROM osgprod._cut_until(p_project.project_id, v_work.rawdata_id) e),
            v_work.block1);
        EXIT WHEN v_end < v_work.block2;
        -- The file was cut to its end before its lock was ours. We hold that now: see _may_hold_file.
        PERFORM pg_current_xact_id();
    END LOOP;
    p_call.nstart := v_work.nstart;
    p_call.rawdata_id := v_work.rawdata_id;
    IF v_work.opened_at IS NOT NULL THEN
        p_call.block1 := v_work.block1;
        p_call.block2 := v_work.block2;
        p_call.opened_at := v_work.opened_at;
    ELSE
        p_call.block1 := v_end;
        p_call.block2 := least(v_end + v_blocks, v_work.block2);
        p_call.opened_at := clock_timestamp();
        PERFORM osgprod._cut(p_project.project_id, p_project.lease_s, v_work.block1, v_work.block2, v_work.is_fresh,
            ARRAY[p_call]);
    END IF;
    p_call.status := 'assigned';
    p_call.token := gen_random_uuid();
    RETURN p_call;
END
$fn$;

CREATE FUNCTION osgprod._check_checkout(
    p_project osgprod_data.projects, p_cpus bigint, p_workscript text, p_worker text)
RETURNS text LANGUAGE plpgsql STABLE
AS $fn$
-- Finds out what stands against a checkout.
-- Parameters: p_project  the project's row;  p_worker  see _worker;  the others see checkout_slice
-- Returns:    template when the caller holds another work script than the project's; NULL = nothing stands against it
-- Errors:     OG104 cpus, OG501 paused, OG601 banned
BEGIN
    IF p_cpus NOT BETWEEN 1 AND 4096 OR p_cpus IS NULL THEN
        RAISE EXCEPTION 'parameter cpus must be a number from 1 to 4096, not %', coalesce(p_cpus::text, 'nothing')
            USING ERRCODE = 'OG104', HINT = 'pass the cores that the job has, or leave cpus out for 1';
    END IF;
    IF p_workscript <> p_project.workscript THEN
        RETURN 'template';
    END IF;
    IF p_project.state = 'paused' THEN
        RAISE EXCEPTION 'project % is paused', p_project.name USING ERRCODE = 'OG501', HINT = 'try again later';
    END IF;
    PERFORM osgprod._check_worker(p_project, p_worker);
    RETURN NULL;
END
$fn$;

CREATE FUNCTION osgprod._check_start_rate(
    p_project osgprod_data.projects, p_cluster bigint, p_process bigint, p_nstart int)
RETURNS void LANGUAGE plpgsql STABLE
AS $fn$
-- Raises when a job has started max_starts_per_min times within a minute: a machine gone mad.
-- Parameters: p_project  the project's row;  p_cluster, p_process  the job;  p_nstart  its last start
-- Errors:     OG602
BEGIN
    IF EXISTS (
        SELECT FROM osgprod_data.attempts a
         WHERE a.project_id = p_project.project_id AND a.cluster = p_cluster AND a.process = p_process
           AND a.nstart = p_nstart - p_project.max_starts_per_min + 1
           AND a.started_at > now() - interval '1 minute')
    THEN
        RAISE EXCEPTION 'job %.% has started % times within a minute', p_cluster, p_process,
            p_project.max_starts_per_min USING ERRCODE = 'OG602', HINT = 'wait a minute; see why the job restarts';
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._is_completed(p_project_id int, p_cluster bigint, p_process bigint, p_nstart int)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Did this attempt end its job's work, and does that still hold (the slice not recycled since)?
    SELECT EXISTS (
        SELECT FROM osgprod._all_reports(p_project_id) r
         CROSS JOIN LATERAL (  -- LIMIT: by key, never by reading all of the project
             SELECT a.rawdata_id, a.block1 FROM osgprod._all_attempts(p_project_id) a
              WHERE a.cluster = p_cluster AND a.process = p_process AND a.nstart = p_nstart LIMIT 1) a
         CROSS JOIN LATERAL (
             SELECT FROM osgprod._all_slices(p_project_id) s
              WHERE s.rawdata_id = a.rawdata_id AND s.block1 = a.block1 AND s.state = 'done' LIMIT 1) s
         WHERE r.cluster = p_cluster AND r.process = p_process AND r.nstart = p_nstart
           AND r.by_worker AND r.outcome = 'done')
$fn$;

CREATE FUNCTION osgprod._why_no_work(
    p_project osgprod_data.projects, p_cluster bigint, p_process bigint, p_is_completed boolean)
RETURNS TABLE (status text, message text, retry_s int) LANGUAGE plpgsql VOLATILE
AS $fn$
-- Says whether an empty-handed job should wait (work may come back) or go.
-- Parameters: p_project  the project's row;  p_cluster, p_process  the job;  p_is_completed  it has done its work
-- Returns:    one row: status wait with retry_s [s], completed or no-work
-- Locks:      files that turn out to be finished
BEGIN
    IF p_project.state = 'archived' THEN  -- the job's last attempt may be in the archive
        p_is_completed := osgprod._is_completed(p_project.project_id, p_cluster, p_process, (
            SELECT max(a.nstart) FROM osgprod._all_attempts(p_project.project_id) a
             WHERE a.cluster = p_cluster AND a.process = p_process));
    END IF;
    IF p_is_completed THEN
        RETURN QUERY SELECT 'completed', format('job %s.%s has already completed its work', p_cluster, p_process),
            NULL::int;
    ELSIF p_project.state = 'archived' THEN
        RETURN QUERY SELECT 'no-work', format('project %s has ended and is archived', p_project.name), 0;
    ELSIF p_project.state = 'draining' THEN
        RETURN QUERY SELECT 'no-work', format('project %s is draining, no new work is lent out', p_project.name), 0;
    ELSIF EXISTS (SELECT FROM osgprod_data.loaded_files f
                   WHERE f.project_id = p_project.project_id AND f.state IN ('fresh', 'begun')) THEN
        -- Not empty, only crowded: every file was being cut by somebody else at that moment.
        RETURN QUERY SELECT 'wait', format('project %s is busy, ask again at once', p_project.name), 1;
    ELSIF EXISTS (SELECT FROM osgprod_data.idle_slices i
                   WHERE i.project_id = p_project.project_id AND i.not_before <= now()) THEN
        -- Work came back, but somebody had that slice or its file.
        RETURN QUERY SELECT 'wait', format('project %s is busy, ask again soon', p_project.name), least(p_project.wait_s, 5);
    ELSIF osgprod._settle_files(p_project.project_id, false) THEN
        RETURN QUERY SELECT 'wait', format('all remaining work of project %s is out on lease, some may come back',
            p_project.name), p_project.wait_s;
    ELSE
        RETURN QUERY SELECT 'no-work', format('no work left in project %s', p_project.name), 0;
    END IF;
END
$fn$;
