CREATE FUNCTION osgprod._notify(p_project_id int, p_event text, p_details jsonb)
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Notifies of something that an operator may want to know: records it for osgprod notify, and sends it to the
    -- listeners of channel osgprod, like osgprod watch, as one JSON object with event, project, at, and the details.
    -- For rare events only: transactions with a NOTIFY commit one after the other. Texts are shortened, since a payload has
    -- less than 8000 bytes.
    WITH noted AS (
        INSERT INTO osgprod_data.notifications (project_id, event, details)
        SELECT p.project_id, p_event, jsonb_build_object('event', p_event, 'project', p.name, 'at', now())
               || coalesce((SELECT jsonb_object_agg(d.key, CASE WHEN jsonb_typeof(d.value) = 'string'
                       THEN to_jsonb(left(d.value #>> '{}', 800)) ELSE d.value END) FROM jsonb_each(p_details) d), '{}')
          FROM osgprod_data.projects p WHERE p.project_id = p_project_id
        RETURNING details)
    SELECT pg_notify('osgprod', n.details::text) FROM noted n
$fn$;

CREATE FUNCTION osgprod._prune_notifications()
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Deletes notifications that are older than 30 days, delivered or not.
    DELETE FROM osgprod_data.notifications n WHERE n.noted_at < now() - interval '30 days'
$fn$;

CREATE FUNCTION osgprod._renumber_notifications()
RETURNS void LANGUAGE plpgsql VOLATILE SET enable_seqscan = off
AS $fn$
-- Repairs the order of notifications after a dump was restored on another server. They are ordered by transaction numbers, and a new
-- server has smaller ones: all that come would count as delivered. All notifications get the number before the oldest running
-- transaction; each target keeps its place.
-- Promise:    loses none. Some that were written at the same time may be delivered twice.
-- Locks:      all targets and notifications, SKIP LOCKED: while another session has a target, the next tick does it. The caller
--             holds the lock of tick()
DECLARE
    v_to xid8 := (pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1)::text::xid8;
BEGIN
    IF NOT EXISTS (SELECT FROM osgprod_data.notify_targets t WHERE t.sent_xid > pg_snapshot_xmax(pg_current_snapshot()))
       AND (SELECT n.written_by >= pg_snapshot_xmax(pg_current_snapshot()) AND n.written_by IS DISTINCT FROM pg_current_xact_id_if_assigned()
              FROM osgprod_data.notifications n ORDER BY n.written_by DESC, n.notification_id DESC LIMIT 1) IS NOT TRUE
    THEN
        RETURN;
    END IF;
    IF (SELECT count(*) FROM osgprod_data.notify_targets)
        > (SELECT count(*) FROM (SELECT FROM osgprod_data.notify_targets FOR UPDATE SKIP LOCKED) t)
    THEN
        RETURN;
    END IF;
    -- One statement: what is noted between two would be before each target's place.
    WITH renumbered AS (
        UPDATE osgprod_data.notifications n SET written_by = v_to
         WHERE n.notification_id IN (SELECT x.notification_id FROM osgprod_data.notifications x FOR UPDATE SKIP LOCKED)
    )
    UPDATE osgprod_data.notify_targets t SET sent_xid = v_to, sent_id = coalesce(
        (SELECT min(n.notification_id) - 1 FROM osgprod_data.notifications n
          WHERE (n.written_by, n.notification_id) > (t.sent_xid, t.sent_id)
             OR t.sent_xid > pg_snapshot_xmax(pg_current_snapshot())  -- then what was written since the restore, also by this tick
                AND n.notification_id > t.sent_id AND n.noted_at >= t.created_at
                AND (n.written_by < pg_snapshot_xmax(pg_current_snapshot()) OR n.written_by = pg_current_xact_id_if_assigned())),
        (SELECT max(n.notification_id) FROM osgprod_data.notifications n), t.sent_id);
END
$fn$;
