CREATE FUNCTION osgprod.foretell_work(p_project text, p_runs int[] DEFAULT NULL, p_cores int DEFAULT 1)
RETURNS TABLE (slices bigint, blocks bigint, events bigint, bytes bigint, core_hours float8)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Foretells what the loaded files of a project that nobody has begun will take.
-- Parameters: p_project  project name;  p_runs  run numbers; NULL = all;  p_cores  of a job [1 .. 4096]
-- Returns:    one row. slices: of the size that a job with so many cores gets (with target_s, as measured until now); events and bytes [bytes] in the files,
--             as status has them (events NULL = of some file not known); core_hours [h]: as the last 1000 successes of the project took for as many blocks, without
--             what fails; NULL = nothing was done within a year, so the rate is not known
-- Errors:     OG301 unknown project; OG108 cores out of range
-- Source:     docs/grid.md "Submit as many jobs as there is work for"
DECLARE
    v_project  projects := osgprod._get_project(p_project);
    v_size     bigint;
    v_since    timestamptz;
    v_attempts bigint;
BEGIN
    IF p_cores NOT BETWEEN 1 AND 4096 OR p_cores IS NULL THEN
        RAISE EXCEPTION 'a job has 1 to 4096 cores, not %', coalesce(p_cores::text, 'NULL') USING ERRCODE = 'OG108',
            HINT = 'pass the cores of a job, as in the submit file';
    END IF;
    v_project.tail_blocks := NULL;  -- slices of whole files: these end the tail, if there is one
    v_size := osgprod._blocks_for(v_project, p_cores, osgprod._pace_at(v_project.project_id, NULL), NULL);
    SELECT coalesce(sum((f.block2 - f.block1 + v_size - 1) / v_size), 0), coalesce(sum(f.block2 - f.block1), 0),
           CASE WHEN count(*) = count(w.events) THEN coalesce(sum(w.events), 0) END, coalesce(sum(w.size_bytes), 0)
      INTO slices, blocks, events, bytes
      FROM loaded_files f JOIN rawdata w ON w.rawdata_id = f.rawdata_id
     WHERE f.project_id = v_project.project_id AND f.state = 'pending' AND (p_runs IS NULL OR f.run = ANY (p_runs));
    -- Of the last 1,000 successes: look back in steps, no further than needed.
    FOREACH v_since IN ARRAY osgprod._steps_back(8760) LOOP
        SELECT blocks * sum(x.core_s) / sum(x.nblocks) / 3600, count(*) INTO core_hours, v_attempts
          FROM (SELECT r.ran_s::float8 * a.cpus AS core_s, r.nblocks FROM reports r
                  JOIN attempts a ON a.project_id = r.project_id AND a.cluster = r.cluster AND a.process = r.process
                                 AND a.nstart = r.nstart
                 WHERE r.project_id = v_project.project_id AND r.reported_at >= v_since AND r.by_worker AND r.outcome = 'done'
                   AND r.nblocks > 0  -- a merge has none
                 ORDER BY r.reported_at DESC LIMIT 1000) x;
        EXIT WHEN v_attempts = 1000;
    END LOOP;
    RETURN NEXT;
END
$fn$;

COMMENT ON FUNCTION osgprod.foretell_work(text, int[], int) IS
'Foretells the work in loaded files that nobody has begun: slices, blocks, events, bytes, core hours. For osgprod_operator.';
