CREATE FUNCTION osgprod._try_file(p_project_id int, p_rawdata_id int)
RETURNS boolean LANGUAGE sql VOLATILE
AS $fn$
    -- Locks a file's row, if no other session has it. (_lock_files waits.)
    -- Parameters: p_project_id, p_rawdata_id  the file
    -- Returns:    is it locked? false also when there is no such file
    SELECT EXISTS (SELECT FROM osgprod_data.loaded_files f
                    WHERE f.project_id = p_project_id AND f.rawdata_id = p_rawdata_id FOR NO KEY UPDATE SKIP LOCKED)
$fn$;

CREATE FUNCTION osgprod._lock_files(p_project_id int, p_rawdata_ids int[])
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Locks the rows of files of which slices are to be requeued or split: all of them, in order, before the first merge. Waits for each.
    SELECT FROM osgprod_data.loaded_files f
     WHERE f.project_id = p_project_id AND f.rawdata_id = ANY (p_rawdata_ids)
     ORDER BY f.run, f.seqno, f.rawdata_id
       FOR NO KEY UPDATE
$fn$;

CREATE FUNCTION osgprod._split_slice(p_project_id int, p_rawdata_id int, p_block1 int, p_at int)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Splits a slice that is ready, in a backoff or leased in two: [block1, p_at) keeps its state, [p_at, block2) becomes another
-- slice, ready or in the same backoff. Both get a new opened_at (I5), and no failures: those were of the whole, so that a single
-- block is quarantined by its own alone. Faults stay. The second is not ready while its file is suspended or on tape
-- only, though the first may be: as the one slice by which a file is tried.
-- Parameters: p_project_id, p_rawdata_id, p_block1  the slice; it and its file's row are locked, since a claim may be reading
--             where the slice ends;  p_at  a block inside it
-- Source:     docs/design.md I2
BEGIN
    -- One statement, so that the chain of slices is whole before its constraints are checked.
    WITH whole AS (
        SELECT s.* FROM osgprod_data.slices s
         WHERE (s.project_id, s.rawdata_id, s.block1) = (p_project_id, p_rawdata_id, p_block1)
    ), first_part AS (
        UPDATE osgprod_data.slices s SET block2 = p_at, opened_at = clock_timestamp(), failures = 0 FROM whole w
         WHERE (s.project_id, s.rawdata_id, s.block1) = (w.project_id, w.rawdata_id, w.block1)
        RETURNING s.project_id
    )
    INSERT INTO osgprod_data.slices (project_id, rawdata_id, block1, block2, follows, run, seqno, state, is_ready, not_before,
            failures, faults, faulted_on, repeats, exit_codes, due_at, opened_at)
    SELECT w.project_id, w.rawdata_id, p_at, w.block2, p_at, w.run, w.seqno, 'ready',
           coalesce(w.is_ready, true) AND osgprod._may_be_assigned(w.project_id, w.rawdata_id), coalesce(w.not_before, now()),
           0, w.faults, w.faulted_on, w.repeats, w.exit_codes, w.due_at, clock_timestamp()
      FROM whole w, first_part;
END
$fn$;

CREATE FUNCTION osgprod._is_due(p_project osgprod_data.projects)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Can a lease have ended? (A time that is further away than is ever noted was noted by a wrong clock.)
    SELECT p_project.next_due_at <= now() OR p_project.next_due_at > now() + interval '5 minutes'
$fn$;

CREATE FUNCTION osgprod._may_be_assigned(p_project_id int, p_rawdata_id int)
RETURNS boolean LANGUAGE sql VOLATILE
AS $fn$
    -- May slices of a file be assigned: is it neither suspended nor skipped since it is on tape only? (For its unallocated
    -- blocks the column is_open says so.) Asked before a slice is made ready, and true until the end of the transaction.
    -- Returns:    false also while another session is about to suspend or to skip the file: the slice is not ready then, and a later
    --             tick makes it ready if it may
    -- Locks:      the file's row, FOR KEY SHARE SKIP LOCKED: no claim has a lock that conflicts with this
    SELECT coalesce((SELECT f.suspended_at IS NULL AND NOT f.on_tape FROM osgprod_data.loaded_files f
                      WHERE f.project_id = p_project_id AND f.rawdata_id = p_rawdata_id FOR KEY SHARE SKIP LOCKED), false)
