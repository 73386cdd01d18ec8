COMMENT ON COLUMN osgprod_data.reports.by_worker IS 'true = the job reported; false = the server found it lost';
DROP INDEX osgprod_data.idle_slices_due;
ALTER TABLE osgprod_data.loaded_files DROP CONSTRAINT loaded_files_once;
