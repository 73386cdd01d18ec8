CREATE FUNCTION osgprod._worker_names(p_worker text, p_site text DEFAULT NULL)
RETURNS text[] LANGUAGE sql STABLE
AS $fn$
    -- The names under which a worker can be banned: host@address, the host, the address, its site, the network of the address,
    -- and all.
    -- Parameters: p_worker  see _worker;  p_site  its site, as it says; NULL = not known
    SELECT ARRAY[p_worker, regexp_replace(p_worker, '@[^@]*$', ''), w.address, osgprod._ban_of_place(osgprod._label(p_site)),
                 CASE WHEN w.address ~ '^[0-9a-f:.]+$' AND p_worker LIKE '%@%' THEN osgprod._network(w.address::inet) END, 'all']
      FROM (SELECT regexp_replace(p_worker, '^.*@', '') AS address) w
$fn$;

CREATE FUNCTION osgprod._ban_of_place(p_place text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- The name under which a place (_place) is banned: site:NAME, or the network.
    SELECT CASE WHEN p_place ~ '^[0-9a-f:.]+/[0-9]+$' THEN p_place ELSE 'site:' || p_place END
$fn$;

CREATE FUNCTION osgprod._ban_of(p_project_id int, p_worker text, p_site text, p_task text DEFAULT '')
RETURNS SETOF osgprod_data.worker_bans LANGUAGE sql STABLE
AS $fn$
    -- The ban that keeps a worker from work the longest, under any of its names; no row = it is not banned. After the server's ban of
    -- all merges one merge at a time is tried, until one succeeds: while that is leased, the ban holds for all others.
    -- Parameters: p_project_id  project;  p_worker  see _worker;  p_site  its site, as it says; NULL = not known
    --             p_task  merges: = from merges only, whose bans have this before their names
    SELECT b.* FROM osgprod_data.worker_bans b
     WHERE b.project_id = p_project_id
       AND b.worker = ANY (ARRAY(SELECT p_task || n FROM unnest(osgprod._worker_names(p_worker, p_site)) n))
       AND (osgprod._is_in_force(b.banned_at, b.until) OR b.worker = 'merges:all' AND b.times > 0 AND EXISTS (
            SELECT FROM osgprod_data.merges m JOIN osgprod_data.attempts a USING (project_id, cluster, process, nstart)
             WHERE m.project_id = p_project_id AND m.state = 'leased' AND a.started_at > b.banned_at))
     ORDER BY b.until DESC LIMIT 1
$fn$;

CREATE FUNCTION osgprod._is_in_force(p_banned_at timestamptz, p_until timestamptz)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Does a ban hold now? One that was made by a clock that was ahead, and has been set back since, does not.
    SELECT p_until > now() AND p_banned_at <= now()
$fn$;

CREATE FUNCTION osgprod._is_on_probation(p_ban osgprod_data.worker_bans, p_where text, p_is_merge boolean)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Has nothing succeeded since a ban by the server ended, for a day at most? NULL = there was none.
    -- Parameters: p_ban  the ban;  p_where, p_is_merge  see _has_succeeded
    SELECT p_ban.times > 0 AND p_ban.until > now() - interval '1 day'
       AND NOT osgprod._has_succeeded(p_ban.project_id, p_is_merge, 'any', least(p_ban.until, now()), p_where)
$fn$;

CREATE FUNCTION osgprod._ban_if_black_hole(p_project osgprod_data.projects, p_worker text, p_fault text)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Bans a worker that failed max_fast_failures slices within fast_failure_s of starting, and more than half of all that
-- it had, since its last ban or within block_worker_s; its data failures no longer count against the slices. Merges don't count.
-- Failures that something else is to blame for don't either (_failures_of_node), and none does while _others_fail_alike.
-- Promise:    after a ban (also of its host, address or network) a worker is on probation: until its first success, for a day at most, a single fast failure bans
--             it again: as long as before where the blocks had failed before, else twice as long, up to 30 days. That failure counts
--             against its slice: the data may be bad. When another session has the worker's ban, that session bans or
--             unbans the worker, and this one leaves the ban alone.
-- Parameters: p_project  the project's row;  p_worker  see _worker;  p_fault  of its newest failure, see _fault
-- Locks:      see _ban, then _discount_failures
DECLARE
    v_ban          osgprod_data.worker_bans;
    v_on_probation boolean;
    v_since        timestamptz;
    v_limit        int;
    v_fast         int;
    v_is_new       boolean;
    v_all          int;
    v_reason       text;
BEGIN
    SELECT b.* INTO v_ban FROM osgprod_data.worker_bans b
     WHERE b.project_id = p_project.project_id AND b.worker = ANY (osgprod._worker_names(p_worker))
     ORDER BY b.banned_at DESC LIMIT 1;
    v_on_probation := osgprod._is_on_probation(v_ban, p_worker, false) IS TRUE;
    v_since := greatest(v_ban.banned_at,
        CASE WHEN NOT v_on_probation THEN now() - make_interval(secs => p_project.block_worker_s) END);
    v_limit := CASE WHEN v_on_probation THEN 1 ELSE p_project.max_fast_failures END;
    IF (SELECT count(*) < v_limit FROM osgprod._fast_failures(p_project, p_worker, v_since)) THEN  -- quick, and true of most
        RETURN;
    END IF;
    SELECT count(*), bool_or(f.is_new) INTO v_fast, v_is_new FROM osgprod._failures_of_node(p_project, p_worker, v_since) f;
    IF v_fast < v_limit THEN
        RETURN;
    END IF;
    IF NOT v_on_probation THEN
        SELECT count(*) INTO v_all FROM osgprod_data.reports r  -- project_id + 0: found by time
         WHERE r.project_id + 0 = p_project.project_id AND r.worker = p_worker AND r.reported_at > v_since AND r.nblocks > 0
           AND (r.by_worker OR r.outcome = 'lost');  -- a job that was removed says nothing of its worker
        IF v_fast * 2 <= v_all THEN
            RETURN;
        END IF;
    END IF;
    IF osgprod._others_fail_alike(p_project.project_id, false, p_worker, p_fault, v_since) THEN
        RETURN;
    END IF;
    v_ban.times := CASE WHEN v_on_probation THEN v_ban.times + v_is_new::int ELSE 1 END;
    v_reason := CASE WHEN v_on_probation THEN format('failed again within %s s after its last ban', p_project.fast_failure_s)
        ELSE format('%s of its last %s failed within %s s', v_fast, osgprod._counted(v_all, 'attempt'), p_project.fast_failure_s) END;
    IF NOT osgprod._ban(p_project, p_worker, v_ban.times, v_reason) THEN
        RETURN;
    END IF;
    PERFORM osgprod._discount_failures(p_project, p_worker, v_since) WHERE NOT v_on_probation;
END
$fn$;

CREATE FUNCTION osgprod._others_fail_alike(
    p_project_id int, p_is_merge boolean, p_worker text, p_fault text, p_since timestamptz)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Do others fail to fetch or to deliver as well, and does nobody succeed? Then it is not the worker, and what it is will
    -- be known soon.
    -- Parameters: p_project_id  project;  p_is_merge  merges? else slices;  p_worker  the worker, or its address
    --             p_fault  see _fault;  p_since  since when
    SELECT p_fault IN ('fetch', 'delivery')
       AND EXISTS (SELECT FROM osgprod_data.recent_failures r
                    WHERE r.project_id = p_project_id AND r.failed_at >= p_since AND r.fault = p_fault
                      AND (r.merge_id IS NOT NULL) = p_is_merge AND p_worker NOT IN (r.worker, r.address))
       AND NOT osgprod._has_succeeded(p_project_id, p_is_merge, p_fault, p_since)
$fn$;

CREATE FUNCTION osgprod._ban(p_project osgprod_data.projects, p_name text, p_times int, p_reason text)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Bans a worker, an address or a place for block_worker_s, doubled with each time, up to 30 days; all merges for retest_s,
-- doubled up to max_backoff_s.
-- Parameters: p_project  the project's row;  p_name  see _ban_of;  p_times  how often by now;  p_reason  in words
-- Returns:    false when another session has this ban: it decides; or when it holds: another one was faster
-- Locks:      the ban (advisory, see _ban_key), its row, and the project's row (_note_bans), all tried
DECLARE
    v_until timestamptz := now() + make_interval(
        secs => least(CASE p_name WHEN 'merges:all' THEN p_project.retest_s ELSE p_project.block_worker_s END
                      * 2.0 ^ least(p_times - 1, 20),
                      CASE p_name WHEN 'merges:all' THEN greatest(p_project.max_backoff_s, p_project.retest_s) ELSE 2592000 END));
BEGIN
    -- The advisory lock, since a row that another session is inserting can't be skipped.
    IF NOT pg_try_advisory_xact_lock(osgprod._ban_key(p_project.project_id, p_name)) THEN
        RETURN false;
    END IF;
    -- By the clock: a ban of a transaction that began after this one holds, too.
    PERFORM FROM osgprod_data.worker_bans b
      WHERE b.project_id = p_project.project_id AND b.worker = p_name AND (b.until <= now() OR b.banned_at > clock_timestamp())
        FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND AND EXISTS (SELECT FROM osgprod_data.worker_bans b
                              WHERE b.project_id = p_project.project_id AND b.worker = p_name) THEN
        RETURN false;
    END IF;
    INSERT INTO osgprod_data.worker_bans AS b (project_id, worker, until, reason, times)
    VALUES (p_project.project_id, p_name, v_until, p_reason, p_times)
    ON CONFLICT ON CONSTRAINT worker_bans_pkey
        DO UPDATE SET until = excluded.until, reason = excluded.reason, times = excluded.times, banned_at = now();
    PERFORM osgprod._note_bans(p_project.project_id);
    PERFORM osgprod._notify(p_project.project_id, 'worker-banned', jsonb_build_object('worker', p_name,
        'until', v_until, 'reason', p_reason));
    RETURN true;
END
$fn$;

CREATE FUNCTION osgprod._ban_key(p_project_id int, p_worker text)
RETURNS bigint LANGUAGE sql IMMUTABLE
AS $fn$
    -- The advisory lock of a worker's ban. Should it be the key of another lock by chance, a ban comes one failure later, or
    -- a call waits once.
    SELECT hashtextextended(p_worker, p_project_id)
$fn$;

CREATE FUNCTION osgprod._fast_failures(p_project osgprod_data.projects, p_worker text, p_since timestamptz)
RETURNS TABLE (outcome osgprod_data.outcome, started_at timestamptz, rawdata_id int, block1 int, block2 int, opened_at timestamptz)
LANGUAGE sql STABLE
AS $fn$
    -- A worker's attempts at slices that failed within fast_failure_s of starting. (STABLE is what lets its callers inline it.)
    -- Parameters: p_project  the project's row;  p_worker  see _worker;  p_since  started after that
    -- Returns:    a row for each report, with the slice that its attempt was leased
    SELECT r.outcome, a.started_at, a.rawdata_id, a.block1, a.block2, a.opened_at
      FROM osgprod_data.reports r
     CROSS JOIN LATERAL (  -- LIMIT: by key, never by reading all attempts of the project
         SELECT t.* FROM osgprod_data.attempts t
          WHERE t.project_id = r.project_id AND t.cluster = r.cluster AND t.process = r.process AND t.nstart = r.nstart
          LIMIT 1) a
     WHERE r.project_id = p_project.project_id AND r.worker = p_worker AND r.reported_at > p_since AND r.nblocks > 0
       AND r.outcome IN ('failed', 'node-fault') AND r.ran_s <= p_project.fast_failure_s AND a.started_at > p_since
$fn$;

CREATE FUNCTION osgprod._failures_of_node(p_project osgprod_data.projects, p_worker text, p_since timestamptz)
RETURNS TABLE (outcome osgprod_data.outcome, rawdata_id int, block1 int, opened_at timestamptz, is_new boolean)
LANGUAGE sql STABLE
AS $fn$
    -- A worker's fast failures that may be its own fault. Those are not that a wider cause is blamed for, nor those of blocks that
    -- also failed in another attempt, noted for 6 hours, whose worker has started and done a slice since: there the data failed.
    -- Parameters: see _fast_failures
    -- Returns:    as there; is_new: no other failure of these blocks is noted
    WITH sound AS MATERIALIZED (
        SELECT r.worker, max(r.reported_at - make_interval(secs => r.ran_s)) AS started_at
          FROM osgprod_data.reports r  -- project_id + 0: found by time
         WHERE r.project_id + 0 = p_project.project_id AND r.reported_at > now() - interval '1 hour'
           AND r.by_worker AND r.outcome = 'done' AND r.nblocks > 0
         GROUP BY r.worker)
    SELECT f.outcome, f.rawdata_id, f.block1, f.opened_at, o.failures = 0
      FROM osgprod._fast_failures(p_project, p_worker, p_since) f
     CROSS JOIN LATERAL (
        SELECT count(*) AS failures, coalesce(bool_or(s.started_at > r.failed_at), false) AS is_of_data
          FROM osgprod_data.recent_failures r LEFT JOIN sound s ON s.worker = r.worker
         WHERE r.project_id = p_project.project_id AND r.merge_id IS NULL AND r.blamed IS NULL AND r.fault IN ('work', 'node')
           AND r.rawdata_id = f.rawdata_id AND r.block1 < f.block2 AND r.block2 > f.block1
           AND (r.started_at, r.worker) <> (f.started_at, p_worker)) o
     WHERE NOT o.is_of_data AND NOT EXISTS (
        SELECT FROM osgprod_data.recent_failures r
         WHERE r.project_id = p_project.project_id AND r.started_at = f.started_at AND r.worker = p_worker
           AND r.blamed IS NOT NULL)
$fn$;

CREATE FUNCTION osgprod._discount_failures(p_project osgprod_data.projects, p_worker text, p_since timestamptz)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Discounts a bad node's data failures, so that they no longer count against the slices: they say nothing of the data. What
-- reached quarantine through them alone is requeued. Its node faults stay counted.
-- Parameters: p_project  the project's row;  p_worker  see _worker;  p_since  from when on its fast failures are void
-- Locks:      the slices, in order, SKIP LOCKED; see _lower_failure_counts
DECLARE
    v_slice record;
BEGIN
    FOR v_slice IN
        WITH blamed AS (
            SELECT f.rawdata_id, f.block1, f.opened_at, count(*) AS times
              FROM osgprod._failures_of_node(p_project, p_worker, p_since) f
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
        PERFORM osgprod._lower_failure_counts(p_project, v_slice.rawdata_id, v_slice.block1, v_slice.failures::int, NULL);
    END LOOP;
END
$fn$;

CREATE FUNCTION osgprod._lower_failure_counts(
    p_project osgprod_data.projects, p_rawdata_id int, p_block1 int, p_failures int, p_faults int)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Gives a slice smaller counts of failures. With them its backoff ends; what reached quarantine through them is ready again.
-- Parameters: p_project  the project's row;  p_rawdata_id, p_block1  the slice, locked;  p_failures, p_faults  the counts;
--             p_faults NULL = as they are
-- Locks:      the file's row, tried, and for a quarantined slice see _try_reopen_file: where another session has one of these, the
--             counts stay. The caller may have a ban, or other files
BEGIN
    -- The row may be updated for a second time in this transaction: then it is checked against its foreign key, which fails
    -- while somebody splits the slice before it.
    IF NOT osgprod._try_file(p_project.project_id, p_rawdata_id) THEN
        RETURN;
    END IF;
    IF p_failures < p_project.max_failures
        AND (SELECT s.state = 'quarantined' FROM osgprod_data.slices s
              WHERE s.project_id = p_project.project_id AND s.rawdata_id = p_rawdata_id AND s.block1 = p_block1)
    THEN
        IF NOT osgprod._try_reopen_file(p_project.project_id, p_rawdata_id) THEN
            RETURN;
        END IF;
        PERFORM osgprod._reopen_slice(p_project.project_id, p_rawdata_id, p_block1);
    END IF;
    UPDATE osgprod_data.slices s
       SET failures = p_failures, faults = coalesce(p_faults, s.faults),
           is_ready = CASE WHEN s.state = 'ready' THEN osgprod._may_be_assigned(p_project.project_id, p_rawdata_id)
                           ELSE s.is_ready END,
           not_before = CASE WHEN s.state = 'ready' THEN least(s.not_before, now()) ELSE s.not_before END
     WHERE s.project_id = p_project.project_id AND s.rawdata_id = p_rawdata_id AND s.block1 = p_block1;
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
