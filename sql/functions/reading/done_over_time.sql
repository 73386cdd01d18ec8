CREATE FUNCTION osgprod.done_over_time(p_project text, p_points int DEFAULT 200)
RETURNS TABLE (at timestamptz, blocks_done bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Returns how many blocks were done at each time since the first attempt ended.
-- Parameters: p_project  project name;  p_points  rows at most [2 .. 10000]
-- Returns:    rows in order of time, at equal distances but for the last: multiples of a minute for a production younger than
--             100 minutes, else of ten minutes; the last row is now, and has what progress says. Where blocks were processed
--             again, the rows before are smaller in the same proportion. Blocks that were done elsewhere (imported) are in every
--             row. No row: no attempt has ended
-- Errors:     OG301 unknown project; OG108 points out of range
DECLARE
    v_project projects := osgprod._get_project(p_project);
    v_begin   timestamptz;
    v_step    interval;
    v_done    bigint;
BEGIN
    IF p_points NOT BETWEEN 2 AND 10000 OR p_points IS NULL THEN
        RAISE EXCEPTION 'points must be a number from 2 to 10000, not %', coalesce(p_points::text, 'nothing')
            USING ERRCODE = 'OG108', HINT = 'a plot needs no more than its width in pixels';
    END IF;
    SELECT g.blocks_done INTO v_done FROM osgprod.progress(p_project => p_project) g;
    SELECT coalesce((SELECT min(t.began_at) FROM tallies t WHERE t.project_id = v_project.project_id),
                    osgprod._ten_minutes(min(r.reported_at))) INTO v_begin
      FROM reports r WHERE r.project_id = v_project.project_id AND r.reported_at >= v_project.tallied_until;
    IF v_begin IS NULL THEN
        RETURN;
    END IF;
    v_step := make_interval(secs => CASE WHEN v_begin > now() - interval '100 min'
        THEN 60 * ceil(extract(epoch FROM now() - v_begin) / 60 / (p_points - 1))
        ELSE 600 * ceil(extract(epoch FROM now() - v_begin) / 600 / (p_points - 1)) END::float8);
    v_step := greatest(v_step, interval '1 min');
    RETURN QUERY
    WITH counted AS (
        SELECT r.began_at AS counted_at, r.blocks FROM osgprod._recent(v_project.project_id, '-infinity') r
         WHERE r.outcome = 'done' AND v_step >= interval '10 min'
        UNION ALL
        SELECT x.reported_at, x.nblocks::bigint FROM reports x
         WHERE x.project_id = v_project.project_id AND x.reported_at >= v_begin AND x.outcome = 'done'
           AND v_step < interval '10 min'
    ), summed AS (
        -- 0 is the begin itself; blocks done in the first step are in row 1.
        SELECT 1 + floor(extract(epoch FROM c.counted_at - v_begin) / extract(epoch FROM v_step))::int AS n,
               sum(c.blocks) AS blocks
          FROM counted c GROUP BY 1
    ), grown AS (
        SELECT g.n, sum(coalesce(s.blocks, 0)) OVER (ORDER BY g.n) AS blocks
          FROM generate_series(0, ceil(extract(epoch FROM now() - v_begin) / extract(epoch FROM v_step))::int) AS g (n)
          LEFT JOIN summed s ON s.n = g.n
    ), whole AS (
        SELECT greatest(v_done - max(w.blocks), 0) AS elsewhere, least(v_done / nullif(max(w.blocks), 0), 1) AS share FROM grown w
    )
    SELECT least(v_begin + g.n * v_step, now()), floor(w.elsewhere + g.blocks * coalesce(w.share, 0))::bigint
      FROM grown g CROSS JOIN whole w ORDER BY g.n;
END
$fn$;

COMMENT ON FUNCTION osgprod.done_over_time(text, int) IS
'Returns how many blocks were done at each time since a production began. For osgprod_worker and osgprod_operator.';
