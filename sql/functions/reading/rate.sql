CREATE FUNCTION osgprod.rate(p_project text, p_hours int DEFAULT 24)
RETURNS TABLE (began_at timestamptz, interval_s int, blocks_done bigint, done bigint, failed bigint, node_faults bigint,
    lost bigint, superseded bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Returns the rate of a project, interval by interval, up to now.
-- Parameters: p_project  project name;  p_hours  how far back [h; 1 .. 8760]
-- Returns:    a row for each interval of interval_s [s], the empty ones as well, at most 145 in all; the last one is not
--             over yet. blocks_done: of successes; done, failed, node_faults, lost, superseded: reports
-- Errors:     OG301 unknown project; OG108 hours out of range
DECLARE
    v_project    projects := osgprod._get_project(p_project);
    v_project_id int := v_project.project_id;
    v_since      timestamptz := osgprod._since(p_hours);
    v_by_minute  boolean := p_hours <= 2;
    v_step       interval;
BEGIN
    -- Tallies hold ten minutes each. The reports of up to two hours are few enough to be counted by the minute.
    v_step := make_interval(secs => CASE WHEN v_by_minute THEN 60 ELSE 600 * ((p_hours + 23) / 24) END);
    RETURN QUERY
    WITH counted AS (
        SELECT r.began_at, r.outcome, r.reports, r.blocks FROM osgprod._recent(v_project_id, v_since) r WHERE NOT v_by_minute
        UNION ALL
        SELECT date_trunc('minute', x.reported_at), x.outcome, count(*), sum(x.nblocks)
          FROM reports x WHERE x.project_id = v_project_id AND x.reported_at >= v_since AND v_by_minute
         GROUP BY 1, 2
    ), summed AS (
        SELECT floor(extract(epoch FROM c.began_at - v_since) / extract(epoch FROM v_step))::int AS n,
               c.outcome, sum(c.reports)::bigint AS reports, sum(c.blocks)::bigint AS blocks
          FROM counted c GROUP BY 1, 2
    )
    SELECT v_since + g.n * v_step, extract(epoch FROM v_step)::int,
           coalesce(sum(s.blocks) FILTER (WHERE s.outcome = 'done'), 0)::bigint,
           coalesce(sum(s.reports) FILTER (WHERE s.outcome = 'done'), 0)::bigint,
           coalesce(sum(s.reports) FILTER (WHERE s.outcome = 'failed'), 0)::bigint,
           coalesce(sum(s.reports) FILTER (WHERE s.outcome = 'node-fault'), 0)::bigint,
           coalesce(sum(s.reports) FILTER (WHERE s.outcome = 'lost'), 0)::bigint,
           coalesce(sum(s.reports) FILTER (WHERE s.outcome = 'superseded'), 0)::bigint
      FROM generate_series(0, floor(extract(epoch FROM now() - v_since) / extract(epoch FROM v_step))::int) AS g (n)
      LEFT JOIN summed s ON s.n = g.n
     GROUP BY g.n ORDER BY g.n;
END
$fn$;

COMMENT ON FUNCTION osgprod.rate(text, int) IS
'Returns the rate of a project in the last p_hours [h]: blocks done and attempts ended in each interval. For osgprod_worker and osgprod_operator.';
