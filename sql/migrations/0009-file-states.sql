-- The states of a file have the words that everybody uses.
-- depends: 0008-history

SET LOCAL ROLE osgprod_owner;

ALTER TYPE osgprod_data.file_state RENAME VALUE 'fresh' TO 'pending';
ALTER TYPE osgprod_data.file_state RENAME VALUE 'begun' TO 'in_progress';
ALTER TYPE osgprod_data.file_state RENAME VALUE 'cut' TO 'allocated';
ALTER TYPE osgprod_data.file_state RENAME VALUE 'finished' TO 'complete';

RESET ROLE;
