CREATE FUNCTION osgprod.stop_jobs(p_project text, p_worker text)
RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Tells the running jobs of a worker or a site to end, each at its next heartbeat, and requeues their slices and merges at once.
-- Ban the worker or the site first (ban_worker), or the next jobs there get work again.
-- Promise:    that a job is stopped is nobody's fault: it counts against neither its slice nor its worker. A success that is
--             reported all the same counts, unless another attempt was faster. What another session has locked at this moment goes on:
--             a repeated call stops it, and changes nothing of the others. A job that was silent until its lease ended does not get its
--             work back either.
-- Parameters: p_project  project name;  p_worker  host@address, host, address, site:NAME or all, see ban_worker
-- Returns:    how many attempts were stopped: at slices and merges, also silent ones, and backup attempts
-- Errors:     OG301 unknown project; OG108 no worker is named, or its merges alone; OG502 an operator has the project alone;
--             OG901 isolation level
-- Locks:      the project, shared (advisory: project_id, -1); slices with their backups; slices with their files; merges. Each in
--             order, and tried: nothing here waits
-- Source:     docs/design.md "A slice's life"
DECLARE
    v_project projects := osgprod._get_project(p_project);
    v_reason  text := format('the operator has stopped the jobs of %s', osgprod._label(p_worker));
    v_attempt attempts;
    v_slice   slices;
    v_merge   merges;
    v_stopped int := 0;
BEGIN
    PERFORM osgprod._require_read_committed();
    IF coalesce(p_worker, '') = '' THEN
        RAISE EXCEPTION 'the worker whose jobs shall stop is empty' USING ERRCODE = 'OG108',
            HINT = format('osgprod workers list %s lists the names of the workers', p_project);
    END IF;
    IF p_worker LIKE 'merges:%' THEN
        RAISE EXCEPTION '% names the merges of a worker, and its jobs are stopped as a whole', osgprod._label(p_worker)
            USING ERRCODE = 'OG108', HINT = format('leave "merges:" out; osgprod workers list %s lists the names of the workers', p_project);
    END IF;
    PERFORM osgprod._enter_project(v_project.project_id, p_project);
    -- Backups first, so that none of them becomes a holder.
    FOR v_attempt IN
        SELECT a.* FROM backups b
          JOIN slices s ON s.project_id = b.project_id AND s.rawdata_id = b.rawdata_id AND s.block1 = b.block1
          JOIN attempts a ON a.project_id = b.project_id AND a.cluster = b.cluster AND a.process = b.process AND a.nstart = b.nstart
         WHERE b.project_id = v_project.project_id AND b.due_at IS NOT NULL AND s.state = 'leased' AND s.opened_at = b.opened_at
           AND osgprod._is_worker(p_worker, a)
         ORDER BY s.run, s.seqno, s.block1
           FOR NO KEY UPDATE OF s SKIP LOCKED
    LOOP
        IF osgprod._end_backup(v_attempt, 'superseded') THEN
            PERFORM osgprod._record_verdict(v_project, v_attempt, 'superseded', v_reason);
            v_stopped := v_stopped + 1;
        END IF;
    END LOOP;
    FOR v_slice IN
        SELECT s.* FROM osgprod._slices_in_flight(v_project.project_id) f
          JOIN slices s ON s.project_id = f.project_id AND s.rawdata_id = f.rawdata_id AND s.block1 = f.block1
          JOIN attempts a ON a.project_id = s.project_id AND a.cluster = s.cluster AND a.process = s.process AND a.nstart = s.nstart
         WHERE f.state IN ('leased', 'ready') AND s.state IN ('leased', 'ready') AND s.due_at IS NOT NULL
           AND osgprod._is_worker(p_worker, a)
         ORDER BY s.run, s.seqno, s.block1
           FOR NO KEY UPDATE OF s SKIP LOCKED
    LOOP
        -- The row is updated twice, and then checked against its foreign key: that waits while somebody splits the slice before it.
        CONTINUE WHEN NOT osgprod._try_file(v_project.project_id, v_slice.rawdata_id);
        IF v_slice.state = 'leased' THEN
            PERFORM osgprod._lose_slice(v_project, v_slice, 'superseded', v_reason, false);
        END IF;
        UPDATE slices s SET due_at = NULL  -- its job does not get it again (_is_lost)
         WHERE s.project_id = v_slice.project_id AND s.rawdata_id = v_slice.rawdata_id AND s.block1 = v_slice.block1
           AND s.state = 'ready';
        v_stopped := v_stopped + 1;
    END LOOP;
    FOR v_merge IN
        SELECT m.* FROM merges m
          JOIN attempts a ON a.project_id = m.project_id AND a.cluster = m.cluster AND a.process = m.process AND a.nstart = m.nstart
         WHERE m.project_id = v_project.project_id AND m.state IN ('leased', 'ready') AND m.due_at IS NOT NULL
           AND osgprod._is_worker(p_worker, a)
         ORDER BY m.run, m.seqno
           FOR NO KEY UPDATE OF m SKIP LOCKED
    LOOP
        IF v_merge.state = 'leased' THEN
            PERFORM osgprod._lose_merge(v_project, v_merge, 'superseded', v_reason);
        END IF;
        UPDATE merges m SET due_at = NULL WHERE m.merge_id = v_merge.merge_id AND m.state = 'ready';
        v_stopped := v_stopped + 1;
    END LOOP;
    PERFORM osgprod._log_operation('stop_jobs', p_project, jsonb_build_object('worker', p_worker), v_stopped);
    RETURN v_stopped;
END
$fn$;

COMMENT ON FUNCTION osgprod.stop_jobs(text, text) IS
'Tells the running jobs of a worker or a site to end at their next heartbeat, and requeues their slices and merges at once; returns how many. For osgprod_operator.';

CREATE FUNCTION osgprod._is_worker(p_worker text, p_attempt osgprod_data.attempts)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Does an attempt run on this worker?
    -- Parameters: p_worker  name of a worker or site, as it can be banned;  p_attempt  the attempt
    SELECT p_worker = ANY (osgprod._worker_names(osgprod._worker(p_attempt.client, p_attempt.host), p_attempt.site))
$fn$;
