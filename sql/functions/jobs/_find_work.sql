CREATE FUNCTION osgprod._find_work(
    p_project osgprod_data.projects, p_cluster int, p_process int, p_blocks int,
    OUT is_completed boolean, OUT nstart int, OUT rawdata_id int, OUT block1 int, OUT block2 int,
    OUT opened_at timestamptz, OUT is_fresh boolean)
LANGUAGE plpgsql VOLATILE
AS $fn$
-- Finds what a job works on next: its own slice, else one that came back, else a file to cut one from.
-- Parameters: p_project  the project's row;  p_cluster, p_process  the job, locked
--             p_blocks   how many blocks the job can take [1 ..]
-- Returns:    is_completed: the job's work is done, there is nothing more for it. nstart: of the coming attempt.
--             With opened_at: the slice, which that attempt holds now. Without: a file with work in [block1, block2),
--             locked, to cut a slice from; is_fresh: the first one. No rawdata_id: nothing now
-- Errors:     OG602 job starts too often; OG603 too many live attempts
-- Locks:      see checkout_slice
DECLARE
    v_last   int := (SELECT a.nstart FROM osgprod_data.attempts a
                      WHERE a.project_id = p_project.project_id AND a.cluster = p_cluster AND a.process = p_process
                      ORDER BY a.nstart DESC LIMIT 1);
    v_due_at timestamptz := clock_timestamp() + make_interval(secs => p_project.lease_s);
    v_found  record;
BEGIN
    nstart := coalesce(v_last, 0) + 1;
    IF v_last IS NOT NULL THEN
        is_completed := osgprod._is_completed(p_project.project_id, p_cluster, p_process, v_last);
        IF is_completed THEN
            RETURN;
        END IF;
        PERFORM osgprod._check_start_rate(p_project, p_cluster, p_process, v_last);
        v_found := osgprod._take_own_slice(p_project, p_cluster, p_process, v_last);
    END IF;
    IF v_found IS NULL AND p_project.state NOT IN ('draining', 'archived') THEN
        IF p_project.nlive >= p_project.max_live THEN
            -- Counted again if it is time for that and no shim has done so.
            PERFORM osgprod._reclaim_due(p_project.project_id);
            SELECT p.nlive INTO p_project.nlive FROM osgprod_data.projects p WHERE p.project_id = p_project.project_id;
        END IF;
        IF p_project.nlive >= p_project.max_live THEN
            RAISE EXCEPTION 'project % has % live attempts of at most %', p_project.name, p_project.nlive,
                p_project.max_live USING ERRCODE = 'OG603',
                HINT = 'try again later; osgprod project set PROJECT max_live=... changes it';
        END IF;
        v_found := osgprod._take_idle_slice(p_project.project_id, p_cluster, p_process, nstart, p_blocks, v_due_at, false);
        IF v_found.rawdata_id IS NULL THEN
            SELECT f.rawdata_id, f.block1, f.block2, f.is_fresh INTO rawdata_id, block1, block2, is_fresh
              FROM osgprod._lock_file(p_project.project_id) f;
            IF rawdata_id IS NOT NULL THEN
                RETURN;
            END IF;
            -- Before saying that there is nothing: leases that ran out since anybody looked.
            IF osgprod._reclaim_due(p_project.project_id) THEN
                v_found := osgprod._take_idle_slice(p_project.project_id, p_cluster, p_process, nstart, p_blocks,
                    v_due_at, true);
            END IF;
        END IF;
    END IF;
    IF v_found IS NOT NULL THEN
        rawdata_id := v_found.rawdata_id;
        block1 := v_found.block1;
        block2 := v_found.block2;
        opened_at := v_found.opened_at;
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._take_own_slice(
    p_project osgprod_data.projects, p_cluster int, p_process int, p_nstart int,
    OUT rawdata_id int, OUT block1 int, OUT block2 int, OUT opened_at timestamptz)
LANGUAGE plpgsql VOLATILE
AS $fn$
-- Gives a restarted job the slice of its last attempt again, if no other attempt holds it by now.
-- Parameters: p_project  the project's row;  p_cluster, p_process  the job;  p_nstart  its last start; the next is coming
-- Returns:    the slice; NULLs when the job has none
-- Source:     docs/design.md I3
BEGIN
    -- Two statements: joined in one, its plan might read all slices of the project.
    SELECT a.rawdata_id, a.block1 INTO rawdata_id, block1
      FROM osgprod_data.attempts a
     WHERE a.project_id = p_project.project_id AND a.cluster = p_cluster AND a.process = p_process
       AND a.nstart = p_nstart;
    UPDATE osgprod_data.slices s
       SET nstart = p_nstart + 1, due_at = clock_timestamp() + make_interval(secs => p_project.lease_s),
           progress_at = NULL, bytes_fetched = NULL, cpu_s = NULL
     WHERE s.project_id = p_project.project_id AND s.rawdata_id = _take_own_slice.rawdata_id
       AND s.block1 = _take_own_slice.block1 AND s.state = 'leased'
       AND s.cluster = p_cluster AND s.process = p_process AND s.nstart = p_nstart
    RETURNING s.rawdata_id, s.block1, s.block2, s.opened_at INTO rawdata_id, block1, block2, opened_at;
END
$fn$;

CREATE FUNCTION osgprod._take_idle_slice(
    p_project_id int, p_cluster int, p_process int, p_nstart int, p_blocks int, p_due_at timestamptz,
    p_is_reclaimed boolean,
    OUT rawdata_id int, OUT block1 int, OUT block2 int, OUT opened_at timestamptz)