$fn$;

CREATE FUNCTION osgprod._ended_backoffs()
RETURNS TABLE (since timestamptz, until timestamptz) LANGUAGE sql STABLE
AS $fn$
    -- Between which times, both inclusive, the end of a backoff is that is over: as ranges, so that indexes on not_before serve. No
    -- backoff is longer than 10.5 days (1.5 times max_backoff_s): a later end was noted by a clock that was ahead.
    VALUES ('-infinity'::timestamptz, now()), (now() + interval '11 days', 'infinity')
$fn$;

CREATE FUNCTION osgprod._end_backoffs(p_project_id int)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Requeues the slices of a project whose backoff is over. It does not look at projects.next_due_at: a failed report would have
-- to lower that, and so lock the project's row.
-- Parameters: p_project_id  project. When there are no such slices, two places of the index slices_not_ready are read
-- Locks:      files (_may_be_assigned) and slices, all SKIP LOCKED. The caller has the project, shared (advisory: project_id, -1).
-- Source:     docs/design.md I4
BEGIN
    WITH ended AS (
        SELECT s.project_id, s.rawdata_id, s.block1 FROM osgprod._ended_backoffs() e
          JOIN osgprod_data.slices s ON s.not_before BETWEEN e.since AND e.until
         WHERE s.project_id = p_project_id AND s.is_ready IS FALSE AND osgprod._may_be_assigned(s.project_id, s.rawdata_id)
           FOR NO KEY UPDATE OF s SKIP LOCKED
    )
    UPDATE osgprod_data.slices s SET is_ready = true FROM ended o
     WHERE s.project_id = o.project_id AND s.rawdata_id = o.rawdata_id AND s.block1 = o.block1;
END
$fn$;

CREATE FUNCTION osgprod._is_of_schedd(p_project_id int, p_cluster int, p_process int, p_nstart int, p_schedd text)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Is an attempt of this access point?
    -- Parameters: p_project_id, p_cluster, p_process, p_nstart  the attempt;  p_schedd  as it names itself; NULL = of any
    SELECT p_schedd IS NULL OR EXISTS (
        SELECT FROM osgprod_data.attempts a
         WHERE a.project_id = p_project_id AND a.cluster = p_cluster AND a.process = p_process AND a.nstart = p_nstart
           AND a.schedd = p_schedd)
$fn$;

CREATE FUNCTION osgprod._why_given_up(p_due_at timestamptz)
RETURNS text LANGUAGE sql STABLE
AS $fn$
    -- Says that a job has given up its slice or merge (_job_so_far); NULL = it has not.
    -- Parameters: p_due_at  the end of the lease
    SELECT CASE p_due_at WHEN '2000-01-01 00:00+00' THEN 'its job has given it up: it started again and again without a report' END
$fn$;

CREATE FUNCTION osgprod._has_expired(p_due_at timestamptz, p_since timestamptz, p_hold timestamptz)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Has a lease expired?
    -- Parameters: p_due_at  its end;  p_since, p_hold  one that ends after the first of these holds until the second
    -- No lease is longer than 30 days: an end more than 31 days ahead was written by a wrong clock, and has expired.
    SELECT (p_hold <= now() OR p_due_at < p_since)
       AND (p_due_at <= now() OR p_due_at > now() + interval '31 days') IS NOT FALSE
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
     WHERE f.project_id = p_project_id AND f.state IN ('in_progress', 'allocated')
$fn$;

CREATE FUNCTION osgprod._lose_slice(
    p_project osgprod_data.projects, p_slice osgprod_data.slices, p_outcome osgprod_data.outcome, p_reason text,
    p_may_wait boolean)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Writes the server's own verdict on the attempt that holds a slice, and requeues the slice.
