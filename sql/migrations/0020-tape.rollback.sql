SET LOCAL ROLE osgprod_owner;

DROP INDEX osgprod_data.loaded_files_open;
ALTER TABLE osgprod_data.loaded_files DROP COLUMN on_tape;
CREATE INDEX loaded_files_open ON osgprod_data.loaded_files (project_id, run, seqno, rawdata_id)
    WHERE state IN ('pending', 'in_progress') AND suspended_at IS NULL;

RESET ROLE;
