SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.attempts DROP COLUMN events;

RESET ROLE;