-- Parameters: p_project  the project's row;  p_slice  the slice, locked
--             p_outcome  lost: its lease has expired, or it has to stop;  superseded: its job is gone or has to stop, says the
--                        operator
--             p_reason   why it has to stop, or that its job has given the slice up. Of a lost one NULL = it may get the slice again
--             p_may_wait  for the file
-- Returns:    true; false = another session has the file that this needs: the slice is as it was, and no verdict is written
-- Locks:      see _fail_slice
DECLARE
    v_attempt osgprod_data.attempts := osgprod._attempt(p_slice.project_id, p_slice.cluster, p_slice.process, p_slice.nstart);
BEGIN
    IF NOT osgprod._fail_slice(p_project, p_slice, CASE WHEN p_outcome = 'lost' AND p_reason IS NOT NULL
                                                   THEN 'node-fault' ELSE p_outcome END,
                               osgprod._worker(v_attempt.client, v_attempt.host), NULL, p_may_wait) THEN
        RETURN false;
    END IF;
    PERFORM osgprod._record_verdict(p_project, v_attempt, p_outcome, p_reason);
    RETURN true;
END
$fn$;

CREATE FUNCTION osgprod._attempt(p_project_id int, p_cluster int, p_process int, p_nstart int)
RETURNS osgprod_data.attempts LANGUAGE sql STABLE
AS $fn$
    -- The attempt with these numbers; NULLs when there is none.
    SELECT a FROM osgprod_data.attempts a
     WHERE a.project_id = p_project_id AND a.cluster = p_cluster AND a.process = p_process AND a.nstart = p_nstart
$fn$;

CREATE FUNCTION osgprod._record_verdict(
    p_project osgprod_data.projects, p_attempt osgprod_data.attempts, p_outcome osgprod_data.outcome, p_reason text)
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Records the server's own verdict on an attempt at a slice or a merge. The first one stays: an attempt that was lost may
    -- have been found alive again.
    -- Parameters: p_project  the project's row;  p_attempt  NULLs = nothing is recorded;  p_outcome, p_reason  see _lose_slice
    INSERT INTO osgprod_data.reports (project_id, cluster, process, nstart, by_worker, outcome, reported_at, ran_s,
           nblocks, worker, site, reason)
    SELECT p_attempt.project_id, p_attempt.cluster, p_attempt.process, p_attempt.nstart, false, p_outcome,
           greatest(clock_timestamp(), p_project.tally_next), greatest(extract(epoch FROM now() - p_attempt.started_at), 0),
           p_attempt.block2 - p_attempt.block1, osgprod._worker(p_attempt.client, p_attempt.host), p_attempt.site, p_reason
     WHERE p_attempt.nstart IS NOT NULL
    ON CONFLICT DO NOTHING
$fn$;

CREATE FUNCTION osgprod._settle_files(p_project_id int, p_all boolean)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Marks allocated files complete whose slices are all done or quarantined.
-- Parameters: p_project_id  project;  p_all  look at all of them, not only at those of which a report came within the last
--             minute, and at the first in the order: its last report may have come while nothing ticked
-- Locks:      see _settle_file
DECLARE
    v_file int;
BEGIN
    FOR v_file IN
        SELECT f.rawdata_id FROM osgprod_data.loaded_files f
         WHERE f.project_id = p_project_id AND f.state = 'allocated'
           AND (p_all OR f.rawdata_id = ANY (ARRAY(  -- an array: it is made once, and not for each file
               (SELECT x.rawdata_id FROM osgprod_data.loaded_files x
                 WHERE x.project_id = p_project_id AND x.state = 'allocated' ORDER BY x.run, x.seqno, x.rawdata_id LIMIT 1)
               UNION
               SELECT a.rawdata_id FROM osgprod_data.reports r
               CROSS JOIN LATERAL (  -- LIMIT: by key, never by reading all attempts of the project
                   SELECT t.rawdata_id FROM osgprod_data.attempts t
                    WHERE t.project_id = r.project_id AND t.cluster = r.cluster AND t.process = r.process
                      AND t.nstart = r.nstart LIMIT 1) a
                WHERE r.project_id = p_project_id AND r.reported_at > clock_timestamp() - interval '1 min')))
         ORDER BY f.run, f.seqno, f.rawdata_id
    LOOP
        PERFORM osgprod._settle_file(p_project_id, v_file);
    END LOOP;
