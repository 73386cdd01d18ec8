-- Files that are on tape only, and are skipped until they are online.
-- depends: 0013-sources 0011-outages

SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.loaded_files ADD COLUMN on_tape boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN osgprod_data.loaded_files.on_tape IS 'is it skipped, since it is nearline, and the project skips such files?';
DROP INDEX osgprod_data.loaded_files_open;
CREATE INDEX loaded_files_open ON osgprod_data.loaded_files (project_id, on_tape, run, seqno, rawdata_id)
    WHERE state IN ('pending', 'in_progress');

RESET ROLE;
