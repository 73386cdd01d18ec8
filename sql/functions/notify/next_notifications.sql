CREATE FUNCTION osgprod.next_notifications(p_name text, p_limit int DEFAULT 100)
RETURNS TABLE (written_by text, notification_id bigint, details jsonb)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Returns the next notifications to deliver to a target, and keeps the target until the transaction ends.
-- Promise:    nobody else delivers to this target until then: a second deliverer gets no rows. What was delivered is not
--             returned again once mark_notified was committed; a deliverer that dies between delivery and commit delivers
--             again.
-- Parameters: p_name   of the target;  p_limit  at most so many [1 .. 100000]
-- Returns:    rows in the order in which they became visible; none = all is delivered, or another deliverer has the target
-- Errors:     OG304 unknown target; OG108 limit out of range
-- Locks:      the target's row, SKIP LOCKED
DECLARE
    v_target notify_targets;
BEGIN
    SELECT t.* INTO v_target FROM notify_targets t WHERE t.name = p_name FOR UPDATE SKIP LOCKED;
    IF FOUND THEN
        RETURN QUERY SELECT n.written_by::text, n.notification_id, n.details FROM osgprod._undelivered(v_target) n
                      ORDER BY n.written_by, n.notification_id LIMIT osgprod._limit(p_limit);
    ELSIF NOT EXISTS (SELECT FROM notify_targets t WHERE t.name = p_name) THEN
        PERFORM osgprod._refuse_target(p_name);
    END IF;
END
$fn$;

COMMENT ON FUNCTION osgprod.next_notifications(text, int) IS
'Returns the next notifications to deliver to a target, and keeps others from delivering to it until the transaction ends. For osgprod_operator.';

CREATE FUNCTION osgprod._undelivered(p_target osgprod_data.notify_targets)
RETURNS SETOF osgprod_data.notifications LANGUAGE sql STABLE
AS $fn$
    -- What is still to be delivered to a target: only what was written before the oldest transaction that still runs. So no
    -- notification becomes visible later than one that comes after it in the order.
    SELECT n.* FROM osgprod_data.notifications n
     WHERE (n.written_by, n.notification_id) > (p_target.sent_xid, p_target.sent_id)
       AND n.written_by < pg_snapshot_xmin(pg_current_snapshot())
       AND (p_target.project_id IS NULL OR n.project_id = p_target.project_id)
       AND CASE WHEN p_target.events IS NULL THEN n.event NOT IN ('file-finished', 'merge-done')  -- frequent ones
                ELSE n.event = ANY (p_target.events) END
$fn$;
