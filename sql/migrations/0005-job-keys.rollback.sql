COMMENT ON TABLE osgprod_data.refusals IS 'calls of jobs that were refused for their token';
UPDATE osgprod_data.projects SET node_fault_codes = '{75,126,127}' WHERE node_fault_codes = '{74,75,126,127}';
ALTER TABLE osgprod_data.projects ALTER COLUMN node_fault_codes SET DEFAULT '{75,126,127}';
DROP INDEX osgprod_data.reports_contradicted;
ALTER TABLE osgprod_data.archived_reports DROP COLUMN contradiction;
ALTER TABLE osgprod_data.reports DROP COLUMN contradiction;
ALTER TABLE osgprod_data.archived_attempts DROP COLUMN job_key_digest;
ALTER TABLE osgprod_data.attempts DROP COLUMN job_key_digest;
ALTER TABLE osgprod_data.projects DROP COLUMN restart_proof;
