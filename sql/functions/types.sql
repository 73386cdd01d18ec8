-- Functions may name each other in any order: they are all made in one transaction, and tests check their bodies.
SET LOCAL check_function_bodies = off;

-- What functions hand each other as one value.

-- What a claim gets: a slice; a merge (merge_id, and no blocks: block1 = block2 = -1); or NULLs.
CREATE TYPE osgprod.claim AS (
    rawdata_id int,
    block1     int,
    block2     int,
    opened_at  timestamptz,
    merge_id   int
);

-- How fast recent attempts were, of table paces (_pace_at); NULLs = nothing was measured. (Not the table's own type: a function
-- that has that as a parameter keeps the table from being dropped.)
CREATE TYPE osgprod.pace AS (
    site             text,
    attempts         int,
    s_per_block      float8,
    slow_s_per_block float8,
    most_per_core    float8
);

-- What may be to blame for the last failures (_causes): a scope (project, place, file, address, worker), the name under
-- which it can be banned, and how often it was, while it is on probation; counts of its failures, and of the workers, addresses,
-- files and slices that had them; others: workers at other places that fail so; the places; the start of the first failure (of a
-- delivery its end); the keys of recent_failures.
CREATE TYPE osgprod.cause AS (
    scope     text,
    name      text,
    times     int,
    failures  bigint,
    workers   bigint,
    addresses bigint,
    files     bigint,
    slices    bigint,
    others    bigint,
    places    text[],
    since     timestamptz,
    ids       bigint[]
);

-- The answer of checkout_slice.
CREATE TYPE osgprod.checkout_answer AS (
    status      text,
    message     text,
    retry_s     int,
    workscript  text,
    nstarts     int,
    token       uuid,
    lease_s     int,
    heartbeat_s int,
    started_at  timestamptz,
    url         text,
    filename    text,
    block1      int,
    block2      int,
    size_bytes  bigint,
    events      bigint,
    pieces      text,
    n           int,
    code        text,
    hint        text,
    task        text,
    merge       jsonb,
    urls        text[]
);

-- How far a job is that asks again: see _job_so_far.
CREATE TYPE osgprod.job_so_far AS (
    starts  int,
    follows int,
    slice   osgprod.claim,
    most    int,
    gave_back boolean,
    problem text[],
    status  text
);

-- What is claimed: a slice as a separate EVIO file (_slice_file), or the inputs of a merge (_merge_content).
CREATE TYPE osgprod.content AS (
    url        text,
    urls       text[],
    filename   text,
    size_bytes bigint,
    events     bigint,
    pieces     text,
    merge      jsonb
);

-- A call of checkout_slice: its parameters without their p_. Here and below, n tells the calls of a batch, and their answers,
-- apart.
CREATE TYPE osgprod.checkout_call AS (
    n            int,
    project      text,
    cluster      bigint,
    process      bigint,
    cpus         bigint,
    magic        text,
    client       inet,
    workscript   text,
    host         text,
    site         text,
    bearer       jsonb,
    job_key      text,
    schedd       text,
    qdate        bigint,
    time_left_s  bigint,
    after        text,
    exec_version text,
    image        text,
    templates    jsonb
);

-- A call of report_exit.
CREATE TYPE osgprod.report_call AS (
    n              int,
    project        text,
    cluster        bigint,
    process        bigint,
    exitcode       bigint,
    magic          text,
    client         inet,
    token          text,
    events         bigint,
    outputs        bigint,
    output_bytes   bigint,
    output_adler32 text,
    output_url     text,
    host           text,
    site           text,
    reason         text,
    bearer         jsonb,
    job_key        text,
    fault          text,
    door           text,
    bad_inputs     text,
    outputs_list   text,
    software       text,
    memory_bytes   bigint,
    wall_s         bigint,
    cpu_s          bigint,
    fetched_bytes  bigint,
    disk_bytes     bigint,
    log_tail       text
);

-- A call of heartbeat.
CREATE TYPE osgprod.heartbeat_call AS (
    n       int,
    project text,
    cluster bigint,
    process bigint,
    magic   text,
    client  inet,
    token   text,
    bytes   bigint,
    cpu_s   bigint,
    bearer  jsonb,
    job_key text
);

-- The answer of report_exit and heartbeat.
CREATE TYPE osgprod.report_answer AS (
    http_status int,
    status      text,
    message     text,
    lease_s     int,
    n           int,
    code        text,
    hint        text
);
