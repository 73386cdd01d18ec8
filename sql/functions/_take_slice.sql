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
    UPDATE osgprod_data.slices s
       SET nstart = p_nstart + 1, due_at = clock_timestamp() + make_interval(secs => p_project.lease_s),
           progress_at = NULL, bytes_fetched = NULL, cpu_s = NULL
      FROM osgprod_data.attempts a
     WHERE a.project_id = p_project.project_id AND a.cluster = p_cluster AND a.process = p_process
       AND a.nstart = p_nstart
       AND s.project_id = a.project_id AND s.rawdata_id = a.rawdata_id AND s.block1 = a.block1 AND s.state = 'leased'
       AND s.cluster = p_cluster AND s.process = p_process AND s.nstart = p_nstart
    RETURNING s.rawdata_id, s.block1, s.block2, s.opened_at INTO rawdata_id, block1, block2, opened_at;
END
$fn$;

CREATE FUNCTION osgprod._take_slice(
    p_project osgprod_data.projects, p_cluster int, p_process int, p_nstart int, p_blocks int,
    OUT rawdata_id int, OUT block1 int, OUT block2 int, OUT opened_at timestamptz)
LANGUAGE plpgsql VOLATILE
AS $fn$
-- Makes the job's coming attempt the holder of a slice that came back, or of a new one.
-- Parameters: p_project  the project's row;  p_cluster, p_process, p_nstart  the coming attempt
--             p_blocks   how many blocks the job can take [1 ..]
-- Returns:    the slice; NULLs when there is none now
-- Errors:     OG603 too many live attempts
-- Locks:      see checkout_slice. Who may hold the lock of a file by now does not wait for that of another.
DECLARE
    v_due_at timestamptz := clock_timestamp() + make_interval(secs => p_project.lease_s);
    v_slice  record;
BEGIN
    IF p_project.state = 'draining' THEN
        RETURN;
    END IF;
    IF p_project.nlive >= p_project.max_live THEN
        RAISE EXCEPTION 'project % has % live attempts of at most %', p_project.name, p_project.nlive, p_project.max_live
            USING ERRCODE = 'OG603', HINT = 'try again later; osgprod project set PROJECT max_live=... changes it';
    END IF;
    v_slice := osgprod._take_idle_slice(p_project.project_id, p_cluster, p_process, p_nstart, p_blocks, v_due_at, true);
    IF v_slice.rawdata_id IS NULL THEN
        v_slice := osgprod._cut_slice(p_project.project_id, p_cluster, p_process, p_nstart, p_blocks, v_due_at);
    END IF;
    -- Before saying that there is nothing: leases that ran out since anybody looked.
    IF v_slice.rawdata_id IS NULL AND osgprod._reclaim_due(p_project.project_id) THEN
        v_slice := osgprod._take_idle_slice(p_project.project_id, p_cluster, p_process, p_nstart, p_blocks, v_due_at,
            false);
    END IF;
    rawdata_id := v_slice.rawdata_id;
    block1 := v_slice.block1;
    block2 := v_slice.block2;
    opened_at := v_slice.opened_at;
END
$fn$;

CREATE FUNCTION osgprod._take_idle_slice(
    p_project_id int, p_cluster int, p_process int, p_nstart int, p_blocks int, p_due_at timestamptz, p_may_wait boolean,
    OUT rawdata_id int, OUT block1 int, OUT block2 int, OUT opened_at timestamptz)
LANGUAGE plpgsql VOLATILE
AS $fn$
-- Takes the first slice that came back and is no longer held off; what is too long for the job is left as a new one.
-- Parameters: p_cluster, p_process, p_nstart  the coming attempt;  p_blocks  at most so many blocks;  p_due_at  end of lease
--             p_may_wait  for the lock of a file
-- Returns:    the slice; NULLs when none is ready
-- Locks:      the slice SKIP LOCKED (its row in idle_slices belongs to who has it); the file when the slice is split
BEGIN
    IF NOT EXISTS (SELECT FROM osgprod_data.idle_slices i
                    WHERE i.project_id = p_project_id AND i.not_before <= clock_timestamp()) THEN
        RETURN;  -- the common case, at a third of the price
    END IF;
    -- I4: state is asked again of the locked row; a neighbour may have taken it since this statement began.
    SELECT s.rawdata_id, s.block1, s.block2 INTO rawdata_id, block1, block2
      FROM osgprod_data.idle_slices i
      JOIN osgprod_data.slices s
        ON s.project_id = i.project_id AND s.rawdata_id = i.rawdata_id AND s.block1 = i.block1
     WHERE i.project_id = p_project_id AND i.not_before < 'infinity' AND i.not_before <= clock_timestamp()
       AND s.state = 'ready'
     ORDER BY i.run, i.seqno, i.rawdata_id, i.block1
     LIMIT 1 FOR NO KEY UPDATE OF s SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF block2 - block1 > p_blocks THEN
        IF NOT p_may_wait AND NOT pg_try_advisory_xact_lock(p_project_id, rawdata_id) THEN
            rawdata_id := NULL;
            RETURN;
        END IF;
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

