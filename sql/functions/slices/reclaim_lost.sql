CREATE FUNCTION osgprod.reclaim_lost(
    p_project text DEFAULT NULL, p_cluster int DEFAULT NULL, p_process int DEFAULT NULL)
RETURNS TABLE (project text, reclaimed int)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Makes slices ready again whose attempts have been silent past their lease (tick does the same on the shims' timer), or
-- those of jobs that are known to be gone, removed by condor_rm for instance, without waiting for their leases.
-- Promise:    a repeated or simultaneous call does no harm; slices that somebody has locked at this moment are left to
--             the next call, so nothing here waits. A job taken for gone that is not, gets its slice back at its next heartbeat,
--             as long as nobody else has it. That a job is removed is no fault: it counts against neither slice nor worker.
-- Parameters: p_project  project name; NULL = all projects
--             p_cluster  HTCondor's cluster whose jobs are gone [0 .. 2147483647]; NULL = what ran out of lease
--             p_process  only this one of them [0 .. 2147483647]; NULL = all of the cluster
-- Returns:    a row for each project in which slices were reclaimed: how many
-- Errors:     OG301 unknown project; OG108 a process without a cluster
-- Locks:      see _reclaim_project
-- Source:     docs/design.md I4
DECLARE
    v_project osgprod_data.projects;
BEGIN
    PERFORM osgprod._get_project(p_project) WHERE p_project IS NOT NULL;
    IF p_process IS NOT NULL AND p_cluster IS NULL THEN
        RAISE EXCEPTION 'process % of which cluster', p_process USING ERRCODE = 'OG108',
            HINT = 'a job is known by cluster and process';
    END IF;
    FOR v_project IN
        SELECT p.* FROM projects p WHERE p.name = coalesce(p_project, p.name) ORDER BY p.project_id
    LOOP
        project := v_project.name;
        reclaimed := osgprod._reclaim_project(v_project, p_cluster, p_process);
        IF reclaimed > 0 THEN
            RETURN NEXT;
        END IF;
    END LOOP;
END
$fn$;

COMMENT ON FUNCTION osgprod.reclaim_lost(text, int, int) IS
'Makes slices ready again whose attempts have been silent past their lease, or those of a cluster that is gone; a row for each project that had some. For osgprod_operator; tick does the same on the shims'' timer.';

CREATE FUNCTION osgprod._reclaim_due(p_project_id int)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Reclaims lost slices of one project if any lease can have run out by now and no neighbour is at it.
-- Parameters: p_project_id  project
-- Returns:    true when something was reclaimed. One row is read when no lease can have run out, so that thousands of
--             waiting jobs may ask.
-- Source:     docs/design.md I4
DECLARE
    v_project osgprod_data.projects;
BEGIN
    SELECT p.* INTO v_project FROM osgprod_data.projects p
     WHERE p.project_id = p_project_id AND osgprod._is_due(p.next_due_at);
    IF NOT FOUND OR NOT pg_try_advisory_xact_lock(p_project_id, 0) THEN  -- no file has the number 0
        RETURN false;
    END IF;
    RETURN osgprod._reclaim_project(v_project) > 0;
END
$fn$;

CREATE FUNCTION osgprod._is_due(p_next_due_at timestamptz)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Is it time to look for lost slices? A time further away than _reclaim_project ever notes was noted by a clock that
    -- has been set back since.
    SELECT p_next_due_at <= now() OR p_next_due_at > now() + interval '5 minutes'
$fn$;

CREATE FUNCTION osgprod._reclaim_project(
    p_project osgprod_data.projects, p_cluster int DEFAULT NULL, p_process int DEFAULT NULL)
RETURNS int LANGUAGE plpgsql VOLATILE
AS $fn$
-- Takes back every slice of the project whose lease has run out, and notes when the next one can and how many are live.
-- Parameters: p_project  the project's row
--             p_cluster, p_process  not those, but the ones of these jobs: see reclaim_lost
-- Returns:    how many [slices]; 0 also while files of the project are begun anew
-- Locks:      slices SKIP LOCKED, the project's row SKIP LOCKED, the file if it is free when a slice is split: nothing
--             here waits for anybody
-- Source:     docs/design.md I4
DECLARE
    v_slice   osgprod_data.slices;
    v_count   int := 0;
    v_files   int := 0;
    v_live    int;
    v_next_at timestamptz;
BEGIN
    IF NOT osgprod._enter_project(p_project.project_id) THEN
        RETURN 0;
    END IF;
    FOR v_slice IN
        -- Leased slices are in files in flight: thousands of rows are read, not millions.
        SELECT s.* FROM osgprod_data.loaded_files f
         CROSS JOIN LATERAL (
            SELECT x.* FROM osgprod_data.slices x
             WHERE x.project_id = f.project_id AND x.rawdata_id = f.rawdata_id
               -- No lease is longer than 30 days: the end of such a one was written by a clock that was wrong.
               AND x.state = 'leased'
               AND CASE WHEN p_cluster IS NULL THEN x.due_at <= now() OR x.due_at > now() + interval '31 days'
                        ELSE x.cluster = p_cluster AND x.process = coalesce(p_process, x.process) END
            OFFSET 0) s  -- see _slices_in_flight
         WHERE f.project_id = p_project.project_id AND f.state IN ('begun', 'cut')
           FOR NO KEY UPDATE OF s SKIP LOCKED
    LOOP
        -- What may have to be split needs its file; who has the file may be stuck, or wait for us. The server has room for
        -- some thousand locks: the next call takes what is left.
        IF p_cluster IS NULL AND v_slice.failures + 1 >= p_project.max_failures AND v_slice.block2 - v_slice.block1 > 1 THEN
            v_files := v_files + 1;
            CONTINUE WHEN v_files > 500 OR NOT pg_try_advisory_xact_lock(v_slice.project_id, v_slice.rawdata_id);
        END IF;
        PERFORM osgprod._lose_slice(p_project, v_slice,
            CASE WHEN p_cluster IS NULL THEN 'lost' ELSE 'superseded' END::osgprod_data.outcome, NULL);
        v_count := v_count + 1;
    END LOOP;
    PERFORM osgprod._end_wrong_rests(p_project.project_id);
    SELECT min(s.due_at), count(*) INTO v_next_at, v_live FROM osgprod._slices_in_flight(p_project.project_id) s WHERE s.state = 'leased';
    -- A slice lent after this look is due a whole lease from now at the earliest; or earlier, when the lease has just been
    -- made longer, so 5 minutes are the most. Somebody who has the project's row locked, like an operator's open
    -- transaction, must not stand between a lease and its slice: then it is not noted, and the next call looks again.
    UPDATE osgprod_data.projects p
       SET next_due_at = least(v_next_at, now() + make_interval(secs => least(p.lease_s, 300))), nlive = v_live
     WHERE p.project_id = (SELECT q.project_id FROM osgprod_data.projects q
                            WHERE q.project_id = p_project.project_id FOR NO KEY UPDATE SKIP LOCKED);
    RETURN v_count;
END
$fn$;

CREATE FUNCTION osgprod._end_wrong_rests(p_project_id int)
RETURNS void LANGUAGE sql VOLATILE
SET enable_seqscan = off  -- by the index, however few there are at this moment
AS $fn$
    -- Lets slices be lent at once that rest longer than any can: the end of such a rest (10.5 days at most) was written by a
    -- clock that was wrong.
    -- Parameters: p_project_id  project, entered
    -- Locks:      slices SKIP LOCKED
    WITH wrong AS (
        SELECT s.project_id, s.rawdata_id, s.block1
          FROM osgprod_data.idle_slices i
          JOIN osgprod_data.slices s ON s.project_id = i.project_id AND s.rawdata_id = i.rawdata_id AND s.block1 = i.block1
         WHERE i.project_id = p_project_id AND i.not_before < 'infinity' AND i.not_before > now() + interval '11 days'
           AND s.state = 'ready'
           FOR NO KEY UPDATE OF s SKIP LOCKED
    )
    UPDATE osgprod_data.idle_slices i SET not_before = now()
      FROM wrong w WHERE i.project_id = w.project_id AND i.rawdata_id = w.rawdata_id AND i.block1 = w.block1
$fn$;

CREATE FUNCTION osgprod._slices_in_flight(p_project_id int)
RETURNS SETOF osgprod_data.slices LANGUAGE sql STABLE
AS $fn$
    -- Slices of files in flight: all that are leased, and some others. File by file, by the index: OFFSET 0 keeps the
    -- planner from reading all slices that there are when it believes that many files are in flight.
    SELECT s.* FROM osgprod_data.loaded_files f
     CROSS JOIN LATERAL (
        SELECT x.* FROM osgprod_data.slices x WHERE x.project_id = f.project_id AND x.rawdata_id = f.rawdata_id
        OFFSET 0) s
     WHERE f.project_id = p_project_id AND f.state IN ('begun', 'cut')
$fn$;

CREATE FUNCTION osgprod._lose_slice(
    p_project osgprod_data.projects, p_slice osgprod_data.slices, p_outcome osgprod_data.outcome, p_reason text)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Writes the server's own verdict on the attempt that holds a slice, and takes the slice back.
-- Parameters: p_project  the project's row;  p_slice  the slice, locked
--             p_outcome  lost: silent past its lease, or told to stop;  superseded: its job is gone, says the operator
--             p_reason   why it is told to stop; NULL = it isn't, and may come back
-- Locks:      see _fail_slice
DECLARE
    v_attempt osgprod_data.attempts;
    v_worker  text;
BEGIN
    SELECT a.* INTO v_attempt FROM osgprod_data.attempts a
     WHERE a.project_id = p_slice.project_id AND a.cluster = p_slice.cluster AND a.process = p_slice.process
       AND a.nstart = p_slice.nstart;
    v_worker := osgprod._worker(v_attempt.client, v_attempt.host);
    INSERT INTO osgprod_data.reports (project_id, cluster, process, nstart, by_worker, outcome, reported_at, ran_s,
           nblocks, worker, site, reason)
    SELECT p_slice.project_id, p_slice.cluster, p_slice.process, p_slice.nstart, false, p_outcome, now(),
           greatest(extract(epoch FROM now() - v_attempt.started_at), 0), p_slice.block2 - p_slice.block1, v_worker,
           v_attempt.site, p_reason
     WHERE v_worker IS NOT NULL
    ON CONFLICT DO NOTHING;  -- lost before, and found alive again
    PERFORM osgprod._fail_slice(p_project, p_slice,
        CASE WHEN p_reason IS NULL THEN p_outcome ELSE 'node-fault' END, v_worker, NULL);
END
$fn$;

CREATE FUNCTION osgprod._settle_files(p_project_id int, p_all boolean)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Marks cut files finished whose slices are all done or quarantined.
-- Promise:    each file is read to its end once when it is finished; asking again is cheap.
-- Parameters: p_project_id  project;  p_all  look at all of them, not only up to the first, in order, that is not finished
-- Returns:    true when some loaded file is not finished
-- Locks:      each finished file's row, SKIP LOCKED
DECLARE
    v_file    record;
    v_is_open boolean := false;
    v_told    boolean := false;
BEGIN
    FOR v_file IN
        SELECT f.rawdata_id FROM osgprod_data.loaded_files f
         WHERE f.project_id = p_project_id AND f.state = 'cut'
         ORDER BY f.run, f.seqno, f.rawdata_id
    LOOP
        -- I7: the row is locked before its slices are read; _reopen_slice does so too.
        PERFORM FROM osgprod_data.loaded_files f
          WHERE f.project_id = p_project_id AND f.rawdata_id = v_file.rawdata_id AND f.state = 'cut'
            AND NOT osgprod._is_unsettled(p_project_id, f.rawdata_id)
            FOR NO KEY UPDATE SKIP LOCKED;
        IF FOUND AND NOT osgprod._is_unsettled(p_project_id, v_file.rawdata_id) THEN
            UPDATE osgprod_data.loaded_files f SET state = 'finished'
             WHERE f.project_id = p_project_id AND f.rawdata_id = v_file.rawdata_id;
            v_told := true;
            PERFORM osgprod._tell(p_project_id, 'file-finished', jsonb_build_object('path',
                (SELECT w.path FROM osgprod_data.rawdata w WHERE w.rawdata_id = v_file.rawdata_id)));
            CONTINUE;
        END IF;
        v_is_open := true;
        EXIT WHEN NOT p_all;
    END LOOP;
    v_is_open := v_is_open OR EXISTS (SELECT FROM osgprod_data.loaded_files f
                                       WHERE f.project_id = p_project_id AND f.state IN ('fresh', 'begun'));
    IF v_told AND NOT v_is_open THEN
        PERFORM osgprod._tell(p_project_id, 'project-done', '{}');
    END IF;
    RETURN v_is_open;
END
$fn$;

CREATE FUNCTION osgprod._is_unsettled(p_project_id int, p_rawdata_id int)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Has the file slices that are neither done nor quarantined?
    SELECT EXISTS (SELECT FROM osgprod_data.slices s
                    WHERE s.project_id = p_project_id AND s.rawdata_id = p_rawdata_id AND s.state IN ('leased', 'ready'))
$fn$;
