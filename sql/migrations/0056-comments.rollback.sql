SET LOCAL ROLE osgprod_owner;

COMMENT ON COLUMN osgprod_data.merges.faults IS 'node faults and lost attempts that did not count as failures';
COMMENT ON COLUMN osgprod_data.projects.max_faults IS 'node faults of a slice that count nothing; each further one counts as a data failure';
COMMENT ON COLUMN osgprod_data.slices.faults IS 'node faults and lost attempts that did not count as data failures';

RESET ROLE;
