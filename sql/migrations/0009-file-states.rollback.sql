SET LOCAL ROLE osgprod_owner;

ALTER TYPE osgprod_data.file_state RENAME VALUE 'pending' TO 'fresh';
ALTER TYPE osgprod_data.file_state RENAME VALUE 'in_progress' TO 'begun';
ALTER TYPE osgprod_data.file_state RENAME VALUE 'allocated' TO 'cut';
ALTER TYPE osgprod_data.file_state RENAME VALUE 'complete' TO 'finished';

RESET ROLE;
