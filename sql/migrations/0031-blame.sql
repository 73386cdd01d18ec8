-- Failures of merges count as well, and one search reads the failures of the last hour once, for all causes.
-- depends: 0029-functions

SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.recent_failures ADD COLUMN merge_id int;
COMMENT ON COLUMN osgprod_data.recent_failures.merge_id IS 'the merge that failed; NULL = a slice';
COMMENT ON COLUMN osgprod_data.recent_failures.block1 IS 'the slice; -1 = a merge';
COMMENT ON COLUMN osgprod_data.recent_failures.opened_at IS 'of the slice or merge: it is another one when this differs';
COMMENT ON COLUMN osgprod_data.recent_failures.blamed IS
    'what else is to blame: project, place, file, address or worker; NULL = what failed or the worker, as far as is known';
DROP INDEX osgprod_data.recent_failures_in_time, osgprod_data.recent_failures_by_place,
    osgprod_data.recent_failures_by_address;
CREATE INDEX recent_failures_in_time ON osgprod_data.recent_failures (project_id, failed_at);
CREATE INDEX recent_failures_by_start ON osgprod_data.recent_failures (project_id, started_at);

RESET ROLE;
