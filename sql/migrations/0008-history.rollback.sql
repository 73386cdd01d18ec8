DROP VIEW osgprod_data.migrated_files;
DROP FUNCTION osgprod_data.refuse_older_program();
DROP TRIGGER keep_history ON osgprod_data.reports;
DROP TRIGGER keep_history ON osgprod_data.attempts;
DROP FUNCTION osgprod_data.keep_history();
