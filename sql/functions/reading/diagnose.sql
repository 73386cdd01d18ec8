CREATE FUNCTION osgprod.diagnose()
RETURNS TABLE (what text, is_well boolean, found text, advice text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Looks for problems in the server and in the production: the database's half of osgprod doctor.
-- Returns:    a row for each thing looked at, and what to do about it where it is not well
-- Errors:     none
BEGIN
    RETURN QUERY
    SELECT 'server version', current_setting('server_version_num')::int >= 130000, current_setting('server_version'),
           'PostgreSQL 13 or later is needed: upgrade the server'
    UNION ALL
    SELECT 'durability', current_setting('fsync')::boolean AND current_setting('full_page_writes')::boolean
               AND current_setting('synchronous_commit') <> 'off',
           format('fsync %s, full_page_writes %s, synchronous_commit %s', current_setting('fsync'),
                  current_setting('full_page_writes'), current_setting('synchronous_commit')),
           'a crash of the machine may ruin the data, or lose answered reports: set all on, unless this is a server for tests'
    UNION ALL
    SELECT 'autovacuum', current_setting('autovacuum')::boolean, 'autovacuum ' || current_setting('autovacuum'),
           'without it checkouts become slow within days: set autovacuum on'
    UNION ALL
    SELECT 'writes', NOT pg_is_in_recovery() AND NOT current_setting('default_transaction_read_only')::boolean,
           CASE WHEN pg_is_in_recovery() THEN 'the server is a read-only standby'
                WHEN current_setting('default_transaction_read_only')::boolean THEN 'default_transaction_read_only is on'
                ELSE 'possible; ' || pg_size_pretty(pg_database_size(current_database())) || ' are in the database' END,
           'no work is assigned: name the primary in OSGPROD_DSN, with target_session_attrs=read-write'
    UNION ALL
    SELECT 'transaction numbers', max(age(d.datfrozenxid)) < 1000000000,
           format('%s million of 2,000 million are used', max(age(d.datfrozenxid)) / 1000000),
           'the server stops at 2,000 million: VACUUM (FREEZE), and find what holds old transactions (pg_stat_activity, slots)'
      FROM pg_database d
    UNION ALL
    SELECT 'replication slots', coalesce(bool_and(NOT s.is_lost AND (s.active OR s.behind < 10000000000)), true),
           coalesce(string_agg(s.slot_name || CASE WHEN s.is_lost THEN ' lost' ELSE format(' %s, %s behind',
                        CASE WHEN s.active THEN 'active' ELSE 'inactive' END, pg_size_pretty(s.behind)) END,
                    ', ' ORDER BY s.slot_name), 'none'),
           CASE WHEN bool_or(s.is_lost) THEN 'the replica of a lost slot can''t follow any more: drop the slot (SELECT pg_drop_replication_slot(NAME)), '
                    || 'and make the replica again (docs/operations.md "Read from a replica")'
                ELSE 'a slot that nobody reads keeps write-ahead log until the disk is full: SELECT pg_drop_replication_slot(NAME)' END
      FROM (SELECT r.slot_name, r.active, coalesce(r.wal_status = 'lost', false) AS is_lost, coalesce(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                   ELSE pg_current_wal_lsn() END, r.restart_lsn), 0)::bigint AS behind
              FROM pg_replication_slots r) s
    UNION ALL
    SELECT 'autovacuum of the tables', count(*) = 0, coalesce(string_agg(c.relname, ', ' ORDER BY c.relname),
               'no table is without it, or full of dead rows'),
           'these tables have it switched off, or more dead rows than living: VACUUM ANALYZE them; ALTER TABLE ... RESET'
               || ' (autovacuum_enabled)'
      FROM pg_class c LEFT JOIN pg_stat_user_tables t ON t.relid = c.oid
     WHERE c.relnamespace = 'osgprod_data'::regnamespace AND c.relkind = 'r'
       AND (coalesce('autovacuum_enabled=false' = ANY (c.reloptions) OR 'autovacuum_enabled=off' = ANY (c.reloptions), false)
            OR t.n_dead_tup > greatest(t.n_live_tup, 1000000))
    UNION ALL
    SELECT 'logins of the shim', true, coalesce(string_agg(g.member::regrole::text, ', '),
               'none: it uses one of an operator; CREATE ROLE shim LOGIN IN ROLE osgprod_worker makes one with fewer rights'), ''
      FROM pg_auth_members g WHERE g.roleid = 'osgprod_worker'::regrole AND g.member <> 'osgprod_owner'::regrole
    UNION ALL
    SELECT 'shim cannot read tables', NOT bool_or(has_table_privilege('osgprod_worker', c.oid, 'SELECT, INSERT, UPDATE, DELETE')),
           coalesce(string_agg(c.relname, ', ') FILTER (
               WHERE has_table_privilege('osgprod_worker', c.oid, 'SELECT, INSERT, UPDATE, DELETE')), 'none can be'),
           'REVOKE ALL ON these tables FROM osgprod_worker, PUBLIC'
      FROM pg_class c WHERE c.relnamespace = 'osgprod_data'::regnamespace AND c.relkind = 'r'
    UNION ALL
    SELECT 'held snapshots', coalesce(max(now() - a.xact_start) < interval '1 h', true),
           coalesce('the oldest transaction that can be seen began '
               || date_trunc('second', max(now() - a.xact_start)) || ' ago', 'no other transaction can be seen'),
           'a transaction open for hours keeps dead rows alive: end it, see pg_stat_activity'
      FROM pg_stat_activity a WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
    UNION ALL
    SELECT 'requests for unknown projects', coalesce(sum(a.times), 0) < 10,
           CASE WHEN count(*) = 0 THEN 'none in the last 15 minutes'
                ELSE format('%s in the last 15 minutes; most often: %s', sum(a.times),
                            (array_agg(coalesce(a.message, a.reason) ORDER BY a.times DESC))[1]) END,
           'jobs name a project that does not exist: osgprod project list, then OSGPROD_PROJECT in their submit file'
      FROM answers a
     WHERE a.project_id IS NULL AND a.http_status BETWEEN 400 AND 499 AND a.answered_at > now() - interval '15 min'
    UNION ALL
    SELECT 'leases of ' || p.name, l.expired = 0,
           CASE l.expired WHEN 0 THEN 'none has expired without being looked after'
                ELSE osgprod._counted(l.expired, 'slice or merge whose lease expired more than 5 minutes ago is',
                    'slices or merges whose leases expired more than 5 minutes ago are') || ' still leased' END,
           'start a shim, which looks after expired leases; osgprod reclaim requeues by hand'
      FROM projects p CROSS JOIN LATERAL (
        SELECT count(*) AS expired FROM osgprod._leases(p.project_id) x
         WHERE p.next_due_at <= now() - interval '5 min' AND x.task <> 'backup' AND x.due_at < now() - interval '5 min') l
    UNION ALL
    SELECT 'magic of ' || p.name, p.magic_digest IS NOT NULL OR p.bearer_issuer IS NOT NULL,
           CASE WHEN p.magic_digest IS NOT NULL THEN 'is set' WHEN p.bearer_issuer IS NOT NULL THEN 'bearer tokens'
                ELSE 'is not set' END, format('nobody can work: osgprod project set-magic %s --magic-file FILE', p.name)
      FROM projects p
    UNION ALL
    SELECT 'begin-of-run records of ' || p.name, b.files = 0,
           CASE b.files WHEN 0 THEN 'no file is known to be without one' ELSE format('missing in %s: %s', osgprod._counted(b.files, 'file'), b.some) END,
           format('jobs would reconstruct these files without it: osgprod slices unload %s --path PATH takes one out; '
               'osgprod project set %s demand_bor=true keeps such files out in future', p.name, p.name)
      FROM projects p CROSS JOIN LATERAL (
        SELECT count(*) AS files, concat_ws(', ', min(w.path), CASE WHEN count(*) > 1 THEN '...' END) AS some
          FROM loaded_files l JOIN rawdata w ON w.rawdata_id = l.rawdata_id
         WHERE l.project_id = p.project_id AND NOT w.has_bor) b
    UNION ALL
    SELECT 'work of ' || p.name, g.files > 0 AND g.blocks_quarantined = 0 AND p.state = 'active',
           format('%s, %s, %s quarantined', p.state, osgprod._counted(g.files, 'file'), osgprod._counted(g.blocks_quarantined, 'block')),
           CASE WHEN g.files = 0 THEN format('osgprod slices load %s gives it files', p.name)
                WHEN p.state <> 'active' THEN format('no new work is assigned: osgprod project resume %s', p.name)
                ELSE format('osgprod quarantined %s lists them; osgprod slices recycle %s tries them again', p.name, p.name) END
      FROM projects p CROSS JOIN LATERAL osgprod.progress(p_project => p.name) g;
END
$fn$;

COMMENT ON FUNCTION osgprod.diagnose() IS
'Looks for problems in the server and in the production, and says what to do about each. For osgprod_operator.';
