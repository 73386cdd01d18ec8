-- The events of an attempt's slice are noted when it is leased, and a report does not look them up again.
-- depends: 0037-functions

SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.attempts ADD COLUMN events bigint;
COMMENT ON COLUMN osgprod_data.attempts.events IS 'of its slice, by the index; NULL = a merge, or leased by release 0.11.0 or an older one';

RESET ROLE;
