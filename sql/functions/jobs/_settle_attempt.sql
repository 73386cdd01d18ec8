CREATE FUNCTION osgprod._judge_exit(
    p_project osgprod_data.projects, p_rawdata_id int, p_block1 int, p_block2 int,
    p_exit_code int, p_events bigint, p_outputs int, p_output_bytes bigint, p_output_adler32 text)
RETURNS osgprod_data.outcome LANGUAGE sql STABLE
AS $fn$
    -- Tells whose fault an exit code is, if anybody's: done, node-fault (killed by a signal, or a code that the project
    -- lists) or failed (the data, maybe; or a success that lacks the evidence which the project demands).
    SELECT CASE
        WHEN p_exit_code > 128 OR p_exit_code = ANY (p_project.node_fault_codes) THEN 'node-fault'
        WHEN p_exit_code > 0 THEN 'failed'
        WHEN NOT (p_project.demand_events OR p_project.demand_outputs OR p_project.demand_checksum) THEN 'done'
        WHEN osgprod._missing_evidence(p_project, p_rawdata_id, p_block1, p_block2, p_events, p_outputs, p_output_bytes,
                                       p_output_adler32) IS NULL THEN 'done'
        ELSE 'failed'
    END::osgprod_data.outcome
$fn$;

CREATE FUNCTION osgprod._missing_evidence(
    p_project osgprod_data.projects, p_rawdata_id int, p_block1 int, p_block2 int,
    p_events bigint, p_outputs int, p_output_bytes bigint, p_output_adler32 text)
RETURNS text LANGUAGE plpgsql STABLE
AS $fn$
-- Says what is lacking of the proof that the project demands of a success; exit 0 alone proves nothing.
-- Parameters: p_project  the project's row;  p_rawdata_id, p_block1, p_block2  the slice;  the others see report_exit
-- Returns:    one phrase; NULL = nothing is lacking
DECLARE
    v_events bigint;
BEGIN
    IF p_project.demand_outputs AND coalesce(p_outputs, 0) < 1 THEN
        RETURN 'exit code 0 without outputs';
    END IF;
    IF p_project.demand_checksum AND (p_output_adler32 IS NULL OR coalesce(p_output_bytes, 0) = 0) THEN
        RETURN 'exit code 0 without size and checksum of the outputs';
    END IF;
    IF p_project.demand_events THEN
        SELECT f.events INTO v_events FROM osgprod._slice_file(p_rawdata_id, p_block1, p_block2, '', '') f;
        IF p_events IS DISTINCT FROM v_events THEN
            RETURN format('exit code 0 with %s of %s events read', coalesce(p_events::text, 'unknown'), v_events);
        END IF;
    END IF;
    RETURN NULL;
END
$fn$;

CREATE FUNCTION osgprod._settle_attempt(
    p_project osgprod_data.projects, p_cluster int, p_process int, p_nstart int,
    p_outcome osgprod_data.outcome, p_worker text, p_exit_code int)
RETURNS osgprod_data.outcome LANGUAGE plpgsql VOLATILE
AS $fn$
-- Moves the slice of a reported attempt where the report is not simply the success of the slice's holder.
-- Parameters: p_project  the project's row;  p_cluster, p_process, p_nstart  the attempt
--             p_outcome  done, failed or node-fault, as judged;  p_worker  see _worker;  p_exit_code  as reported
-- Returns:    the outcome; superseded when the attempt no longer counts
-- Locks:      the slice; see _fail_slice
-- Source:     docs/design.md I3 (one holder), I5 (first success wins)
DECLARE
    v_attempt osgprod_data.attempts;
    v_slice   osgprod_data.slices;
BEGIN
    SELECT a.* INTO v_attempt FROM osgprod_data.attempts a
     WHERE a.project_id = p_project.project_id AND a.cluster = p_cluster AND a.process = p_process
       AND a.nstart = p_nstart;
    SELECT s.* INTO v_slice FROM osgprod_data.slices s
     WHERE s.project_id = v_attempt.project_id AND s.rawdata_id = v_attempt.rawdata_id
       AND s.block1 = v_attempt.block1
       FOR NO KEY UPDATE;
    IF p_outcome = 'done' THEN
        -- I5: a late success counts when nobody was faster and the slice is the one that was lent: not split, recycled
        -- or begun anew since. No clock is trusted for that: opened_at is compared for being the same.
        IF v_slice.block2 = v_attempt.block2 AND v_slice.opened_at = v_attempt.opened_at AND v_slice.state <> 'done' THEN
            PERFORM osgprod._finish_slice(v_slice, v_attempt);
            RETURN 'done'::osgprod_data.outcome;
        END IF;
    ELSIF v_slice.state = 'leased' AND v_slice.cluster = p_cluster AND v_slice.process = p_process
          AND v_slice.nstart = p_nstart THEN
        -- A worker that is refused work proves nothing about the data either.
        IF p_outcome = 'failed' AND p_project.banned_until > now() AND osgprod._is_banned(p_project.project_id, p_worker) THEN
            p_outcome := 'node-fault';
        END IF;
        PERFORM osgprod._fail_slice(p_project, v_slice, p_outcome, p_worker, p_exit_code);
        RETURN p_outcome;
    END IF;
    RETURN 'superseded'::osgprod_data.outcome;
