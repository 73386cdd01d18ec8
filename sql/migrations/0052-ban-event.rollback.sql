SET LOCAL ROLE osgprod_owner;

UPDATE osgprod_data.notify_targets SET events = array_replace(events, 'worker-banned', 'worker-refused')
 WHERE 'worker-banned' = ANY (events);

RESET ROLE;
