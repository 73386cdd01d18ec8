-- How long merges take, for jobs that must end soon; and files that failed merges delivered.
-- depends: 0029-functions

SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.projects ADD COLUMN merge_s double precision;
COMMENT ON COLUMN osgprod_data.projects.merge_s IS 'nine of the last ten merges took no longer than this [s]; noted by tick, of the last 100; NULL = none was done';
COMMENT ON TABLE osgprod_data.outputs IS 'files that a report listed as delivered; append-only. They are outputs if the attempt was accepted; one that lists none has one output, in its row of reports';

RESET ROLE;
