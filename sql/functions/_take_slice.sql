CREATE FUNCTION osgprod._take_slice(
    p_project osgprod_data.projects, p_last osgprod_data.attempts,
    p_cluster int, p_process int, p_nstart int, p_blocks int,
    OUT rawdata_id int, OUT block1 int, OUT block2 int)
LANGUAGE plpgsql VOLATILE
AS $fn$
-- Makes the job's coming attempt the holder of a slice: its own, one that came back, or a new one.
-- Parameters: p_project  the project's row
--             p_last     the job's last attempt, NULLs when it has none
--             p_cluster, p_process, p_nstart  the coming attempt
--             p_blocks   how many blocks the job can take [1 ..]
-- Returns:    the slice; NULLs when there is none now
-- Locks:      see checkout_slice
DECLARE
    v_due_at timestamptz := clock_timestamp() + make_interval(secs => p_project.lease_s);
BEGIN
    IF p_last.nstart IS NOT NULL THEN
        -- I3: the job's own live slice, if no other attempt holds it by now
        UPDATE osgprod_data.slices s
           SET nstart = p_nstart, due_at = v_due_at, progress_at = NULL, bytes_fetched = NULL, cpu_s = NULL
         WHERE s.project_id = p_last.project_id AND s.rawdata_id = p_last.rawdata_id AND s.block1 = p_last.block1
           AND s.state = 'leased'
           AND s.cluster = p_cluster AND s.process = p_process AND s.nstart = p_last.nstart
        RETURNING s.rawdata_id, s.block1, s.block2 INTO rawdata_id, block1, block2;
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;
    IF p_project.state = 'draining' THEN
        RETURN;
    END IF;
    PERFORM osgprod._check_live(p_project);

    SELECT i.rawdata_id, i.block1, i.block2 INTO rawdata_id, block1, block2
      FROM osgprod._take_idle_slice(p_project.project_id, p_cluster, p_process, p_nstart, p_blocks, v_due_at) i;
    IF rawdata_id IS NOT NULL THEN
        RETURN;
    END IF;
    SELECT c.rawdata_id, c.block1, c.block2 INTO rawdata_id, block1, block2
      FROM osgprod._cut_slice(p_project.project_id, p_cluster, p_process, p_nstart, p_blocks, v_due_at) c;
    IF rawdata_id IS NOT NULL THEN
        RETURN;
    END IF;
    -- Before saying that there is nothing: leases that ran out since anybody looked.
    IF osgprod._reclaim_due(p_project.project_id) THEN
        SELECT i.rawdata_id, i.block1, i.block2 INTO rawdata_id, block1, block2
          FROM osgprod._take_idle_slice(p_project.project_id, p_cluster, p_process, p_nstart, p_blocks, v_due_at) i;
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._take_idle_slice(
    p_project_id int, p_cluster int, p_process int, p_nstart int, p_blocks int, p_due_at timestamptz,
    OUT rawdata_id int, OUT block1 int, OUT block2 int)
LANGUAGE plpgsql VOLATILE
AS $fn$
-- Takes the first slice that came back and is no longer held off; what is too long for the job is left as a new one.
-- Parameters: p_cluster, p_process, p_nstart  the coming attempt;  p_blocks  at most so many blocks;  p_due_at  end of lease
-- Returns:    the slice; NULLs when none is ready
-- Locks:      one row of idle_slices SKIP LOCKED, its slice; the file when the slice is split
BEGIN
    -- Both rows or neither: a late report of this slice locks them in the other order.
    SELECT s.rawdata_id, s.block1, s.block2 INTO rawdata_id, block1, block2
      FROM osgprod_data.idle_slices i
      JOIN osgprod_data.slices s
        ON s.project_id = i.project_id AND s.rawdata_id = i.rawdata_id AND s.block1 = i.block1
     WHERE i.project_id = p_project_id AND i.not_before < 'infinity' AND i.not_before <= clock_timestamp()
     ORDER BY i.run, i.seqno, i.rawdata_id, i.block1
     LIMIT 1 FOR UPDATE OF i SKIP LOCKED FOR NO KEY UPDATE OF s SKIP LOCKED;
    IF NOT FOUND THEN
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
       AND s.block1 = _take_idle_slice.block1;
END
$fn$;

CREATE FUNCTION osgprod._cut_slice(
    p_project_id int, p_cluster int, p_process int, p_nstart int, p_blocks int, p_due_at timestamptz,
    OUT rawdata_id int, OUT block1 int, OUT block2 int)
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
    v_first record;
    v_stale boolean := false;
BEGIN
    LOOP
        v_first := NULL;
        FOR v_file IN
            SELECT f.rawdata_id, f.block1, f.block2, f.state FROM osgprod_data.loaded_files f
             WHERE f.project_id = p_project_id AND f.state IN ('fresh', 'begun')
             ORDER BY f.run, f.seqno, f.rawdata_id LIMIT 64
        LOOP
            EXIT WHEN pg_try_advisory_xact_lock(p_project_id, v_file.rawdata_id);
            IF v_first IS NULL THEN
                v_first := v_file;
            END IF;
            v_file := NULL;
        END LOOP;
        IF v_file IS NULL THEN
            -- A second wait with a lock in hand could be a deadlock.
            IF v_first IS NULL OR v_stale THEN
                RETURN;
            END IF;
            PERFORM pg_advisory_xact_lock(p_project_id, v_first.rawdata_id);
            v_file := v_first;
        END IF;

        -- I1: where the file's last slice ends, read under its lock and after it was taken
        SELECT s.block2 INTO block1 FROM osgprod_data.slices s
         WHERE s.project_id = p_project_id AND s.rawdata_id = v_file.rawdata_id
         ORDER BY s.block2 DESC LIMIT 1;
        EXIT WHEN coalesce(block1, v_file.block1) < v_file.block2;
        v_stale := true;  -- a neighbour cut it to its end while we waited: look for another
    END LOOP;

    rawdata_id := v_file.rawdata_id;
    INSERT INTO osgprod_data.slices (project_id, rawdata_id, block1, block2, follows, cluster, process, nstart,
            opened_at, due_at)
    VALUES (p_project_id, v_file.rawdata_id, coalesce(block1, v_file.block1),
            least(coalesce(block1, v_file.block1)::bigint + p_blocks, v_file.block2), block1,
            p_cluster, p_process, p_nstart, now(), p_due_at)
    RETURNING slices.block1, slices.block2 INTO block1, block2;
    IF block2 = v_file.block2 THEN
        UPDATE osgprod_data.loaded_files f SET state = 'cut'
         WHERE f.project_id = p_project_id AND f.rawdata_id = v_file.rawdata_id;
    ELSIF v_file.state = 'fresh' THEN
        UPDATE osgprod_data.loaded_files f SET state = 'begun'
         WHERE f.project_id = p_project_id AND f.rawdata_id = v_file.rawdata_id AND f.state = 'fresh';
    END IF;
END
$fn$;
