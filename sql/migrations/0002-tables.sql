-- The tables. What every column means stands in its COMMENT at the end of this file.
-- depends: 0001-roles-and-schema

SET LOCAL ROLE osgprod_owner;

CREATE TYPE osgprod_data.project_state AS ENUM (
    'active',    -- work is lent out
    'paused',    -- nothing is lent out, not even to restarted jobs; reports are taken
    'draining',  -- live slices go on, no new ones are lent out
    'archived'   -- it has ended, and its history is moved out of the hot tables; by archive(), not by hand
);

CREATE TYPE osgprod_data.file_state AS ENUM (
    'fresh',     -- no slice has been cut from it
    'begun',     -- fresh -> begun: first slice cut
    'cut',       -- begun -> cut: cut to its end, some slices not settled
    'finished'   -- cut -> finished: every slice done or quarantined; back to cut when one is recycled
);

CREATE TYPE osgprod_data.slice_state AS ENUM (
    'leased',      -- an attempt works on it (or is silent, its lease not yet expired)
    'done',        -- leased -> done: a success was reported
    'ready',       -- leased -> ready: lost, node fault, failure, split, recycled
    'quarantined'  -- leased -> quarantined: one block, failures = limit
);

CREATE TYPE osgprod_data.outcome AS ENUM (
    'done',        -- success, accepted: the slice is done through this attempt
    'failed',      -- a failure that counts against the slice
    'node-fault',  -- a failure that counts against the node
    'lost',        -- silent past its lease: the server's own verdict
    'superseded'   -- too late: the slice was done, taken or reset meanwhile
);

-- What the file of a slice begins with, before its own blocks; worked out once when the raw data file is registered.
CREATE TYPE osgprod_data.lead AS (
    pieces   text,    -- 'range OFFSET LENGTH' or 'hex ...', one a line; NULL = none
    bytes    bigint,  -- of these pieces [bytes]
    events   bigint,  -- that the lead brings, those before start_at included
    start_at bigint   -- where the slice's own range begins when the lead's last range runs on into it; NULL = at its block
);

