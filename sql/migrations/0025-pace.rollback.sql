SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.pace_looks DROP COLUMN digest;

RESET ROLE;
