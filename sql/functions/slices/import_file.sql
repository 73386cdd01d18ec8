CREATE FUNCTION osgprod.import_file(p_project text, p_path text, p_size_bytes bigint, p_nblocks int, p_slices jsonb)
RETURNS TABLE (status text, blocks_done bigint, blocks_left bigint, attempts int)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Takes over what another dispatcher has done of one file: makes it work of the project, with the blocks that are proven
-- done counted as done, and the jobs that did them on record.
-- Promise:    a slice counts as done when its job ended with exit code 0 and held no other: a job that holds several did
--             one of them at most, and nobody knows which. Of slices that overlap, the one that ended first counts, and
--             nothing of the others, since the output of a slice has all its events. All other blocks are left to be done. A file of
--             which something is allocated already is left as it is. A repeated call changes nothing more.
-- Parameters: p_project     project name
--             p_path        of a registered file;  p_size_bytes [bytes], p_nblocks  as the other one knew it, its blocks
--                           counted with or without a trailer
--             p_slices      list of objects: block1, block2 (0-based, half-open), and where a job had it cluster,
--                           process, nstart, cpus, worker (address), started_at, ended_at, exit_code (NULL = no report),
--                           slices_of_job (how many it holds)
-- Returns:    one row. status imported, with blocks done and left, and attempts put on record. Nothing is changed with: already (something
--             of it is allocated, or it has no work); double (the project has its run and number at another path); differs (not the
--             file that the other one knew); unknown (not registered)
-- Errors:     OG301 unknown project; OG108 slices that make no sense; OG502 an
--             operator has the project alone; OG901 isolation level
-- Locks:      which files are on tape only, shared (advisory: 0, -3); the raw data file's row, FOR KEY SHARE; the project, shared (advisory: project_id, -1), tried; the
--             project's row, FOR SHARE; against load_slices (project_id, -2); the run's merge; the file's row. It waits for each
DECLARE
    v_project projects := osgprod._get_project(p_project);
    v_rawdata rawdata;
    v_file    loaded_files;
    v_slice   record;
    v_is_done boolean;
    v_attempt attempts;
    v_new     attempts[];  -- put on record
    v_done    attempts[];  -- of these, by which slices are done
    v_taken   boolean[];   -- blocks that are done: an array, so that neither a look nor a note costs more with more slices