END
$fn$;

CREATE FUNCTION osgprod._finish_slice(p_slice osgprod_data.slices, p_attempt osgprod_data.attempts)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Marks a slice done by an attempt that no longer held it.
-- Parameters: p_slice  the slice, locked;  p_attempt  whose success counts
BEGIN
    DELETE FROM osgprod_data.idle_slices i
     WHERE i.project_id = p_slice.project_id AND i.rawdata_id = p_slice.rawdata_id AND i.block1 = p_slice.block1;
    UPDATE osgprod_data.slices s
       SET state = 'done', cluster = p_attempt.cluster, process = p_attempt.process, nstart = p_attempt.nstart,
           due_at = now()
     WHERE s.project_id = p_slice.project_id AND s.rawdata_id = p_slice.rawdata_id AND s.block1 = p_slice.block1;
END
$fn$;

CREATE FUNCTION osgprod._fail_slice(
    p_project osgprod_data.projects, p_slice osgprod_data.slices, p_outcome osgprod_data.outcome, p_worker text,
    p_exit_code int)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Takes a leased slice back after a failure, a node fault or a loss: ready, split, or quarantined; or because its job is
-- gone: ready, and nothing is counted.
-- Promise:    failures counts failures of the data. A fault (of the node, or a loss) counts there only beyond
--             max_faults, and only each fourth time when it is on the same worker as the one before: a block that kills
--             its process is cornered in the end as well, a bad node alone corners nothing for long.
-- Parameters: p_project  the project's row;  p_slice  the slice, locked;  p_outcome  failed, node-fault, lost or superseded
--             p_worker   on whom;  p_exit_code  as reported; NULL = lost, told to stop, or gone
-- Locks:      the file, when the slice is split
DECLARE
    v_is_failure  boolean := p_outcome = 'failed';
    v_is_cornered boolean;
    v_not_before  timestamptz := now();
BEGIN
    IF p_outcome IN ('node-fault', 'lost') THEN
        p_slice.repeats := CASE WHEN p_slice.faulted_on = p_worker THEN (p_slice.repeats + 1) % 4 ELSE 0 END;
        p_slice.faulted_on := p_worker;
        IF p_slice.repeats = 0 THEN
            v_is_failure := p_slice.faults >= p_project.max_faults;
            p_slice.faults := least(p_slice.faults + 1, p_project.max_faults);
        END IF;
    END IF;
    IF p_exit_code IS NOT NULL THEN
        p_slice.exit_codes := (p_slice.exit_codes || p_exit_code)[greatest(cardinality(p_slice.exit_codes) - 3, 1):];
    END IF;
    IF v_is_failure THEN
        p_slice.failures := p_slice.failures + 1;
        v_not_before := now() + osgprod._backoff(p_project, p_slice.failures);
    END IF;
    v_is_cornered := v_is_failure AND p_slice.failures >= p_project.max_failures;

    UPDATE osgprod_data.slices s
       SET state = CASE WHEN v_is_cornered AND p_slice.block2 - p_slice.block1 = 1 THEN 'quarantined'
                        ELSE 'ready' END::osgprod_data.slice_state,
           failures = p_slice.failures, faults = p_slice.faults, faulted_on = p_slice.faulted_on,
           repeats = p_slice.repeats, exit_codes = p_slice.exit_codes,
           -- I3: who is only silent may come back (_lost_slice), who has ended may not.
           due_at = CASE WHEN p_outcome IN ('lost', 'superseded') THEN s.due_at END
     WHERE s.project_id = p_slice.project_id AND s.rawdata_id = p_slice.rawdata_id AND s.block1 = p_slice.block1;
    IF v_is_cornered AND p_slice.block2 - p_slice.block1 = 1 THEN
        v_not_before := 'infinity';
        PERFORM osgprod._tell(p_slice.project_id, 'block-quarantined', jsonb_build_object('block', p_slice.block1,
            'path', (SELECT w.path FROM osgprod_data.rawdata w WHERE w.rawdata_id = p_slice.rawdata_id)));
    END IF;
    PERFORM osgprod._put_idle(p_slice.project_id, p_slice.rawdata_id, p_slice.block1, v_not_before);
    IF v_is_cornered AND p_slice.block2 - p_slice.block1 > 1 THEN
        PERFORM osgprod._split_slice(p_slice.project_id, p_slice.rawdata_id, p_slice.block1,
            (p_slice.block1 + p_slice.block2) / 2, v_not_before);
        -- Each half starts with a fresh count of failures; faults stay: what is suspected, stays suspected.
        UPDATE osgprod_data.slices s SET failures = 0
         WHERE s.project_id = p_slice.project_id AND s.rawdata_id = p_slice.rawdata_id
           AND s.block1 >= p_slice.block1 AND s.block2 <= p_slice.block2;
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._backoff(p_project osgprod_data.projects, p_failures int)
RETURNS interval LANGUAGE sql VOLATILE
AS $fn$
    -- How long a slice rests after its nth failure: doubled each time up to max_backoff_s, with jitter of +-50 %.
    SELECT make_interval(secs => least(p_project.backoff_s * 2.0 ^ least(p_failures - 1, 20), p_project.max_backoff_s)
        * (0.5 + random()))
