CREATE FUNCTION osgprod.write_check()
RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp SET work_mem = '64kB'
AS $fn$
-- Tries what every call of a job needs: a server that takes writes, room on its disk, and, with synchronous replication, a
-- standby. healthz calls it, each shim process once in 5 s at most.
-- Promise:    leaves nothing behind but a record of 60 bytes in the WAL; takes about 5 ms.
-- Errors:     25006 the server or the session is read-only; 53100 the disk of the data is full
-- Locks:      none; with synchronous replication its commit waits for the standby
BEGIN
    -- A message in the WAL is allowed in a read-only transaction.
    IF current_setting('transaction_read_only')::boolean THEN
        RAISE EXCEPTION 'the database is read-only' USING ERRCODE = '25006',
            HINT = 'name all servers in OSGPROD_DSN, with target_session_attrs=read-write';
    END IF;
    -- The sort is larger than work_mem, so it writes a temporary file of some 300 kB beside the data.
    PERFORM count(*) FROM (SELECT md5(n::text) FROM generate_series(1, 6000) AS n ORDER BY 1 OFFSET 0) sorted;
    PERFORM pg_logical_emit_message(true, 'osgprod', '');
END
$fn$;

COMMENT ON FUNCTION osgprod.write_check() IS
'Tries whether the database takes writes and has room; an error when not. For osgprod_worker and osgprod_operator.';
