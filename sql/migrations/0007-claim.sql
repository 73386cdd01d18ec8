-- A slice's row says by itself whether it may be claimed, and the archive is gone: its rows are in the tables again.
-- depends: 0005-job-keys 0006-evio

SET LOCAL ROLE osgprod_owner;

-- An archived project has ended: it assigns nothing new, as a draining one.
ALTER TYPE osgprod_data.project_state RENAME TO project_state_with_archived;
CREATE TYPE osgprod_data.project_state AS ENUM (
    'active',    -- work is assigned
    'paused',    -- nothing is assigned, not even to restarted jobs; reports are accepted
    'draining'   -- leased slices go on, no new ones are assigned
);
COMMENT ON TYPE osgprod_data.project_state IS 'whether a project assigns work';
ALTER TABLE osgprod_data.projects ALTER COLUMN state DROP DEFAULT;
ALTER TABLE osgprod_data.projects ALTER COLUMN state TYPE osgprod_data.project_state
    USING CASE WHEN state = 'archived' THEN 'draining' ELSE state::text END::osgprod_data.project_state;
ALTER TABLE osgprod_data.projects ALTER COLUMN state SET DEFAULT 'active';
DROP TYPE osgprod_data.project_state_with_archived;

INSERT INTO osgprod_data.attempts SELECT a.* FROM osgprod_data.archived_attempts a;
INSERT INTO osgprod_data.reports SELECT r.* FROM osgprod_data.archived_reports r;

-- Emptied and filled again: an UPDATE of each row would leave the table twice as large, and a new table another type of
-- its rows.
CREATE TEMPORARY TABLE copied ON COMMIT DROP AS
SELECT s.*, f.run, f.seqno, i.not_before
  FROM (SELECT h.* FROM osgprod_data.slices h UNION ALL SELECT a.* FROM osgprod_data.archived_slices a) s
  -- LEFT: a slice of a file that is not loaded stops the migration (run is NOT NULL), it isn't dropped.
  LEFT JOIN osgprod_data.loaded_files f ON f.project_id = s.project_id AND f.rawdata_id = s.rawdata_id
  LEFT JOIN osgprod_data.idle_slices i ON i.project_id = s.project_id AND i.rawdata_id = s.rawdata_id
                                      AND i.block1 = s.block1 AND s.state IN ('ready', 'quarantined');
DROP TABLE osgprod_data.idle_slices, osgprod_data.archived_slices, osgprod_data.archived_attempts,
    osgprod_data.archived_reports, osgprod_data.archivings;
TRUNCATE osgprod_data.slices;
DROP INDEX osgprod_data.slices_one_first_slice;
ALTER TABLE osgprod_data.slices
    DROP CONSTRAINT slices_are_sound, DROP CONSTRAINT slices_follow_a_slice, DROP CONSTRAINT slices_end_once,
    DROP CONSTRAINT slices_pkey,
    ALTER COLUMN cluster SET DEFAULT 0, ALTER COLUMN cluster SET NOT NULL,
    ALTER COLUMN process SET DEFAULT 0, ALTER COLUMN process SET NOT NULL,
    ALTER COLUMN nstart SET DEFAULT 0, ALTER COLUMN nstart SET NOT NULL,
    ADD COLUMN run int NOT NULL, ADD COLUMN seqno int NOT NULL, ADD COLUMN is_ready boolean,
    ADD COLUMN not_before timestamptz;
INSERT INTO osgprod_data.slices (project_id, rawdata_id, block1, block2, follows, run, seqno, cluster, process, nstart,
       opened_at, due_at, not_before, progress_at, bytes_fetched, cpu_s, state, failures, faults, repeats, is_ready,
       faulted_on, exit_codes)
SELECT c.project_id, c.rawdata_id, c.block1, c.block2, c.follows, c.run, c.seqno, coalesce(c.cluster, 0),
       coalesce(c.process, 0), coalesce(c.nstart, 0), c.opened_at, c.due_at, nullif(c.not_before, 'infinity'),
       c.progress_at, c.bytes_fetched, c.cpu_s, c.state, c.failures, c.faults, c.repeats,
       CASE WHEN c.state IN ('ready', 'quarantined') THEN c.not_before <= now() END, c.faulted_on, c.exit_codes
  FROM copied c;
