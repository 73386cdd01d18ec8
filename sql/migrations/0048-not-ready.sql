-- Indexes that the planner takes: it believes NOT is_ready of every row whose is_ready is NULL, which are nearly all, and read the
-- whole table. Of IS FALSE it knows the statistics.
-- depends: 0045-functions

SET LOCAL ROLE osgprod_owner;

DROP INDEX osgprod_data.slices_not_ready;
CREATE INDEX slices_not_ready ON osgprod_data.slices (project_id, not_before, rawdata_id) WHERE is_ready IS FALSE;
DROP INDEX osgprod_data.merges_not_ready;
CREATE INDEX merges_not_ready ON osgprod_data.merges (project_id, not_before) WHERE is_ready IS FALSE;

-- The bans in force are few, those of all time are many.
CREATE INDEX worker_bans_until ON osgprod_data.worker_bans (project_id, until);

RESET ROLE;
