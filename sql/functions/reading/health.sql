CREATE FUNCTION osgprod.health(p_project text DEFAULT NULL)
RETURNS TABLE (project text, level text, what text, found text, advice text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Tells whether each production is healthy, and what to do where it is not.
-- Parameters: p_project  project name; NULL = all projects
-- Returns:    at least one row a project, the worst first. level: bad (act now), attention (look at it) or well; what, one
--             of: stalled, failing, leases, quarantine, contradicted, refused-workers, running-out, paused, draining, empty, done,
--             healthy; what was found, and the command that helps
-- Errors:     OG301 unknown project
BEGIN
    PERFORM osgprod._get_project(p_project) WHERE p_project IS NOT NULL;
    RETURN QUERY
    WITH facts AS (
        SELECT g.*, p.project_id, p.next_due_at, h.done, h.bad, h.all_reports, h.worst,
               (SELECT count(*) FROM worker_bans b WHERE b.project_id = p.project_id AND b.until > now()) AS refused,
               (SELECT count(*) FROM (SELECT FROM osgprod._contradicted_slices(p.project_id) LIMIT 1000) c) AS contradicted,
               (SELECT min(f.loaded_at) FROM loaded_files f WHERE f.project_id = p.project_id) AS loaded_at,
               g.blocks - g.blocks_done - g.blocks_quarantined AS blocks_left
          FROM osgprod.progress(p_project => p_project) g
          JOIN projects p ON p.name = g.project
         CROSS JOIN LATERAL (
            SELECT coalesce(sum(r.blocks) FILTER (WHERE r.outcome = 'done'), 0) AS done,
                   coalesce(sum(r.reports) FILTER (WHERE r.outcome IN ('failed', 'node-fault', 'lost')), 0) AS bad,
                   coalesce(sum(r.reports), 0) AS all_reports,
                   mode() WITHIN GROUP (ORDER BY coalesce(r.exit_code::text, 'none, lost'))
                       FILTER (WHERE r.outcome IN ('failed', 'node-fault', 'lost')) AS worst
              FROM osgprod._recent(p.project_id, osgprod._patience(p.project_id)) r) h
    ), found AS (
        SELECT f.project, f.state, f.blocks_left, v.* FROM facts f CROSS JOIN LATERAL (VALUES
            ('bad', 'stalled', f.state = 'active' AND f.blocks_left > 0 AND f.done = 0
                AND f.loaded_at < osgprod._patience(f.project_id),
             format('%s blocks left and %s on lease, but none done since %s UTC', f.blocks_left, f.blocks_leased,
                    to_char(osgprod._patience(f.project_id) AT TIME ZONE 'UTC', 'HH24:MI')),
             CASE WHEN f.blocks_leased = 0 THEN 'no job asks for work: are jobs submitted, and do they reach the shim? osgprod doctor'
                  ELSE format('see how far they are: osgprod attempts %s --live', f.project) END),
            ('bad', 'failing', f.bad >= 10 AND f.bad > 0.2 * f.all_reports,
             format('%s of the last %s attempts failed, were killed or lost; most with exit code %s', f.bad,
                    f.all_reports, f.worst),
             format('find the code and the site: osgprod attempts %s --by exit, then --by site', f.project)),
            ('bad', 'leases', f.next_due_at < now() - interval '5 min' AND f.blocks_leased > 0 AND EXISTS (
                SELECT FROM osgprod._slices_in_flight(f.project_id) s
                 WHERE s.state = 'leased' AND s.due_at < now() - interval '5 min'),
             'leases expired minutes ago and no slice was requeued', 'is a shim running? osgprod reclaim requeues them by hand'),
            ('attention', 'quarantine', f.blocks_quarantined > 0,
             format('%s blocks can''t be done', f.blocks_quarantined),
             format('see why: osgprod quarantined %s; try again: osgprod slices recycle %s', f.project, f.project)),
            ('attention', 'contradicted', f.contradicted > 0,
             format('%s done slices whose jobs read another number of events than the index has',
                    CASE f.contradicted WHEN 1000 THEN '1000 or more' ELSE f.contradicted::text END),
             format('see which: osgprod verify %s; make it a failure: osgprod project set %s demand_events=true', f.project,
                    f.project)),
            ('attention', 'refused-workers', f.refused > 0,
             format('%s at present', f.refused),
             'osgprod workers lists them with reasons; osgprod workers unban lifts a ban'),
            ('attention', 'running-out', f.state = 'active' AND f.blocks_left > 0 AND f.done > 0
                AND f.blocks_uncut + f.blocks_ready < f.done,
             format('%s blocks are left to assign, fewer than were done recently', f.blocks_uncut + f.blocks_ready),
             format('submit no more jobs; to load more files, name their runs: osgprod slices load %s --runs', f.project)),
            ('attention', 'paused', f.state = 'paused', 'no work is assigned',
             format('go on: osgprod project resume %s', f.project)),
            ('attention', 'draining', f.state = 'draining', 'no new work is assigned',
             format('go on: osgprod project resume %s', f.project)),
            ('attention', 'empty', f.files = 0, 'there are no files',
             format('osgprod rawdata load FOLDER, then osgprod slices load %s', f.project)),
            ('well', 'done', f.files > 0 AND f.blocks_left = 0,
             'every block is done or in quarantine',
             format('check it: osgprod verify %s; keep it elsewhere: osgprod project export %s', f.project, f.project))
        ) AS v (level, what, holds, found, advice)
    ), holding AS (
        SELECT x.project, x.level, x.what, x.found, x.advice FROM found x WHERE x.holds
        UNION ALL
        SELECT f.project, 'well', 'healthy', format('%s blocks done of late', f.done), 'nothing to do'
          FROM facts f WHERE NOT EXISTS (SELECT FROM found x WHERE x.project = f.project AND x.holds)
    )
    SELECT y.project, y.level, y.what, y.found, y.advice FROM holding y
     ORDER BY y.project, array_position(ARRAY['bad', 'attention', 'well'], y.level), y.what;
END
$fn$;

COMMENT ON FUNCTION osgprod.health(text) IS
'Tells whether each production is healthy, and what to do where it is not; the worst first. For osgprod_worker and osgprod_operator.';

CREATE FUNCTION osgprod._patience(p_project_id int)
RETURNS timestamptz LANGUAGE sql STABLE
AS $fn$
    -- Since when something should have been done: for an hour, or for twice the time that a success takes on average.
    SELECT osgprod._ten_minutes(now() - greatest(interval '1 h', make_interval(secs => 2 * coalesce(
        (SELECT sum(t.ran_s) / nullif(sum(t.reports), 0) FROM osgprod_data.totals t
          WHERE t.project_id = p_project_id AND t.outcome = 'done'), 0)::float8)))
$fn$;