CREATE TABLE osgprod_data.projects (
    -- int, not bigint: it stands in every key of the hot tables
    project_id         int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name               text NOT NULL CONSTRAINT projects_name_unique UNIQUE
                       -- a project is a folder below the document root as well
                       CONSTRAINT projects_name_is_a_folder_name
                       CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9_.+-]{0,62}$'),
    state              osgprod_data.project_state NOT NULL DEFAULT 'active',
    subnet_pattern     text NOT NULL,
    subnets            cidr[],
    workscript         text NOT NULL
                       CONSTRAINT projects_workscript_is_a_file_name
                       CHECK (workscript ~ '^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,126}$'),
    xrootd_prefix      text NOT NULL DEFAULT '',
    strip_prefix       text NOT NULL DEFAULT '/dcache',
    maxblockspercore   int  NOT NULL CHECK (maxblockspercore BETWEEN 1 AND 1000000),
    magic_salt         uuid NOT NULL DEFAULT gen_random_uuid(),
    magic_digest       bytea,
    old_magic_digest   bytea,
    old_magic_until    timestamptz,
    token_required     boolean NOT NULL DEFAULT true,
    bearer_issuer      text,
    bearer_audience    text,
    bearer_scope       text,
    lease_s            int NOT NULL DEFAULT 21600 CHECK (lease_s BETWEEN 1 AND 2592000),
    heartbeat_s        int NOT NULL DEFAULT 600 CHECK (heartbeat_s BETWEEN 0 AND 86400)
                       CONSTRAINT projects_a_lease_outlives_two_heartbeats CHECK (lease_s >= 2 * heartbeat_s),
    wedged_s           int CHECK (wedged_s BETWEEN 1 AND 2592000),
    wait_s             int NOT NULL DEFAULT 60 CHECK (wait_s BETWEEN 1 AND 86400),
    max_failures       int NOT NULL DEFAULT 3 CHECK (max_failures BETWEEN 1 AND 100),
    max_faults         int NOT NULL DEFAULT 8 CHECK (max_faults BETWEEN 1 AND 1000),
    backoff_s          int NOT NULL DEFAULT 60 CHECK (backoff_s BETWEEN 0 AND 86400),
    max_backoff_s      int NOT NULL DEFAULT 3600 CHECK (max_backoff_s BETWEEN 0 AND 604800),
    -- 75: the work script could not fetch its slice, or the outputs could not be sent; 126, 127: the shell could not start
    -- or find the program (POSIX), which is missing on that node
    node_fault_codes   int[] NOT NULL DEFAULT '{75,126,127}'
                       CONSTRAINT projects_success_is_no_fault CHECK (0 <> ALL (node_fault_codes)),
    fast_failure_s     int NOT NULL DEFAULT 120 CHECK (fast_failure_s BETWEEN 0 AND 86400),
    max_fast_failures  int NOT NULL DEFAULT 5 CHECK (max_fast_failures BETWEEN 1 AND 10000),
    block_worker_s     int NOT NULL DEFAULT 3600 CHECK (block_worker_s BETWEEN 0 AND 2592000),
    demand_events      boolean NOT NULL DEFAULT false,
    demand_outputs     boolean NOT NULL DEFAULT false,
    demand_checksum    boolean NOT NULL DEFAULT false,
    max_live           int CHECK (max_live >= 1),
    max_starts_per_min int NOT NULL DEFAULT 60 CHECK (max_starts_per_min BETWEEN 1 AND 100000),
    banned_until       timestamptz NOT NULL DEFAULT '-infinity',
    next_due_at        timestamptz NOT NULL DEFAULT '-infinity',
    nlive              int NOT NULL DEFAULT 0,
    tallied_until      timestamptz NOT NULL DEFAULT '-infinity',
    created_at         timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE osgprod_data.rawdata (
    rawdata_id    int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run           int    NOT NULL CHECK (run >= 0),
    seqno         int    NOT NULL CHECK (seqno >= 0),
    path          text   NOT NULL CONSTRAINT rawdata_path_unique UNIQUE
                  CONSTRAINT rawdata_path_is_absolute_and_plain CHECK (path ~ '^/[^[:cntrl:]]+$'),
    filename      text   GENERATED ALWAYS AS (regexp_replace(path, '^.*/', '')) STORED,
    size_bytes    bigint NOT NULL CHECK (size_bytes > 0),
    nblocks       int    NOT NULL CHECK (nblocks > 0),
    first_block   int    NOT NULL CHECK (first_block IN (0, 1)),
    byte_order    text   NOT NULL CHECK (byte_order IN ('big', 'little')),
    has_trailer   boolean NOT NULL,
    last_has_bit  boolean NOT NULL,
    trailer       bytea  NOT NULL CHECK (length(trailer) = 32),
    preamble      jsonb  NOT NULL,
    lead1         osgprod_data.lead,
    lead2         osgprod_data.lead,
    block_index   bytea  NOT NULL
                  CONSTRAINT rawdata_index_covers_all_blocks CHECK (length(block_index) = 12 * (nblocks + 1)),
    registered_at timestamptz NOT NULL DEFAULT now(),
    checked_at    timestamptz NOT NULL DEFAULT now()
);
-- EXTERNAL, not compressed: substring() then reads only the pages that hold the two entries a slice needs.
ALTER TABLE osgprod_data.rawdata ALTER COLUMN block_index SET STORAGE EXTERNAL;
CREATE INDEX rawdata_run_seqno ON osgprod_data.rawdata (run, seqno);

CREATE TABLE osgprod_data.loaded_files (
    project_id int NOT NULL REFERENCES osgprod_data.projects,
    rawdata_id int NOT NULL REFERENCES osgprod_data.rawdata,
    run        int NOT NULL,
    seqno      int NOT NULL,
    block1     int NOT NULL CHECK (block1 >= 0),
    block2     int NOT NULL,
    state      osgprod_data.file_state NOT NULL DEFAULT 'fresh',
    loaded_at  timestamptz NOT NULL DEFAULT now(),
    archived_at timestamptz,
    PRIMARY KEY (project_id, rawdata_id),
    CONSTRAINT loaded_files_hold_work CHECK (block1 < block2)
);
-- Files with something left to cut, in the order in which they are cut.
CREATE INDEX loaded_files_open ON osgprod_data.loaded_files (project_id, run, seqno, rawdata_id)
    WHERE state IN ('fresh', 'begun');
