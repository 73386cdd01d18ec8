-- The tables. What every column means stands in its COMMENT at the end of this file.
-- depends: 0001-roles-and-schema

SET LOCAL ROLE osgprod_owner;

CREATE TYPE osgprod_data.project_state AS ENUM (
    'active',    -- work is lent out
    'paused',    -- nothing is lent out, not even to restarted jobs; reports are taken
    'draining'   -- live slices go on, no new ones are lent out
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
    heartbeat_s        int NOT NULL DEFAULT 600 CHECK (heartbeat_s BETWEEN 0 AND 86400),
    wedged_s           int CHECK (wedged_s BETWEEN 1 AND 2592000),
    wait_s             int NOT NULL DEFAULT 60 CHECK (wait_s BETWEEN 1 AND 86400),
    max_failures       int NOT NULL DEFAULT 3 CHECK (max_failures BETWEEN 1 AND 100),
    max_faults         int NOT NULL DEFAULT 8 CHECK (max_faults BETWEEN 1 AND 1000),
    backoff_s          int NOT NULL DEFAULT 60 CHECK (backoff_s BETWEEN 0 AND 86400),
    max_backoff_s      int NOT NULL DEFAULT 3600 CHECK (max_backoff_s BETWEEN 0 AND 604800),
    -- 75: the work script could not fetch its slice, or the outputs could not be sent
    node_fault_codes   int[] NOT NULL DEFAULT '{75}',
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
    evio_version  int    NOT NULL CHECK (evio_version = 4),
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
-- project (docs/performance.md). verify() checks instead that no row is orphaned.
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
    PRIMARY KEY (project_id, rawdata_id, block1),
    -- In another order than the primary key: before the table has statistics, a planner that may choose between the two
    -- takes the wrong one, and reads all slices of a file for one.
    CONSTRAINT slices_end_once UNIQUE (rawdata_id, block2, project_id),
    -- I2, no overlap: each slice but the first of a file begins where another one ends. Since no two begin and no two
    -- end at the same block, the slices of a file form one chain, and a chain can't overlap itself.
    CONSTRAINT slices_follow_a_slice FOREIGN KEY (project_id, rawdata_id, follows)
        REFERENCES osgprod_data.slices (project_id, rawdata_id, block2),
    -- I1: a slice holds blocks; I2: it follows where it begins; I3: a leased one has one attempt that holds it.
    -- One CHECK, not four: each is parsed again by every INSERT and UPDATE.
    CONSTRAINT slices_are_sound CHECK (0 <= block1 AND block1 < block2 AND (follows IS NULL OR follows = block1)
        AND (state <> 'leased' OR num_nulls(cluster, process, nstart, due_at) = 0))
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
    banned_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, worker)
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

-- Hot tables: vacuum by a fixed number of rows, not by a fifth of 20 million.
ALTER TABLE osgprod_data.slices SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 200000,
    autovacuum_analyze_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 2);
ALTER TABLE osgprod_data.attempts SET (
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 500000);
ALTER TABLE osgprod_data.reports SET (
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 500000);
ALTER TABLE osgprod_data.idle_slices SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE osgprod_data.loaded_files SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

RESET ROLE;
