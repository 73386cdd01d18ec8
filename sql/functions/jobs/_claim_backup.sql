CREATE FUNCTION osgprod._claim_backup(
    p_project osgprod_data.projects, p_call osgprod.checkout_call, p_nstart int, p_blocks bigint, OUT slice osgprod.claim)
LANGUAGE plpgsql VOLATILE
AS $fn$
-- Claims a backup attempt: a second attempt on a leased slice, of those that tick offers (_offer_backups). The attempt
-- does not hold the slice. It can settle it, since the first success wins (I5), and it gets the slice when the
-- holder is lost or fails.
-- Promise:    reads the offers in the order of an index, some max_backups of them at most, however many jobs ask. An offer is not
--             for the worker that had the slice when it was made.
-- Parameters: p_project  the project's row;  p_call, p_nstart  the coming attempt
--             p_blocks   of a slice at most: what the job can process, also in the time that it has left
-- Returns:    the slice; NULLs when no offer is free
-- Locks:      the offer, then its slice, both SKIP LOCKED
-- Source:     docs/design.md I3, "The tail"
BEGIN
    SELECT s.rawdata_id, s.block1, s.block2, s.opened_at, NULL::int INTO slice
      FROM osgprod_data.backups b JOIN osgprod_data.slices s USING (project_id, rawdata_id, block1, opened_at)
     WHERE b.project_id = p_project.project_id AND b.nstart IS NULL AND b.nblocks <= p_blocks
       AND b.worker <> osgprod._worker(p_call.client, p_call.host)
       AND s.state = 'leased' AND s.failures = 0 AND (s.cluster, s.process) <> (p_call.cluster, p_call.process)
     ORDER BY b.expected_end DESC LIMIT 1
       FOR NO KEY UPDATE SKIP LOCKED;
    UPDATE osgprod_data.backups b
       SET cluster = p_call.cluster, process = p_call.process, nstart = p_nstart,
           due_at = clock_timestamp() + make_interval(secs => p_project.lease_s)
     WHERE b.project_id = p_project.project_id AND b.rawdata_id = slice.rawdata_id AND b.block1 = slice.block1;
END
$fn$;

CREATE FUNCTION osgprod._end_backup(p_attempt osgprod_data.attempts, p_outcome osgprod_data.outcome)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Ends a backup attempt that has failed or has to stop. Its slice goes on with its holder, and nothing counts against it.
-- Parameters: p_attempt  the attempt, its slice locked
--             p_outcome  failed: the slice gets no other backup, since it may be the data;  node-fault or superseded: it may
-- Returns:    was it a backup? false = it was none, or is none any more
-- Locks:      the backup's row, SKIP LOCKED
DECLARE
    v_backup osgprod_data.backups;
BEGIN
    SELECT b.* INTO v_backup FROM osgprod_data.backups b
     WHERE (b.project_id, b.rawdata_id, b.block1, b.opened_at, b.cluster, b.process, b.nstart)
         = (p_attempt.project_id, p_attempt.rawdata_id, p_attempt.block1, p_attempt.opened_at, p_attempt.cluster,
            p_attempt.process, p_attempt.nstart)
       FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF p_outcome = 'failed' THEN
        UPDATE osgprod_data.backups b SET due_at = NULL
         WHERE b.project_id = v_backup.project_id AND b.rawdata_id = v_backup.rawdata_id AND b.block1 = v_backup.block1;
    ELSE
        DELETE FROM osgprod_data.backups b
         WHERE b.project_id = v_backup.project_id AND b.rawdata_id = v_backup.rawdata_id AND b.block1 = v_backup.block1;
    END IF;
    RETURN true;
END
$fn$;

CREATE FUNCTION osgprod._promote_backup(p_slice osgprod_data.slices, p_heartbeat_s int)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Gives a slice whose holder is lost or has failed to its backup attempt, if that lives: it holds the slice then. An offer
-- ends, since it was made for this holder; and a backup whose lease has expired ends, so that its job can hold the slice.
-- Parameters: p_slice  the slice, locked, with the counts that it is to have;  p_heartbeat_s  of the project [s]
-- Returns:    did it get the slice?
-- Locks:      the backup's row, SKIP LOCKED
DECLARE
    v_backup osgprod_data.backups;
BEGIN
    SELECT b.* INTO v_backup FROM osgprod_data.backups b
     WHERE b.project_id = p_slice.project_id AND b.rawdata_id = p_slice.rawdata_id AND b.block1 = p_slice.block1
       AND b.opened_at = p_slice.opened_at AND (b.nstart IS NULL OR b.due_at IS NOT NULL)
       FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    DELETE FROM osgprod_data.backups b
     WHERE b.project_id = p_slice.project_id AND b.rawdata_id = p_slice.rawdata_id AND b.block1 = p_slice.block1;
    IF v_backup.nstart IS NULL OR osgprod._is_over(p_heartbeat_s, v_backup.due_at) THEN
        RETURN false;
    END IF;
    UPDATE osgprod_data.slices s
       SET state = 'leased', is_ready = NULL, not_before = NULL, due_at = v_backup.due_at, cluster = v_backup.cluster,
           process = v_backup.process, nstart = v_backup.nstart, failures = p_slice.failures, faults = p_slice.faults,
           faulted_on = p_slice.faulted_on, repeats = p_slice.repeats, exit_codes = p_slice.exit_codes,
           progress_at = NULL, bytes_fetched = NULL, cpu_s = NULL
     WHERE s.project_id = p_slice.project_id AND s.rawdata_id = p_slice.rawdata_id AND s.block1 = p_slice.block1;
    RETURN true;
END
$fn$;
