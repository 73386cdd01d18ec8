SET LOCAL ROLE osgprod_owner;

DELETE FROM osgprod_data.recent_failures WHERE merge_id IS NOT NULL;
ALTER TABLE osgprod_data.recent_failures DROP COLUMN merge_id;
COMMENT ON COLUMN osgprod_data.recent_failures.block1 IS 'the slice';
COMMENT ON COLUMN osgprod_data.recent_failures.opened_at IS 'of the slice: it is another one when this differs';
COMMENT ON COLUMN osgprod_data.recent_failures.blamed IS
    'what else is to blame: project, place, file or address; NULL = the slice or the worker, as far as is known';
DROP INDEX osgprod_data.recent_failures_in_time, osgprod_data.recent_failures_by_start;
CREATE INDEX recent_failures_in_time ON osgprod_data.recent_failures (project_id, fault, failed_at);
CREATE INDEX recent_failures_by_place ON osgprod_data.recent_failures (project_id, place, failed_at);
CREATE INDEX recent_failures_by_address ON osgprod_data.recent_failures (project_id, address, failed_at);

RESET ROLE;
