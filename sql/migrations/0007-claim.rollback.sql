SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.projects DROP COLUMN tally_next, DROP COLUMN tally_after;
COMMENT ON COLUMN osgprod_data.projects.tallied_until IS 'until when reports are in tallies and totals';
ALTER TYPE osgprod_data.project_state RENAME TO project_state_without_archived;
CREATE TYPE osgprod_data.project_state AS ENUM ('active', 'paused', 'draining', 'archived');
COMMENT ON TYPE osgprod_data.project_state IS 'whether a project lends out work';
ALTER TABLE osgprod_data.projects ALTER COLUMN state DROP DEFAULT;
ALTER TABLE osgprod_data.projects ALTER COLUMN state TYPE osgprod_data.project_state
    USING state::text::osgprod_data.project_state;
ALTER TABLE osgprod_data.projects ALTER COLUMN state SET DEFAULT 'active';
DROP TYPE osgprod_data.project_state_without_archived;
ALTER TABLE osgprod_data.loaded_files ADD COLUMN archived_at timestamptz;

-- The tables as 0002 and 0003 made them.
CREATE TABLE osgprod_data.idle_slices (
    project_id int NOT NULL,
    run        int NOT NULL,
    seqno      int NOT NULL,
    rawdata_id int NOT NULL,
    block1     int NOT NULL,
    not_before timestamptz NOT NULL,
    PRIMARY KEY (project_id, rawdata_id, block1)
);
INSERT INTO osgprod_data.idle_slices
SELECT s.project_id, s.run, s.seqno, s.rawdata_id, s.block1, coalesce(s.not_before, 'infinity')
  FROM osgprod_data.slices s WHERE s.is_ready IS NOT NULL;
DROP INDEX osgprod_data.slices_ready;
DROP INDEX osgprod_data.slices_not_ready;
ALTER TABLE osgprod_data.slices
    DROP CONSTRAINT slices_are_sound,
    ALTER COLUMN cluster DROP NOT NULL, ALTER COLUMN cluster DROP DEFAULT,
    ALTER COLUMN process DROP NOT NULL, ALTER COLUMN process DROP DEFAULT,
    ALTER COLUMN nstart DROP NOT NULL, ALTER COLUMN nstart DROP DEFAULT,
    DROP COLUMN run, DROP COLUMN seqno, DROP COLUMN is_ready, DROP COLUMN not_before;
UPDATE osgprod_data.slices s
   SET cluster = CASE WHEN s.nstart > 0 THEN s.cluster END, process = CASE WHEN s.nstart > 0 THEN s.process END,
       nstart = nullif(s.nstart, 0)
 WHERE s.nstart = 0;
ALTER TABLE osgprod_data.slices ADD CONSTRAINT slices_are_sound CHECK (block1 < block2 AND follows = block1
    AND (state >= 'ready' OR (cluster, process, nstart, due_at) IS NOT NULL));
ALTER TABLE osgprod_data.idle_slices ADD FOREIGN KEY (project_id, rawdata_id, block1)
    REFERENCES osgprod_data.slices ON DELETE CASCADE;
CREATE INDEX idle_slices_in_order ON osgprod_data.idle_slices (project_id, run, seqno, rawdata_id, block1)
    WHERE not_before < 'infinity';
CREATE INDEX idle_slices_due ON osgprod_data.idle_slices (project_id, not_before);
ALTER TABLE osgprod_data.idle_slices SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

COMMENT ON TABLE osgprod_data.slices IS 'ranges of blocks that were cut from files, each with its present state';
COMMENT ON TABLE osgprod_data.idle_slices IS 'slices that nobody works on: ready or quarantined ones';
COMMENT ON COLUMN osgprod_data.loaded_files.archived_at IS 'when its slices were moved to archived_slices; NULL = they are in slices';

