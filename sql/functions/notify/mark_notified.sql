CREATE FUNCTION osgprod.mark_notified(
    p_name text, p_written_by text DEFAULT NULL, p_notification_id bigint DEFAULT NULL, p_problem text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Records that notifications were delivered to a target, up to and including one of them, or that delivery failed.
-- Promise:    a repeated call changes nothing more but the time of the last delivery (sent_at), and an earlier notification
--             doesn't undo a later one.
-- Parameters: p_name  of the target;  p_written_by, p_notification_id  the last one delivered, as next_notifications returned
--             it; p_written_by NULL = none was;  p_problem  why the next one failed, one line of at most 400 characters; NULL = none did
-- Errors:     OG304 unknown target; OG108 p_written_by is no number, or is given without p_notification_id
-- Locks:      the target's row
BEGIN
    IF p_written_by IS NOT NULL AND (p_notification_id IS NULL OR p_written_by !~ '^[0-9]{1,19}$') THEN
        RAISE EXCEPTION 'there is no notification % of transaction %', coalesce(p_notification_id::text, 'NULL'),
            osgprod._quoted(p_written_by) USING ERRCODE = 'OG108', HINT = 'pass what next_notifications returned';
    END IF;
    UPDATE notify_targets t
       SET problem = osgprod._label(p_problem, 400),
           sent_at = CASE WHEN p_written_by IS NULL THEN t.sent_at ELSE now() END,
           sent_xid = CASE WHEN n.is_later THEN p_written_by::xid8 ELSE t.sent_xid END,
           sent_id = CASE WHEN n.is_later THEN p_notification_id ELSE t.sent_id END
      FROM (SELECT coalesce((p_written_by::xid8, p_notification_id) > (o.sent_xid, o.sent_id), false) AS is_later
              FROM notify_targets o WHERE o.name = p_name) n
     WHERE t.name = p_name;
    IF NOT FOUND THEN
        PERFORM osgprod._refuse_target(p_name);
    END IF;
END
$fn$;

COMMENT ON FUNCTION osgprod.mark_notified(text, text, bigint, text) IS
'Records that notifications were delivered to a target, or why they could not be. For osgprod_operator.';
