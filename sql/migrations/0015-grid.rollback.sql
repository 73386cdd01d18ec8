SET LOCAL ROLE osgprod_owner;

DROP TABLE osgprod_data.paces;
DROP TABLE osgprod_data.pace_looks;
ALTER TABLE osgprod_data.projects DROP COLUMN target_s;
ALTER TABLE osgprod_data.reports
    DROP COLUMN memory_bytes, DROP COLUMN wall_s, DROP COLUMN cpu_s, DROP COLUMN fetched_bytes, DROP COLUMN disk_bytes;
COMMENT ON COLUMN osgprod_data.attempts.nstart IS 'which start of the job, from 1';
ALTER TABLE osgprod_data.attempts
    DROP COLUMN schedd, DROP COLUMN qdate, DROP COLUMN job_start, DROP COLUMN follows, DROP COLUMN time_left_s;

RESET ROLE;