COMMENT ON COLUMN osgprod_data.slices.project_id    IS 'whose work';
COMMENT ON COLUMN osgprod_data.slices.rawdata_id    IS 'of which file';
COMMENT ON COLUMN osgprod_data.slices.block1        IS 'first block, 0-based';
COMMENT ON COLUMN osgprod_data.slices.block2        IS 'end, exclusive';
COMMENT ON COLUMN osgprod_data.slices.follows       IS 'the same as block1, referring to the slice that ends there; NULL for the first of a file';
COMMENT ON COLUMN osgprod_data.slices.state         IS 'see type slice_state';
COMMENT ON COLUMN osgprod_data.slices.failures      IS 'that count against the data';
COMMENT ON COLUMN osgprod_data.slices.faults        IS 'of nodes, and losses, that were forgiven it';
COMMENT ON COLUMN osgprod_data.slices.cluster       IS 'the job whose attempt holds it, or held it last';
COMMENT ON COLUMN osgprod_data.slices.process       IS 'the job, second number';
COMMENT ON COLUMN osgprod_data.slices.nstart        IS 'the attempt of that job';
COMMENT ON COLUMN osgprod_data.slices.opened_at     IS 'when it was cut, split or recycled: an attempt that has another time here can not settle it';
COMMENT ON COLUMN osgprod_data.slices.due_at        IS 'until when its attempt may stay silent; of a ready slice: when its attempt became lost, NULL = it has ended; of a done one nothing';
COMMENT ON COLUMN osgprod_data.slices.progress_at   IS 'when its attempt last told of progress; NULL = not yet';
COMMENT ON COLUMN osgprod_data.slices.bytes_fetched IS 'by its attempt, as last told [bytes]';
COMMENT ON COLUMN osgprod_data.slices.cpu_s         IS 'used by its attempt, as last told [s]';
COMMENT ON COLUMN osgprod_data.slices.faulted_on    IS 'worker of the last fault';
COMMENT ON COLUMN osgprod_data.slices.repeats       IS 'faults there since one counted [0 .. 3]';
COMMENT ON COLUMN osgprod_data.slices.exit_codes    IS 'of its last failures and faults, at most 5, the newest last';
COMMENT ON COLUMN osgprod_data.idle_slices.project_id IS 'whose work';
COMMENT ON COLUMN osgprod_data.idle_slices.run        IS 'as in rawdata: slices are lent out in this order';
COMMENT ON COLUMN osgprod_data.idle_slices.seqno      IS 'as in rawdata';
COMMENT ON COLUMN osgprod_data.idle_slices.rawdata_id IS 'of which file';
COMMENT ON COLUMN osgprod_data.idle_slices.block1     IS 'first block of the slice';
COMMENT ON COLUMN osgprod_data.idle_slices.not_before IS 'when it may be lent again; infinity = quarantined';
-- The archive, empty.
CREATE TABLE osgprod_data.archived_slices (LIKE osgprod_data.slices INCLUDING COMMENTS,
    PRIMARY KEY (project_id, rawdata_id, block1));
CREATE TABLE osgprod_data.archived_attempts (LIKE osgprod_data.attempts INCLUDING COMMENTS,
    PRIMARY KEY (project_id, cluster, process, nstart));
CREATE TABLE osgprod_data.archived_reports (LIKE osgprod_data.reports INCLUDING COMMENTS,
    PRIMARY KEY (project_id, cluster, process, nstart, by_worker));

COMMENT ON TABLE osgprod_data.archived_slices IS 'slices of archived files; all are done';
COMMENT ON TABLE osgprod_data.archived_attempts IS 'attempts on slices of archived files';
COMMENT ON TABLE osgprod_data.archived_reports IS 'how archived attempts ended';

CREATE TABLE osgprod_data.archivings (
    project_id int PRIMARY KEY REFERENCES osgprod_data.projects ON DELETE CASCADE,
    closed_at  timestamptz NOT NULL DEFAULT now(),
    cluster    int NOT NULL DEFAULT -1,
    process    int NOT NULL DEFAULT -1,
    nstart     int NOT NULL DEFAULT -1
);
COMMENT ON TABLE osgprod_data.archivings IS 'how far the archiving of a project is';
COMMENT ON COLUMN osgprod_data.archivings.project_id IS 'which project';
COMMENT ON COLUMN osgprod_data.archivings.closed_at  IS 'when it began: from then on the project lends nothing';
COMMENT ON COLUMN osgprod_data.archivings.cluster    IS 'up to which attempt, in the order of keys, attempts have been looked at; -1 = from the first on';
COMMENT ON COLUMN osgprod_data.archivings.process    IS 'of that attempt';
COMMENT ON COLUMN osgprod_data.archivings.nstart     IS 'of that attempt';

-- The former functions, which grant this, are there already.
GRANT SELECT ON osgprod_data.idle_slices, osgprod_data.archived_slices, osgprod_data.archived_attempts,
    osgprod_data.archived_reports, osgprod_data.archivings TO osgprod_operator;

RESET ROLE;
