-- Which files new slices are allocated from: stated once, by the table itself.
-- depends: 0020-tape

SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.loaded_files ADD COLUMN is_open boolean NOT NULL
    GENERATED ALWAYS AS (state IN ('pending', 'in_progress') AND NOT on_tape AND suspended_at IS NULL) STORED;
COMMENT ON COLUMN osgprod_data.loaded_files.is_open IS 'may new slices be allocated? It has unallocated blocks, and is neither on tape only nor suspended';
ALTER INDEX osgprod_data.loaded_files_open RENAME TO loaded_files_unallocated;
CREATE INDEX loaded_files_open ON osgprod_data.loaded_files (project_id, run, seqno, rawdata_id) WHERE is_open;

RESET ROLE;
