CREATE FUNCTION osgprod._note_presence()
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Notes that the server is there to receive heartbeats, and for how long it was not: it was away when nothing has been noted
-- here for 30 s. The shims' timer calls this every 10 s, by tick.
-- Locks:      the one row of presence, SKIP LOCKED
-- Source:     docs/design.md "Outages: who is blamed"
BEGIN
    WITH before AS (
        SELECT b.seen_at, b.seen_at BETWEEN '2000-01-01' AND now() - interval '30 s' AS was_away
          FROM osgprod_data.presence b WHERE b.seen_at NOT BETWEEN now() - interval '5 s' AND now()
           FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE osgprod_data.presence p
       SET seen_at = now(), back_at = CASE WHEN b.was_away THEN now() ELSE p.back_at END,
           away = CASE WHEN b.was_away THEN now() - b.seen_at ELSE p.away END
      FROM before b;
END
$fn$;

CREATE FUNCTION osgprod._leases_hold_until(p_heartbeat_s int)
RETURNS timestamptz LANGUAGE sql STABLE
AS $fn$
    -- Before this time no lease expires that was live when the server went away: nobody could renew it. From its return every job
    -- has as long as the absence lasted, and two heartbeat intervals more. Only the last absence counts, so that where ticks come
    -- rarely, once a minute by cron for instance, a lease still ends, one tick later.
    -- Parameters: p_heartbeat_s  of the project [s]
    SELECT p.back_at + p.away + make_interval(secs => 2 * p_heartbeat_s) FROM osgprod_data.presence p
     WHERE p.back_at <= now()
$fn$;

CREATE FUNCTION osgprod._is_over(p_heartbeat_s int, p_due_at timestamptz)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Has one lease expired? (For many, see _requeue_project: it reads the presence once.)
    -- Parameters: p_heartbeat_s  of the project [s];  p_due_at  the lease's end
    SELECT osgprod._has_expired(p_due_at, (SELECT p.back_at - p.away FROM osgprod_data.presence p),
                                coalesce(osgprod._leases_hold_until(p_heartbeat_s), '-infinity'))
$fn$;
