SET LOCAL ROLE osgprod_owner;

DROP INDEX osgprod_data.worker_bans_until;
DROP INDEX osgprod_data.merges_not_ready;
CREATE INDEX merges_not_ready ON osgprod_data.merges (project_id, not_before) WHERE NOT is_ready;
DROP INDEX osgprod_data.slices_not_ready;
CREATE INDEX slices_not_ready ON osgprod_data.slices (project_id, not_before, rawdata_id) WHERE NOT is_ready;

RESET ROLE;
