-- Where a shim can't read the merge script is noted in answers, no longer in the project's row, which each claim reads.
-- depends: 0037-functions

SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.projects DROP COLUMN mergescript_fault, DROP COLUMN mergescript_fault_at;

RESET ROLE;
