ALTER TABLE osgprod_data.projects DROP COLUMN stopped_at, DROP COLUMN keep_log_tail;
DROP TABLE osgprod_data.operations, osgprod_data.log_tails, osgprod_data.answers, osgprod_data.tallied_sites;
DROP FUNCTION osgprod_data.keep_operations();
ALTER TABLE osgprod_data.tallies DROP COLUMN last_at;
COMMENT ON COLUMN osgprod_data.tallies.site IS 'as in reports';
