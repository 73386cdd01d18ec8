-- The tail of a production: smaller slices when little is unallocated, and a second attempt on slices that would end last.
-- depends: 0009-file-states

SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.projects
    ADD COLUMN max_backups int NOT NULL DEFAULT 10 CHECK (max_backups BETWEEN 0 AND 10000),
    ADD COLUMN shrink_tail boolean NOT NULL DEFAULT false,
    ADD COLUMN tail_blocks int;
COMMENT ON COLUMN osgprod_data.projects.max_backups IS 'how many slices at a time may have a second attempt, when no block is unallocated; 0 = none';
COMMENT ON COLUMN osgprod_data.projects.shrink_tail IS 'do slices become smaller when less is unallocated than the running jobs would take?';
COMMENT ON COLUMN osgprod_data.projects.tail_blocks IS 'blocks of a slice at most because little is unallocated; NULL = enough is';

CREATE TABLE osgprod_data.backups (
    project_id   int         NOT NULL REFERENCES osgprod_data.projects (project_id) ON DELETE CASCADE,
    rawdata_id   int         NOT NULL,
    block1       int         NOT NULL,
    opened_at    timestamptz NOT NULL,
    worker       text        NOT NULL,
    expected_end timestamptz NOT NULL,
    nblocks      int         NOT NULL,
    cluster      int,
    process      int,
    nstart       int,
    due_at       timestamptz,
    -- I3: at most one backup.
    CONSTRAINT backups_pkey PRIMARY KEY (project_id, rawdata_id, block1)
);
-- What may be assigned, that which will end last first.
CREATE INDEX backups_offered ON osgprod_data.backups (project_id, expected_end DESC) WHERE nstart IS NULL;
COMMENT ON TABLE osgprod_data.backups IS 'leased slices that may have, or have, a second attempt: used in the tail of a project alone';
COMMENT ON COLUMN osgprod_data.backups.project_id   IS 'project';
COMMENT ON COLUMN osgprod_data.backups.rawdata_id   IS 'file of the slice';
COMMENT ON COLUMN osgprod_data.backups.block1       IS 'first block of the slice';
COMMENT ON COLUMN osgprod_data.backups.opened_at    IS 'as in slices when it was offered: a slice that has another time there has no backup';
COMMENT ON COLUMN osgprod_data.backups.worker       IS 'on which the slice is leased: it gets no backup of it';
COMMENT ON COLUMN osgprod_data.backups.expected_end IS 'of the attempt that holds the slice; infinity = it is silent';
COMMENT ON COLUMN osgprod_data.backups.nblocks      IS 'of the slice';
COMMENT ON COLUMN osgprod_data.backups.cluster      IS 'job of the backup attempt; NULL = it is only offered';
COMMENT ON COLUMN osgprod_data.backups.process      IS 'of that job';
COMMENT ON COLUMN osgprod_data.backups.nstart       IS 'of the backup attempt; NULL = it is only offered';
COMMENT ON COLUMN osgprod_data.backups.due_at       IS 'when the lease of the backup attempt expires; NULL = offered, or it failed, and there will be no other';

RESET ROLE;
