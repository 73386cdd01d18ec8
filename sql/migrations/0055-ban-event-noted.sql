-- Bans that release 0.13.0 noted, also while it was replaced, have the event worker-banned: targets that chose it get them.
-- depends: 0053-functions

SET LOCAL ROLE osgprod_owner;

-- Waits for transactions that have noted something and are not committed; delivery goes on.
LOCK TABLE osgprod_data.notifications IN SHARE ROW EXCLUSIVE MODE;

UPDATE osgprod_data.notifications SET event = 'worker-banned', details = details || '{"event": "worker-banned"}'
 WHERE event = 'worker-refused';

RESET ROLE;
