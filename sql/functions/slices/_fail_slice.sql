CREATE FUNCTION osgprod._fail_slice(
    p_project osgprod_data.projects, p_slice osgprod_data.slices, p_outcome osgprod_data.outcome, p_worker text,
    p_exit_code int, p_may_wait boolean, p_is_excused boolean DEFAULT false)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Decides what becomes of a leased slice that failed, had a node fault or was lost: it is requeued, split, or quarantined. A
-- slice whose job is gone (superseded) is requeued, and nothing is counted.
-- Promise:    failures counts failures of the data. A fault (of the node, or a loss) counts there only beyond
--             max_faults, and only each fourth time when it is on the same worker as the one before: a block that kills
--             its process is isolated in the end as well, a bad node alone isolates nothing for long. A slice is split at
--             max_failures, or quarantined if it is one block; with max_backups, and when no file is open any more, it
--             is split at each failure. Below max_failures its living backup attempt becomes its holder instead.
-- Parameters: p_project  the project's row;  p_slice  the slice, locked;  p_outcome  failed, node-fault, lost or superseded
--             p_worker   on whom;  p_exit_code  as reported; NULL = lost, stopped by the server, or gone;  p_may_wait  for the file
--             p_is_excused  something else is to blame (_blame): nothing is counted. It backs off only while the project has
--                           paused itself, so that the next probe is another slice
-- Returns:    true; false = the slice has to be split and another session has its file: the slice is as it was
-- Locks:      the backup's row, SKIP LOCKED (_promote_backup); the file's row, to split the slice; else that FOR KEY SHARE, SKIP
--             LOCKED (_may_be_assigned)
DECLARE
    v_is_failure  boolean;
    v_is_at_limit boolean;
    v_is_split    boolean;
    v_not_before  timestamptz;
BEGIN
    SELECT c.is_failure, c.not_before, c.failures, c.faults, c.faulted_on, c.repeats, c.exit_codes
      INTO v_is_failure, v_not_before, p_slice.failures, p_slice.faults, p_slice.faulted_on, p_slice.repeats, p_slice.exit_codes
      FROM osgprod._count_failure(p_project, p_outcome, p_worker, p_exit_code, p_is_excused, p_slice.failures, p_slice.faults,
                                  p_slice.faulted_on, p_slice.repeats, p_slice.exit_codes) c;
    v_is_at_limit := v_is_failure AND p_slice.failures >= p_project.max_failures;
    IF NOT v_is_at_limit AND osgprod._promote_backup(p_slice, p_project.heartbeat_s) THEN
        RETURN true;
    END IF;
    -- In the tail idle jobs isolate a bad block side by side; one after the other, max_failures times each, would take hours.
    v_is_split := v_is_failure AND p_slice.block2 - p_slice.block1 > 1 AND (v_is_at_limit
        OR p_project.max_backups > 0 AND NOT EXISTS (
            SELECT FROM osgprod_data.loaded_files f WHERE f.project_id = p_slice.project_id AND f.is_open));
    IF v_is_split THEN
        IF p_may_wait THEN
            PERFORM osgprod._lock_files(p_slice.project_id, ARRAY[p_slice.rawdata_id]);
        ELSIF NOT osgprod._try_file(p_slice.project_id, p_slice.rawdata_id) THEN
            RETURN false;
        END IF;
    ELSIF v_is_at_limit THEN
        v_not_before := NULL;  -- never: it is quarantined
        PERFORM osgprod._notify(p_slice.project_id, 'block-quarantined', jsonb_build_object('block', p_slice.block1,
            'path', (SELECT w.path FROM osgprod_data.rawdata w WHERE w.rawdata_id = p_slice.rawdata_id)));
    END IF;
    UPDATE osgprod_data.slices s
       SET state = CASE WHEN v_not_before IS NULL THEN 'quarantined' ELSE 'ready' END::osgprod_data.slice_state,
           is_ready = coalesce(v_not_before <= now(), false) AND osgprod._may_be_assigned(s.project_id, s.rawdata_id),
           not_before = v_not_before,
           failures = p_slice.failures, faults = p_slice.faults, faulted_on = p_slice.faulted_on,
           repeats = p_slice.repeats, exit_codes = p_slice.exit_codes,
           -- NULL: the attempt does not get the slice again (I3, _is_lost)
           due_at = CASE WHEN p_outcome IN ('lost', 'superseded') THEN s.due_at END
     WHERE s.project_id = p_slice.project_id AND s.rawdata_id = p_slice.rawdata_id AND s.block1 = p_slice.block1;
    IF v_is_split THEN
        PERFORM osgprod._split_slice(p_slice.project_id, p_slice.rawdata_id, p_slice.block1,
            (p_slice.block1 + p_slice.block2) / 2);
    END IF;
    RETURN true;
END
$fn$;

CREATE FUNCTION osgprod._count_failure(
    p_project osgprod_data.projects, p_outcome osgprod_data.outcome, p_worker text, p_exit_code int, p_is_excused boolean,
    INOUT failures smallint, INOUT faults smallint, INOUT faulted_on text, INOUT repeats smallint, INOUT exit_codes int[],
    OUT is_failure boolean, OUT not_before timestamptz)
LANGUAGE plpgsql VOLATILE
AS $fn$
-- Counts one more failure, node fault or loss of a slice or a merge.
-- Parameters: see _fail_slice;  failures, faults, faulted_on, repeats, exit_codes  of the slice or merge so far
-- Returns:    the counts now. is_failure: does it count as a failure of the data? not_before: the end of its backoff
DECLARE
    v_earlier int := coalesce(cardinality(exit_codes), 0);  -- failures and node faults, the last 5
BEGIN
    is_failure := p_outcome = 'failed' AND NOT p_is_excused;
    not_before := now();
    IF p_outcome IN ('node-fault', 'lost') AND NOT p_is_excused THEN
        repeats := CASE WHEN faulted_on = p_worker THEN (repeats + 1) % 4 ELSE 0 END;
        faulted_on := p_worker;
        is_failure := repeats = 0 AND faults >= p_project.max_faults;
        faults := CASE WHEN repeats = 0 THEN least(faults + 1, p_project.max_faults) ELSE faults END;
    END IF;
    IF p_exit_code IS NOT NULL THEN
        exit_codes := (exit_codes || p_exit_code)[greatest(cardinality(exit_codes) - 3, 1):];
    END IF;
    IF is_failure THEN
        failures := failures + 1;
        not_before := osgprod._end_of_backoff(p_project, failures - 1);
    ELSIF p_exit_code IS NOT NULL
          AND (p_is_excused AND p_project.pause_cause IS NOT NULL OR NOT p_is_excused AND v_earlier > 0)
    THEN
        -- A node fault with no failure before costs no time: another worker gets the work. Later ones may not be the node's fault.
        not_before := osgprod._end_of_backoff(p_project, greatest(v_earlier - 1, 0));
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._end_of_backoff(p_project osgprod_data.projects, p_earlier int)
RETURNS timestamptz LANGUAGE sql VOLATILE
AS $fn$
    -- When a slice or a merge that has just failed may be assigned again: after backoff_s, doubled with each earlier failure up to
    -- max_backoff_s, give or take half.
    -- Parameters: p_project  the project's row;  p_earlier  failures before this one
    SELECT now() + make_interval(secs => (0.5 + random())
        * least(p_project.backoff_s * 2.0 ^ least(p_earlier, 20), p_project.max_backoff_s))
$fn$;
