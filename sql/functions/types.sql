-- Functions may name each other in any order: they are all made in one transaction, and tests check their bodies.
SET LOCAL check_function_bodies = off;

-- What functions hand each other as one value.

-- A job that asks for a slice, and then the attempt that it becomes.
CREATE TYPE osgprod.checkout AS (
    n          int,  -- which one of those that ask together
    project    text,
    cluster    bigint,
    process    bigint,
    cpus       bigint,
    magic      text,
    client     inet,  -- as _plain_address gives it
    workscript text,
    host       text,
    site       text,
    bearer     jsonb,
    job_key    text,
    -- what it gets: a slice when status is assigned
    status     text,
    message    text,
    retry_s    int,
    nstart     int,
    rawdata_id int,
    block1     int,
    block2     int,
    opened_at  timestamptz,
    token      uuid
);

-- What checkout_slice says.
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
    pieces      text
);

-- A job's word of how its attempt ended.
CREATE TYPE osgprod.report AS (
    n              int,  -- which one of those that report together
    project        text,
    cluster        bigint,
    process        bigint,
    exitcode       bigint,
    magic          text,
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
    bearer         jsonb,
    job_key        text,
    ignored        text  -- evidence that was left out, as a line for the answer; NULL = none
);

-- What report_exit says.
CREATE TYPE osgprod.report_answer AS (
    http_status int,
    status      text,
    message     text
);
