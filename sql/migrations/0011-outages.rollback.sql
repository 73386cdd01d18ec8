SET LOCAL ROLE osgprod_owner;

-- They take the table's row.
DROP FUNCTION IF EXISTS osgprod._blame_address(osgprod_data.projects, osgprod_data.recent_failures);
DROP FUNCTION IF EXISTS osgprod._blame_file(osgprod_data.projects, osgprod_data.recent_failures);
DROP FUNCTION IF EXISTS osgprod._blame_place(osgprod_data.projects, osgprod_data.recent_failures);
DROP FUNCTION IF EXISTS osgprod._blame_project(osgprod_data.projects, osgprod_data.recent_failures);
DROP FUNCTION IF EXISTS osgprod._is_leased_elsewhere(int, osgprod_data.recent_failures);
DROP TABLE osgprod_data.presence;
DROP TABLE osgprod_data.recent_failures;
DROP INDEX osgprod_data.loaded_files_suspended;
DROP INDEX osgprod_data.loaded_files_open;
-- Slices of a suspended file wait for its next probe: without suspension they wait for nothing.
UPDATE osgprod_data.slices s SET is_ready = true FROM osgprod_data.loaded_files f
 WHERE f.suspended_at IS NOT NULL AND s.project_id = f.project_id AND s.rawdata_id = f.rawdata_id
   AND s.state = 'ready' AND NOT s.is_ready;
ALTER TABLE osgprod_data.loaded_files
    DROP COLUMN suspended_at, DROP COLUMN suspend_reason, DROP COLUMN retest_at, DROP COLUMN retest_s;
CREATE INDEX loaded_files_open ON osgprod_data.loaded_files (project_id, run, seqno, rawdata_id)
    WHERE state IN ('pending', 'in_progress');
ALTER TABLE osgprod_data.projects
    DROP CONSTRAINT projects_only_a_paused_one_has_a_cause,
    DROP COLUMN max_starts, DROP COLUMN suspend_after, DROP COLUMN retest_s, DROP COLUMN probe_jobs,
    DROP COLUMN unproven, DROP COLUMN pause_cause, DROP COLUMN pause_reason,
    DROP COLUMN paused_at, DROP COLUMN probe_at, DROP COLUMN resumed_at, DROP COLUMN nsuspended,
    ALTER COLUMN wedged_s DROP DEFAULT;

RESET ROLE;
