-- Comments of columns that were incomplete or false: osgprod project set --help and docs/sql.md show them.
-- depends: 0029-functions

SET LOCAL ROLE osgprod_owner;

COMMENT ON COLUMN osgprod_data.projects.retest_s IS 'when a suspended file or a project that paused itself is first tried again [s]; later for a file after twice the time, up to max_backoff_s, for a project after up to 5 times this';
COMMENT ON COLUMN osgprod_data.recent_failures.fault IS 'fetch, delivery, program, setting, node (killed, or another node fault) or work (any other exit code)';
COMMENT ON COLUMN osgprod_data.recent_failures.blamed IS 'what else is to blame: project, place, file, address or setting; NULL = the slice or the worker, as far as is known';
COMMENT ON COLUMN osgprod_data.merges.due_at IS 'when its lease expires; of a ready one: when its attempt became lost, NULL = it has ended';
COMMENT ON COLUMN osgprod_data.projects.stopped_at IS 'since when the server tells its jobs to stop; NULL = it does not';

RESET ROLE;
