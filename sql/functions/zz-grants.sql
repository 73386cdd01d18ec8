-- Who may call what: the only place that says so. Loaded last; a function that is not named here can be called by nobody
-- but its owner. docs/security.md has the reasons.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA osgprod FROM PUBLIC;
GRANT USAGE ON SCHEMA osgprod TO osgprod_worker, osgprod_operator;

GRANT EXECUTE ON FUNCTION
    osgprod.checkout_slice, osgprod.heartbeat, osgprod.report_exit, osgprod.tick, osgprod.alive
TO osgprod_worker, osgprod_operator;

GRANT EXECUTE ON FUNCTION
    osgprod.add_project, osgprod.set_project, osgprod.set_magic, osgprod.register_rawdata, osgprod.load_slices,
    osgprod.recycle, osgprod.reclaim_lost, osgprod.quarantined, osgprod.progress, osgprod.verify,
    osgprod.blocked_workers, osgprod.ban_worker
TO osgprod_operator;

-- the operator reads the tables; nobody writes them but through functions
GRANT SELECT ON osgprod_data.projects, osgprod_data.rawdata, osgprod_data.loaded_files, osgprod_data.slices,
    osgprod_data.idle_slices, osgprod_data.attempts, osgprod_data.reports, osgprod_data.worker_bans,
    osgprod_data.refusals TO osgprod_operator;
