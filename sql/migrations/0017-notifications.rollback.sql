DROP TABLE osgprod_data.noted_health;
DROP TABLE osgprod_data.notify_targets;
DROP TABLE osgprod_data.notifications;