BEGIN
    PERFORM osgprod._require_read_committed();
    PERFORM pg_advisory_xact_lock_shared(0, -3);  -- before any other lock, see _mark_on_tape
    SELECT r.* INTO v_rawdata FROM rawdata r WHERE r.path = p_path FOR KEY SHARE;  -- forget_rawdata waits
    -- The other one counts empty blocks, which are no blocks here.
    IF NOT FOUND OR v_rawdata.size_bytes <> p_size_bytes OR v_rawdata.gaps IS NOT NULL
       OR p_nblocks NOT IN (v_rawdata.nblocks, v_rawdata.nblocks + v_rawdata.has_trailer::int) THEN
        status := CASE WHEN v_rawdata.path IS NULL THEN 'unknown' ELSE 'differs' END;
        RETURN NEXT;
        RETURN;
    END IF;
    PERFORM osgprod._enter_project(v_project.project_id, p_project);
    PERFORM FROM projects p WHERE p.project_id = v_project.project_id FOR SHARE;  -- see _tally_late
    PERFORM pg_advisory_xact_lock(v_project.project_id, -2);  -- nobody else loads files until this transaction ends
    INSERT INTO loaded_files (project_id, rawdata_id, run, seqno, block1, block2, on_tape)
    SELECT v_project.project_id, v_rawdata.rawdata_id, v_rawdata.run, v_rawdata.seqno, v_rawdata.first_block,
           v_rawdata.nblocks, p.skip_nearline AND r.locality IS NOT DISTINCT FROM 'nearline'
      FROM projects p JOIN rawdata r ON r.rawdata_id = v_rawdata.rawdata_id
     WHERE p.project_id = v_project.project_id AND v_rawdata.first_block < v_rawdata.nblocks
       AND NOT EXISTS (SELECT FROM loaded_files f
                        WHERE f.project_id = v_project.project_id AND f.run = v_rawdata.run AND f.seqno = v_rawdata.seqno);
    IF FOUND THEN
        PERFORM osgprod._reopen_merges(v_project.project_id, ARRAY[v_rawdata.run], -1);  -- the run has more files now
    END IF;
    SELECT f.* INTO v_file FROM loaded_files f
     WHERE f.project_id = v_project.project_id AND f.rawdata_id = v_rawdata.rawdata_id AND f.state = 'pending'
       FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        status := CASE WHEN EXISTS (SELECT FROM loaded_files f
                                     WHERE f.project_id = v_project.project_id AND f.run = v_rawdata.run
                                       AND f.seqno = v_rawdata.seqno AND f.rawdata_id <> v_rawdata.rawdata_id)
                       THEN 'double' ELSE 'already' END;
        RETURN NEXT;
        RETURN;
    END IF;

    status := 'imported';
    v_taken := array_fill(false, ARRAY[v_file.block2]);
    FOR v_slice IN
        SELECT x.*, coalesce(x.exit_code = 0 AND x.ended_at IS NOT NULL AND x.slices_of_job = 1, false) AS is_done,
               greatest(x.block1, v_file.block1) AS first, least(x.block2, v_file.block2) AS last
          FROM jsonb_to_recordset(p_slices) AS x (block1 int, block2 int, cluster int, process int, nstart int, cpus int,
               worker text, started_at timestamptz, ended_at timestamptz, exit_code int, slices_of_job int)
         WHERE x.cluster IS NOT NULL
         ORDER BY 12 DESC, x.ended_at, x.block1, x.cluster, x.process
    LOOP
        v_is_done := v_slice.is_done AND v_slice.first < v_slice.last;
        FOR v_block IN v_slice.first .. v_slice.last - 1 LOOP
            EXIT WHEN NOT v_is_done;
            v_is_done := NOT v_taken[v_block + 1];
        END LOOP;
        v_attempt := osgprod._import_attempt(v_project.project_id, v_rawdata.rawdata_id, v_slice.first, v_slice.last,
            v_slice.cluster, v_slice.process, v_slice.nstart, v_slice.cpus, v_slice.worker, v_slice.started_at,
            v_slice.ended_at, v_slice.exit_code, v_is_done);
        CONTINUE WHEN v_attempt.nstart IS NULL;  -- an attempt of that number is on record already: its slice is processed again
        v_new := array_append(v_new, v_attempt);
        IF v_is_done THEN
            v_done := array_append(v_done, v_attempt);
            FOR v_block IN v_slice.first .. v_slice.last - 1 LOOP
                v_taken[v_block + 1] := true;
            END LOOP;
        END IF;
    END LOOP;
    attempts := coalesce(cardinality(v_new), 0);
    -- One statement, so that the chain of slices is whole before its constraints are checked.
    WITH done AS (
        SELECT n.cluster, n.process, n.nstart, n.block1 AS first, n.block2 AS last,
               lag(n.block2, 1, v_file.block1) OVER (ORDER BY n.block1) AS begin_of_gap
          FROM unnest(v_done) n
    ), added AS (
        INSERT INTO slices (project_id, rawdata_id, block1, block2, follows, run, seqno, opened_at, state, is_ready, not_before,
               cluster, process, nstart, due_at)
        SELECT v_project.project_id, v_rawdata.rawdata_id, a.block1, a.block2, nullif(a.block1, v_file.block1), v_file.run,
               v_file.seqno, now(), a.state::slice_state, a.is_ready, a.not_before, a.cluster, a.process, a.nstart, a.due_at
          FROM (SELECT d.begin_of_gap AS block1, d.first AS block2, 'ready' AS state, true AS is_ready, now() AS not_before,
                       0 AS cluster, 0 AS process, 0 AS nstart, NULL::timestamptz AS due_at
                  FROM done d WHERE d.begin_of_gap < d.first
                UNION ALL
                SELECT d.first, d.last, 'done', NULL, NULL, d.cluster, d.process, d.nstart, now() FROM done d) a
        RETURNING slices.block1, slices.block2, slices.state
    ), counted AS (
        SELECT coalesce(sum(s.block2 - s.block1) FILTER (WHERE s.state = 'done'), 0) AS done, max(s.block2) AS last FROM added s
    ), allocated AS (
        UPDATE loaded_files f SET state = CASE WHEN c.last = f.block2 THEN 'allocated' ELSE 'in_progress' END::file_state
          FROM counted c
         WHERE f.project_id = v_project.project_id AND f.rawdata_id = v_rawdata.rawdata_id AND c.last IS NOT NULL
    )
    SELECT c.done INTO blocks_done FROM counted c;
    blocks_left := v_file.block2 - v_file.block1 - blocks_done;
    PERFORM osgprod._tally_late(v_project.project_id, v_new);
    PERFORM osgprod._log_operation('import_file', p_project, '{}', 1);
    RETURN NEXT;
EXCEPTION WHEN data_exception OR integrity_constraint_violation THEN
    RAISE EXCEPTION 'slices of file %: %', osgprod._label(p_path, 512), osgprod._shortened(SQLERRM) USING ERRCODE = 'OG108',
        HINT = 'docs/moving.md lists what the import takes over';