CREATE FUNCTION osgprod._cut_slice(
    p_project_id int, p_cluster int, p_process int, p_nstart int, p_blocks int, p_due_at timestamptz,
    OUT rawdata_id int, OUT block1 int, OUT block2 int, OUT opened_at timestamptz)
LANGUAGE plpgsql VOLATILE
AS $fn$
-- Cuts the next slice from the first file, in order, that has something left and isn't being cut by a neighbour.
-- Promise:    appends; the rows that the next cut reads are not updated, so a snapshot held by pg_dump slows nothing.
--             Who finds every file locked waits for the first: locked is not empty.
-- Parameters: as _take_idle_slice
-- Returns:    the slice; NULLs when nothing is left to cut, or when all that is left is locked by neighbours at this
--             moment and a lock is held already (the caller is then told to wait)
-- Locks:      the file (advisory: project_id, rawdata_id)
-- Source:     docs/design.md I1, I2; docs/performance.md for why there is no row "what remains"
DECLARE
    v_file  record;
    v_stale boolean := false;
BEGIN
    LOOP
        -- The inner LIMIT is a fence: files come in order and are locked one by one, up to the first that is free.
        SELECT f.* INTO v_file FROM (
            SELECT l.rawdata_id, l.block1, l.block2, l.state FROM osgprod_data.loaded_files l
             WHERE l.project_id = p_project_id AND l.state IN ('fresh', 'begun')
             ORDER BY l.run, l.seqno, l.rawdata_id LIMIT 64) f
         WHERE pg_try_advisory_xact_lock(p_project_id, f.rawdata_id) LIMIT 1;
        IF NOT FOUND THEN
            SELECT l.rawdata_id, l.block1, l.block2, l.state INTO v_file FROM osgprod_data.loaded_files l
             WHERE l.project_id = p_project_id AND l.state IN ('fresh', 'begun')
             ORDER BY l.run, l.seqno, l.rawdata_id LIMIT 1;
            -- A second wait with a lock in hand could be a deadlock.
            IF NOT FOUND OR v_stale THEN
                RETURN;
            END IF;
            PERFORM pg_advisory_xact_lock(p_project_id, v_file.rawdata_id);
        END IF;

        -- I1: the new slice begins where the file's last one ends, read under its lock and after it was taken.
        INSERT INTO osgprod_data.slices AS s (project_id, rawdata_id, block1, block2, follows, cluster, process, nstart,
               opened_at, due_at)
        SELECT p_project_id, v_file.rawdata_id, coalesce(e.block2, v_file.block1),
               least(coalesce(e.block2, v_file.block1)::bigint + p_blocks, v_file.block2), e.block2,
               p_cluster, p_process, p_nstart, clock_timestamp(), p_due_at
          FROM (SELECT (SELECT l.block2 FROM osgprod_data.slices l
                         WHERE l.project_id = p_project_id AND l.rawdata_id = v_file.rawdata_id
                         ORDER BY l.block1 DESC LIMIT 1) AS block2) e
         WHERE coalesce(e.block2, v_file.block1) < v_file.block2
        RETURNING s.rawdata_id, s.block1, s.block2, s.opened_at INTO rawdata_id, block1, block2, opened_at;
        EXIT WHEN FOUND;
        v_stale := true;  -- a neighbour cut it to its end while we waited: look for another
    END LOOP;

    IF block2 = v_file.block2 OR v_file.state = 'fresh' THEN
        UPDATE osgprod_data.loaded_files f
           SET state = CASE WHEN _cut_slice.block2 = v_file.block2 THEN 'cut' ELSE 'begun' END::osgprod_data.file_state
         WHERE f.project_id = p_project_id AND f.rawdata_id = v_file.rawdata_id AND f.state IN ('fresh', 'begun');
    END IF;
END
$fn$;
