-- The event of a ban is worker-banned: targets that chose it by its former name go on getting it.
-- depends: 0050-functions

SET LOCAL ROLE osgprod_owner;

UPDATE osgprod_data.notify_targets SET events = array_replace(events, 'worker-refused', 'worker-banned')
 WHERE 'worker-refused' = ANY (events);

RESET ROLE;