ALTER TABLE osgprod_data.loaded_files DROP COLUMN archived_at;

ALTER TABLE osgprod_data.slices
    ADD CONSTRAINT slices_pkey PRIMARY KEY (project_id, rawdata_id, block1),
    -- In another order than the primary key: before the table has statistics, a planner that may choose between the two
    -- takes the wrong one, and reads all slices of a file for one.
    ADD CONSTRAINT slices_end_once UNIQUE (rawdata_id, block2, project_id);
CREATE UNIQUE INDEX slices_one_first_slice ON osgprod_data.slices (project_id, rawdata_id) WHERE follows IS NULL;
-- What a job may be assigned, in the order in which it is. NULL, of leased and done slices, is in neither index, so that
-- leased -> done is a HOT update.
CREATE INDEX slices_ready ON osgprod_data.slices (project_id, run, seqno, block1) WHERE is_ready;
-- What waits for the end of its backoff, and quarantined blocks (NULL).
CREATE INDEX slices_not_ready ON osgprod_data.slices (project_id, not_before, rawdata_id) WHERE NOT is_ready;
ALTER TABLE osgprod_data.slices
    -- I2, no overlap: each slice but the first of a file begins where another one ends. Since no two begin and no two
    -- end at the same block, the slices of a file form one chain, and a chain can't overlap itself.
    ADD CONSTRAINT slices_follow_a_slice FOREIGN KEY (project_id, rawdata_id, follows)
        REFERENCES osgprod_data.slices (project_id, rawdata_id, block2),
    -- I1: a slice holds blocks; I2: it follows where it begins; I7: only what is neither leased nor done is ready or not
    -- (>= 'ready': every state but these two). One CHECK, and as few operators as can be: it is read and planned again by
    -- every INSERT and UPDATE. (Where follows is NULL its comparison is neither true nor false, which a CHECK lets pass.)
    ADD CONSTRAINT slices_are_sound CHECK (block1 < block2 AND follows = block1
        AND (state >= 'ready') = (is_ready IS NOT NULL));
COMMENT ON TABLE osgprod_data.slices IS 'ranges of blocks that were allocated from files, each with its present state';
COMMENT ON COLUMN osgprod_data.slices.run           IS 'as in loaded_files: ready slices are assigned in this order';
COMMENT ON COLUMN osgprod_data.slices.seqno         IS 'as in loaded_files';
COMMENT ON COLUMN osgprod_data.slices.cluster       IS 'the job whose attempt holds it, or held it last; nstart 0 = none did';
COMMENT ON COLUMN osgprod_data.slices.opened_at     IS 'when it was allocated, split or recycled: an attempt that has another time here can not settle it';
COMMENT ON COLUMN osgprod_data.slices.not_before    IS 'of a ready one: when its backoff ends, or ended';
COMMENT ON COLUMN osgprod_data.slices.progress_at   IS 'when its attempt last reported progress; NULL = not yet';
COMMENT ON COLUMN osgprod_data.slices.bytes_fetched IS 'by its attempt, as last reported [bytes]';
COMMENT ON COLUMN osgprod_data.slices.cpu_s         IS 'used by its attempt, as last reported [s]';
COMMENT ON COLUMN osgprod_data.slices.faults        IS 'of nodes, and losses, that did not count against it';
COMMENT ON COLUMN osgprod_data.slices.is_ready      IS 'may it be assigned? false = in backoff or quarantined; NULL = leased or done';

-- Reports are tallied when every transaction that can have written one is over (_tally).
ALTER TABLE osgprod_data.projects
    ADD COLUMN tally_next timestamptz NOT NULL DEFAULT '-infinity',
    ADD COLUMN tally_after xid8 NOT NULL DEFAULT '0';
COMMENT ON COLUMN osgprod_data.projects.tallied_until IS 'reports before this time are in tallies and totals; no later report gets an earlier time';
COMMENT ON COLUMN osgprod_data.projects.tally_next    IS 'until when they are tallied next';
COMMENT ON COLUMN osgprod_data.projects.tally_after   IS 'as soon as no transaction older than this one runs';

RESET ROLE;
