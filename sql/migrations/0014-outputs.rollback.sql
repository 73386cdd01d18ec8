-- Attempts on merges mean nothing to older functions. (As the administrator: history is kept from osgprod_owner.)
DELETE FROM osgprod_data.reports r USING osgprod_data.attempts a
 WHERE a.merge_id IS NOT NULL AND r.project_id = a.project_id AND r.cluster = a.cluster AND r.process = a.process
   AND r.nstart = a.nstart;
DELETE FROM osgprod_data.attempts WHERE merge_id IS NOT NULL;

SET LOCAL ROLE osgprod_owner;

-- They take or give the types.
DROP FUNCTION IF EXISTS osgprod._inputs_of_merge(osgprod_data.projects, osgprod_data.merge_input[]);
DROP FUNCTION IF EXISTS osgprod._slices_of_merge(int, int, int);
DROP FUNCTION IF EXISTS osgprod._fail_merge(osgprod_data.projects, osgprod_data.merges, osgprod_data.outcome, text, int);
DROP FUNCTION IF EXISTS osgprod._lose_merge(osgprod_data.projects, osgprod_data.merges, osgprod_data.outcome, text);
DROP FUNCTION IF EXISTS osgprod._is_lost_merge(osgprod_data.merges, timestamptz);
DROP FUNCTION IF EXISTS osgprod._merge_is_done(int, osgprod_data.merges);
DROP TABLE osgprod_data.lost_outputs, osgprod_data.outputs, osgprod_data.versions, osgprod_data.merges;
DROP TYPE osgprod_data.merge_input, osgprod_data.merge_state;
ALTER TABLE osgprod_data.reports DROP COLUMN software;
ALTER TABLE osgprod_data.attempts DROP COLUMN merge_id, DROP COLUMN version_id;
ALTER TABLE osgprod_data.projects
    DROP CONSTRAINT projects_mergescript_is_not_the_workscript,
    DROP COLUMN merge_by, DROP COLUMN mergescript, DROP COLUMN merge_incomplete, DROP COLUMN merge_output_url,
    DROP COLUMN merge_cleanup, DROP COLUMN output_home, DROP COLUMN mergescript_fault, DROP COLUMN mergescript_fault_at;

RESET ROLE;
