-- A file that is registered at two paths is still one file: a project has each run and number once.
-- depends: 0002-tables

SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.loaded_files ADD CONSTRAINT loaded_files_once UNIQUE (project_id, run, seqno);

COMMENT ON COLUMN osgprod_data.reports.by_worker IS 'true = the job reported; false = the server''s verdict: lost, or superseded when the operator said that the job is gone';

RESET ROLE;
