-- Functions may name each other in any order: they are all made in one transaction, and tests check their bodies.
SET LOCAL check_function_bodies = off;

-- What functions hand each other as one value.

-- What a claim gets: a slice, or NULLs.
CREATE TYPE osgprod.claim AS (
    rawdata_id int,
    block1     int,
    block2     int,
    opened_at  timestamptz
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
    hint        text
);

-- A job's report on how its attempt ended.
CREATE TYPE osgprod.report_call AS (
    cluster        bigint,
    process        bigint,
    exitcode       bigint,
    client         inet,  -- as _plain_address gives it
    token          text,
    events         bigint,
    outputs        bigint,
    output_bytes   bigint,
    output_adler32 text,
    output_url     text,
    host           text,
    site           text,
    reason         text,
    job_key        text
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
