-- How long merges take, for jobs that must end soon.
-- depends: 0029-functions

SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.projects ADD COLUMN merge_s double precision;
COMMENT ON COLUMN osgprod_data.projects.merge_s IS 'nine of the last ten merges took no longer than this [s]; noted by tick, of the last 100; NULL = none was done';

RESET ROLE;
