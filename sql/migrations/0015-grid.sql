-- Jobs of many access points in one project, several slices a job, measured resources.
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

RESET ROLE;
