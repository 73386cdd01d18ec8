-- Merges of slices' outputs into files that are delivered, what an attempt ran, and the files that it delivered.
-- depends: 0009-file-states

SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.projects
    ADD COLUMN merge_by text NOT NULL DEFAULT 'none'
        CONSTRAINT projects_merge_by_is_known CHECK (merge_by IN ('none', 'file', 'run')),
    ADD COLUMN mergescript text DEFAULT 'osgprod_merge.bash'
        CONSTRAINT projects_mergescript_is_a_file_name CHECK (mergescript ~ '^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,126}$'),
    ADD COLUMN merge_incomplete boolean NOT NULL DEFAULT false,
    ADD COLUMN merge_output_url text CONSTRAINT projects_merge_output_url_is_plain CHECK (merge_output_url ~ '^[[:graph:]]+$' AND length(merge_output_url) <= 1024),
    ADD COLUMN merge_cleanup text NOT NULL DEFAULT 'keep'
        CONSTRAINT projects_merge_cleanup_is_known CHECK (merge_cleanup IN ('keep', 'delete')),
    ADD COLUMN output_home text CONSTRAINT projects_output_home_is_plain CHECK (output_home ~ '^[[:graph:]]+$' AND length(output_home) <= 1024),
    ADD COLUMN mergescript_fault text,
    ADD COLUMN mergescript_fault_at timestamptz,
    -- The work script needs no merge of itself.
    ADD CONSTRAINT projects_mergescript_is_not_the_workscript CHECK (mergescript <> workscript);
COMMENT ON COLUMN osgprod_data.projects.merge_by IS 'what the outputs of slices are merged into: file = one merge a raw data file, run = one a run, none';
COMMENT ON COLUMN osgprod_data.projects.mergescript IS 'file name of the merge script in the project''s folder; NULL = nothing is merged';
COMMENT ON COLUMN osgprod_data.projects.merge_incomplete IS 'are files with quarantined blocks merged without these blocks?';
COMMENT ON COLUMN osgprod_data.projects.merge_output_url IS 'where merged files are delivered, with {kind}, {run}, {seqno}, {project}; NULL = where the merge script says';
COMMENT ON COLUMN osgprod_data.projects.merge_cleanup IS 'what the merge script does with merged outputs of slices: keep or delete';
COMMENT ON COLUMN osgprod_data.projects.output_home IS 'URL of the folder to which HTCondor brings outputs, for slices that report no URL; with {cluster}, {process}, {project}; NULL = unknown';
COMMENT ON COLUMN osgprod_data.projects.mergescript_fault IS 'why a shim could not read the merge script; NULL = it can, or none has tried';
COMMENT ON COLUMN osgprod_data.projects.mergescript_fault_at IS 'when a shim last reported that';

CREATE TYPE osgprod_data.merge_state AS ENUM (
    'waiting',    -- slices that it needs are not done, or quarantined
    'ready',      -- may be assigned when its backoff has ended
    'leased',     -- an attempt works on it
    'done',       -- its merged files are delivered
    'failed',     -- it failed as often as allowed
    'superseded'  -- slices were processed again since, or the merge is by something else now: its files do not count
);
COMMENT ON TYPE osgprod_data.merge_state IS 'how far a merge is';

-- A slice whose output went into a merge, and the attempt that delivered that output.
CREATE TYPE osgprod_data.merge_input AS (
    rawdata_id int,
    block1     int,
    block2     int,
    starts_at  int,  -- block1 as the merge script knows it: in a merge of a run the blocks are numbered through its files
    cluster    int,
    process    int,
    nstart     int
);
COMMENT ON TYPE osgprod_data.merge_input IS 'a slice whose output went into a merge, and the attempt that delivered it';

