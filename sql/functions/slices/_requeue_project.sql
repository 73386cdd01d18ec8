CREATE FUNCTION osgprod._requeue_project(
    p_project osgprod_data.projects, p_cluster int DEFAULT NULL, p_process int DEFAULT NULL, p_schedd text DEFAULT NULL,
    OUT lost int)
LANGUAGE plpgsql VOLATILE
AS $fn$
-- Requeues the slices and merges of the project whose lease has ended, and slices whose backoff has; and notes when the next
-- lease can end, how many are live, and how long merges take.
-- Parameters: p_project  the project's row
--             p_cluster, p_process, p_schedd  instead of expired leases those of these jobs: see reclaim_lost
-- Returns:    how many slices and merges were lost. Nothing is done while an operator has the project alone
-- Locks:      the project, shared (advisory: project_id, -1), tried; backups, slices, the rows of their files, merges, the project's
--             row: all SKIP LOCKED, nothing here waits
-- Source:     docs/design.md I4
DECLARE
    v_slice   osgprod_data.slices;
    v_live    int;
    v_next_at timestamptz;
    -- Leases that end after v_since, when the server went away, hold until v_hold.
    v_hold    timestamptz := coalesce(osgprod._leases_hold_until(p_project.heartbeat_s), '-infinity');
    v_since   timestamptz := (SELECT p.back_at - p.away FROM osgprod_data.presence p);
BEGIN
    lost := 0;
    IF NOT pg_try_advisory_xact_lock_shared(p_project.project_id, -1) THEN
        RETURN;
    END IF;
    -- Their backups first, so that none of them becomes a holder.
    DELETE FROM osgprod_data.backups b
     WHERE (b.project_id, b.rawdata_id, b.block1) IN (
        SELECT x.project_id, x.rawdata_id, x.block1 FROM osgprod_data.backups x
         WHERE x.project_id = p_project.project_id AND x.cluster = p_cluster AND x.process = coalesce(p_process, x.process)
           AND osgprod._is_of_schedd(x.project_id, x.cluster, x.process, x.nstart, p_schedd)
           FOR UPDATE SKIP LOCKED);
    FOR v_slice IN
        -- Leased slices are in files in flight: thousands of rows are read, not millions.
        SELECT s.* FROM osgprod_data.loaded_files f
         CROSS JOIN LATERAL (
            SELECT x.* FROM osgprod_data.slices x
             WHERE x.project_id = f.project_id AND x.rawdata_id = f.rawdata_id AND x.state = 'leased'
               AND CASE WHEN p_cluster IS NULL THEN osgprod._has_expired(x.due_at, v_since, v_hold)
                        ELSE x.cluster = p_cluster AND x.process = coalesce(p_process, x.process)
                             AND osgprod._is_of_schedd(x.project_id, x.cluster, x.process, x.nstart, p_schedd) END
            OFFSET 0) s  -- see _slices_in_flight
         WHERE f.project_id = p_project.project_id AND f.state IN ('in_progress', 'allocated')
           FOR NO KEY UPDATE OF s SKIP LOCKED
    LOOP
        lost := lost + osgprod._lose_slice(p_project, v_slice,
            CASE WHEN p_cluster IS NULL THEN 'lost' ELSE 'superseded' END::osgprod_data.outcome,
            osgprod._why_given_up(v_slice.due_at), false)::int;
    END LOOP;
    lost := lost + osgprod._requeue_merges(p_project, p_cluster, p_process, p_schedd, v_since, v_hold);
    PERFORM osgprod._end_backoffs(p_project.project_id);
    SELECT min(l.due_at) FILTER (WHERE l.task <> 'backup'), count(*) INTO v_next_at, v_live
      FROM osgprod._leases(p_project.project_id) l;
    -- A slice that is leased after this look is due a whole lease from now at the earliest; or earlier, when the lease has
    -- just been made longer, so 5 minutes are the most. A session that has the project's row locked, like an operator's open
    -- transaction, must not stand between a lease and its slice: then it is not noted, and the next call looks again.
    UPDATE osgprod_data.projects p
       SET next_due_at = least(CASE WHEN v_next_at < v_hold AND v_next_at >= v_since THEN v_hold ELSE v_next_at END,
                                now() + make_interval(secs => least(p.lease_s, 300))), nlive = v_live,
           merge_s = CASE WHEN p.merge_by <> 'none' THEN osgprod._merge_time(p.project_id, 0.9) END
     WHERE p.project_id = (SELECT q.project_id FROM osgprod_data.projects q
                            WHERE q.project_id = p_project.project_id FOR NO KEY UPDATE SKIP LOCKED);
END
$fn$;
