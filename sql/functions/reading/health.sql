CREATE FUNCTION osgprod.health(p_project text DEFAULT NULL)
RETURNS TABLE (project text, level text, what text, found text, advice text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Tells whether each production is healthy, and what to do where it is not.
-- Parameters: p_project  project name; NULL = all projects
-- Returns:    at least one row a project, its worst first. level: bad (act now), attention (look at it) or well; what, one
--             of: stalled, failing, answers, leases, without-progress, restarting, refused-requests, wrong-setting, merges, failed-merges,
--             unmerged, quarantine, contradicted, banned-workers, suspended-files, on-tape, running-out, paused-itself, paused, draining, empty,
--             waiting, done, healthy; the finding, and the command that helps
-- Errors:     OG301 unknown project
BEGIN
    PERFORM osgprod._get_project(p_project) WHERE p_project IS NOT NULL;
    RETURN QUERY
    WITH facts AS (
        SELECT g.*, p.project_id, p.next_due_at, p.paused_at, h.done, h.bad, h.all_reports, h.worst, l.idle,
               l.restarting, l.starts, n.bans, n.of_merges, a.answers, a.faults, a.refusals, a.worst_fault, a.worst_refusal,
               CASE WHEN a.not_banned = 0 AND g.blocks_leased = 0 AND g.state = 'active' THEN nullif(a.banned, 0) END AS all_banned,
               osgprod._patience(p.project_id) AS patience,
               EXISTS (SELECT FROM attempts t WHERE t.project_id = p.project_id) AS was_asked,
               osgprod._why_no_merges(p) AS no_merges,
               (SELECT count(*) FROM merges m WHERE m.project_id = p.project_id AND m.state = 'failed') AS failed_merges,
               (SELECT count(*) FROM (SELECT FROM osgprod._contradicted_slices(p.project_id) LIMIT 1000) c) AS contradicted,
               greatest(o.open_since, p.resumed_at, p.activated_at) AS since, o.open_since IS NOT NULL AS has_open, o.on_tape,
               g.state = 'active' AND g.files_suspended > 0 AND o.open_since IS NULL AS all_suspended, w.wrong_settings, w.wrong_setting,
               g.blocks - g.blocks_done - g.blocks_quarantined AS blocks_left
          FROM osgprod.progress(p_project => p_project) g
          JOIN projects p ON p.name = g.project
         CROSS JOIN LATERAL (
            SELECT coalesce(sum(e.blocks) FILTER (WHERE e.outcome = 'done'), 0) AS done,
                   coalesce(sum(e.reports) FILTER (WHERE e.is_bad), 0) AS bad,
                   coalesce(sum(e.reports), 0) AS all_reports,
                   (array_agg(coalesce(e.exit_code::text, 'none, lost') ORDER BY e.reports DESC, e.exit_code)
                       FILTER (WHERE e.is_bad))[1] AS worst
              FROM (SELECT r.outcome, r.exit_code, r.outcome IN ('failed', 'node-fault', 'lost') AS is_bad,
                           sum(r.reports) AS reports, sum(r.blocks) AS blocks
                      FROM osgprod._recent(p.project_id, osgprod._patience(p.project_id)) r
                     GROUP BY r.outcome, r.exit_code) e) h
         CROSS JOIN LATERAL (
            SELECT count(*) AS bans, count(*) FILTER (WHERE b.worker LIKE 'merges:%') AS of_merges
              FROM worker_bans b WHERE b.project_id = p.project_id AND osgprod._is_in_force(b.banned_at, b.until)) n
         CROSS JOIN LATERAL osgprod._troubled_leases(p.project_id) l
         CROSS JOIN LATERAL osgprod._recent_answers(p.project_id) a
         CROSS JOIN LATERAL osgprod._open_work(p.project_id) o
         CROSS JOIN LATERAL osgprod._wrong_settings(p.project_id) w
    ), found AS (
        SELECT f.project, f.state, f.blocks_left, v.* FROM facts f CROSS JOIN LATERAL (VALUES
            ('bad', 'stalled', f.state = 'active' AND f.blocks_left > 0 AND f.done = 0 AND f.has_open AND f.since < f.patience,
             format('%s left and %s leased, but none done since %s UTC', osgprod._counted(f.blocks_left, 'block'), f.blocks_leased,
                    to_char(f.patience AT TIME ZONE 'UTC', 'HH24:MI')),
             CASE WHEN f.blocks_leased = 0 THEN 'no job asks for work: submit jobs, or see what keeps them from the shim: their .err files, osgprod doctor'
                  ELSE format('see how far they are: osgprod attempts %s --live', f.project) END),
            ('bad', 'failing', f.bad >= 10 AND f.bad > 0.2 * f.all_reports AND f.blocks_left + f.merges_left > 0,
             format('%s of the last %s failed, had a node fault or were lost; most with exit code %s', f.bad,
                    osgprod._counted(f.all_reports, 'attempt'), f.worst),
             format('find the code and the site: osgprod attempts %s --by exit, then --by site', f.project)),
            ('bad', 'answers', f.answers >= 10 AND 2 * f.faults > f.answers,
             format('%s of %s requests of the last 15 minutes were answered %s', f.faults, f.answers, f.worst_fault),
             'look for the cause: osgprod doctor'),
            ('attention', 'refused-requests', f.answers >= 10 AND 5 * f.refusals > f.answers,
             format('%s of %s requests of the last 15 minutes were refused; most with %s', f.refusals, f.answers,
                    f.worst_refusal),
             format('compare address and magic of the jobs with the project: osgprod project show %s; osgprod project set-magic %s --magic-file FILE',
                    f.project, f.project)),
            ('attention', 'wrong-setting', f.wrong_settings > 0 AND f.blocks_left + f.merges_left > 0,
             format('%s of the last hour ended since a setting is wrong; the last: %s', osgprod._counted(f.wrong_settings, 'attempt'), f.wrong_setting),
             format('correct it in the project (osgprod project show %s) or in the submit file', f.project)),
            ('attention', 'on-tape', f.state = 'active' AND f.blocks_left > 0 AND NOT f.has_open AND f.on_tape > 0,
             format('no block can be assigned: %s skipped (setting skip_nearline)', osgprod._counted(f.on_tape,
                    'file is on tape only and is', 'files are on tape only and are')),
             format('stage them: osgprod rawdata list --project %s --next 50 --urls; then: osgprod rawdata check-online %s', f.project,
                    f.project)),
            ('attention', 'without-progress', f.idle > 0,
             format('%s without progress for at least %s', osgprod._counted(f.idle, 'leased slice or merge', 'leased slices or merges'),
                    date_trunc('minute', now() - least(f.patience, now() - interval '2 h'))),
             format('see which: osgprod attempts %s --live; stop such jobs: osgprod project set %s wedged_s=7200', f.project,
                    f.project)),
            ('attention', 'restarting', f.restarting > 0,
             format('%s started 10 times or more, and reported nothing; the most starts are %s', osgprod._counted(f.restarting, 'job has', 'jobs have'), f.starts),
             format('their slices take longer than the jobs may run: osgprod project set %s maxblockspercore=N, with a smaller N',
                    f.project)),
            ('bad', 'leases', f.next_due_at < now() - interval '5 min' AND EXISTS (
                SELECT FROM osgprod._leases(f.project_id) s WHERE s.task <> 'backup' AND s.due_at < now() - interval '5 min'),
             'leases expired more than 5 minutes ago and no slice was requeued',
             format('start a shim; to requeue by hand: osgprod reclaim %s', f.project)),
            ('bad', 'merges', f.no_merges IS NOT NULL,
             format('merges are not assigned: %s', f.no_merges),
             CASE WHEN f.no_merges LIKE 'they are banned: %'
                  THEN format('repair it; the server tries one merge at a time; not to wait for that: osgprod workers unban %s merges:all',
                              f.project)
                  ELSE format('put the merge script into the project''s folder, or osgprod project set %s mergescript=NAME',
                              f.project) END),
            ('attention', 'failed-merges', f.failed_merges > 0, osgprod._counted(f.failed_merges, 'merge') || ' failed',
             format('see why: osgprod merges list %s --state failed; try again: osgprod merges retry %s', f.project, f.project)),
            ('attention', 'unmerged', f.files > 0 AND f.blocks_left = 0 AND f.merges_left > 0 AND f.no_merges IS NULL
                AND f.failed_merges = 0,
             format('every block is done or in quarantine, and %s left', osgprod._counted(f.merges_left, 'merge is', 'merges are')),
             format('submit jobs that merge; a file with quarantined blocks waits for them: osgprod slices recycle %s; or is merged without them: osgprod project set %s merge_incomplete=true',
                    f.project, f.project)),
            ('attention', 'quarantine', f.blocks_quarantined > 0,
             osgprod._counted(f.blocks_quarantined, 'block is', 'blocks are') || ' quarantined',
             format('see why: osgprod quarantined %s; try again: osgprod slices recycle %s', f.project, f.project)),
            ('attention', 'contradicted', f.contradicted > 0,
             CASE f.contradicted WHEN 1000 THEN 'at least ' ELSE '' END
                || osgprod._counted(f.contradicted, 'done slice whose job', 'done slices whose jobs') || ' read another number of events than the index has',
             format('see which: osgprod verify %s; make it a failure: osgprod project set %s demand_events=true', f.project,
                    f.project)),
            (CASE WHEN f.all_banned > 0 THEN 'bad' ELSE 'attention' END,
             'banned-workers', f.bans > 0,
             osgprod._counted(f.bans, 'ban is', 'bans are') || ' in force'
                || CASE WHEN f.of_merges > 0 THEN format(', %s for merges only', f.of_merges) ELSE '' END
                || CASE WHEN f.all_banned > 0
                        THEN format(', and no slice is leased: no request for work was let in for 15 minutes, and %s met a ban', f.all_banned) ELSE '' END,
             format('see names and reasons: osgprod workers; lift a ban: osgprod workers unban %s NAME', f.project)),
            ('attention', 'running-out', f.state = 'active' AND f.blocks_leased > 0 AND f.done > 0
                AND f.blocks_unallocated + f.blocks_ready < f.done,
             osgprod._counted(f.blocks_unallocated + f.blocks_ready, 'block is', 'blocks are') || ' left to assign, fewer than were done recently',
             format('submit no more jobs; to load more files, name their runs: osgprod slices load %s --runs RUNS', f.project)),
            ('bad', 'paused-itself', f.pause_reason IS NOT NULL,
             format('since %s UTC: %s', to_char(f.paused_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), f.pause_reason),
             format('repair it; one job at a time tries, and a success resumes the project; to resume now: osgprod project resume %s',
                    f.project)),
            (CASE WHEN f.all_suspended THEN 'bad' ELSE 'attention' END, 'suspended-files', f.files_suspended > 0,
             (SELECT format('%s%s; %s, since %s UTC: %s', CASE WHEN f.all_suspended THEN 'no block can be assigned: ' END,
                            osgprod._counted(f.files_suspended, 'file is suspended', 'files are suspended'), w.filename,
                            to_char(l.suspended_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), l.suspend_reason)
                FROM loaded_files l JOIN rawdata w ON w.rawdata_id = l.rawdata_id
               WHERE l.project_id = f.project_id AND l.suspended_at IS NOT NULL ORDER BY l.run, l.seqno LIMIT 1),
             format('see which: osgprod files %s --state suspended; repair the cause: one slice at a time tries each file, and a success resumes it; to resume all now: osgprod slices resume %s',
                    f.project, f.project)),
            ('attention', 'paused', f.state = 'paused' AND f.pause_reason IS NULL, 'no work is assigned',
             format('go on: osgprod project resume %s', f.project)),
            ('attention', 'draining', f.state = 'draining', 'no new work is assigned',
             format('go on: osgprod project resume %s', f.project)),
            ('attention', 'empty', f.files = 0, 'there are no files',
             format('osgprod rawdata load FOLDER, then osgprod slices load %s', f.project)),
            ('attention', 'waiting', f.state = 'active' AND f.blocks_left > 0 AND NOT f.was_asked AND f.has_open AND f.since >= f.patience,
             'no job has been assigned work yet', 'submit jobs; look for what may keep them away: osgprod doctor'),
            ('well', 'done', f.files > 0 AND f.blocks_left = 0 AND f.merges_left = 0,
             'every block is done or in quarantine',
             format('check it: osgprod verify %s; export it: osgprod project export %s DIR', f.project, f.project))
        ) AS v (level, what, holds, found, advice)
    ), holding AS (
        SELECT x.project, x.level, x.what, x.found, x.advice FROM found x WHERE x.holds
        UNION ALL
        SELECT f.project, 'well', 'healthy', format('%s done since %s UTC, %s leased', osgprod._counted(f.done, 'block'),
                                                      to_char(f.patience AT TIME ZONE 'UTC', 'HH24:MI'), f.blocks_leased), 'nothing to do'
          FROM facts f WHERE NOT EXISTS (SELECT FROM found x WHERE x.project = f.project AND x.holds)
    )
    SELECT y.project, y.level, y.what, y.found, y.advice FROM holding y
     ORDER BY y.project, array_position(ARRAY['bad', 'attention', 'well'], y.level), y.what;
END
$fn$;

COMMENT ON FUNCTION osgprod.health(text) IS
'Tells whether each production is healthy, and what to do where it is not: of each the worst first. For osgprod_worker and osgprod_operator.';

CREATE FUNCTION osgprod._troubled_leases(p_project_id int)
RETURNS TABLE (idle bigint, restarting bigint, starts int) LANGUAGE sql STABLE
AS $fn$
    -- Counts leased slices and merges whose jobs get nowhere: idle = no progress for two hours, or for twice the time that a
    -- success takes on average if that is longer; restarting = the job has started 10 times or more and has never reported;
    -- starts = the most starts of such a job.
    SELECT count(*) FILTER (WHERE coalesce(l.progress_at, (
               SELECT a.started_at FROM osgprod_data.attempts a
                WHERE a.project_id = p_project_id AND a.cluster = l.cluster AND a.process = l.process
                  AND a.nstart = l.nstart)) < least(osgprod._patience(p_project_id), now() - interval '2 h')),
           count(*) FILTER (WHERE l.never_reported), max(l.nstart) FILTER (WHERE l.never_reported)
      FROM (SELECT x.*, x.nstart >= 10 AND NOT EXISTS (
                       SELECT FROM osgprod_data.reports r
                        WHERE r.project_id = p_project_id AND r.cluster = x.cluster AND r.process = x.process
                          AND r.by_worker) AS never_reported
              FROM osgprod._leases(p_project_id) x WHERE x.task <> 'backup') l
$fn$;

CREATE FUNCTION osgprod._recent_answers(p_project_id int)
RETURNS TABLE (answers bigint, faults bigint, refusals bigint, worst_fault text, worst_refusal text, banned bigint, not_banned bigint)
LANGUAGE sql STABLE
AS $fn$
    -- Counts what the shims answered to jobs of a project within 15 minutes: faults = 500 and above, but for OG5xx (the project
    -- is paused, an operator has it alone, a bearer token can't be checked now); refusals = 400 to 499, but for attempts that came
    -- too late (409) and for temporary refusals (OG6xx: a full max_live, a ban, a rate). Of each the most frequent as text:
    -- status, and the message or kind. banned = requests for work that met a ban; not_banned = those that met none, and no
    -- error but another OG6xx.
    SELECT coalesce(sum(g.times), 0)::bigint, coalesce(sum(g.times) FILTER (WHERE g.is_fault), 0)::bigint,
           coalesce(sum(g.times) FILTER (WHERE g.is_refusal), 0)::bigint,
           (array_agg(g.text ORDER BY g.times DESC, g.text) FILTER (WHERE g.is_fault))[1],
           (array_agg(g.text ORDER BY g.times DESC, g.text) FILTER (WHERE g.is_refusal))[1],
           coalesce(sum(g.checkouts) FILTER (WHERE g.reason = 'OG601'), 0)::bigint,
           coalesce(sum(g.checkouts) FILTER (WHERE g.http_status = 200 OR g.reason LIKE 'OG6%' AND g.reason <> 'OG601'), 0)::bigint
      FROM (SELECT a.http_status >= 500 AND a.reason NOT LIKE 'OG5%' AS is_fault,
                   a.http_status BETWEEN 400 AND 499 AND a.http_status <> 409 AND a.reason NOT LIKE 'OG6%' AS is_refusal,
                   format('%s: %s', a.http_status, coalesce(max(a.message), a.reason)) AS text, sum(a.times) AS times,
                   a.reason, a.http_status, sum(a.times) FILTER (WHERE a.route = 'checkout') AS checkouts
              FROM osgprod_data.answers a
             WHERE a.project_id = p_project_id AND a.answered_at > now() - interval '15 min' AND a.reason <> 'mergescript'
             GROUP BY a.http_status, a.reason) g
$fn$;

CREATE FUNCTION osgprod._open_work(p_project_id int)
RETURNS TABLE (open_since timestamptz, on_tape bigint) LANGUAGE sql STABLE
AS $fn$
    -- Since when something could have been done: of the incomplete files that are neither suspended nor on tape only, the
    -- first that was loaded, or the first of its slices that was allocated, split or recycled; NULL = there is nothing.
    -- on_tape: incomplete files that are skipped since they are on tape only.
    SELECT min(CASE WHEN f.is_open THEN f.loaded_at ELSE (
                   SELECT min(s.opened_at) FROM osgprod_data.slices s
                    WHERE s.project_id = f.project_id AND s.rawdata_id = f.rawdata_id AND s.state IN ('leased', 'ready')) END)
               FILTER (WHERE NOT f.on_tape AND f.suspended_at IS NULL),
           count(*) FILTER (WHERE f.on_tape)
      FROM osgprod_data.loaded_files f WHERE f.project_id = p_project_id AND f.state <> 'complete'
$fn$;

CREATE FUNCTION osgprod._wrong_settings(p_project_id int)
RETURNS TABLE (wrong_settings bigint, wrong_setting text) LANGUAGE sql STABLE
AS $fn$
    -- Counts the attempts at slices and merges that ended within the last hour since a setting is wrong (fault=setting), and says
    -- what the last of them reported. Their work is requeued for ever: they count against nothing.
    SELECT count(*), (array_agg(coalesce(r.reason, 'exit code ' || r.exit_code) ORDER BY r.failure_id DESC))[1]
      FROM osgprod_data.recent_failures r
     WHERE r.project_id = p_project_id AND r.failed_at > now() - interval '1 h' AND r.fault = 'setting'
$fn$;

CREATE FUNCTION osgprod._patience(p_project_id int)
RETURNS timestamptz LANGUAGE sql STABLE
AS $fn$
    -- Since when something should have been done: for an hour, or, if that is longer, for twice the mean time of a success at a
    -- slice: of the recent ones, or of the last that are tallied where none was measured.
    SELECT osgprod._ten_minutes(now() - greatest(interval '1 h', make_interval(secs => 2 * coalesce(
        (SELECT avg(u.rate * u.size) FROM osgprod_data.paces p CROSS JOIN LATERAL unnest(p.rates, p.sizes) AS u (rate, size)
          WHERE p.project_id = p_project_id AND p.site = ''),
        (SELECT sum(t.ran_s) / sum(t.reports)
           FROM (SELECT y.ran_s, y.reports FROM osgprod_data.tallies y
                  WHERE y.project_id = p_project_id AND y.outcome = 'done' AND y.blocks > 0
                  ORDER BY y.began_at DESC LIMIT 100) t), 0)::float8)))
$fn$;
