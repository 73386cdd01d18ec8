CREATE FUNCTION osgprod.estimate(p_project text, p_hours int DEFAULT 6)
RETURNS TABLE (blocks_left bigint, blocks_per_hour float8, least_per_hour float8, most_per_hour float8,
    ends_at timestamptz, ends_early_at timestamptz, ends_late_at timestamptz, intervals int,
    core_hours_left float8, merges_left bigint, merge_s float8, reason text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Estimates when a project will be done at its present rate, with the uncertainty.
-- Parameters: p_project  project name;  p_hours  how far back reports count for the rate [h; 1 .. 8760]
-- Returns:    one row. blocks_left: neither done nor quarantined; the mean rate [blocks/h], and the range that holds it with
--             95 % confidence, if intervals are alike and independent; the times that follow from these. The rate is NULL when
--             no block was done in these hours. The range is NULL, and the rate is that since the first of these attempts
--             began (in these hours), while fewer than three whole intervals have passed since the first success, or when
--             nothing was done in them; ends_late_at NULL = perhaps never; core_hours_left: blocks_left at the median time that recent attempts
--             took for a block on one core [h], NULL = not measured; merges_left: see progress; merge_s: median time of the
--             last 100 merges [s], NULL = none was done. Merges are done between slices, and so are in the rate: the times
--             count one more for the last file, and where only merges are left, as many rounds of them as the live attempts
--             need. Where merge_s is not known, they count no time for merges, and are NULL where only merges are left;
--             reason: why there is no ends_at
-- Errors:     OG301 unknown project; OG108 hours out of range
DECLARE
    v_mean  float8;
    v_error float8;
    v_step  int;
    v_merging interval;  -- what the merges add
BEGIN
    SELECT g.blocks - g.blocks_done - g.blocks_quarantined, g.merges_left INTO blocks_left, merges_left
      FROM osgprod.progress(p_project => p_project) g;
    merge_s := osgprod._merge_time((osgprod._get_project(p_project)).project_id);
    v_merging := make_interval(secs => CASE WHEN merges_left = 0 THEN 0 WHEN blocks_left > 0 THEN coalesce(merge_s, 0)
        ELSE merge_s * ceil(merges_left::float8 / greatest(osgprod._count_live((osgprod._get_project(p_project)).project_id), 1)) END);
    core_hours_left := blocks_left / 3600.0 * (SELECT c.s_per_block FROM paces c JOIN projects p USING (project_id)
                                                WHERE p.name = p_project AND c.site = '');
    -- Where the first success in these hours is younger than 100 minutes, the rate is measured by the minute.
    SELECT avg(r.blocks_done), stddev_samp(r.blocks_done) / sqrt(count(*)), count(*), min(r.interval_s)
      INTO v_mean, v_error, intervals, v_step
      FROM (SELECT x.*, sum(x.blocks_done) OVER (ORDER BY x.began_at) AS until_then,
                   row_number() OVER (ORDER BY x.began_at DESC) AS from_now
              FROM osgprod.rate(p_project => p_project, p_hours => CASE WHEN osgprod._began_at(p_project, p_hours)
                       > now() - interval '100 min' THEN least(p_hours, 2) ELSE p_hours END) x) r
     WHERE r.until_then > r.blocks_done  -- the first one was not whole, and before it nothing was done
       AND r.from_now > 1;               -- the last one is not over
    -- Student's quantile for 95 %, from its expansion in 1 / (intervals - 1): 4.17 for three intervals (exact: 4.30), 2.09 for 20.
    v_error := v_error * (SELECT 1.96 + 2.37 * x + 2.82 * x ^ 2 + 2.56 * x ^ 3 FROM (SELECT 1.0 / nullif(intervals - 1, 0)) f (x));
    IF v_mean > 0 AND intervals >= 3 THEN
        blocks_per_hour := v_mean * 3600 / v_step;
    ELSE
        blocks_per_hour := osgprod._young_rate((osgprod._get_project(p_project)).project_id, osgprod._since(p_hours));
    END IF;
    ends_at := now() + make_interval(secs => CASE WHEN blocks_left = 0 AND merges_left > 0 THEN 0
                                                  ELSE blocks_left / blocks_per_hour * 3600 END) + v_merging;
    IF v_mean > 0 AND intervals >= 3 THEN
        least_per_hour := greatest(v_mean - v_error, 0) * 3600 / v_step;
        most_per_hour := (v_mean + v_error) * 3600 / v_step;
        ends_early_at := now() + make_interval(secs => blocks_left / (v_mean + v_error) * v_step) + v_merging;
        -- More than ten years count as never.
        IF blocks_left * v_step < 315360000 * (v_mean - v_error) THEN
            ends_late_at := now() + make_interval(secs => blocks_left / (v_mean - v_error) * v_step) + v_merging;
        END IF;
    END IF;
    reason := CASE WHEN ends_at IS NOT NULL THEN NULL
                   WHEN blocks_left = 0 AND merges_left = 0 THEN 'nothing is left to be done'
                   WHEN blocks_left = 0 THEN 'only merges are left, and none has been done that shows how long one takes'
                   ELSE format('no block was done in the last %s', osgprod._counted(p_hours, 'hour')) END;
    RETURN NEXT;
END
$fn$;

COMMENT ON FUNCTION osgprod.estimate(text, int) IS
'Estimates when a project will be done at the rate of the last p_hours [h], with the range of uncertainty. For osgprod_worker and osgprod_operator.';

CREATE FUNCTION osgprod._young_rate(p_project_id int, p_since timestamptz)
RETURNS float8 LANGUAGE sql STABLE
AS $fn$
    -- The rate [blocks/h] where estimate gives no range: blocks done in the window, over the time since the
    -- first of those attempts began, or since the window did [at least 1 s]; NULL = nothing was done, or merges only.
    SELECT d.blocks * 3600 / greatest(extract(epoch FROM now() - greatest(d.first_at, p_since)), 1)::float8
      FROM (SELECT nullif(sum(r.nblocks), 0) AS blocks, min(r.reported_at - make_interval(secs => r.ran_s)) AS first_at
              FROM osgprod_data.reports r
             WHERE r.project_id = p_project_id AND r.reported_at >= p_since AND r.outcome = 'done') d
$fn$;

CREATE FUNCTION osgprod._began_at(p_project text, p_hours int)
RETURNS timestamptz LANGUAGE sql STABLE
AS $fn$
    -- Begin of the first ten minutes in the window with a success in them; NULL = there was none.
    SELECT min(r.began_at) FROM osgprod._recent((osgprod._get_project(p_project)).project_id, osgprod._since(p_hours)) r
     WHERE r.outcome = 'done'
$fn$;
