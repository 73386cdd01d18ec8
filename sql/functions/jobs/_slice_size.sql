CREATE FUNCTION osgprod._slice_size(
    p_project osgprod_data.projects, p_cpus bigint, p_site text, p_time_left_s bigint,
    OUT blocks bigint, OUT limited_by text, OUT site text, OUT attempts int, OUT s_per_block float8,
    OUT slow_s_per_block float8, OUT most_per_core float8)
LANGUAGE plpgsql STABLE
AS $fn$
-- Says how many blocks a slice for a job may have, by the time that recent attempts took.
-- Promise:    between 1 and cpus * maxblockspercore, or 0 when not even one block fits into the time that the job has.
--             Without a measured time a project with target_s assigns one block a core, as a probe; then slices grow up to
--             4 times the largest one that has succeeded lately. A time that a job has left is kept with a margin: the slow
--             attempts count, and a fifth of the time stays free.
-- Parameters: p_project  the project's row;  p_cpus  cores of the job [1 .. 4096];  p_site  its site, as it says; NULL = none
--             p_time_left_s  until the job must end [s]; below 1 = it must end now; NULL = not known
-- Returns:    blocks; limited_by: maxblockspercore, probe, target_s, growth or time_left_s; the others: see table paces, of
--             this site, or of all sites while this one has few attempts; NULLs = nothing was measured
-- Source:     docs/grid.md "Let the server size the slices"
DECLARE
    v_most   bigint := p_cpus * p_project.maxblockspercore;
    v_target float8;
BEGIN
    SELECT p.site, p.attempts, p.s_per_block, p.slow_s_per_block, p.most_per_core
      INTO site, attempts, s_per_block, slow_s_per_block, most_per_core
      FROM osgprod_data.paces p
     WHERE p.project_id = p_project.project_id
       AND (p.site = '' OR p.site = osgprod._label(p_site) AND p.attempts >= 10)
     ORDER BY p.site DESC LIMIT 1;
    blocks := v_most;
    limited_by := 'maxblockspercore';
    IF p_project.target_s IS NOT NULL THEN
        v_target := greatest(floor(p_project.target_s * p_cpus / s_per_block), 1);
        IF s_per_block IS NULL THEN
            v_target := p_cpus;
            limited_by := 'probe';
        ELSIF v_target > 4 * most_per_core * p_cpus THEN
            v_target := greatest(floor(4 * most_per_core * p_cpus), 1);
            limited_by := 'growth';
        ELSE
            limited_by := 'target_s';
        END IF;
        IF v_target < v_most THEN
            blocks := v_target;
        ELSE
            limited_by := 'maxblockspercore';
        END IF;
    END IF;
    IF p_time_left_s < 1 THEN
        blocks := 0;
        limited_by := 'time_left_s';
    ELSIF floor(0.8 * p_time_left_s * p_cpus / slow_s_per_block) < blocks THEN
        blocks := floor(0.8 * p_time_left_s * p_cpus / slow_s_per_block);
        limited_by := 'time_left_s';
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._no_time(p_project osgprod_data.projects, p_call osgprod.checkout_call)
RETURNS osgprod.checkout_answer LANGUAGE plpgsql STABLE
AS $fn$
-- The answer to a job that ends before it could have processed one block.
-- Parameters: p_project  the project's row;  p_call  the call
-- Returns:    status no-time
BEGIN
    RETURN osgprod._unassigned(ARRAY[NULL, format('the job ends in %s s, and %s', greatest(p_call.time_left_s, 0),
        coalesce('a block takes up to ' || ceil((osgprod._slice_size(p_project, p_call.cpus, p_call.site,
            p_call.time_left_s)).slow_s_per_block / p_call.cpus) || ' s', 'no block is so short'))], 'no-time', 0);
END
$fn$;

CREATE FUNCTION osgprod._shrink_slice(
    p_project osgprod_data.projects, p_call osgprod.checkout_call, p_last osgprod_data.attempts, p_may_wait boolean)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Shortens the slice of a restarted job that was evicted from it three times, or that has less time left than it needs: the
-- end of the slice becomes another slice, ready for another job, and nothing counts as a failure. With time for not
-- even one block the whole slice is requeued. A slice with a backup attempt stays whole: the backup would be in vain.
-- Parameters: p_project  the project's row;  p_call  the call, whose job is locked;  p_last  the job's last attempt
--             p_may_wait  for the file; when another session has it and this is false, the slice stays as it is
-- Locks:      the slice, then the file's row
-- Source:     docs/design.md I2, I3
DECLARE
    v_slice  osgprod_data.slices;
    v_blocks bigint;
BEGIN
    SELECT s.* INTO v_slice FROM osgprod_data.slices s
     WHERE s.project_id = p_last.project_id AND s.rawdata_id = p_last.rawdata_id AND s.block1 = p_last.block1
       AND s.state = 'leased' AND s.cluster = p_last.cluster AND s.process = p_last.process AND s.nstart = p_last.nstart
       FOR NO KEY UPDATE;
    IF NOT FOUND OR EXISTS (SELECT FROM osgprod_data.backups b
                             WHERE b.project_id = p_last.project_id AND b.rawdata_id = p_last.rawdata_id
                               AND b.block1 = p_last.block1 AND b.nstart IS NOT NULL) THEN
        RETURN;
    END IF;
    v_blocks := v_slice.block2 - v_slice.block1;
    IF v_blocks > 1 AND 3 <= (
        -- A start that ended at once was no eviction: an answer was lost, or the node is bad.
        SELECT count(*) FROM (
            SELECT e.opened_at, lead(e.started_at, 1, clock_timestamp()) OVER (ORDER BY e.nstart) - e.started_at AS ran
              FROM (SELECT a.nstart, a.opened_at, a.started_at FROM osgprod_data.attempts a
                     WHERE a.project_id = p_last.project_id AND a.cluster = p_last.cluster AND a.process = p_last.process
                       AND osgprod._is_of_job(a, p_call) ORDER BY a.nstart DESC LIMIT 20) e) x
         WHERE x.opened_at = v_slice.opened_at AND x.ran >= make_interval(secs => p_project.fast_failure_s))
    THEN
        v_blocks := (v_blocks + 1) / 2;
    END IF;
    IF p_call.time_left_s IS NOT NULL THEN
        p_project.target_s := NULL;  -- the slice is there: it only has to fit into the time that the job has
        v_blocks := least(v_blocks, (osgprod._slice_size(p_project, p_call.cpus, p_call.site, p_call.time_left_s)).blocks);
    END IF;
    IF v_blocks = v_slice.block2 - v_slice.block1
        OR v_blocks > 0 AND NOT osgprod._lock_file(v_slice.project_id, v_slice.rawdata_id, p_may_wait) THEN
        RETURN;
    END IF;
    UPDATE osgprod_data.slices s
       SET state = 'ready', is_ready = osgprod._may_be_assigned(s.project_id, s.rawdata_id), not_before = now()
     WHERE s.project_id = v_slice.project_id AND s.rawdata_id = v_slice.rawdata_id AND s.block1 = v_slice.block1;
    IF v_blocks > 0 THEN
        PERFORM osgprod._split_slice(v_slice.project_id, v_slice.rawdata_id, v_slice.block1,
            v_slice.block1 + v_blocks::int);
        UPDATE osgprod_data.slices s SET state = 'leased', is_ready = NULL, not_before = NULL
         WHERE s.project_id = v_slice.project_id AND s.rawdata_id = v_slice.rawdata_id AND s.block1 = v_slice.block1;
    END IF;
END
$fn$;