END
$fn$;

COMMENT ON FUNCTION osgprod.import_file(text, text, bigint, int, jsonb) IS
'Takes over what another dispatcher has done of one file: its slices and jobs. For osgprod_operator.';

CREATE FUNCTION osgprod._import_attempt(
    p_project_id int, p_rawdata_id int, p_block1 int, p_block2 int, p_cluster int, p_process int, p_nstart int, p_cpus int,
    p_worker text, p_started_at timestamptz, p_ended_at timestamptz, p_exit_code int, p_is_done boolean)
RETURNS osgprod_data.attempts LANGUAGE plpgsql VOLATILE
AS $fn$
-- Puts a job of another dispatcher on record, with how it ended: by its own report, or lost.
-- Parameters: p_block1, p_block2  its slice, as far as it is work of the file;  p_is_done  does its success count?;  see import_file
-- Returns:    the attempt; NULLs when one of that number is on record already
DECLARE
    v_attempt    osgprod_data.attempts;
    v_started_at timestamptz := coalesce(p_started_at, p_ended_at, now());
    v_client     inet := CASE WHEN p_worker ~ '^[0-9.]{7,15}$|^[0-9a-fA-F:]*:[0-9a-fA-F:.]*$' THEN p_worker::inet
                              ELSE '0.0.0.0' END;
BEGIN
    INSERT INTO osgprod_data.attempts (project_id, cluster, process, nstart, rawdata_id, block1, block2, cpus, opened_at,
           started_at, token_digest, client)
    VALUES (p_project_id, p_cluster, p_process, coalesce(p_nstart, 1), p_rawdata_id, p_block1, p_block2,
            coalesce(p_cpus, 1), CASE WHEN p_is_done THEN now() ELSE v_started_at END, v_started_at,
            sha256(uuid_send(gen_random_uuid())), v_client)  -- the digest of a token that nobody has
    ON CONFLICT DO NOTHING
    RETURNING * INTO v_attempt;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    INSERT INTO osgprod_data.reports (project_id, cluster, process, nstart, by_worker, outcome, exit_code, reported_at, ran_s,
           nblocks, worker)
    VALUES (p_project_id, p_cluster, p_process, coalesce(p_nstart, 1), p_exit_code IS NOT NULL,
            CASE WHEN p_exit_code IS NULL THEN 'lost' WHEN p_is_done AND p_block1 < p_block2 THEN 'done'
                 WHEN p_exit_code = 0 THEN 'superseded' ELSE 'failed' END::osgprod_data.outcome,
            p_exit_code, coalesce(p_ended_at, now()),
            least(greatest(extract(epoch FROM coalesce(p_ended_at, now()) - v_started_at), 0), 2147483647),
            greatest(p_block2 - p_block1, 0), host(v_client));
    RETURN v_attempt;
END
$fn$;

CREATE FUNCTION osgprod._tally_late(p_project_id int, p_attempts osgprod_data.attempts[])
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Adds to the tallies those reports on attempts just put on record whose times are tallied already. Nothing more is tallied
    -- until they are committed: see _tally.
    -- Locks:      none; the caller has the project's row, FOR SHARE, against _tally
    WITH tallied_until AS MATERIALIZED (
        SELECT p.tallied_until AS at FROM osgprod_data.projects p WHERE p.project_id = p_project_id
    ), late AS (
        SELECT r.* FROM osgprod_data.reports r
          JOIN unnest(p_attempts) j
            ON r.project_id = p_project_id AND r.cluster = j.cluster AND r.process = j.process AND r.nstart = j.nstart
         WHERE r.reported_at < (SELECT u.at FROM tallied_until u)
    ), tallied AS (
        INSERT INTO osgprod_data.tallies (project_id, began_at, outcome, exit_code, site, reports, blocks, ran_s, last_at)
        SELECT l.project_id, osgprod._ten_minutes(l.reported_at), l.outcome, l.exit_code, l.site, count(*), sum(l.nblocks),
               sum(l.ran_s), max(l.reported_at)
          FROM late l GROUP BY 1, 2, 3, 4, 5, l.nblocks > 0  -- as _tally does
    )
    INSERT INTO osgprod_data.totals AS t (project_id, outcome, reports, blocks, ran_s)
    SELECT l.project_id, l.outcome, count(*), sum(l.nblocks), sum(l.ran_s) FROM late l GROUP BY 1, 2
    ON CONFLICT ON CONSTRAINT totals_pkey DO UPDATE
       SET reports = t.reports + excluded.reports, blocks = t.blocks + excluded.blocks, ran_s = t.ran_s + excluded.ran_s
$fn$;