-- Files in flight: the only ones that can hold leased or ready slices.
CREATE INDEX loaded_files_in_flight ON osgprod_data.loaded_files (project_id, run, seqno, rawdata_id)
    WHERE state IN ('begun', 'cut');

-- No foreign key to projects or rawdata here or in attempts and reports: each insert would lock the one row of its
-- project, as all others do. verify() checks instead that no row is orphaned.
CREATE TABLE osgprod_data.slices (
    project_id    int NOT NULL,
    rawdata_id    int NOT NULL,
    block1        int NOT NULL,
    block2        int NOT NULL,
    follows       int,
    state         osgprod_data.slice_state NOT NULL DEFAULT 'leased',
    failures      smallint NOT NULL DEFAULT 0,
    faults        smallint NOT NULL DEFAULT 0,
    cluster       int,
    process       int,
    nstart        int,
    opened_at     timestamptz NOT NULL,
    due_at        timestamptz,
    progress_at   timestamptz,
    bytes_fetched bigint,
    cpu_s         bigint,
    faulted_on    text,
    repeats       smallint NOT NULL DEFAULT 0,
    exit_codes    int[],
    PRIMARY KEY (project_id, rawdata_id, block1),
    -- In another order than the primary key: before the table has statistics, a planner that may choose between the two
    -- takes the wrong one, and reads all slices of a file for one.
    CONSTRAINT slices_end_once UNIQUE (rawdata_id, block2, project_id),
    -- I2, no overlap: each slice but the first of a file begins where another one ends. Since no two begin and no two
    -- end at the same block, the slices of a file form one chain, and a chain can't overlap itself.
    CONSTRAINT slices_follow_a_slice FOREIGN KEY (project_id, rawdata_id, follows)
        REFERENCES osgprod_data.slices (project_id, rawdata_id, block2),
    -- I1: a slice holds blocks; I2: it follows where it begins; I3: a leased one has one attempt that holds it, a done
    -- one the attempt that did it (>= 'ready': every state but these two).
    -- One CHECK, and as few operators as can be: it is read and planned again by every INSERT and UPDATE, which is a
    -- twentieth of a pair of checkout and report. (Where follows is NULL its comparison is neither true nor false, which
    -- a CHECK lets pass.)
    CONSTRAINT slices_are_sound CHECK (block1 < block2 AND follows = block1
        AND (state >= 'ready' OR (cluster, process, nstart, due_at) IS NOT NULL))
) WITH (fillfactor = 75);
CREATE UNIQUE INDEX slices_one_first_slice ON osgprod_data.slices (project_id, rawdata_id) WHERE follows IS NULL;

CREATE TABLE osgprod_data.idle_slices (
    project_id int NOT NULL,
    run        int NOT NULL,
    seqno      int NOT NULL,
    rawdata_id int NOT NULL,
    block1     int NOT NULL,
    not_before timestamptz NOT NULL,
    PRIMARY KEY (project_id, rawdata_id, block1),
    FOREIGN KEY (project_id, rawdata_id, block1) REFERENCES osgprod_data.slices ON DELETE CASCADE
);
CREATE INDEX idle_slices_in_order ON osgprod_data.idle_slices (project_id, run, seqno, rawdata_id, block1)
    WHERE not_before < 'infinity';

CREATE TABLE osgprod_data.attempts (
    project_id   int NOT NULL,
    cluster      int NOT NULL,
    process      int NOT NULL,
    nstart       int NOT NULL,
    rawdata_id   int NOT NULL,
    block1       int NOT NULL,
    block2       int NOT NULL,
    opened_at    timestamptz NOT NULL,
    cpus         int NOT NULL,
    started_at   timestamptz NOT NULL,
    token_digest bytea NOT NULL,
    client       inet NOT NULL,
    host         text,
    site         text,
    PRIMARY KEY (project_id, cluster, process, nstart)
);
-- Append-only and in the order of time: a block range index costs an insert nothing worth measuring.
CREATE INDEX attempts_started_at ON osgprod_data.attempts USING brin (started_at) WITH (pages_per_range = 32);

