SET LOCAL ROLE osgprod_owner;

COMMENT ON COLUMN osgprod_data.merges.faults IS 'node faults and lost attempts that were counted, up to max_faults; on the same worker as the one before, each fourth is';
COMMENT ON COLUMN osgprod_data.projects.max_faults IS 'node faults of a slice that count nothing; each further one counts as a data failure, on the same worker as the one before only each fourth';
COMMENT ON COLUMN osgprod_data.slices.faults IS 'node faults and lost attempts that were counted, up to max_faults; on the same worker as the one before, each fourth is';

RESET ROLE;
