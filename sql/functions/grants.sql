-- Who may call what: the only place that says so. Loaded last; a function that is not named here can be called by nobody
-- but its owner. docs/security.md has the reasons.
GRANT USAGE ON SCHEMA osgprod TO osgprod_worker, osgprod_operator;

GRANT EXECUTE ON FUNCTION
    osgprod.checkout_slice, osgprod.checkout_slices, osgprod.heartbeat, osgprod.heartbeats, osgprod.report_exit,
    osgprod.report_exits, osgprod.tick, osgprod.alive, osgprod.freshness, osgprod.note_answers,
    osgprod.write_check
TO osgprod_worker, osgprod_operator;

-- What the dashboard and the metrics show. Nothing here changes anything or tells a secret on record: no magic, token or digest
-- of one, no URL's query or password. What jobs write (reasons, ends of logs) is shown as it came.
GRANT EXECUTE ON FUNCTION
    osgprod.health, osgprod.idle_and_leased, osgprod.progress, osgprod.totals, osgprod.rate, osgprod.estimate,
    osgprod.attempts_by_exit, osgprod.attempts_by_site, osgprod.attempts_by_worker,
    osgprod.list_attempts, osgprod.live_attempts, osgprod.list_jobs, osgprod.job_history, osgprod.list_files,
    osgprod.map_files, osgprod.list_merges, osgprod.outputs_of, osgprod.delivery, osgprod.list_slices, osgprod.quarantined,
    osgprod.blocked_workers, osgprod.log_tail,
    osgprod.slice_size, osgprod.resources, osgprod.amounts, osgprod.done_over_time, osgprod.find
TO osgprod_worker, osgprod_operator;

GRANT EXECUTE ON FUNCTION
    osgprod.add_project, osgprod.set_project, osgprod.set_magic, osgprod.register_rawdata, osgprod.load_slices,
    osgprod.recycle, osgprod.reclaim_lost, osgprod.verify, osgprod.ban_worker, osgprod.list_rawdata, osgprod.diagnose,
    osgprod.import_file, osgprod.list_doors, osgprod.record_locality, osgprod.list_next_files,
    osgprod.remove_project, osgprod.forget_rawdata, osgprod.jobs_needed, osgprod.foretell_work,
    osgprod.list_outputs, osgprod.lose_outputs, osgprod.retry_merges, osgprod.import_merge, osgprod.list_versions
TO osgprod_operator;

GRANT EXECUTE ON FUNCTION
    osgprod.unload_slices, osgprod.resume_files, osgprod.stop_project, osgprod.stop_jobs, osgprod.run_periods, osgprod.list_operations
TO osgprod_operator;

-- What failed of late is read beside the history.
GRANT SELECT ON osgprod_data.recent_failures TO osgprod_operator;

-- the operator reads the tables; nobody writes them but through functions
GRANT SELECT ON osgprod_data.projects, osgprod_data.rawdata, osgprod_data.loaded_files, osgprod_data.slices,
    osgprod_data.attempts, osgprod_data.reports, osgprod_data.worker_bans, osgprod_data.refusals, osgprod_data.tallies,
    osgprod_data.totals, osgprod_data.answers, osgprod_data.operations, osgprod_data.log_tails,
    osgprod_data.tallied_sites, osgprod_data.backups, osgprod_data.paces, osgprod_data.pace_looks,
    osgprod_data.merges, osgprod_data.outputs, osgprod_data.lost_outputs, osgprod_data.versions TO osgprod_operator;
GRANT EXECUTE ON FUNCTION
    osgprod.add_notify_target, osgprod.remove_notify_target, osgprod.list_notify_targets, osgprod.next_notifications,
    osgprod.mark_notified, osgprod.note_health
TO osgprod_operator;
GRANT SELECT ON osgprod_data.notifications, osgprod_data.notify_targets, osgprod_data.noted_health TO osgprod_operator;