CREATE TABLE osgprod_data.reports (
    project_id     int NOT NULL,
    cluster        int NOT NULL,
    process        int NOT NULL,
    nstart         int NOT NULL,
    by_worker      boolean NOT NULL,
    outcome        osgprod_data.outcome NOT NULL,
    exit_code      int,
    reported_at    timestamptz NOT NULL,
    ran_s          int NOT NULL,
    nblocks        int NOT NULL,
    worker         text NOT NULL,
    site           text,
    events         bigint,
    outputs        int,
    output_bytes   bigint,
    output_adler32 text,
    output_url     text,
    reason         text,
    PRIMARY KEY (project_id, cluster, process, nstart, by_worker)
);
CREATE INDEX reports_reported_at ON osgprod_data.reports USING brin (reported_at) WITH (pages_per_range = 32);
-- Failures only: a success pays nothing for the accounts of bad workers.
CREATE INDEX reports_of_failures ON osgprod_data.reports (project_id, worker, reported_at)
    WHERE outcome IN ('failed', 'node-fault');

CREATE TABLE osgprod_data.worker_bans (
    project_id int NOT NULL REFERENCES osgprod_data.projects ON DELETE CASCADE,
    worker     text NOT NULL,
    until      timestamptz NOT NULL,
    reason     text NOT NULL,
    times      int NOT NULL DEFAULT 0,
    banned_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, worker)
);

CREATE TABLE osgprod_data.tallies (
    project_id int NOT NULL REFERENCES osgprod_data.projects ON DELETE CASCADE,
    began_at   timestamptz NOT NULL,
    outcome    osgprod_data.outcome NOT NULL,
    exit_code  int,
    site       text,
    reports    int NOT NULL,
    blocks     bigint NOT NULL,
    ran_s      bigint NOT NULL
);
CREATE INDEX tallies_in_time ON osgprod_data.tallies (project_id, began_at);

CREATE TABLE osgprod_data.totals (
    project_id int NOT NULL REFERENCES osgprod_data.projects ON DELETE CASCADE,
    outcome    osgprod_data.outcome NOT NULL,
    reports    bigint NOT NULL,
    blocks     bigint NOT NULL,
    ran_s      bigint NOT NULL,
    PRIMARY KEY (project_id, outcome)
);

CREATE TABLE osgprod_data.refusals (
    project_id int NOT NULL REFERENCES osgprod_data.projects ON DELETE CASCADE,
    cluster    int NOT NULL,
    process    int NOT NULL,
    client     inet NOT NULL,
    reason     text NOT NULL,
    times      int NOT NULL DEFAULT 1,
    first_at   timestamptz NOT NULL DEFAULT now(),
    last_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, cluster, process, client, reason)
);

CREATE TABLE osgprod_data.archivings (
    project_id int PRIMARY KEY REFERENCES osgprod_data.projects ON DELETE CASCADE,
    closed_at  timestamptz NOT NULL DEFAULT now(),
    cluster    int NOT NULL DEFAULT -1,
    process    int NOT NULL DEFAULT -1,
    nstart     int NOT NULL DEFAULT -1
);

-- Hot tables: vacuum by a fixed number of rows, not by a fifth of 20 million.
ALTER TABLE osgprod_data.slices SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 200000,
    autovacuum_analyze_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 2);
ALTER TABLE osgprod_data.attempts SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 500000);
ALTER TABLE osgprod_data.reports SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 500000);
ALTER TABLE osgprod_data.idle_slices SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE osgprod_data.loaded_files SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
-- What archive() left free is used again, not given back: giving it back would lock the whole table for a moment.
ALTER TABLE osgprod_data.slices SET (vacuum_truncate = false);
ALTER TABLE osgprod_data.attempts SET (vacuum_truncate = false);
ALTER TABLE osgprod_data.reports SET (vacuum_truncate = false);

-- What everything means.
COMMENT ON TYPE osgprod_data.project_state IS 'whether a project lends out work';
COMMENT ON TYPE osgprod_data.file_state IS 'how far a file is cut';
COMMENT ON TYPE osgprod_data.slice_state IS 'where a slice is in its life';
COMMENT ON TYPE osgprod_data.outcome IS 'how an attempt ended';
COMMENT ON TYPE osgprod_data.lead IS 'what the file of a slice begins with, before its own blocks';