END
$fn$;

CREATE FUNCTION osgprod._settle_file(p_project_id int, p_rawdata_id int)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Marks an allocated file complete if its slices are all done or quarantined, plans its merge, or its run's, and notifies of it, and
-- of the run when that is complete. Does nothing while another session has one of the locks.
-- Parameters: p_project_id, p_rawdata_id  the file
-- Locks:      the file's row; _hold_merge_settings; its run (advisory: project_id, -10 - run), since files of a run are called
--             complete one after the other, so that the last one is known; its merge, and the run's; the project's row. All are tried,
--             nothing here waits
DECLARE
    v_file    record;
    v_project osgprod_data.projects;
BEGIN
    -- I7: the row is locked before its slices are read; _reopen_slice does so too.
    SELECT f.run, f.seqno INTO v_file FROM osgprod_data.loaded_files f
     WHERE f.project_id = p_project_id AND f.rawdata_id = p_rawdata_id AND f.state = 'allocated'
       AND NOT osgprod._is_unsettled(p_project_id, f.rawdata_id)
       FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND OR osgprod._is_unsettled(p_project_id, p_rawdata_id) THEN
        RETURN;
    END IF;
    v_project := osgprod._hold_merge_settings(p_project_id, false);
    IF v_project.project_id IS NULL OR NOT pg_try_advisory_xact_lock(p_project_id, -10 - v_file.run)
        OR NOT osgprod._try_merges(p_project_id, v_file.run, v_file.seqno) THEN
        RETURN;
    END IF;
    UPDATE osgprod_data.loaded_files f SET state = 'complete'
     WHERE f.project_id = p_project_id AND f.rawdata_id = p_rawdata_id;
    PERFORM osgprod._notify(p_project_id, 'file-finished', jsonb_build_object('path',
        (SELECT w.path FROM osgprod_data.rawdata w WHERE w.rawdata_id = p_rawdata_id)));
    UPDATE osgprod_data.projects p SET noted_end = NULL  -- the file may be loaded and done between two ticks
     WHERE p.project_id = (SELECT q.project_id FROM osgprod_data.projects q
                            WHERE q.project_id = p_project_id AND q.noted_end IS NOT NULL FOR NO KEY UPDATE SKIP LOCKED);
    PERFORM osgprod._plan_merges(v_project, ARRAY[v_file.run], v_file.seqno);
    IF NOT EXISTS (SELECT FROM osgprod_data.loaded_files f
                    WHERE f.project_id = p_project_id AND f.run = v_file.run AND f.state <> 'complete') THEN
        PERFORM osgprod._notify(p_project_id, 'run-finished', jsonb_build_object('run', v_file.run));
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._is_unsettled(p_project_id int, p_rawdata_id int)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Has the file slices that are neither done nor quarantined?
    SELECT EXISTS (SELECT FROM osgprod_data.slices s
                    WHERE s.project_id = p_project_id AND s.rawdata_id = p_rawdata_id AND s.state IN ('leased', 'ready'))
$fn$;

CREATE FUNCTION osgprod._reopen_slice(p_project_id int, p_rawdata_id int, p_block1 int)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Makes a slice that is not leased ready as if it had never been tried; while its file is suspended or on tape only it is requeued,
-- but not assigned.
-- Parameters: p_project_id, p_rawdata_id, p_block1  the slice, locked
-- Locks:      see _reopen_file
BEGIN
    PERFORM osgprod._reopen_file(p_project_id, p_rawdata_id);
    UPDATE osgprod_data.slices s
       SET state = 'ready', is_ready = osgprod._may_be_assigned(p_project_id, p_rawdata_id), not_before = now(),
           failures = 0, faults = 0, faulted_on = NULL, repeats = 0,
           exit_codes = NULL, due_at = NULL, opened_at = clock_timestamp()
     WHERE s.project_id = p_project_id AND s.rawdata_id = p_rawdata_id AND s.block1 = p_block1;
END
$fn$;

