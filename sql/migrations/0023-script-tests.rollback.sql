SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.projects DROP COLUMN tested_scripts, DROP COLUMN tested_since;

RESET ROLE;