COMMENT ON TABLE osgprod_data.projects IS 'a production with its own settings, secrets and slices';
COMMENT ON COLUMN osgprod_data.projects.project_id         IS 'key';
COMMENT ON COLUMN osgprod_data.projects.name               IS 'name in requests; its folder below the document root as well';
COMMENT ON COLUMN osgprod_data.projects.state              IS 'see type project_state';
COMMENT ON COLUMN osgprod_data.projects.subnet_pattern     IS 'who may ask, as the operator wrote it: CIDR list or SQL LIKE pattern on the address';
COMMENT ON COLUMN osgprod_data.projects.subnets            IS 'the same as CIDRs; NULL for a LIKE pattern';
COMMENT ON COLUMN osgprod_data.projects.workscript         IS 'file name of the work script template in the folder of the project';
COMMENT ON COLUMN osgprod_data.projects.xrootd_prefix      IS 'stands before the path of a file in its URL';
COMMENT ON COLUMN osgprod_data.projects.strip_prefix       IS 'leading folder of a path that the prefix replaces; empty = none';
COMMENT ON COLUMN osgprod_data.projects.maxblockspercore   IS 'blocks that a slice has at most for each core of the job';
COMMENT ON COLUMN osgprod_data.projects.magic_salt         IS 'goes into the digests of the magic';
COMMENT ON COLUMN osgprod_data.projects.magic_digest       IS 'SHA-256 of salt and magic; NULL = nobody may work';
COMMENT ON COLUMN osgprod_data.projects.old_magic_digest   IS 'of the former magic';
COMMENT ON COLUMN osgprod_data.projects.old_magic_until    IS 'until when the former magic is valid as well';
COMMENT ON COLUMN osgprod_data.projects.token_required     IS 'must a heartbeat and a report carry the token of the attempt?';
COMMENT ON COLUMN osgprod_data.projects.bearer_issuer      IS 'issuer (claim iss) of the bearer tokens that may stand in for the magic; NULL = none are taken';
COMMENT ON COLUMN osgprod_data.projects.bearer_audience    IS 'claim aud that they must have; NULL = none, or one of the two that mean everybody';
COMMENT ON COLUMN osgprod_data.projects.bearer_scope       IS 'word that their claim scope must have; without it none are taken';
COMMENT ON COLUMN osgprod_data.projects.lease_s            IS 'how long an attempt may stay silent [s]';
COMMENT ON COLUMN osgprod_data.projects.heartbeat_s        IS 'time between two heartbeats of a job [s]; 0 = none are sent';
COMMENT ON COLUMN osgprod_data.projects.wedged_s           IS 'how long an attempt that beats may make no progress [s]; NULL = for ever';
COMMENT ON COLUMN osgprod_data.projects.wait_s             IS 'when a job that is told to wait shall ask again [s]';
COMMENT ON COLUMN osgprod_data.projects.max_failures       IS 'failures after which a slice is split or quarantined';
COMMENT ON COLUMN osgprod_data.projects.max_faults         IS 'faults of nodes, on different ones, that are forgiven a slice before more count as failures';
COMMENT ON COLUMN osgprod_data.projects.backoff_s          IS 'how long a slice rests after its first failure [s]; doubled with each more';
COMMENT ON COLUMN osgprod_data.projects.max_backoff_s      IS 'how long a slice rests at most [s]';
COMMENT ON COLUMN osgprod_data.projects.node_fault_codes   IS 'exit codes that are faults of the node, beside those above 128';
COMMENT ON COLUMN osgprod_data.projects.fast_failure_s     IS 'a failure within this time of the start speaks against the worker [s]';
COMMENT ON COLUMN osgprod_data.projects.max_fast_failures  IS 'such failures after which a worker is refused work';
COMMENT ON COLUMN osgprod_data.projects.block_worker_s     IS 'how long it is refused work, and how far back its failures count [s]';
COMMENT ON COLUMN osgprod_data.projects.demand_events      IS 'is a success without the right number of events read a failure?';
COMMENT ON COLUMN osgprod_data.projects.demand_outputs     IS 'is a success without outputs a failure?';
COMMENT ON COLUMN osgprod_data.projects.demand_checksum    IS 'is a success without size and checksum of its outputs a failure?';
COMMENT ON COLUMN osgprod_data.projects.max_live           IS 'live attempts at most; NULL = no limit';
COMMENT ON COLUMN osgprod_data.projects.max_starts_per_min IS 'starts of one job within a minute at most';
COMMENT ON COLUMN osgprod_data.projects.banned_until       IS 'until when any worker is banned: before that nobody looks for bans';
COMMENT ON COLUMN osgprod_data.projects.next_due_at        IS 'before that no lease can run out: until then nobody looks for lost slices';
COMMENT ON COLUMN osgprod_data.projects.nlive              IS 'live attempts at the last count; up to date only where max_live is set';
COMMENT ON COLUMN osgprod_data.projects.tallied_until      IS 'until when reports are in tallies and totals';
COMMENT ON COLUMN osgprod_data.projects.created_at         IS 'when it was made';

