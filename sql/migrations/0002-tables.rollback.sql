-- Everything the production knows is lost with this: take a dump first.
DROP SCHEMA IF EXISTS osgprod CASCADE;
DROP TABLE osgprod_data.archivings, osgprod_data.archived_slices, osgprod_data.archived_attempts, osgprod_data.archived_reports,
    osgprod_data.tallies, osgprod_data.totals, osgprod_data.refusals, osgprod_data.worker_bans, osgprod_data.reports, osgprod_data.attempts,
    osgprod_data.idle_slices, osgprod_data.slices, osgprod_data.loaded_files, osgprod_data.rawdata,
    osgprod_data.projects;
DROP TYPE osgprod_data.lead, osgprod_data.outcome, osgprod_data.slice_state, osgprod_data.file_state, osgprod_data.project_state;
