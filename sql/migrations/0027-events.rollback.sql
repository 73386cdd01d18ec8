SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.rawdata DROP COLUMN events;

RESET ROLE;