COMMENT ON TABLE osgprod_data.rawdata IS 'raw data files that can be sliced';
COMMENT ON COLUMN osgprod_data.rawdata.rawdata_id    IS 'key';
COMMENT ON COLUMN osgprod_data.rawdata.run           IS 'run number, from the name';
COMMENT ON COLUMN osgprod_data.rawdata.seqno         IS 'number of the file in its run, from the name';
COMMENT ON COLUMN osgprod_data.rawdata.path          IS 'absolute path as the server of the files knows it';
COMMENT ON COLUMN osgprod_data.rawdata.filename      IS 'the path without folders';
COMMENT ON COLUMN osgprod_data.rawdata.size_bytes    IS 'of the whole file [bytes]';
COMMENT ON COLUMN osgprod_data.rawdata.nblocks       IS 'data blocks, the trailer not counted';
COMMENT ON COLUMN osgprod_data.rawdata.first_block   IS 'first block that is work: 1, or 0 when block 0 holds physics';
COMMENT ON COLUMN osgprod_data.rawdata.byte_order    IS 'of the file: big or little';
COMMENT ON COLUMN osgprod_data.rawdata.has_trailer   IS 'does an empty block end it?';
COMMENT ON COLUMN osgprod_data.rawdata.last_has_bit  IS 'does the last data block carry the last-block bit?';
COMMENT ON COLUMN osgprod_data.rawdata.trailer       IS 'empty block that ends the file of a slice [32 bytes]';
COMMENT ON COLUMN osgprod_data.rawdata.preamble      IS 'pieces that files of slices begin with (docs/evio.md)';
COMMENT ON COLUMN osgprod_data.rawdata.lead1         IS 'what a slice from block 1 on begins with';
COMMENT ON COLUMN osgprod_data.rawdata.lead2         IS 'what a slice from a later block on begins with';
COMMENT ON COLUMN osgprod_data.rawdata.block_index   IS 'nblocks + 1 entries of 12 bytes, big-endian: offset of a block [bytes, 64 bits], events before it [32 bits]; the last is the end of the data';
COMMENT ON COLUMN osgprod_data.rawdata.registered_at IS 'when it was registered';
COMMENT ON COLUMN osgprod_data.rawdata.checked_at    IS 'when it was last found to be as registered';

COMMENT ON TABLE osgprod_data.loaded_files IS 'the files that are work of a project';
COMMENT ON COLUMN osgprod_data.loaded_files.project_id IS 'whose work';
COMMENT ON COLUMN osgprod_data.loaded_files.rawdata_id IS 'which file';
COMMENT ON COLUMN osgprod_data.loaded_files.run        IS 'as in rawdata: files are lent out in this order';
COMMENT ON COLUMN osgprod_data.loaded_files.seqno      IS 'as in rawdata';
COMMENT ON COLUMN osgprod_data.loaded_files.block1     IS 'first block of the work';
COMMENT ON COLUMN osgprod_data.loaded_files.block2     IS 'end of the work, exclusive';
COMMENT ON COLUMN osgprod_data.loaded_files.state      IS 'see type file_state';
COMMENT ON COLUMN osgprod_data.loaded_files.loaded_at  IS 'when it was loaded, or begun anew';
COMMENT ON COLUMN osgprod_data.loaded_files.archived_at IS 'when its slices were moved to archived_slices; NULL = they are in slices';

COMMENT ON TABLE osgprod_data.slices IS 'ranges of blocks that were cut from files, each with its present state';
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

COMMENT ON TABLE osgprod_data.idle_slices IS 'slices that nobody works on: ready or quarantined ones';
COMMENT ON COLUMN osgprod_data.idle_slices.project_id IS 'whose work';
COMMENT ON COLUMN osgprod_data.idle_slices.run        IS 'as in rawdata: slices are lent out in this order';
COMMENT ON COLUMN osgprod_data.idle_slices.seqno      IS 'as in rawdata';
COMMENT ON COLUMN osgprod_data.idle_slices.rawdata_id IS 'of which file';
COMMENT ON COLUMN osgprod_data.idle_slices.block1     IS 'first block of the slice';
COMMENT ON COLUMN osgprod_data.idle_slices.not_before IS 'when it may be lent again; infinity = quarantined';