CREATE TABLE osgprod_data.merges (
    merge_id      int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id    int NOT NULL REFERENCES osgprod_data.projects,
    run           int NOT NULL,
    seqno         int,
    rawdata_id    int NOT NULL,
    state         osgprod_data.merge_state NOT NULL,
    is_ready      boolean,
    not_before    timestamptz,
    failures      smallint NOT NULL DEFAULT 0,
    faults        smallint NOT NULL DEFAULT 0,
    faulted_on    text,
    repeats       smallint NOT NULL DEFAULT 0,
    exit_codes    int[],
    cluster       int NOT NULL DEFAULT 0,
    process       int NOT NULL DEFAULT 0,
    nstart        int NOT NULL DEFAULT 0,
    opened_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    due_at        timestamptz,
    progress_at   timestamptz,
    bytes_fetched bigint,
    cpu_s         bigint,
    inputs        osgprod_data.merge_input[],
    missing       text,
    made_at       timestamptz NOT NULL DEFAULT now(),
    done_at       timestamptz,
    -- As in slices: what may be assigned has true here, what waits for the end of a backoff or has failed has false.
    CONSTRAINT merges_are_sound CHECK ((state IN ('ready', 'failed')) = (is_ready IS NOT NULL)
        AND (state = 'done') <= (done_at IS NOT NULL))
);
-- One merge of a file, or of a run, that counts.
CREATE UNIQUE INDEX merges_once ON osgprod_data.merges (project_id, run, coalesce(seqno, -1)) WHERE state <> 'superseded';
CREATE INDEX merges_ready ON osgprod_data.merges (project_id, run, seqno) WHERE is_ready;
CREATE INDEX merges_not_ready ON osgprod_data.merges (project_id, not_before) WHERE NOT is_ready;
CREATE INDEX merges_leased ON osgprod_data.merges (project_id, due_at) WHERE state = 'leased';
CREATE INDEX merges_of_project ON osgprod_data.merges (project_id, run, seqno);

COMMENT ON TABLE osgprod_data.merges IS 'merges of the outputs of a file''s or a run''s slices, each with its present state';
COMMENT ON COLUMN osgprod_data.merges.merge_id      IS 'key';
COMMENT ON COLUMN osgprod_data.merges.project_id    IS 'whose work';
COMMENT ON COLUMN osgprod_data.merges.run           IS 'run number: merges are assigned in the order of run and seqno';
COMMENT ON COLUMN osgprod_data.merges.seqno         IS 'number of the file in its run; NULL = it merges the whole run';
COMMENT ON COLUMN osgprod_data.merges.rawdata_id    IS 'the file, or the first file of the run';
COMMENT ON COLUMN osgprod_data.merges.state         IS 'see type merge_state';
COMMENT ON COLUMN osgprod_data.merges.is_ready      IS 'may it be assigned? false = in backoff, or failed; NULL = in another state';
COMMENT ON COLUMN osgprod_data.merges.not_before    IS 'of a ready one: when its backoff ends, or ended';
COMMENT ON COLUMN osgprod_data.merges.failures      IS 'failures, those that named bad inputs included';
COMMENT ON COLUMN osgprod_data.merges.faults        IS 'node faults and lost attempts that did not count as failures';
COMMENT ON COLUMN osgprod_data.merges.faulted_on    IS 'worker of the last fault';
COMMENT ON COLUMN osgprod_data.merges.repeats       IS 'faults there since one counted [0 .. 3]';
COMMENT ON COLUMN osgprod_data.merges.exit_codes    IS 'of its last failures and faults, at most 5, the newest last';
COMMENT ON COLUMN osgprod_data.merges.cluster       IS 'the job whose attempt holds it, or held it last; nstart 0 = none did';
COMMENT ON COLUMN osgprod_data.merges.process       IS 'the job, second number';
COMMENT ON COLUMN osgprod_data.merges.nstart        IS 'the attempt of that job';
COMMENT ON COLUMN osgprod_data.merges.opened_at     IS 'since when its inputs are what they are: an attempt that has another time here can not settle it';
COMMENT ON COLUMN osgprod_data.merges.due_at        IS 'until when its attempt may stay silent; of a ready one: when its attempt became lost, NULL = it has ended';
COMMENT ON COLUMN osgprod_data.merges.progress_at   IS 'when its attempt last reported progress; NULL = not yet';
COMMENT ON COLUMN osgprod_data.merges.bytes_fetched IS 'by its attempt, as last reported [bytes]';
COMMENT ON COLUMN osgprod_data.merges.cpu_s         IS 'used by its attempt, as last reported [s]';
COMMENT ON COLUMN osgprod_data.merges.inputs        IS 'slices that its last attempt was given; NULL = none was';
COMMENT ON COLUMN osgprod_data.merges.missing       IS 'quarantined blocks that it was made without, block1,block2 joined by '':''; NULL = none';
COMMENT ON COLUMN osgprod_data.merges.made_at       IS 'when its slices were done for the first time';
COMMENT ON COLUMN osgprod_data.merges.done_at       IS 'when its success was reported';

