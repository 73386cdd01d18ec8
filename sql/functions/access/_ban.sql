CREATE FUNCTION osgprod._worker_names(p_worker text, p_site text DEFAULT NULL)
RETURNS text[] LANGUAGE sql STABLE
AS $fn$
    -- The names under which a worker can be banned: host@address, the host, the address, its site, the network of the address.
    -- Parameters: p_worker  see _worker;  p_site  its site, as it says; NULL = not known
    SELECT ARRAY[p_worker, regexp_replace(p_worker, '@[^@]*$', ''), w.address, osgprod._ban_of_place(osgprod._label(p_site)),
                 CASE WHEN w.address ~ '^[0-9a-f:.]+$' AND p_worker LIKE '%@%' THEN osgprod._network(w.address::inet) END]
      FROM (SELECT regexp_replace(p_worker, '^.*@', '') AS address) w
$fn$;

CREATE FUNCTION osgprod._ban_of_place(p_place text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- The name under which a place (_place) is banned: site:NAME, or the network.
    SELECT CASE WHEN p_place ~ '^[0-9a-f:.]+/[0-9]+$' THEN p_place ELSE 'site:' || p_place END
$fn$;

CREATE FUNCTION osgprod._is_banned(p_project_id int, p_worker text)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Is this worker banned at present?
    SELECT EXISTS (SELECT FROM osgprod_data.worker_bans b
                    WHERE b.project_id = p_project_id AND b.worker = ANY (osgprod._worker_names(p_worker))
                      AND osgprod._is_in_force(b.banned_at, b.until))
$fn$;

CREATE FUNCTION osgprod._is_in_force(p_banned_at timestamptz, p_until timestamptz)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Does a ban hold now? One that was made by a clock that was ahead, and has been set back since, does not.
    SELECT p_until > now() AND p_banned_at <= now()
$fn$;

CREATE FUNCTION osgprod._ban_if_black_hole(p_project osgprod_data.projects, p_worker text, p_fault text)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Bans a worker that failed max_fast_failures times within fast_failure_s of starting, and in more than half of all that
-- it did, since its last ban or within block_worker_s; and takes these failures off the slices' accounts.
-- Promise:    after its ban a worker is on probation: until its first success, a single fast failure bans it again,
--             twice as long as before, up to 30 days. Nothing here waits: when another session has the worker's ban, that
--             session bans or unbans the worker, and this one leaves the ban alone.
-- Parameters: p_project  the project's row;  p_worker  see _worker;  p_fault  of its newest failure, see _fault
-- Locks:      the worker's ban (advisory, see _ban_key) and its row, both tried; slices that it failed, SKIP LOCKED
DECLARE
    v_ban          osgprod_data.worker_bans;
    v_on_probation boolean;
    v_since        timestamptz;
    v_fast         int;
    v_all          int;
    v_reason       text;
BEGIN
    SELECT b.* INTO v_ban FROM osgprod_data.worker_bans b
     WHERE b.project_id = p_project.project_id AND b.worker = ANY (osgprod._worker_names(p_worker))
     ORDER BY b.banned_at DESC LIMIT 1;
    -- project_id + 0, here and below: found by time, never by reading all reports of the project.
    v_on_probation := coalesce(v_ban.times, 0) > 0 AND NOT EXISTS (
        SELECT FROM osgprod_data.reports r
         WHERE r.project_id + 0 = p_project.project_id AND r.worker = p_worker AND r.reported_at > v_ban.banned_at
           AND r.outcome = 'done');
    v_since := greatest(v_ban.banned_at,
        CASE WHEN NOT v_on_probation THEN now() - make_interval(secs => p_project.block_worker_s) END);
    -- What it had begun before its ban, and failed since, was paid for by the ban.
    SELECT count(*) INTO v_fast FROM osgprod._fast_failures(p_project, p_worker, v_since) f
     WHERE f.started_at > v_since AND NOT EXISTS (
        SELECT FROM osgprod_data.recent_failures r  -- something else is to blame for these
         WHERE r.project_id = p_project.project_id AND r.address = regexp_replace(p_worker, '^.*@', '')
           AND r.worker = p_worker AND r.started_at = f.started_at AND r.blamed IS NOT NULL);
    IF v_fast < (CASE WHEN v_on_probation THEN 1 ELSE p_project.max_fast_failures END) THEN
        RETURN;
    END IF;
    SELECT count(*) INTO v_all FROM osgprod_data.reports r
     WHERE r.project_id + 0 = p_project.project_id AND r.worker = p_worker AND r.reported_at > v_since
       AND (r.by_worker OR r.outcome = 'lost');  -- a job that was removed says nothing of its worker
    IF v_fast * 2 <= v_all AND NOT v_on_probation THEN
        RETURN;
    END IF;
    IF osgprod._others_fail_alike(p_project.project_id, p_worker, p_fault, v_since) THEN
        RETURN;
    END IF;
    v_ban.times := CASE WHEN v_on_probation THEN v_ban.times + 1 ELSE 1 END;
    v_reason := CASE WHEN v_on_probation THEN format('failed again within %s s after its last ban', p_project.fast_failure_s)
        ELSE format('%s of its last %s attempts failed within %s s', v_fast, v_all, p_project.fast_failure_s) END;
    IF NOT osgprod._ban(p_project, p_worker, v_ban.times, v_reason) THEN
        RETURN;
    END IF;
    PERFORM osgprod._forgive_failures(p_project, p_worker, v_since);
END
$fn$;

CREATE FUNCTION osgprod._ban(p_project osgprod_data.projects, p_name text, p_times int, p_reason text)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Bans a worker, an address or a place for block_worker_s, doubled with each time, up to 30 days.
-- Parameters: p_project  the project's row;  p_name  see _worker_names;  p_times  how often by now;  p_reason  in words
-- Returns:    false when another session has this ban: it decides
-- Locks:      the ban (advisory, see _ban_key) and its row, both tried
DECLARE
    v_until timestamptz := now() + make_interval(
        secs => least(p_project.block_worker_s * 2.0 ^ least(p_times - 1, 20), 2592000));
BEGIN
    -- The advisory lock, since a row that another session is inserting can't be skipped.
    IF NOT pg_try_advisory_xact_lock(osgprod._ban_key(p_project.project_id, p_name)) THEN
        RETURN false;
    END IF;
    PERFORM FROM osgprod_data.worker_bans b
      WHERE b.project_id = p_project.project_id AND b.worker = p_name FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND AND EXISTS (SELECT FROM osgprod_data.worker_bans b
                              WHERE b.project_id = p_project.project_id AND b.worker = p_name) THEN
        RETURN false;
    END IF;
    INSERT INTO osgprod_data.worker_bans AS b (project_id, worker, until, reason, times)
    VALUES (p_project.project_id, p_name, v_until, p_reason, p_times)
    ON CONFLICT ON CONSTRAINT worker_bans_pkey
        DO UPDATE SET until = excluded.until, reason = excluded.reason, times = excluded.times, banned_at = now();
    PERFORM osgprod._note_bans(p_project.project_id);
    PERFORM osgprod._tell(p_project.project_id, 'worker-refused', jsonb_build_object('worker', p_name,
        'until', v_until, 'reason', p_reason));
    RETURN true;
END
$fn$;

CREATE FUNCTION osgprod._ban_key(p_project_id int, p_worker text)
RETURNS bigint LANGUAGE sql IMMUTABLE
AS $fn$
    -- The advisory lock of a worker's ban. Should it be the key of another lock by chance, a ban comes one failure later.
    SELECT hashtextextended(p_worker, p_project_id)
$fn$;

CREATE FUNCTION osgprod._fast_failures(p_project osgprod_data.projects, p_worker text, p_since timestamptz)
RETURNS TABLE (outcome osgprod_data.outcome, started_at timestamptz, rawdata_id int, block1 int, opened_at timestamptz)
LANGUAGE sql STABLE
AS $fn$
    -- What a worker failed within fast_failure_s of starting. (STABLE is what lets its callers inline it.)
    -- Parameters: p_project  the project's row;  p_worker  see _worker;  p_since  reported after that
    -- Returns:    a row for each report, with the slice that its attempt was leased
    SELECT r.outcome, a.started_at, a.rawdata_id, a.block1, a.opened_at
      FROM osgprod_data.reports r
     CROSS JOIN LATERAL (  -- LIMIT: by key, never by reading all attempts of the project
         SELECT t.* FROM osgprod_data.attempts t
          WHERE t.project_id = r.project_id AND t.cluster = r.cluster AND t.process = r.process AND t.nstart = r.nstart
          LIMIT 1) a
     WHERE r.project_id = p_project.project_id AND r.worker = p_worker AND r.reported_at > p_since
       AND r.outcome IN ('failed', 'node-fault') AND r.ran_s <= p_project.fast_failure_s
$fn$;

CREATE FUNCTION osgprod._forgive_failures(p_project osgprod_data.projects, p_worker text, p_since timestamptz)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Takes a bad node's failures off the slices' accounts, since they say nothing of the data; what reached quarantine
-- through them alone is ready again.
-- Parameters: p_project  the project's row;  p_worker  see _worker;  p_since  from when on its fast failures are void
-- Locks:      the slices, SKIP LOCKED, and their files, tried: failures of a locked one stay; see _reopen_slice
DECLARE
    v_slice record;
BEGIN
    FOR v_slice IN
        WITH blamed AS (
            SELECT f.rawdata_id, f.block1, f.opened_at, count(*) AS times
              FROM osgprod._fast_failures(p_project, p_worker, p_since) f
             WHERE f.outcome = 'failed' GROUP BY f.rawdata_id, f.block1, f.opened_at
        )
        SELECT s.rawdata_id, s.block1, s.state, greatest(s.failures - b.times, 0) AS failures
          FROM blamed b
          JOIN osgprod_data.loaded_files f ON f.project_id = p_project.project_id AND f.rawdata_id = b.rawdata_id
          JOIN osgprod_data.slices s ON s.project_id = f.project_id AND s.rawdata_id = b.rawdata_id
                                    AND s.block1 = b.block1 AND s.opened_at = b.opened_at
         WHERE s.state <> 'done'
         ORDER BY f.run, f.seqno, f.rawdata_id, s.block1
           FOR NO KEY UPDATE OF s SKIP LOCKED
    LOOP
        PERFORM osgprod._take_failures_off(p_project, v_slice.rawdata_id, v_slice.block1, v_slice.failures::int, NULL);
    END LOOP;
END
$fn$;

CREATE FUNCTION osgprod._note_bans(p_project_id int)
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Notes until when any worker is banned, so that a checkout looks for bans only while there are some. Waits for no
    -- transaction that has the project's row locked: tick() notes it then.
    WITH bans AS (
        SELECT coalesce(max(b.until), '-infinity') AS until FROM osgprod_data.worker_bans b
         WHERE b.project_id = p_project_id
    )
    UPDATE osgprod_data.projects p SET banned_until = b.until FROM bans b
     WHERE p.banned_until <> b.until
       AND p.project_id = (SELECT q.project_id FROM osgprod_data.projects q
                            WHERE q.project_id = p_project_id FOR NO KEY UPDATE SKIP LOCKED)
$fn$;
