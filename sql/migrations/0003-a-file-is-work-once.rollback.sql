COMMENT ON COLUMN osgprod_data.reports.by_worker IS 'true = the job reported; false = the server found it lost';
ALTER TABLE osgprod_data.loaded_files DROP CONSTRAINT loaded_files_once;
