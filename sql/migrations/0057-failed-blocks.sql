-- Noted failures say which blocks failed: a worker is not to blame for blocks that failed elsewhere, too.
-- depends: 0056-comments

SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.recent_failures ADD COLUMN block2 int;
COMMENT ON COLUMN osgprod_data.recent_failures.block2 IS 'the block behind the last one of the slice; NULL = noted by a release before 0.15.0';

RESET ROLE;
