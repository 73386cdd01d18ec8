SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.loaded_files DROP COLUMN is_open;
ALTER INDEX osgprod_data.loaded_files_unallocated RENAME TO loaded_files_open;

RESET ROLE;
