CREATE FUNCTION osgprod.list_notify_targets()
RETURNS TABLE (name text, place text, project text, events text[], waiting bigint, sent_at timestamptz, problem text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Lists who gets notifications.
-- Returns:    a row a target: project NULL = all; events NULL = all but the frequent ones; waiting: notifications that are not delivered yet; sent_at: when
--             one was delivered last; problem: why the last attempt failed
-- Errors:     none
    SELECT t.name, t.place, p.name, t.events, (SELECT count(*) FROM osgprod._undelivered(t)), t.sent_at, t.problem
      FROM notify_targets t
      LEFT JOIN projects p ON p.project_id = t.project_id
     ORDER BY t.name
$fn$;

COMMENT ON FUNCTION osgprod.list_notify_targets() IS
'Lists who gets notifications, how many wait for delivery, and why the last attempt failed. For osgprod_operator.';
