CREATE FUNCTION osgprod.ban_worker(p_project text, p_worker text, p_seconds int, p_reason text DEFAULT 'by the operator')
RETURNS timestamptz
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Bans a worker or a site for a while, or lifts its ban.
-- Promise:    a repeated call sets a new end. Unbanning lifts each ban that the name includes: of a host, those of its
--             addresses too.
-- Parameters: p_project  project name;  p_worker  host@address, as blocked_workers and the reports name it, or
--                        either alone: then every such worker; or site:NAME: then every worker of that site, as its jobs
--                        name it; or all. With merges: before it: from merges only
--             p_seconds  how long from now on [s; 0 .. 315360000; 0 = unban: its failures until now no longer count against it]
--             p_reason   what its jobs are answered, one line [.. 1024 characters]; NULL = by the operator
-- Returns:    until when it is banned; now = unbanned; NULL = it was not banned, and only its failures no longer count
-- Errors:     OG301 unknown project; OG108 bad worker or time; OG421 another ban, which includes it, would go on
-- Locks:      see _keep_project; the worker's ban (advisory, see _ban_key), then the rows of the bans; it waits for both; the project's row, SKIP LOCKED
DECLARE
    v_project osgprod_data.projects := osgprod._keep_project(p_project);
    v_reason  text := coalesce(osgprod._label(p_reason, 1024), 'by the operator');
    v_until   timestamptz;
    v_ban     worker_bans;
    v_was     boolean := true;  -- banned, before it is unbanned
BEGIN
    IF coalesce(p_worker, '') = '' THEN
        RAISE EXCEPTION 'the worker to ban or unban is empty' USING ERRCODE = 'OG108',
            HINT = format('osgprod workers list %s lists the names of the workers', p_project);
    END IF;
    IF osgprod._label(p_worker, 512) IS DISTINCT FROM p_worker
       AND NOT EXISTS (SELECT FROM worker_bans b WHERE b.project_id = v_project.project_id AND b.worker = p_worker) THEN  -- by an older release
        RAISE EXCEPTION 'no worker has the name %', osgprod._quoted(p_worker) USING ERRCODE = 'OG108',
            HINT = 'a host, an address, host@address or site:NAME is one line of at most 512 characters, without spaces around it';
    END IF;
    IF p_seconds NOT BETWEEN 0 AND 315360000 OR p_seconds IS NULL THEN
        RAISE EXCEPTION 'a ban must last from 0 to 315360000 s, not %', coalesce(p_seconds::text, 'NULL')
            USING ERRCODE = 'OG108', HINT = '0 lifts the ban; 315360000 s are ten years';
    END IF;
    IF p_worker LIKE '%/%' AND p_worker NOT LIKE '%site:%' AND p_seconds > 0 THEN
        RAISE EXCEPTION '% is a network, which can''t be banned', osgprod._shortened(p_worker) USING ERRCODE = 'OG108',
            HINT = 'a worker is a host, an address, or host@address; osgprod project set PROJECT subnet_pattern=... limits the addresses that may ask';
    END IF;
    PERFORM pg_advisory_xact_lock(osgprod._ban_key(v_project.project_id, p_worker));
    IF p_seconds = 0 THEN
        v_ban := osgprod._wider_ban(v_project.project_id, p_worker);
        IF v_ban.worker IS NOT NULL THEN
            RAISE EXCEPTION '% is banned until % UTC by the ban of %', osgprod._shortened(p_worker),
                to_char(v_ban.until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'), v_ban.worker USING ERRCODE = 'OG421',
                HINT = format('osgprod workers unban %s %s lifts that, and those that it includes', p_project, v_ban.worker);
        END IF;
        v_was := EXISTS (SELECT FROM worker_bans b
                          WHERE b.project_id = v_project.project_id AND p_worker = ANY (osgprod._names_of_ban(b.worker))
                            AND osgprod._is_in_force(b.banned_at, b.until));
    END IF;
    UPDATE worker_bans b SET until = now(), banned_at = now(), reason = v_reason, times = 0
     WHERE p_seconds = 0 AND b.project_id = v_project.project_id AND p_worker = ANY (osgprod._names_of_ban(b.worker));
    INSERT INTO worker_bans AS b (project_id, worker, until, reason)
    VALUES (v_project.project_id, p_worker, now() + make_interval(secs => p_seconds), v_reason)
    ON CONFLICT ON CONSTRAINT worker_bans_pkey
        DO UPDATE SET until = excluded.until, reason = excluded.reason, times = 0, banned_at = now()
    RETURNING b.until INTO v_until;
    PERFORM osgprod._note_bans(v_project.project_id);
    PERFORM osgprod._log_operation('ban_worker', p_project, jsonb_build_object('worker', p_worker, 'seconds', p_seconds,
        'reason', v_reason), 1);
    IF p_seconds > 0 THEN
        PERFORM osgprod._notify(v_project.project_id, 'worker-banned', jsonb_build_object('worker', p_worker,
            'until', v_until, 'reason', v_reason));
    END IF;
    RETURN CASE WHEN v_was THEN v_until END;
END
$fn$;

COMMENT ON FUNCTION osgprod.ban_worker(text, text, int, text) IS
'Bans a worker, or all workers of a site, for p_seconds [s]; 0 lifts the ban. For osgprod_operator.';

CREATE FUNCTION osgprod._names_of_ban(p_name text)
RETURNS text[] LANGUAGE plpgsql STABLE
AS $fn$
-- The names whose ban includes a name, which is one of them: see _worker_names. An address alone is a worker's of that address.
-- merges:NAME is included in NAME, too. An operator may have banned what only looks like a worker with an address: slot1@cafe is
-- a host.
-- Parameters: p_name  as it can be banned
DECLARE
    v_worker text := regexp_replace(p_name, '^merges:', '');
    v_names  text[];
BEGIN
    BEGIN
        v_names := osgprod._worker_names(CASE WHEN v_worker ~ '^[0-9a-f]*[.:][0-9a-f:.]+$' THEN v_worker || '@' || v_worker ELSE v_worker END);
    EXCEPTION WHEN invalid_text_representation THEN
        v_names := ARRAY[v_worker, 'all'];
    END;
    RETURN v_names || CASE WHEN p_name <> v_worker THEN ARRAY(SELECT 'merges:' || n FROM unnest(v_names) n) END;
END
$fn$;

CREATE FUNCTION osgprod._wider_ban(p_project_id int, p_name text)
RETURNS osgprod_data.worker_bans LANGUAGE sql STABLE
AS $fn$
    -- The ban in force of another name that includes a name, and ends last: that of its host, its address, its network, or all; of
    -- merges:NAME that of NAME, too. NULLs = there is none.
    -- Parameters: p_project_id  project;  p_name  as it can be banned
    SELECT b.* FROM osgprod_data.worker_bans b
     WHERE b.project_id = p_project_id AND b.worker <> p_name AND osgprod._is_in_force(b.banned_at, b.until)
       AND b.worker = ANY (osgprod._names_of_ban(p_name))
     ORDER BY b.until DESC, b.worker LIMIT 1
$fn$;
