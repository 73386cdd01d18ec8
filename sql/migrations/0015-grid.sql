-- Jobs of many access points in one project, several slices a job, slices sized by time, measured resources.
-- depends: 0009-file-states

SET LOCAL ROLE osgprod_owner;

-- Two access points, or a queue that was set up again, give the same numbers to different jobs. No default, so that no row
-- is written: attempts of before are of jobs that named no access point.
ALTER TABLE osgprod_data.attempts
    ADD COLUMN schedd      text,
    ADD COLUMN qdate       bigint,
    ADD COLUMN job_start   int,
    ADD COLUMN follows     int,
    ADD COLUMN time_left_s bigint;
COMMENT ON COLUMN osgprod_data.attempts.schedd      IS 'access point of the job; NULL = it named none';
COMMENT ON COLUMN osgprod_data.attempts.qdate       IS 'when the job was submitted there [s since 1970]; NULL = it did not say';
COMMENT ON COLUMN osgprod_data.attempts.job_start   IS 'which start of its job this is; NULL = nstart, since no other job had these numbers before';
COMMENT ON COLUMN osgprod_data.attempts.follows     IS 'attempt of the same job after whose success it asked for this slice; NULL = none';
COMMENT ON COLUMN osgprod_data.attempts.time_left_s IS 'until the job had to end, as it said [s]; NULL = it did not say';
COMMENT ON COLUMN osgprod_data.attempts.nstart      IS 'of all attempts under these two numbers, counted from 1';

-- What the exec script measured.
ALTER TABLE osgprod_data.reports
    ADD COLUMN memory_bytes  bigint,
    ADD COLUMN wall_s        bigint,
    ADD COLUMN cpu_s         bigint,
    ADD COLUMN fetched_bytes bigint,
    ADD COLUMN disk_bytes    bigint;
COMMENT ON COLUMN osgprod_data.reports.memory_bytes  IS 'most memory that the work had in use [bytes]; NULL = not measured';
COMMENT ON COLUMN osgprod_data.reports.wall_s        IS 'how long the work ran [s]; NULL = not measured';
COMMENT ON COLUMN osgprod_data.reports.cpu_s         IS 'CPU time of the work, all cores together [s]; NULL = not measured';
COMMENT ON COLUMN osgprod_data.reports.fetched_bytes IS 'fetched of the raw data file [bytes]; NULL = not measured';
COMMENT ON COLUMN osgprod_data.reports.disk_bytes    IS 'most disk that the work had in use [bytes]; NULL = not measured';

ALTER TABLE osgprod_data.projects ADD COLUMN target_s int CHECK (target_s BETWEEN 60 AND 2592000);
COMMENT ON COLUMN osgprod_data.projects.target_s IS 'how long the work on a slice shall take [s]; NULL = slices have maxblockspercore blocks for each core';

-- Not columns of projects: a tick writes here, and no call of a job or an operator waits for it.
CREATE TABLE osgprod_data.pace_looks (
    project_id int PRIMARY KEY REFERENCES osgprod_data.projects ON DELETE CASCADE,
    workscript text NOT NULL,
    since      timestamptz NOT NULL,
    looked_at  timestamptz NOT NULL
);
COMMENT ON TABLE osgprod_data.pace_looks IS 'up to when the pace of a project is measured';
COMMENT ON COLUMN osgprod_data.pace_looks.project_id IS 'which project';
COMMENT ON COLUMN osgprod_data.pace_looks.workscript IS 'the work script that is measured';
COMMENT ON COLUMN osgprod_data.pace_looks.since      IS 'only attempts that started since then count: the work script was another one before';
COMMENT ON COLUMN osgprod_data.pace_looks.looked_at  IS 'up to when reports were read';

CREATE TABLE osgprod_data.paces (
    project_id       int      NOT NULL REFERENCES osgprod_data.projects ON DELETE CASCADE,
    site             text     NOT NULL,
    rates            float8[] NOT NULL,
    sizes            float8[] NOT NULL,
    attempts         int      NOT NULL,
    s_per_block      float8   NOT NULL CHECK (s_per_block > 0),
    slow_s_per_block float8   NOT NULL CHECK (slow_s_per_block >= s_per_block),
    most_per_core    float8   NOT NULL CHECK (most_per_core > 0),
    PRIMARY KEY (project_id, site)
);
COMMENT ON TABLE osgprod_data.paces IS 'how long recent accepted attempts took, by site';
COMMENT ON COLUMN osgprod_data.paces.project_id       IS 'which project';
COMMENT ON COLUMN osgprod_data.paces.site             IS 'as jobs name it; empty = all sites together';
COMMENT ON COLUMN osgprod_data.paces.rates            IS 'time for a block on one core [s], of each of the newest attempts, the newest first';
COMMENT ON COLUMN osgprod_data.paces.sizes            IS 'blocks for each core in their slices';
COMMENT ON COLUMN osgprod_data.paces.attempts         IS 'how many attempts these are';
COMMENT ON COLUMN osgprod_data.paces.s_per_block      IS 'median of rates [s]';
COMMENT ON COLUMN osgprod_data.paces.slow_s_per_block IS 'nine tenths of rates are at most this [s]';
COMMENT ON COLUMN osgprod_data.paces.most_per_core    IS 'largest of sizes';

RESET ROLE;
