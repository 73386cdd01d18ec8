SET LOCAL ROLE osgprod_owner;

COMMENT ON COLUMN osgprod_data.projects.retest_s IS 'when a suspended file or a project that paused itself is tried again for the first time [s]; doubled each time, up to max_backoff_s';
COMMENT ON COLUMN osgprod_data.recent_failures.fault IS 'fetch, delivery, program, node (killed, or another node fault) or work (any other exit code)';
COMMENT ON COLUMN osgprod_data.recent_failures.blamed IS 'what else is to blame: project, place, file or address; NULL = the slice or the worker, as far as is known';
COMMENT ON COLUMN osgprod_data.merges.due_at IS 'until when its attempt may stay silent; of a ready one: when its attempt became lost, NULL = it has ended';
COMMENT ON COLUMN osgprod_data.projects.stopped_at IS 'when its jobs were told to stop; NULL = they are not';

RESET ROLE;
