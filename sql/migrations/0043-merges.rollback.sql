SET LOCAL ROLE osgprod_owner;

DROP INDEX osgprod_data.merges_done;
ALTER TABLE osgprod_data.projects DROP COLUMN noted_end,
    ADD COLUMN mergescript_fault text, ADD COLUMN mergescript_fault_at timestamptz;
COMMENT ON COLUMN osgprod_data.projects.mergescript_fault IS 'why a shim could not read the merge script; NULL = it can, or none has tried';
COMMENT ON COLUMN osgprod_data.projects.mergescript_fault_at IS 'when a shim last reported that';

RESET ROLE;