CREATE TABLE osgprod_data.versions (
    version_id   int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id   int NOT NULL REFERENCES osgprod_data.projects ON DELETE CASCADE,
    script       text NOT NULL,
    digest       text NOT NULL,
    exec_version text NOT NULL,
    image        text NOT NULL,
    first_at     timestamptz NOT NULL DEFAULT now()
);
-- Not unique: two jobs that bring a new version at the same moment must not wait for each other. Readers group.
CREATE INDEX versions_by_name ON osgprod_data.versions (project_id, script, digest, exec_version, image);
COMMENT ON TABLE osgprod_data.versions IS 'what attempts ran; a version may have several rows';
COMMENT ON COLUMN osgprod_data.versions.version_id   IS 'key';
COMMENT ON COLUMN osgprod_data.versions.project_id   IS 'whose attempts';
COMMENT ON COLUMN osgprod_data.versions.script       IS 'file name of the work script or merge script';
COMMENT ON COLUMN osgprod_data.versions.digest       IS 'SHA-256 of its template as handed out, 64 hexadecimal digits; empty = unknown';
COMMENT ON COLUMN osgprod_data.versions.exec_version IS 'version of osgprod_exec.sh, as the job reports; empty = unknown';
COMMENT ON COLUMN osgprod_data.versions.image        IS 'container image, as the job reports; empty = unknown';
COMMENT ON COLUMN osgprod_data.versions.first_at     IS 'when the first attempt with it began';

ALTER TABLE osgprod_data.attempts ADD COLUMN merge_id int, ADD COLUMN version_id int;
COMMENT ON COLUMN osgprod_data.attempts.merge_id   IS 'the merge that it works on; NULL = a slice. A merge''s attempt has -1 as block1 and block2';
COMMENT ON COLUMN osgprod_data.attempts.version_id IS 'what it ran: see table versions; NULL = unknown';

ALTER TABLE osgprod_data.reports ADD COLUMN software text;
COMMENT ON COLUMN osgprod_data.reports.software IS 'what the reconstruction calls its version; NULL = not reported';

CREATE TABLE osgprod_data.outputs (
    project_id int NOT NULL,
    cluster    int NOT NULL,
    process    int NOT NULL,
    nstart     int NOT NULL,
    n          smallint NOT NULL,
    kind       text NOT NULL,
    url        text NOT NULL,
    bytes      bigint,
    adler32    text,
    events     bigint,
    PRIMARY KEY (project_id, cluster, process, nstart, n)
);
CREATE TRIGGER keep_history BEFORE UPDATE OR DELETE OR TRUNCATE ON osgprod_data.outputs
    FOR EACH STATEMENT EXECUTE FUNCTION osgprod_data.keep_history();
COMMENT ON TABLE osgprod_data.outputs IS 'files that an accepted attempt listed as delivered; append-only. An attempt that lists none has one output, in its row of reports';
COMMENT ON COLUMN osgprod_data.outputs.project_id IS 'of the attempt';
COMMENT ON COLUMN osgprod_data.outputs.cluster    IS 'of the attempt';
COMMENT ON COLUMN osgprod_data.outputs.process    IS 'of the attempt';
COMMENT ON COLUMN osgprod_data.outputs.nstart     IS 'of the attempt';
COMMENT ON COLUMN osgprod_data.outputs.n          IS 'place in the attempt''s list, from 1';
COMMENT ON COLUMN osgprod_data.outputs.kind       IS 'what it is, in the script''s words, like hd_root';
COMMENT ON COLUMN osgprod_data.outputs.url        IS 'where it is';
COMMENT ON COLUMN osgprod_data.outputs.bytes      IS 'its size [bytes]; NULL = not reported';
COMMENT ON COLUMN osgprod_data.outputs.adler32    IS 'its checksum, 8 hexadecimal digits; NULL = not reported';
COMMENT ON COLUMN osgprod_data.outputs.events     IS 'in it; NULL = not reported';

CREATE TABLE osgprod_data.lost_outputs (
    project_id int NOT NULL,
    cluster    int NOT NULL,
    process    int NOT NULL,
    nstart     int NOT NULL,
    reason     text NOT NULL,
    found_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, cluster, process, nstart)
);
COMMENT ON TABLE osgprod_data.lost_outputs IS 'attempts whose outputs storage no longer has as reported: their slices were requeued';
COMMENT ON COLUMN osgprod_data.lost_outputs.project_id IS 'of the attempt';
COMMENT ON COLUMN osgprod_data.lost_outputs.cluster    IS 'of the attempt';
COMMENT ON COLUMN osgprod_data.lost_outputs.process    IS 'of the attempt';
COMMENT ON COLUMN osgprod_data.lost_outputs.nstart     IS 'of the attempt';
COMMENT ON COLUMN osgprod_data.lost_outputs.reason     IS 'who found it, and what is wrong';
COMMENT ON COLUMN osgprod_data.lost_outputs.found_at   IS 'when';

RESET ROLE;
