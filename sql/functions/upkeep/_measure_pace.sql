CREATE FUNCTION osgprod._measure_pace(p_project osgprod_data.projects)
RETURNS void LANGUAGE plpgsql VOLATILE
-- The reports of a short time are read, and their attempts by key, whatever the planner's statistics are.
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $fn$
-- Measures how long accepted attempts take for a block, by site, from the reports that came since it last did; the first time
-- from those of an hour.
-- Promise:    a look twice a minute at most, which reads the reports and attempts of that time; checkouts read the result by key.
--             It restarts when the project has another work script, or its jobs get one with another content. A few attempts that
--             hung or ended at once, or clocks that jumped, don't move a median. A project has rows for up to 200 sites: jobs
--             choose their names.
-- Parameters: p_project  the project's row
-- Locks:      the project's row, shared and SKIP LOCKED (a foreign key would wait for it); rows of pace_looks and paces, which
--             only a tick writes: there is one at a time
DECLARE
    v_look osgprod_data.pace_looks;
    v_now  timestamptz := clock_timestamp();  -- before the snapshot
    v_digest text;  -- of the work script that the newest attempt got
BEGIN
    PERFORM FROM osgprod_data.projects p WHERE p.project_id = p_project.project_id FOR KEY SHARE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT l.* INTO v_look FROM osgprod_data.pace_looks l WHERE l.project_id = p_project.project_id;
    IF NOT FOUND THEN
        v_look := ROW(p_project.project_id, p_project.workscript, '-infinity', v_now - interval '1 hour', NULL);
        INSERT INTO osgprod_data.pace_looks VALUES (v_look.*);
    ELSIF v_look.workscript <> p_project.workscript THEN
        DELETE FROM osgprod_data.paces p WHERE p.project_id = p_project.project_id;
        UPDATE osgprod_data.pace_looks l SET workscript = p_project.workscript, digest = NULL, since = v_now, looked_at = v_now
         WHERE l.project_id = p_project.project_id;
        RETURN;
    ELSIF v_look.looked_at BETWEEN v_now - interval '30 s' AND v_now THEN
        RETURN;
    END IF;
    -- (A time that is to come was noted by a wrong clock.)
    v_look.looked_at := CASE WHEN v_look.looked_at > v_now THEN v_now - interval '10 min' ELSE v_look.looked_at END;
    SELECT v.digest INTO v_digest FROM osgprod_data.attempts a JOIN osgprod_data.versions v ON v.version_id = a.version_id
     WHERE a.project_id = p_project.project_id AND a.started_at >= v_look.looked_at AND a.merge_id IS NULL
       AND v.script = p_project.workscript AND v.digest ~ '^[0-9a-f]{64}$'
     ORDER BY a.started_at DESC LIMIT 1;
    IF v_digest <> v_look.digest THEN
        DELETE FROM osgprod_data.paces p WHERE p.project_id = p_project.project_id;
    END IF;
    v_look.digest := coalesce(v_digest, v_look.digest);
    UPDATE osgprod_data.pace_looks l SET looked_at = v_now, digest = v_look.digest WHERE l.project_id = p_project.project_id;
    WITH measured AS (
        SELECT r.site, r.reported_at, greatest(r.ran_s, 0.5::float8) * a.cpus / r.nblocks AS rate,
               r.nblocks::float8 / a.cpus AS size
          FROM osgprod_data.reports r
          JOIN osgprod_data.attempts a ON a.project_id = r.project_id AND a.cluster = r.cluster AND a.process = r.process
                                      AND a.nstart = r.nstart
          LEFT JOIN osgprod_data.versions v ON v.version_id = a.version_id
         WHERE r.project_id = p_project.project_id AND r.reported_at >= v_look.looked_at AND r.reported_at < v_now
           AND r.by_worker AND r.outcome = 'done' AND r.nblocks > 0 AND a.started_at >= v_look.since
           AND coalesce(v.digest, '') IN ('', coalesce(v_look.digest, v.digest))  -- not of a former content
         ORDER BY r.reported_at DESC LIMIT 10000
    ), recent AS (
        SELECT u.site, (array_agg(u.rate ORDER BY u.reported_at DESC))[:50] AS rates,
               (array_agg(u.size ORDER BY u.reported_at DESC))[:50] AS sizes
          FROM (SELECT m.site, m.reported_at, m.rate, m.size FROM measured m WHERE m.site IS NOT NULL
                UNION ALL SELECT '', m.reported_at, m.rate, m.size FROM measured m) u
         GROUP BY u.site
    ), joined AS (
        SELECT n.site, (n.rates || o.rates)[:50] AS rates, (n.sizes || o.sizes)[:50] AS sizes
          FROM recent n
          LEFT JOIN osgprod_data.paces o ON o.project_id = p_project.project_id AND o.site = n.site
         WHERE n.site = '' OR o.site IS NOT NULL
        UNION ALL
        (SELECT n.site, n.rates, n.sizes FROM recent n
          WHERE n.site <> '' AND NOT EXISTS (SELECT FROM osgprod_data.paces o
                                              WHERE o.project_id = p_project.project_id AND o.site = n.site)
          ORDER BY n.site
          LIMIT greatest(200 - (SELECT count(*) FROM osgprod_data.paces o
                                 WHERE o.project_id = p_project.project_id AND o.site <> ''), 0))
    )
    INSERT INTO osgprod_data.paces AS p (project_id, site, rates, sizes, attempts, s_per_block, slow_s_per_block, most_per_core)
    SELECT p_project.project_id, b.site, b.rates, b.sizes, cardinality(b.rates), x.median, greatest(x.slow, x.median), x.most
      FROM joined b
     CROSS JOIN LATERAL (
         SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY u.rate) AS median,
                percentile_cont(0.9) WITHIN GROUP (ORDER BY u.rate) AS slow, max(u.size) AS most
           FROM unnest(b.rates, b.sizes) AS u (rate, size)) x
    ON CONFLICT ON CONSTRAINT paces_pkey DO UPDATE
       SET rates = excluded.rates, sizes = excluded.sizes, attempts = excluded.attempts, s_per_block = excluded.s_per_block,
           slow_s_per_block = excluded.slow_s_per_block, most_per_core = excluded.most_per_core;
END
$fn$;
