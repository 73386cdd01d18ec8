CREATE FUNCTION osgprod.ban_worker(p_project text, p_worker text, p_seconds int, p_reason text DEFAULT 'by the operator')
RETURNS timestamptz
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Bans a worker or a site for a while, or lifts its ban.
-- Promise:    a repeated call sets a new end.
-- Parameters: p_project  project name;  p_worker  host@address, as blocked_workers and the reports name it, or
--                        either alone: then every such worker; or site:NAME: then every worker of that site, as its jobs
--                        name it; or all. With merges: before it: from merges only
--             p_seconds  how long from now on [s; 0 = unban: its failures until now no longer count against it]
--             p_reason   what its jobs are answered
-- Returns:    until when it is banned; now = unbanned
-- Errors:     OG301 unknown project; OG108 bad worker or time
-- Locks:      the worker's ban (advisory, see _ban_key), then the rows of the bans; it waits for both
DECLARE
    v_project osgprod_data.projects := osgprod._get_project(p_project);
    v_until   timestamptz;
BEGIN
    IF coalesce(p_worker, '') = '' THEN
        RAISE EXCEPTION 'the worker to ban or unban is empty' USING ERRCODE = 'OG108',
            HINT = format('osgprod workers list %s lists the names of the workers', p_project);
    END IF;
    IF p_seconds NOT BETWEEN 0 AND 315360000 OR p_seconds IS NULL THEN
        RAISE EXCEPTION 'a ban must last from 0 to 315360000 s, not %', coalesce(p_seconds::text, 'NULL')
            USING ERRCODE = 'OG108', HINT = '0 lifts the ban; 315360000 s are ten years';
    END IF;
    IF p_worker LIKE '%/%' AND p_worker NOT LIKE '%site:%' AND p_seconds > 0 THEN
        RAISE EXCEPTION '% is a network, which can''t be banned', p_worker USING ERRCODE = 'OG108',
            HINT = 'a worker is a host, an address, or host@address; osgprod project set PROJECT subnet_pattern=... limits the addresses that may ask';
    END IF;
    PERFORM pg_advisory_xact_lock(osgprod._ban_key(v_project.project_id, p_worker));
    UPDATE worker_bans b SET until = now(), banned_at = now(), reason = p_reason, times = 0
     WHERE p_seconds = 0 AND b.project_id = v_project.project_id AND p_worker = ANY (osgprod._names_of_ban(b.worker));
    INSERT INTO worker_bans AS b (project_id, worker, until, reason)
    VALUES (v_project.project_id, p_worker, now() + make_interval(secs => p_seconds), p_reason)
    ON CONFLICT ON CONSTRAINT worker_bans_pkey
        DO UPDATE SET until = excluded.until, reason = excluded.reason, times = 0, banned_at = now()
    RETURNING b.until INTO v_until;
    PERFORM osgprod._note_bans(v_project.project_id);
    PERFORM osgprod._log_operation('ban_worker', p_project, jsonb_build_object('worker', p_worker, 'seconds', p_seconds,
        'reason', p_reason), 1);
    IF p_seconds > 0 THEN
        PERFORM osgprod._notify(v_project.project_id, 'worker-refused', jsonb_build_object('worker', p_worker,
            'until', v_until, 'reason', p_reason));
    END IF;
    RETURN v_until;
END
$fn$;

COMMENT ON FUNCTION osgprod.ban_worker(text, text, int, text) IS
'Bans a worker, or all workers of a site, for p_seconds [s]; 0 lifts the ban. For osgprod_operator.';

CREATE FUNCTION osgprod._names_of_ban(p_name text)
RETURNS text[] LANGUAGE plpgsql STABLE
AS $fn$
-- The names by which the ban of a name can be lifted: see _worker_names. An operator may have banned what only looks like a worker
-- with an address: slot1@cafe is a host.
-- Parameters: p_name  the name that is banned
BEGIN
    RETURN osgprod._worker_names(p_name);
EXCEPTION WHEN invalid_text_representation THEN
    RETURN ARRAY[p_name, 'all'];
END
$fn$;
