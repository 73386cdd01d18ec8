-- The pace is measured anew when the content of the work script changes, not its name only.
-- depends: 0020-tape

SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.pace_looks ADD COLUMN digest text;
COMMENT ON COLUMN osgprod_data.pace_looks.digest IS 'SHA-256 of the work script that is measured, 64 hexadecimal digits; NULL = no job has said it';

RESET ROLE;
