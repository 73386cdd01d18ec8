-- Where a shim can't read the merge script is noted in answers, no longer in the project's row, which each claim reads. The end of a production is
-- noted there instead, which ticks notify of.
-- depends: 0037-functions

SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.projects DROP COLUMN mergescript_fault, DROP COLUMN mergescript_fault_at,
    ADD COLUMN noted_end text CONSTRAINT projects_noted_end_is_known CHECK (noted_end IN ('project-done', 'production-delivered'));
COMMENT ON COLUMN osgprod_data.projects.noted_end IS 'the last of the notifications project-done and production-delivered, while it is true; NULL = some file is not complete';

CREATE INDEX merges_done ON osgprod_data.merges (project_id, done_at) WHERE state = 'done';

-- Of what ended before, listeners were notified before.
UPDATE osgprod_data.projects p
   SET noted_end = CASE WHEN p.merge_by <> 'none' AND NOT EXISTS (
                            SELECT FROM osgprod_data.merges m WHERE m.project_id = p.project_id AND m.state NOT IN ('done', 'superseded'))
                        THEN 'production-delivered' ELSE 'project-done' END
 WHERE EXISTS (SELECT FROM osgprod_data.loaded_files f WHERE f.project_id = p.project_id)
   AND NOT EXISTS (SELECT FROM osgprod_data.loaded_files f WHERE f.project_id = p.project_id AND f.state <> 'complete');

RESET ROLE;