COMMENT ON TABLE osgprod_data.attempts IS 'starts of jobs on slices; append-only, the history from which all else can be recounted';
COMMENT ON COLUMN osgprod_data.attempts.project_id   IS 'whose work';
COMMENT ON COLUMN osgprod_data.attempts.cluster      IS 'of the job, by HTCondor';
COMMENT ON COLUMN osgprod_data.attempts.process      IS 'of the job, by HTCondor';
COMMENT ON COLUMN osgprod_data.attempts.nstart       IS 'which start of the job, from 1';
COMMENT ON COLUMN osgprod_data.attempts.rawdata_id   IS 'file of its slice';
COMMENT ON COLUMN osgprod_data.attempts.block1       IS 'first block of its slice';
COMMENT ON COLUMN osgprod_data.attempts.block2       IS 'end of its slice, exclusive';
COMMENT ON COLUMN osgprod_data.attempts.opened_at    IS 'as in slices when it was lent: the slice that this attempt can settle';
COMMENT ON COLUMN osgprod_data.attempts.cpus         IS 'cores that the job said it has';
COMMENT ON COLUMN osgprod_data.attempts.started_at   IS 'when the script was handed out';
COMMENT ON COLUMN osgprod_data.attempts.token_digest IS 'SHA-256 of the token that the script carries';
COMMENT ON COLUMN osgprod_data.attempts.client       IS 'address that asked';
COMMENT ON COLUMN osgprod_data.attempts.host         IS 'name of the node, as the job said';
COMMENT ON COLUMN osgprod_data.attempts.site         IS 'name of the site, as the job said';

COMMENT ON TABLE osgprod_data.reports IS 'how attempts ended, by the word of the job or by the verdict of the server; append-only';
COMMENT ON COLUMN osgprod_data.reports.project_id     IS 'of the attempt';
COMMENT ON COLUMN osgprod_data.reports.cluster        IS 'of the attempt';
COMMENT ON COLUMN osgprod_data.reports.process        IS 'of the attempt';
COMMENT ON COLUMN osgprod_data.reports.nstart         IS 'of the attempt';
COMMENT ON COLUMN osgprod_data.reports.by_worker      IS 'true = the job reported; false = the server found it lost';
COMMENT ON COLUMN osgprod_data.reports.outcome        IS 'see type outcome';
COMMENT ON COLUMN osgprod_data.reports.exit_code      IS 'of the work script [0 .. 255]; NULL = lost';
COMMENT ON COLUMN osgprod_data.reports.reported_at    IS 'when';
COMMENT ON COLUMN osgprod_data.reports.ran_s          IS 'time since the attempt began [s]';
COMMENT ON COLUMN osgprod_data.reports.nblocks        IS 'blocks of its slice';
COMMENT ON COLUMN osgprod_data.reports.worker         IS 'node on whose account it goes: host@address';
COMMENT ON COLUMN osgprod_data.reports.site           IS 'name of the site, as the job said';
COMMENT ON COLUMN osgprod_data.reports.events         IS 'that the reconstruction read';
COMMENT ON COLUMN osgprod_data.reports.outputs        IS 'files that it left';
COMMENT ON COLUMN osgprod_data.reports.output_bytes   IS 'size of what was sent [bytes]';
COMMENT ON COLUMN osgprod_data.reports.output_adler32 IS 'its checksum, 8 hexadecimal digits';
COMMENT ON COLUMN osgprod_data.reports.output_url     IS 'where it was sent';
COMMENT ON COLUMN osgprod_data.reports.reason         IS 'of a failure, in words';

COMMENT ON TABLE osgprod_data.worker_bans IS 'workers that are, or were, refused work';
COMMENT ON COLUMN osgprod_data.worker_bans.project_id IS 'by which project';
COMMENT ON COLUMN osgprod_data.worker_bans.worker     IS 'host@address as in reports, or one of the two alone';
COMMENT ON COLUMN osgprod_data.worker_bans.until      IS 'until when; in the past = it may work';
COMMENT ON COLUMN osgprod_data.worker_bans.reason     IS 'what it is told';
COMMENT ON COLUMN osgprod_data.worker_bans.times      IS 'in a row, without a success between; 0 = by the operator, or pardoned';
COMMENT ON COLUMN osgprod_data.worker_bans.banned_at  IS 'when: its failures from before no longer count';

