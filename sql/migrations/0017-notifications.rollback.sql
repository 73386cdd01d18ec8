-- It takes the table's row.
DROP FUNCTION IF EXISTS osgprod._undelivered(osgprod_data.notify_targets);
DROP TABLE osgprod_data.noted_health;
DROP TABLE osgprod_data.notify_targets;
DROP TABLE osgprod_data.notifications;
