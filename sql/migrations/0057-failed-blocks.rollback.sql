SET LOCAL ROLE osgprod_owner;
ALTER TABLE osgprod_data.recent_failures DROP COLUMN block2;
RESET ROLE;
