CREATE FUNCTION osgprod.jobs_needed(p_project text, p_cores int DEFAULT 1, p_slices int DEFAULT 1)
RETURNS TABLE (jobs int, slices_left bigint, blocks_left bigint, running int, is_complete boolean, reason text,
    memory_mb int, disk_mb int, merges_ready bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Says how many more jobs a project has work for, and what to request for them.
-- Parameters: p_project  project name;  p_cores  of a job [1 .. 4096]
--             p_slices   that a job processes one after the other [1 .. 100000], as in the submit file
-- Returns:    one row. jobs: beside those that run now; 0 too while the project is paused or draining, and no more than
--             max_live has room for; 1 where a job has to try whether work goes on: while the project has paused itself, or
--             when all that is left is in suspended files. slices_left: of the size that a job with so many cores gets, from
--             ready slices and unallocated blocks, also of files that are suspended or on tape; blocks_left in them;
--             running: live attempts, backups included; is_complete: every block is done or quarantined, nothing runs, and
--             no merge is left: one that failed or waits is;
--             reason: why jobs is 0, or less than slices_left and merges_ready would give; memory_mb, disk_mb: what 99 of 100
--             measured attempts with so many cores had in use, and a tenth more [MB of 1048576 bytes], see resources (of a week);
--             NULL = fewer than 20 were measured, or none of them so; merges_ready: those in a backoff included
-- Errors:     OG301 unknown project; OG108 cores or slices out of range
-- Source:     docs/grid.md "Submit as many jobs as there is work for"
DECLARE
    v_project projects := osgprod._get_project(p_project);
    v_blocks  bigint;
    v_slices  bigint;  -- that are assigned to jobs that ask, now or after a backoff
    v_used    record;
    v_fault   text;  -- why merges are not assigned
BEGIN
    IF p_cores NOT BETWEEN 1 AND 4096 OR p_cores IS NULL OR p_slices NOT BETWEEN 1 AND 100000 OR p_slices IS NULL THEN
        RAISE EXCEPTION 'a job has 1 to 4096 cores and 1 to 100000 slices, not % and %', p_cores, p_slices
            USING ERRCODE = 'OG108', HINT = 'like osgprod jobs needed PROJECT --cores 4 --slices 10';
    END IF;
    v_blocks := osgprod._blocks_for(v_project, p_cores, osgprod._pace_at(v_project.project_id, NULL), NULL);
    SELECT coalesce(sum(x.n), 0), coalesce(sum((x.n + v_blocks - 1) / v_blocks), 0),
           coalesce(sum((x.n + v_blocks - 1) / v_blocks) FILTER (WHERE x.is_assignable), 0)
      INTO blocks_left, slices_left, v_slices
      FROM (SELECT f.block2 - coalesce((SELECT s.block2 FROM slices s
                    WHERE s.project_id = f.project_id AND s.rawdata_id = f.rawdata_id
                    ORDER BY s.block1 DESC LIMIT 1), f.block1) AS n, f.is_open AS is_assignable
              FROM loaded_files f
             WHERE f.project_id = v_project.project_id AND f.state IN ('pending', 'in_progress')
            UNION ALL
            SELECT s.block2 - s.block1, f.suspended_at IS NULL AND NOT f.on_tape
              FROM (  -- two conditions, so that the partial indexes serve
                SELECT r.* FROM slices r WHERE r.project_id = v_project.project_id AND r.is_ready
                UNION ALL
                SELECT r.* FROM slices r WHERE r.project_id = v_project.project_id AND r.is_ready IS FALSE AND r.not_before IS NOT NULL) s
              JOIN loaded_files f ON f.project_id = s.project_id AND f.rawdata_id = s.rawdata_id) x;
    running := osgprod._count_live(v_project.project_id);
    SELECT count(*) INTO merges_ready FROM merges m
     WHERE m.project_id = v_project.project_id AND m.is_ready IS NOT NULL AND m.not_before IS NOT NULL
       AND v_project.merge_by <> 'none';
    is_complete := slices_left = 0 AND running = 0 AND osgprod._merges_left(v_project) = 0;
    v_fault := osgprod._why_no_merges(v_project);
    jobs := least((v_slices + CASE WHEN v_fault IS NULL THEN merges_ready ELSE 0 END + p_slices - 1) / p_slices, 2147483647);
    reason := CASE WHEN v_project.pause_cause IS NOT NULL AND NOT is_complete
                   THEN format('project %s has paused itself, and one job at a time tries again', p_project)
                   WHEN v_project.state <> 'active' THEN format('project %s is %s', p_project, v_project.state)
                   WHEN is_complete THEN format('no work is left in project %s', p_project)
                   WHEN jobs = 0 AND v_fault IS NOT NULL THEN 'merges are not assigned: ' || v_fault
                   WHEN jobs = 0 AND slices_left > 0 AND v_project.nsuspended > 0
                   THEN 'all that is left is in suspended files, and one job at a time tries again'
                   WHEN jobs = 0 AND slices_left > 0 THEN 'all that is left is on tape'
                   WHEN jobs = 0 AND running = 0 THEN osgprod._why_no_merge_is_ready(v_project)
                   WHEN jobs = 0 THEN format('all remaining work of project %s is leased', p_project)
                   WHEN jobs > v_project.max_live - running THEN format('max_live is %s', v_project.max_live) END;
    jobs := CASE WHEN v_project.pause_cause IS NOT NULL AND NOT is_complete
                      OR jobs = 0 AND slices_left > 0 AND v_project.nsuspended > 0 AND v_project.state = 'active' THEN 1
                 WHEN v_project.state <> 'active' THEN 0
                 ELSE greatest(least(jobs, coalesce(v_project.max_live - running, jobs)), 0) END;
    SELECT u.attempts, u.memory_99, u.disk_99 INTO v_used FROM osgprod.resources(p_project, 168, 'all', p_cores) u;
    IF v_used.attempts >= 20 THEN
        memory_mb := CASE WHEN v_used.memory_99 IS NOT NULL THEN least(ceil(1.1 * v_used.memory_99 / 1048576), 2147483647) END;
        disk_mb := CASE WHEN v_used.disk_99 IS NOT NULL THEN least(ceil(1.1 * v_used.disk_99 / 1048576), 2147483647) END;
    END IF;
    RETURN NEXT;
END
$fn$;

COMMENT ON FUNCTION osgprod.jobs_needed(text, int, int) IS
'Says how many more jobs a project has work for, given cores and slices of a job, and what memory and disk they need. For osgprod_operator.';

CREATE FUNCTION osgprod._why_no_merge_is_ready(p_project osgprod_data.projects)
RETURNS text LANGUAGE sql STABLE
AS $fn$
    -- Says why no merge can be assigned of a project that has nothing left but merges.
    -- Parameters: p_project  the project's row
    SELECT coalesce(nullif(concat_ws('; ',
               CASE WHEN m.failed > 0 THEN format('%s failed: osgprod merges list %s --state failed',
                    osgprod._counted(m.failed, 'merge'), p_project.name) END,
               CASE WHEN m.waiting > 0 THEN format('%s for quarantined blocks: osgprod quarantined %s',
                    osgprod._counted(m.waiting, 'merge waits', 'merges wait'), p_project.name) END), ''),
               'the merges that are left become ready at the next tick')
      FROM (SELECT count(*) FILTER (WHERE x.state = 'failed') AS failed,
                   count(*) FILTER (WHERE x.state = 'waiting' AND EXISTS (
                       SELECT FROM osgprod_data.slices s
                        WHERE s.project_id = x.project_id AND s.is_ready IS FALSE AND s.not_before IS NULL AND s.run = x.run
                          AND s.seqno = coalesce(x.seqno, s.seqno))) AS waiting
              FROM osgprod_data.merges x
             WHERE x.project_id = p_project.project_id AND x.state IN ('failed', 'waiting')) m
$fn$;
