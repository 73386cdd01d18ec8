CREATE FUNCTION osgprod._why_no_merges(p_project osgprod_data.projects)
RETURNS text LANGUAGE sql STABLE
AS $fn$
    -- Says why the merges of a project are not assigned, one phrase for health; NULL = they are, or none is ready or leased.
    -- A merge script that a shim could not read counts for 15 minutes, or until a job of another shim gets a merge.
    -- Parameters: p_project  the project's row
    -- Source:     answers, in which each shim notes what it could not read (note_answers)
    SELECT CASE WHEN p_project.merge_by = 'none' OR NOT osgprod._has_open_merges(p_project.project_id) THEN NULL
                WHEN p_project.mergescript IS NULL THEN 'the project has no mergescript'
                ELSE coalesce(
                    (SELECT 'they are banned: ' || b.reason FROM osgprod_data.worker_bans b
                      WHERE b.project_id = p_project.project_id AND b.worker = 'merges:all'
                        AND osgprod._is_in_force(b.banned_at, b.until)),
                    (SELECT format('%s (found %s UTC)', n.message, to_char(n.answered_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'))
                       FROM osgprod_data.answers n
                      WHERE n.project_id = p_project.project_id AND n.answered_at > now() - interval '15 min'
                        AND n.route = 'checkout' AND n.reason = 'mergescript' AND NOT EXISTS (
                            SELECT FROM osgprod_data.attempts a  -- project_id + 0: found by time
                             WHERE a.project_id + 0 = p_project.project_id AND a.merge_id IS NOT NULL AND a.started_at > n.answered_at)
                      ORDER BY n.answered_at DESC LIMIT 1)) END
$fn$;

CREATE FUNCTION osgprod._claim_merge(
    p_project osgprod_data.projects, p_call osgprod.checkout_call, p_nstart int, OUT slice osgprod.claim)
LANGUAGE plpgsql VOLATILE
AS $fn$
-- Claims the first ready merge. It has its inputs already: see _make_merges_ready.
-- Promise:    passes over merges that are left to others (_is_left_to_others).
-- Parameters: p_project  the project's row;  p_call, p_nstart  the coming attempt
-- Returns:    the merge, with -1 as its blocks, so that nothing takes it for a slice; NULLs when none is free, or
--             the worker is banned from merges
-- Locks:      the merge, SKIP LOCKED
-- Source:     docs/design.md I8, docs/merging.md "A merge's life"
BEGIN
    UPDATE osgprod_data.merges m
       SET state = 'leased', is_ready = NULL, not_before = NULL, cluster = p_call.cluster, process = p_call.process,
           nstart = p_nstart, due_at = clock_timestamp() + make_interval(secs => p_project.lease_s), progress_at = NULL,
           bytes_fetched = NULL, cpu_s = NULL
     WHERE m.merge_id = (
        SELECT o.merge_id FROM osgprod_data.merges o
         WHERE o.project_id = p_project.project_id AND o.is_ready
           AND NOT EXISTS (SELECT FROM osgprod._ban_of(p_project.project_id, osgprod._worker(p_call.client, p_call.host), p_call.site, 'merges:'))
           AND NOT osgprod._is_left_to_others(p_project, p_call, o.faulted_on, o.due_at, o.not_before)
         ORDER BY o.run, o.seqno LIMIT 1
           FOR NO KEY UPDATE SKIP LOCKED)
    RETURNING m.rawdata_id, -1, -1, m.opened_at, m.merge_id INTO slice;
END
$fn$;

CREATE FUNCTION osgprod._has_open_merges(p_project_id int)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Has the project merges that are ready, planned, in a backoff or leased? (Those that wait need slices first.)
    SELECT EXISTS (SELECT FROM osgprod_data.merges m WHERE m.project_id = p_project_id AND m.is_ready)
        OR EXISTS (SELECT FROM osgprod_data.merges m WHERE m.project_id = p_project_id AND m.state = 'leased')
        OR EXISTS (SELECT FROM osgprod_data.merges m
                    WHERE m.project_id = p_project_id AND m.is_ready IS FALSE AND m.not_before IS NOT NULL)
$fn$;

CREATE FUNCTION osgprod._merge_content(p_project osgprod_data.projects, p_merge_id int)
RETURNS osgprod.content LANGUAGE sql STABLE
AS $fn$
    -- What a job that has claimed a merge is given.
    -- Parameters: p_project  the project's row;  p_merge_id  the merge, with its inputs
    -- Returns:    filename is the merge's name, size_bytes and events are sums over the inputs (NULL = some are not
    --             known), merge has what the script is filled with: docs/outputs.md. token_hosts: those that an operator named in
    --             the project's settings or in prefixes of the merge's raw data files
    SELECT '', NULL::text[], osgprod._merge_name(m.run, m.seqno),
           CASE WHEN bool_and(o.bytes IS NOT NULL) THEN sum(o.bytes) END::bigint,
           CASE WHEN bool_and(o.events IS NOT NULL) THEN sum(o.events) END::bigint, '',
           jsonb_build_object('run', m.run, 'seqno', m.seqno, 'cleanup', p_project.merge_cleanup,
               'token_hosts', (SELECT string_agg(DISTINCT h[1], ' ') FROM regexp_matches(concat_ws(' ', p_project.merge_output_url,
                   p_project.output_home, p_project.xrootd_prefix, (SELECT string_agg(r.prefix, ' ') FROM osgprod_data.rawdata r
                    WHERE r.rawdata_id IN (SELECT x.rawdata_id FROM unnest(m.inputs) x))), '([A-Za-z]+://[^/?#\s,]*)', 'g') AS h),
               -- Digits as in file names; {kind} is left to the merge script.
               'output_url', coalesce(replace(replace(replace(p_project.merge_output_url, '{project}', p_project.name),
                   '{run}', to_char(m.run, 'FM000000')), '{seqno}', coalesce(to_char(m.seqno, 'FM000'), 'all')), ''),
               'inputs', jsonb_agg(format('%s %s %s %s %s', coalesce(replace(o.url, ' ', '%20'), '-'),
                   coalesce(o.bytes::text, '-'), coalesce(o.adler32, '-'), i.starts_at, i.starts_at + i.block2 - i.block1)
                   ORDER BY i.place, o.n))
      FROM osgprod_data.merges m
     CROSS JOIN LATERAL unnest(m.inputs) WITH ORDINALITY AS i (rawdata_id, block1, block2, starts_at, cluster, process, nstart, place)
     CROSS JOIN LATERAL osgprod._outputs_of_attempt(p_project, i.cluster, i.process, i.nstart) o
     WHERE m.merge_id = p_merge_id
     GROUP BY m.merge_id
$fn$;

CREATE FUNCTION osgprod._merge_name(p_run int, p_seqno int)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- The name of a merge: RRRRRR_SSS of a file, RRRRRR of a run.
    SELECT concat_ws('_', to_char(p_run, 'FM000000'), to_char(p_seqno, 'FM000'))
$fn$;

CREATE FUNCTION osgprod._outputs_of_attempt(p_project osgprod_data.projects, p_cluster int, p_process int, p_nstart int)
RETURNS TABLE (n smallint, kind text, url text, bytes bigint, adler32 text, events bigint)
LANGUAGE sql STABLE
AS $fn$
    -- What an attempt delivered: the files that it listed, or the one file of its report.
    -- Parameters: p_project  the project's row;  p_cluster, p_process, p_nstart  the attempt
    -- Returns:    a row a file; one row of kind tarball, with NULLs, when nothing is known of the attempt
    SELECT coalesce(o.n, 1::smallint), coalesce(o.kind, 'tarball'), coalesce(o.url, r.output_url, osgprod._home_url(p_project, a, v.exec_version)),
           CASE WHEN o.n IS NULL THEN r.output_bytes ELSE o.bytes END,
           CASE WHEN o.n IS NULL THEN r.output_adler32 ELSE o.adler32 END,
           CASE WHEN o.n IS NULL THEN r.events ELSE o.events END
      FROM (SELECT p_project.project_id, p_cluster, p_process, p_nstart) AS k (project_id, cluster, process, nstart)
      LEFT JOIN osgprod_data.attempts a USING (project_id, cluster, process, nstart)
      LEFT JOIN (SELECT x.* FROM osgprod_data.reports x WHERE x.by_worker) r USING (project_id, cluster, process, nstart)
      LEFT JOIN osgprod_data.outputs o USING (project_id, cluster, process, nstart)
      LEFT JOIN osgprod_data.versions v ON v.version_id = a.version_id
$fn$;

CREATE FUNCTION osgprod._home_url(p_project osgprod_data.projects, p_attempt osgprod_data.attempts, p_exec_version text)
RETURNS text LANGUAGE sql STABLE
AS $fn$
    -- Where HTCondor brought the tarball of an attempt: the setting output_home with {project}, {cluster}, {process} and {start}
    -- filled in; the name that osgprod_exec.sh gives it is added when no {process} is in it. From the job's second start on
    -- that has the start's number; clients that name no version of theirs have one name for all. (One expression, so that it
    -- is inlined: a list calls it for each slice of a project.)
    -- Parameters: p_project  the project's row;  p_attempt  the attempt;  p_exec_version  of its client; NULL or empty = not known
    SELECT replace(replace(replace(replace(CASE WHEN p_project.output_home LIKE '%{process}%' THEN p_project.output_home
               ELSE rtrim(p_project.output_home, '/') || concat('/job_{cluster}_{process}', CASE WHEN p_exec_version <> ''
                    AND coalesce(p_attempt.job_start, p_attempt.nstart) > 1 THEN '.{start}' END, '.tar.gz') END,
               '{project}', p_project.name), '{cluster}', p_attempt.cluster::text), '{process}', p_attempt.process::text),
               '{start}', coalesce(p_attempt.job_start, p_attempt.nstart)::text)
$fn$;
