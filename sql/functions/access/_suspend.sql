CREATE FUNCTION osgprod._suspend_file(p_project osgprod_data.projects, p_rawdata_id int, p_reason text)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Suspends a file: nothing of it is assigned but one slice at a time, to see whether it works again. Leased slices go on.
-- Parameters: p_project  the project's row;  p_rawdata_id  the file;  p_reason  in words
-- Returns:    false when another session has the file's row, or it is suspended already
-- Locks:      the file's row, tried, in a mode that conflicts with _may_be_assigned: a slice that another session is about to
--             make ready would stay ready; its ready slices and the project's row, SKIP LOCKED
BEGIN
    PERFORM FROM osgprod_data.loaded_files f
      WHERE f.project_id = p_project.project_id AND f.rawdata_id = p_rawdata_id FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE osgprod_data.loaded_files f
       SET suspended_at = clock_timestamp(), suspend_reason = p_reason,
           retest_at = clock_timestamp() + make_interval(secs => p_project.retest_s), retest_s = 2 * p_project.retest_s
     WHERE f.project_id = p_project.project_id AND f.rawdata_id = p_rawdata_id AND f.suspended_at IS NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE osgprod_data.slices s SET is_ready = false
     WHERE (s.project_id, s.rawdata_id, s.block1) IN (
        SELECT x.project_id, x.rawdata_id, x.block1 FROM osgprod_data.slices x
         WHERE x.project_id = p_project.project_id AND x.rawdata_id = p_rawdata_id AND x.is_ready
           FOR NO KEY UPDATE SKIP LOCKED);
    PERFORM osgprod._note_suspended(p_project.project_id);
    PERFORM osgprod._notify(p_project.project_id, 'file-suspended', jsonb_build_object('reason', p_reason, 'path',
        (SELECT w.path FROM osgprod_data.rawdata w WHERE w.rawdata_id = p_rawdata_id)));
    RETURN true;
END
$fn$;

CREATE FUNCTION osgprod._resume_file(p_project_id int, p_rawdata_id int, p_reason text)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Ends the suspension of a file.
-- Parameters: p_project_id, p_rawdata_id  the file;  p_reason  why, for the notification
-- Returns:    false when another session has the file's row, or it is not suspended
-- Locks:      the file's row, its slices and the project's row, SKIP LOCKED
BEGIN
    IF NOT osgprod._try_file(p_project_id, p_rawdata_id) THEN
        RETURN false;
    END IF;
    UPDATE osgprod_data.loaded_files f SET suspended_at = NULL, suspend_reason = NULL, retest_at = NULL, retest_s = NULL
     WHERE f.project_id = p_project_id AND f.rawdata_id = p_rawdata_id AND f.suspended_at IS NOT NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE osgprod_data.slices s
       SET is_ready = osgprod._may_be_assigned(p_project_id, p_rawdata_id), not_before = least(s.not_before, now())
     WHERE (s.project_id, s.rawdata_id, s.block1) IN (
        SELECT x.project_id, x.rawdata_id, x.block1 FROM osgprod_data.slices x
         WHERE x.project_id = p_project_id AND x.rawdata_id = p_rawdata_id AND x.state = 'ready' AND x.is_ready IS FALSE
           FOR NO KEY UPDATE SKIP LOCKED);
    PERFORM osgprod._note_suspended(p_project_id);
    PERFORM osgprod._notify(p_project_id, 'file-resumed', jsonb_build_object('reason', p_reason, 'path',
        (SELECT w.path FROM osgprod_data.rawdata w WHERE w.rawdata_id = p_rawdata_id)));
    RETURN true;
END
$fn$;

CREATE FUNCTION osgprod._note_suspended(p_project_id int)
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Notes how many files are suspended, so that nothing looks for them while none is. Waits for no session that has the
    -- project's row locked: tick() notes it then.
    UPDATE osgprod_data.projects p SET nsuspended = n.files
      FROM (SELECT count(*) AS files FROM osgprod_data.loaded_files f
             WHERE f.project_id = p_project_id AND f.suspended_at IS NOT NULL) n
     WHERE p.nsuspended <> n.files
       AND p.project_id = (SELECT q.project_id FROM osgprod_data.projects q
                            WHERE q.project_id = p_project_id FOR NO KEY UPDATE SKIP LOCKED)
$fn$;

CREATE FUNCTION osgprod._probe_files(p_project osgprod_data.projects)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Makes one slice ready of each suspended file that it is time to try again, unless one of its slices is leased or ready: that is
-- the probe then. The time to the next probe is doubled, up to max_backoff_s. A file without a slice to try is resumed.
-- Parameters: p_project  the project's row
-- Locks:      the files' rows, in order, and slices, SKIP LOCKED; see _resume_file
DECLARE
    v_file record;
BEGIN
    FOR v_file IN
        SELECT f.rawdata_id FROM osgprod_data.loaded_files f
         WHERE f.project_id = p_project.project_id AND f.suspended_at IS NOT NULL AND NOT f.on_tape AND f.retest_at <= now()
           AND NOT EXISTS (SELECT FROM osgprod_data.slices s
                            WHERE s.project_id = f.project_id AND s.rawdata_id = f.rawdata_id
                              AND (s.state = 'leased' OR s.is_ready))
         ORDER BY f.run, f.seqno
           FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        UPDATE osgprod_data.slices s SET is_ready = true, not_before = now()
         WHERE (s.project_id, s.rawdata_id, s.block1) = (
            SELECT x.project_id, x.rawdata_id, x.block1 FROM osgprod_data.slices x
             WHERE x.project_id = p_project.project_id AND x.rawdata_id = v_file.rawdata_id AND x.state = 'ready'
             ORDER BY cardinality(x.exit_codes) NULLS FIRST, x.block1 LIMIT 1
               FOR NO KEY UPDATE SKIP LOCKED);
        IF NOT FOUND THEN  -- all of it is unallocated or settled, or another session has the slice: the next tick looks again
            PERFORM osgprod._resume_file(p_project.project_id, v_file.rawdata_id, 'it has no slice to try')
              WHERE NOT osgprod._is_unsettled(p_project.project_id, v_file.rawdata_id);
            CONTINUE;
        END IF;
        UPDATE osgprod_data.loaded_files f
           SET retest_at = now() + make_interval(secs => f.retest_s),
               retest_s = greatest(least(2 * f.retest_s, p_project.max_backoff_s), p_project.retest_s)
         WHERE f.project_id = p_project.project_id AND f.rawdata_id = v_file.rawdata_id;
    END LOOP;
END
$fn$;