$fn$;

CREATE FUNCTION osgprod._put_idle(p_project_id int, p_rawdata_id int, p_block1 int, p_not_before timestamptz)
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Lists a slice as one that nobody works on, from p_not_before on to be lent again; infinity = quarantined.
    INSERT INTO osgprod_data.idle_slices (project_id, run, seqno, rawdata_id, block1, not_before)
    SELECT f.project_id, f.run, f.seqno, f.rawdata_id, p_block1, p_not_before
      FROM osgprod_data.loaded_files f
     WHERE f.project_id = p_project_id AND f.rawdata_id = p_rawdata_id
$fn$;

CREATE FUNCTION osgprod._split_slice(
    p_project_id int, p_rawdata_id int, p_block1 int, p_at int, p_not_before timestamptz)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Splits an idle slice in two: [block1, p_at) stays, [p_at, block2) becomes a ready slice of its own.
-- Parameters: p_project_id, p_rawdata_id, p_block1  the slice, locked;  p_at  a block inside it
--             p_not_before  from when on the second part may be lent
-- Errors:     OG504 somebody else has the file, and an earlier call in this transaction took another one: two that hold one
--             and wait for one could wait for each other
-- Locks:      the file: who cuts it may be reading where this slice ends
-- Source:     docs/design.md I2
BEGIN
    IF NOT pg_try_advisory_xact_lock(p_project_id, p_rawdata_id) THEN
        -- (_may_hold_file would say yes to everybody who comes here: something has been written before.)
        IF EXISTS (SELECT FROM pg_locks l
                    WHERE l.pid = pg_backend_pid() AND l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
                      AND l.objid::bigint BETWEEN 1 AND 2147483647) THEN
            RAISE EXCEPTION 'files that are needed together are in use' USING ERRCODE = 'OG504',
                HINT = 'make one call a transaction';
        END IF;
        PERFORM pg_advisory_xact_lock(p_project_id, p_rawdata_id);
    END IF;
    -- One statement, so that the chain of slices is whole before its constraints are checked.
    WITH whole AS (
        SELECT s.* FROM osgprod_data.slices s
         WHERE s.project_id = p_project_id AND s.rawdata_id = p_rawdata_id AND s.block1 = p_block1
    ), first_part AS (
        UPDATE osgprod_data.slices s SET block2 = p_at, opened_at = clock_timestamp()
          FROM whole w
         WHERE s.project_id = w.project_id AND s.rawdata_id = w.rawdata_id AND s.block1 = w.block1
        RETURNING s.project_id
    )
    INSERT INTO osgprod_data.slices (project_id, rawdata_id, block1, block2, follows, state, failures, faults,
            faulted_on, repeats, exit_codes, opened_at)
    SELECT w.project_id, w.rawdata_id, p_at, w.block2, p_at, 'ready', w.failures, w.faults, w.faulted_on, w.repeats,
           w.exit_codes, clock_timestamp()
      FROM whole w, first_part;
    PERFORM osgprod._put_idle(p_project_id, p_rawdata_id, p_at, p_not_before);
END
$fn$;
