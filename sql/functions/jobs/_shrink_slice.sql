CREATE FUNCTION osgprod._shrink_slice(
    p_project osgprod_data.projects, p_call osgprod.checkout_call, p_last osgprod_data.attempts, p_is_evicted boolean,
    p_may_wait boolean)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Shortens the slice of a restarted job that was evicted from it three times, or that has less time left than it needs: the
-- end of the slice becomes another slice, ready for another job, and nothing counts as a failure. With time for not
-- even one block the whole slice is requeued. A slice with a backup attempt stays whole: the backup would be in vain.
-- Parameters: p_project  the project's row;  p_call  the call, whose job is locked;  p_last  the job's last attempt
--             p_is_evicted  was it evicted from its slice three times?
--             p_may_wait  for the file; when another session has it and this is false, the slice stays as it is
-- Locks:      the slice, for which it waits; then the file's row, to split the slice
-- Source:     docs/design.md I2, I3
DECLARE
    v_nblocks int;
    v_fit     int;
BEGIN
    SELECT s.block2 - s.block1 INTO v_nblocks FROM osgprod_data.slices s
     WHERE (s.project_id, s.rawdata_id, s.block1, s.state, s.cluster, s.process, s.nstart) = (p_last.project_id,
           p_last.rawdata_id, p_last.block1, 'leased', p_last.cluster, p_last.process, p_last.nstart)
       FOR NO KEY UPDATE;
    IF NOT FOUND OR EXISTS (SELECT FROM osgprod_data.backups b WHERE (b.project_id, b.rawdata_id, b.block1)
                               = (p_last.project_id, p_last.rawdata_id, p_last.block1) AND b.nstart IS NOT NULL) THEN
        RETURN;
    END IF;
    v_fit := least(v_nblocks, CASE WHEN p_is_evicted THEN (v_nblocks + 1) / 2 END,
        osgprod._blocks_in_time(osgprod._pace_at(p_project.project_id, p_call.site), p_call.cpus, p_call.time_left_s));
    IF v_fit = 0 THEN
        UPDATE osgprod_data.slices s
           SET state = 'ready', is_ready = osgprod._may_be_assigned(s.project_id, s.rawdata_id), not_before = now(), due_at = NULL
         WHERE (s.project_id, s.rawdata_id, s.block1) = (p_last.project_id, p_last.rawdata_id, p_last.block1);
    ELSIF v_fit < v_nblocks AND osgprod._lock_file(p_last.project_id, p_last.rawdata_id, p_may_wait) THEN
        PERFORM osgprod._split_slice(p_last.project_id, p_last.rawdata_id, p_last.block1, p_last.block1 + v_fit);
    END IF;
END
$fn$;
