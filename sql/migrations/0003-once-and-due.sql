-- A file that is registered at two paths is still one file; and a checkout reads none of the slices that rest.
-- depends: 0002-tables

SET LOCAL ROLE osgprod_owner;

-- A project has each run and number once.
ALTER TABLE osgprod_data.loaded_files ADD CONSTRAINT loaded_files_once UNIQUE (project_id, run, seqno);

-- Is there any that may be lent? Asked by every checkout, however many rest or are in quarantine.
CREATE INDEX idle_slices_due ON osgprod_data.idle_slices (project_id, not_before);

COMMENT ON COLUMN osgprod_data.reports.by_worker IS 'true = the job reported; false = the server''s verdict: lost, or superseded when the operator said that the job is gone';

RESET ROLE;