COMMENT ON TABLE osgprod_data.tallies IS 'reports counted once for each ten minutes that have passed, so that nobody counts millions again';
COMMENT ON COLUMN osgprod_data.tallies.project_id IS 'whose reports';
COMMENT ON COLUMN osgprod_data.tallies.began_at   IS 'begin of the ten minutes';
COMMENT ON COLUMN osgprod_data.tallies.outcome    IS 'as in reports';
COMMENT ON COLUMN osgprod_data.tallies.exit_code  IS 'as in reports';
COMMENT ON COLUMN osgprod_data.tallies.site       IS 'as in reports';
COMMENT ON COLUMN osgprod_data.tallies.reports    IS 'how many';
COMMENT ON COLUMN osgprod_data.tallies.blocks     IS 'in their slices';
COMMENT ON COLUMN osgprod_data.tallies.ran_s      IS 'sum of their times [s]';

COMMENT ON TABLE osgprod_data.totals IS 'the tallies of all time, summed up';
COMMENT ON COLUMN osgprod_data.totals.project_id IS 'whose reports';
COMMENT ON COLUMN osgprod_data.totals.outcome    IS 'as in reports';
COMMENT ON COLUMN osgprod_data.totals.reports    IS 'how many';
COMMENT ON COLUMN osgprod_data.totals.blocks     IS 'in their slices';
COMMENT ON COLUMN osgprod_data.totals.ran_s      IS 'sum of their times [s]';

COMMENT ON TABLE osgprod_data.refusals IS 'calls of jobs that were refused for their token';
COMMENT ON COLUMN osgprod_data.refusals.project_id IS 'which project';
COMMENT ON COLUMN osgprod_data.refusals.cluster    IS 'of the job that was named';
COMMENT ON COLUMN osgprod_data.refusals.process    IS 'of the job that was named';
COMMENT ON COLUMN osgprod_data.refusals.client     IS 'address that called';
COMMENT ON COLUMN osgprod_data.refusals.reason     IS 'what it was told';
COMMENT ON COLUMN osgprod_data.refusals.times      IS 'how often';
COMMENT ON COLUMN osgprod_data.refusals.first_at   IS 'first time';
COMMENT ON COLUMN osgprod_data.refusals.last_at    IS 'last time';

-- Where archive() moves what has ended: the same columns in the same order, found by key only. Made here, so that
-- they get the comments of the columns as well.
CREATE TABLE osgprod_data.archived_slices (LIKE osgprod_data.slices INCLUDING COMMENTS,
    PRIMARY KEY (project_id, rawdata_id, block1));
CREATE TABLE osgprod_data.archived_attempts (LIKE osgprod_data.attempts INCLUDING COMMENTS,
    PRIMARY KEY (project_id, cluster, process, nstart));
CREATE TABLE osgprod_data.archived_reports (LIKE osgprod_data.reports INCLUDING COMMENTS,
    PRIMARY KEY (project_id, cluster, process, nstart, by_worker));

COMMENT ON TABLE osgprod_data.archived_slices IS 'slices of archived files; all are done';
COMMENT ON TABLE osgprod_data.archived_attempts IS 'attempts on slices of archived files';
COMMENT ON TABLE osgprod_data.archived_reports IS 'how archived attempts ended';

COMMENT ON TABLE osgprod_data.archivings IS 'how far the archiving of a project is';
COMMENT ON COLUMN osgprod_data.archivings.project_id IS 'which project';
COMMENT ON COLUMN osgprod_data.archivings.closed_at  IS 'when it began: from then on the project lends nothing';
COMMENT ON COLUMN osgprod_data.archivings.cluster    IS 'up to which attempt, in the order of keys, attempts have been looked at; -1 = from the first on';
COMMENT ON COLUMN osgprod_data.archivings.process    IS 'of that attempt';
COMMENT ON COLUMN osgprod_data.archivings.nstart     IS 'of that attempt';

RESET ROLE;
