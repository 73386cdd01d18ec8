CREATE FUNCTION osgprod.resources(
    p_project text, p_hours int DEFAULT 168, p_by text DEFAULT 'all', p_cores int DEFAULT NULL, p_site text DEFAULT NULL)
RETURNS TABLE (site text, workscript text, digest text, attempts bigint, cpu_efficiency float8, memory_median bigint, memory_99 bigint, disk_99 bigint,
    fetched_mb_per_s float8, wall_median_s float8)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Sums up what the work of accepted attempts used, as far as the jobs measured it: of the newest 10,000 of any cores.
-- Parameters: p_project  project name;  p_hours  how far back [h; 1 .. 8760]
--             p_by       all = one row; site = a row a site; workscript = a row for each content of the work script
--             p_cores    only attempts with so many cores; NULL = all;  p_site  only at this site; NULL = all
-- Returns:    site, or name of the work script and the first 12 digits of its SHA-256 (empty = unknown); how many attempts were
--             measured; CPU time over wall time times cores [1 = all cores were busy]; median and 99th percentile of the most
--             memory [bytes], and 99th percentile of the most disk [bytes], that an attempt had in use; bytes fetched over the
--             wall time [MB/s of 1000000 bytes]; median wall time [s]. No row, or NULL: not measured
-- Errors:     OG301 unknown project; OG108 hours out of range, or another p_by
DECLARE
    v_project_id int := (osgprod._get_project(p_project)).project_id;
    v_since      timestamptz;
    v_found      reports[];
BEGIN
    IF p_by IS NULL OR p_by NOT IN ('all', 'site', 'workscript') THEN
        RAISE EXCEPTION 'resources are listed by all, site or workscript, not %', osgprod._quoted(p_by)
            USING ERRCODE = 'OG108', HINT = 'leave it out for one row';
    END IF;
    FOREACH v_since IN ARRAY osgprod._steps_back(p_hours) LOOP
        SELECT array_agg(f.r) INTO v_found FROM (
            SELECT r FROM reports r
             WHERE r.project_id = v_project_id AND r.reported_at >= v_since AND r.by_worker AND r.outcome = 'done'
               AND (p_site IS NULL OR r.site = p_site)
               AND num_nonnulls(r.memory_bytes, r.wall_s, r.cpu_s, r.fetched_bytes, r.disk_bytes) > 0
             ORDER BY r.reported_at DESC LIMIT 10000) f;
        EXIT WHEN cardinality(v_found) >= 10000;
    END LOOP;
    RETURN QUERY
    SELECT CASE p_by WHEN 'site' THEN r.site END, CASE p_by WHEN 'workscript' THEN coalesce(v.script, '') END,
           CASE p_by WHEN 'workscript' THEN left(coalesce(v.digest, ''), 12) END, count(*),
           sum(r.cpu_s) FILTER (WHERE r.wall_s > 0)::float8
               / nullif(sum(r.wall_s * a.cpus) FILTER (WHERE r.cpu_s IS NOT NULL), 0)::float8,
           percentile_disc(0.5) WITHIN GROUP (ORDER BY r.memory_bytes),
           percentile_disc(0.99) WITHIN GROUP (ORDER BY r.memory_bytes),
           percentile_disc(0.99) WITHIN GROUP (ORDER BY r.disk_bytes),
           sum(r.fetched_bytes) FILTER (WHERE r.wall_s > 0)::float8 / 1e6
               / nullif(sum(r.wall_s) FILTER (WHERE r.fetched_bytes IS NOT NULL), 0)::float8,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY r.wall_s)
      FROM unnest(v_found) r
      JOIN attempts a ON a.project_id = r.project_id AND a.cluster = r.cluster AND a.process = r.process
                     AND a.nstart = r.nstart AND a.cpus = coalesce(p_cores, a.cpus)
      LEFT JOIN versions v ON v.version_id = a.version_id
     GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3;
END
$fn$;

COMMENT ON FUNCTION osgprod.resources(text, int, text, int, text) IS
'Sums up CPU efficiency, memory, disk and fetching rate of accepted attempts, of all or by site or work script. For osgprod_worker and osgprod_operator.';
