CREATE FUNCTION osgprod.freshness()
RETURNS TABLE (is_replica boolean, as_of timestamptz, age_s double precision)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Tells how old the data are that this server shows: a replica may lag behind, or have lost its primary.
-- Promise:    a snapshot that is taken after the call is at least as new as as_of says; a repeated call changes nothing.
-- Returns:    one row: is_replica, does the server replay another one's changes; as_of, the time of the last tick, and on a
--             replica of the last commit that it has replayed, if that is later, NULL when it knows none; age_s, how long ago
--             that was [s, 0 ..]. Between two ticks of the shims' timer, where nothing else commits, age_s reaches some 10 s; the
--             clocks of both servers count, so let them keep time by NTP.
-- Errors:     none
-- Locks:      none
-- Source:     presence, which tick writes; pg_last_xact_replay_timestamp
DECLARE
    v_seen_at timestamptz;
BEGIN
    -- A server that replays nothing, since it was promoted or is a copy, has no newer tick either: so its data are old.
    SELECT p.seen_at INTO v_seen_at FROM presence p WHERE isfinite(p.seen_at);
    -- The clock of the primary may be ahead.
    as_of := greatest(v_seen_at, pg_last_xact_replay_timestamp());
    IF as_of > now() THEN
        as_of := now();
    END IF;
    is_replica := pg_is_in_recovery();
    age_s := extract(epoch FROM now() - as_of);
    RETURN NEXT;
END
$fn$;

COMMENT ON FUNCTION osgprod.freshness() IS
'Tells how old the data are that this server shows: the time of the last tick, or on a replica of the last commit. For osgprod_worker and osgprod_operator.';
