SET LOCAL ROLE osgprod_owner;

DROP TABLE osgprod_data.backups;
ALTER TABLE osgprod_data.projects DROP COLUMN max_backups, DROP COLUMN shrink_tail, DROP COLUMN tail_blocks;

RESET ROLE;
