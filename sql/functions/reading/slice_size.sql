CREATE FUNCTION osgprod.slice_size(
    p_project     text,
    p_cpus        int    DEFAULT 1,
    p_site        text   DEFAULT NULL,
    p_time_left_s bigint DEFAULT NULL)
RETURNS TABLE (blocks bigint, limited_by text, expected_s float8, measured_at_site text, attempts int, s_per_block float8,
    slow_s_per_block float8, why text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Says how large a slice a job would get now, and why. (It may be smaller at the end of a file, in the tail with shrink_tail,
-- when it is requeued, and while a project that paused itself tries again.)
-- Parameters: p_project  project name;  p_cpus  cores of the job [1 .. 4096];  p_site  its site; NULL = none is named
--             p_time_left_s  until the job must end [s]; NULL = not known
-- Returns:    one row: blocks (0 = the job would get nothing, since not even one fits into its time); limited_by:
--             maxblockspercore, probe, target_s, growth or time_left_s; expected_s: what these blocks take on so many cores
--             [s]; where that was measured (empty = all sites) and in how many attempts; the median time for a block
--             on one core and that of slow attempts [s]; why in words. NULL = nothing was measured
-- Errors:     OG301 unknown project; OG104 cpus
DECLARE
    v_project projects := osgprod._get_project(p_project);
    v_pace    osgprod.pace;
BEGIN
    IF p_cpus NOT BETWEEN 1 AND 4096 OR p_cpus IS NULL THEN
        RAISE EXCEPTION 'cores must be a number from 1 to 4096, not %', coalesce(p_cpus::text, 'nothing')
            USING ERRCODE = 'OG104', HINT = 'pass the cores that a job has';
    END IF;
    v_project.tail_blocks := NULL;
    v_pace := osgprod._pace_at(v_project.project_id, p_site);
    blocks := osgprod._blocks_for(v_project, p_cpus, v_pace, p_time_left_s);
    limited_by := CASE
        WHEN p_time_left_s < 1 OR blocks < osgprod._blocks_for(v_project, p_cpus, v_pace, NULL) THEN 'time_left_s'
        WHEN v_project.target_s IS NULL OR blocks = p_cpus * v_project.maxblockspercore THEN 'maxblockspercore'
        WHEN v_pace.s_per_block IS NULL THEN 'probe'
        WHEN blocks < floor(v_project.target_s * p_cpus / v_pace.s_per_block) THEN 'growth'
        ELSE 'target_s' END;
    expected_s := blocks * v_pace.s_per_block / p_cpus;
    measured_at_site := v_pace.site;
    attempts := v_pace.attempts;
    s_per_block := v_pace.s_per_block;
    slow_s_per_block := v_pace.slow_s_per_block;
    why := CASE limited_by
        WHEN 'probe' THEN 'no attempt has been measured yet: one block a core, as a probe'
        WHEN 'growth' THEN format('target_s = %s s allows more, but slices grow 4 times a step at most: the largest recent'
            ' success had %s a core', v_project.target_s, osgprod._counted(v_pace.most_per_core::numeric, 'block'))
        WHEN 'target_s' THEN format('what a job does in target_s = %s s', v_project.target_s)
        WHEN 'time_left_s' THEN format('what fits into %s s with a margin', greatest(p_time_left_s, 0))
        ELSE format('maxblockspercore = %s', v_project.maxblockspercore) END;
    RETURN NEXT;
END
$fn$;

COMMENT ON FUNCTION osgprod.slice_size(text, int, text, bigint) IS
'Says how large a slice a job with so many cores at a site would get now, and why. For osgprod_worker and osgprod_operator.';
