-- A job proves that it is the same job, a contradicted number of events is on record, and exit code 74 is a node fault.
-- depends: 0003-once-and-due

SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.projects ADD COLUMN restart_proof text NOT NULL DEFAULT 'address'
    CONSTRAINT projects_restart_proof_is_known CHECK (restart_proof IN ('key', 'address', 'none'));
COMMENT ON COLUMN osgprod_data.projects.restart_proof IS 'what a job without a job key needs for the slice of its living attempt: key = it gets nothing; address = the same address and host, or an attempt that has missed its heartbeats; none = nothing';

ALTER TABLE osgprod_data.attempts ADD COLUMN job_key_digest bytea;
ALTER TABLE osgprod_data.archived_attempts ADD COLUMN job_key_digest bytea;
COMMENT ON COLUMN osgprod_data.attempts.job_key_digest IS 'SHA-256 of the project''s salt and the job key that came with the checkout; NULL = none came';
COMMENT ON COLUMN osgprod_data.archived_attempts.job_key_digest IS 'SHA-256 of the project''s salt and the job key that came with the checkout; NULL = none came';

ALTER TABLE osgprod_data.reports ADD COLUMN contradiction text;
ALTER TABLE osgprod_data.archived_reports ADD COLUMN contradiction text;
COMMENT ON COLUMN osgprod_data.reports.contradiction IS 'where the job''s number of events differs from the index, in words; NULL = it does not, or the job gave none';
COMMENT ON COLUMN osgprod_data.archived_reports.contradiction IS 'where the job''s number of events differs from the index, in words; NULL = it does not, or the job gave none';
-- A report without a contradiction pays nothing for it.
CREATE INDEX reports_contradicted ON osgprod_data.reports (project_id, reported_at) WHERE contradiction IS NOT NULL;

-- 74: the outputs could not be delivered; 75: the slice could not be fetched; 126, 127: the shell could not start or find
-- the program. An operator's own list stays as it is.
ALTER TABLE osgprod_data.projects ALTER COLUMN node_fault_codes SET DEFAULT '{74,75,126,127}';
UPDATE osgprod_data.projects SET node_fault_codes = '{74,75,126,127}' WHERE node_fault_codes = '{75,126,127}';

COMMENT ON TABLE osgprod_data.refusals IS 'calls of jobs that were refused for their token, or for want of a proof that they are the same job';

RESET ROLE;
