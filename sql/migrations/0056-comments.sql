-- Comments that were not true in every case.
-- depends: 0055-ban-event-noted

SET LOCAL ROLE osgprod_owner;

COMMENT ON COLUMN osgprod_data.merges.faults IS 'node faults and lost attempts, up to max_faults; of several in a row on one worker only the first and each fourth after it';
COMMENT ON COLUMN osgprod_data.projects.max_faults IS 'node faults of a slice that count nothing; each further one counts as a data failure, of several in a row on one worker only each fourth';
COMMENT ON COLUMN osgprod_data.slices.faults IS 'node faults and lost attempts, up to max_faults; of several in a row on one worker only the first and each fourth after it';

RESET ROLE;