LANGUAGE plpgsql VOLATILE
AS $fn$
-- Takes the first slice that came back and is no longer held off; what is too long for the job is left as a new one.
-- Parameters: p_cluster, p_process, p_nstart  the coming attempt;  p_blocks  at most so many blocks;  p_due_at  end of lease
--             p_is_reclaimed  slices came back in this transaction: a row that is updated twice in one is checked against
--                             its foreign key, which fails while somebody splits the slice before it
-- Returns:    the slice; NULLs when none is ready, or when the first needs its file and somebody has that
-- Locks:      the slice SKIP LOCKED (its row in idle_slices belongs to who has it); the file, tried, when the slice is split
--             or p_is_reclaimed
DECLARE
    v_idle record;
BEGIN
    -- One by one: joined in one statement, its plan might read all slices of the project.
    FOR v_idle IN
        SELECT i.rawdata_id, i.block1 FROM osgprod_data.idle_slices i
         WHERE i.project_id = p_project_id AND i.not_before < 'infinity' AND i.not_before <= clock_timestamp()
         ORDER BY i.run, i.seqno, i.rawdata_id, i.block1
    LOOP
        -- I4: state is asked of the locked row; a neighbour may have taken it since the loop began.
        SELECT s.rawdata_id, s.block1, s.block2 INTO rawdata_id, block1, block2
          FROM osgprod_data.slices s
         WHERE s.project_id = p_project_id AND s.rawdata_id = v_idle.rawdata_id AND s.block1 = v_idle.block1
           AND s.state = 'ready'
           FOR NO KEY UPDATE SKIP LOCKED;
        EXIT WHEN rawdata_id IS NOT NULL;
    END LOOP;
    IF rawdata_id IS NULL THEN
        RETURN;
    END IF;
    -- Who has the file may wait for this slice, or be stuck: see _why_no_work.
    IF (p_is_reclaimed OR block2 - block1 > p_blocks) AND NOT pg_try_advisory_xact_lock(p_project_id, rawdata_id) THEN
        rawdata_id := NULL;
        RETURN;
    END IF;
    IF block2 - block1 > p_blocks THEN
        PERFORM osgprod._split_slice(p_project_id, rawdata_id, block1, block1 + p_blocks, now());
        block2 := block1 + p_blocks;
    END IF;
    DELETE FROM osgprod_data.idle_slices i
     WHERE i.project_id = p_project_id AND i.rawdata_id = _take_idle_slice.rawdata_id
       AND i.block1 = _take_idle_slice.block1;
    UPDATE osgprod_data.slices s
       SET state = 'leased', cluster = p_cluster, process = p_process, nstart = p_nstart, due_at = p_due_at,
           progress_at = NULL, bytes_fetched = NULL, cpu_s = NULL
     WHERE s.project_id = p_project_id AND s.rawdata_id = _take_idle_slice.rawdata_id
       AND s.block1 = _take_idle_slice.block1
    RETURNING s.opened_at INTO opened_at;
END
$fn$;

CREATE FUNCTION osgprod._free_file(p_project_id int)
RETURNS TABLE (rawdata_id int, block1 int, block2 int, is_fresh boolean)
LANGUAGE sql STABLE
AS $fn$
    -- Locks, until the end of the transaction, the first file in order that has something left to cut and that nobody
    -- else is cutting. (STABLE is what lets its callers inline it.)
    -- Parameters: p_project_id  project
    -- Returns:    the file with the blocks that are work, is_fresh: nothing was cut from it yet; no row when there is none such
    -- The inner LIMIT is a fence: files come in order and are locked one by one, up to the first that is free.
    SELECT f.rawdata_id, f.block1, f.block2, f.state = 'fresh'
      FROM (SELECT l.rawdata_id, l.block1, l.block2, l.state FROM osgprod_data.loaded_files l
             WHERE l.project_id = p_project_id AND l.state IN ('fresh', 'begun')
             ORDER BY l.run, l.seqno, l.rawdata_id LIMIT 64) f
     WHERE pg_try_advisory_xact_lock(p_project_id, f.rawdata_id) LIMIT 1
$fn$;

CREATE FUNCTION osgprod._lock_file(
    p_project_id int,
    OUT rawdata_id int, OUT block1 int, OUT block2 int, OUT is_fresh boolean)
LANGUAGE plpgsql VOLATILE
AS $fn$
-- Locks a file with something left to cut: one that is free, else the first of all, as soon as it is.
-- Promise:    who finds every file locked waits for the first: locked is not empty. But who holds one doesn't wait for
--             another: two that did so could wait for each other.
-- Parameters: p_project_id  project
-- Returns:    as _free_file; after a wait the file may be cut to its end. NULLs when nothing is left to cut, or when all
--             that is left is locked by others and a lock may be held already
BEGIN
    SELECT f.* INTO rawdata_id, block1, block2, is_fresh FROM osgprod._free_file(p_project_id) f;
    IF rawdata_id IS NULL AND NOT osgprod._may_hold_file() THEN
        SELECT l.rawdata_id, l.block1, l.block2, l.state = 'fresh' INTO rawdata_id, block1, block2, is_fresh
          FROM osgprod_data.loaded_files l
         WHERE l.project_id = p_project_id AND l.state IN ('fresh', 'begun')
         ORDER BY l.run, l.seqno, l.rawdata_id LIMIT 1;
        PERFORM pg_advisory_xact_lock(p_project_id, rawdata_id);
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._may_hold_file()
RETURNS boolean LANGUAGE sql VOLATILE
AS $fn$
    -- Has this transaction written anything by now? (It may do several checkouts.) Whoever has not holds no file's lock. To
    -- ask pg_locks itself would hold up everybody who takes a lock at that moment.
    SELECT pg_current_xact_id_if_assigned() IS NOT NULL
$fn$;