CREATE FUNCTION osgprod._reopen_file(p_project_id int, p_rawdata_id int)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Takes back that a file is complete, with its merges, before a slice of it changes its state. A later tick looks at the file again.
-- Parameters: p_project_id, p_rawdata_id  the file
-- Locks:      the file's row; then its merge, and the run's. It waits for each. Callers have the slice. Those that reopen several
--             files have all of them (_lock_files), and go through them in that order
DECLARE
    v_file record;
BEGIN
    -- I7, first: a session that is about to call this file complete must see the slice, or be seen.
    SELECT f.run, f.seqno, f.state INTO v_file FROM osgprod_data.loaded_files f
     WHERE f.project_id = p_project_id AND f.rawdata_id = p_rawdata_id FOR NO KEY UPDATE;
    UPDATE osgprod_data.loaded_files f SET state = 'allocated'
     WHERE f.project_id = p_project_id AND f.rawdata_id = p_rawdata_id AND v_file.state = 'complete';
    PERFORM osgprod._reopen_merges(p_project_id, ARRAY[v_file.run], v_file.seqno);
END
$fn$;

CREATE FUNCTION osgprod._try_reopen_file(p_project_id int, p_rawdata_id int)
RETURNS boolean LANGUAGE plpgsql VOLATILE
SET lock_timeout = '1ms'
AS $fn$
-- Does what _reopen_file does, unless it would have to wait: for callers that have locks which come later in the order.
-- Parameters: p_project_id, p_rawdata_id  the file
-- Returns:    is it done? false: another session has a lock that this needs; nothing is changed, nor locked
-- Locks:      those of _reopen_file; it waits for 1 ms for each, less than any deadlock takes to be found
BEGIN
    PERFORM osgprod._reopen_file(p_project_id, p_rawdata_id);
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END
$fn$;

CREATE FUNCTION osgprod._mark_on_tape(p_project_id int, p_skips boolean, OUT skipped bigint, OUT resumed bigint)
LANGUAGE plpgsql VOLATILE
AS $fn$
-- Marks the files that a project skips since they are on tape only, and those that it no longer skips. Requeued slices of the
-- first are not assigned; those of the others are, after the next tick. Leased slices go on. A repeated call passes over no slice that
-- another session had locked at the first.
-- Parameters: p_project_id  project;  p_skips  its setting skip_nearline
-- Returns:    how many files are skipped from now on, and how many no longer
-- Locks:      these files' rows, FOR UPDATE, in order; it waits for each. Slices, SKIP LOCKED. The caller has (advisory: 0, -3)
--             alone, against sessions that load files, change the setting or record where files are
BEGIN
    WITH changed AS (
        SELECT f.rawdata_id FROM osgprod_data.loaded_files f JOIN osgprod_data.rawdata r ON r.rawdata_id = f.rawdata_id
         WHERE f.project_id = p_project_id  -- complete ones as well: slices of them may be recycled
           AND f.on_tape <> (p_skips AND r.locality IS NOT DISTINCT FROM 'nearline')
         ORDER BY f.run, f.seqno, f.rawdata_id
           FOR UPDATE OF f  -- see _may_be_assigned
    ), marked AS (
        UPDATE osgprod_data.loaded_files f SET on_tape = NOT f.on_tape FROM changed c
         WHERE f.project_id = p_project_id AND f.rawdata_id = c.rawdata_id
        RETURNING f.on_tape
    )
    SELECT count(*) FILTER (WHERE m.on_tape), count(*) FILTER (WHERE NOT m.on_tape) INTO skipped, resumed FROM marked m;
    UPDATE osgprod_data.slices s SET is_ready = false
     WHERE p_skips AND (s.project_id, s.rawdata_id, s.block1) IN (
        SELECT x.project_id, x.rawdata_id, x.block1 FROM osgprod_data.slices x
          JOIN osgprod_data.loaded_files f ON f.project_id = x.project_id AND f.rawdata_id = x.rawdata_id AND f.on_tape
         WHERE x.project_id = p_project_id AND x.is_ready
           FOR NO KEY UPDATE OF x SKIP LOCKED);
END
$fn$;
