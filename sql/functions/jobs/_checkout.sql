CREATE FUNCTION osgprod._checkout(p_call osgprod.checkout_call, p_is_alone boolean, p_may_wait boolean)
RETURNS osgprod.checkout_answer LANGUAGE plpgsql VOLATILE
AS $fn$
-- Claims a slice or a merge for a job: the whole of checkout_slice, for a call that is made alone and for each call of a batch.
-- Promise:    requeues no other job's slice: that is tick's.
-- Parameters: p_call      see checkout_slice
--             p_is_alone  a call that is made alone: it waits for its job, and for its own slice or merge
--             p_may_wait  for a file when others have locked all of them
-- Returns:    the answer; the error of a call is in it: status error, with code and hint
-- Locks:      see checkout_slice
-- Source:     docs/design.md "The claim"
DECLARE
    v_project  osgprod_data.projects;
    v_problem  text[];
    v_nstart   int;      -- of the coming attempt
    v_is_ready boolean;  -- is any slice?
    v_job      osgprod.job_so_far;  -- NULLs = it has not asked before
    v_slice    osgprod.claim;  -- the slice or merge that it gets, with -1 as the blocks of a merge; block1 NULL = none yet
    v_pace     osgprod.pace;  -- at its site; NULLs = not needed, or not known
    v_blocks   bigint;   -- of a slice for this job, at most
    v_file     record;
    v_script   text;     -- of the claimed slice or merge
    v_version  int;
    v_content  osgprod.content;
    v_token    uuid;
    v_started_at timestamptz;
    v_can_merge  boolean;  -- may this job get a merge? NULL = no
    v_has_merge  boolean;  -- and is one ready?
BEGIN
    -- (a) May it ask, and now? Its job is locked then.
    v_project := (SELECT p FROM osgprod_data.projects p WHERE p.name = p_call.project);
    v_problem := coalesce(
        osgprod._why_rejected(v_project, p_call.project, p_call.cluster, p_call.process, p_call.magic, p_call.client,
                              p_call.bearer, p_is_alone),
        CASE WHEN (p_call.cpus BETWEEN 1 AND 4096) IS NOT TRUE
             THEN ARRAY['OG104', 'parameter cpus must be a number from 1 to 4096, not {number}',
                        'pass the cores that the job has, or leave cpus out for 1']
             WHEN octet_length(p_call.job_key) > 256
             THEN ARRAY['OG110', 'parameter job_key is longer than 256 bytes',
                        'the submit file draws a random number for each job: condor/osgprod.sub']
             WHEN v_project.state = 'paused' AND v_project.pause_cause IS NULL
             THEN ARRAY['OG501', 'project {project} is paused', 'osgprod project resume {project} assigns work again']
             WHEN v_project.banned_until > now()  -- some worker is
             THEN osgprod._banned(v_project, p_call.client, p_call.host, p_call.site) END);
    IF v_problem IS NOT NULL THEN
        RETURN osgprod._unassigned(osgprod._worded(v_problem, v_project, p_call.project, p_call.cluster, p_call.process,
            p_call.client, p_call.bearer, p_call.cpus));
    ELSIF p_call.workscript <> v_project.workscript THEN
        RETURN osgprod._unassigned(NULL, NULL, 'template', 'slice', v_project.workscript);
    ELSIF v_project.merge_by <> 'none' AND NOT p_call.templates ? v_project.mergescript THEN
        RETURN osgprod._unassigned(NULL, NULL, 'template', 'merge', v_project.mergescript);
    ELSIF v_project.merge_by <> 'none' THEN
        -- Its shim must have read the project's merge script, and it must have the time.
        v_can_merge := v_project.mergescript IS NOT NULL AND (p_call.templates ->> v_project.mergescript ~ '^[0-9a-f]{64}$') IS NOT FALSE
            AND (p_call.time_left_s < greatest(1.25 * v_project.merge_s, 1)) IS NOT TRUE;
        v_has_merge := v_can_merge
            AND EXISTS (SELECT FROM osgprod_data.merges m WHERE m.project_id = v_project.project_id AND m.is_ready)
            AND NOT (v_project.pause_cause IS NOT NULL AND osgprod._is_incomplete(v_project.project_id, false));
    END IF;

    -- (b) Its own slice again, if it has started before.
    SELECT coalesce((SELECT a.nstart FROM osgprod_data.attempts a
                      WHERE a.project_id = v_project.project_id AND a.cluster = p_call.cluster AND a.process = p_call.process
                      ORDER BY a.nstart DESC LIMIT 1), 0) + 1,
           EXISTS (SELECT FROM osgprod_data.slices s WHERE s.project_id = v_project.project_id AND s.is_ready)
      INTO v_nstart, v_is_ready;
    IF v_nstart > 1 OR p_call.after <> '' THEN
        v_job := osgprod._job_so_far(v_project, p_call, v_nstart, v_can_merge IS TRUE, p_is_alone);
        IF v_job.problem IS NOT NULL THEN
            RETURN osgprod._unassigned(v_job.problem, v_project.wait_s, v_job.status);
        END IF;
        v_slice := v_job.slice;
    END IF;

    -- (c) How many blocks may it get, and is there room for another job?
    IF v_slice.block1 IS NULL AND v_project.state <> 'draining' THEN
        IF v_project.target_s IS NOT NULL OR p_call.time_left_s IS NOT NULL THEN
            v_pace := osgprod._pace_at(v_project.project_id, p_call.site);
        END IF;
        v_blocks := least(osgprod._blocks_for(v_project, p_call.cpus, v_pace, p_call.time_left_s), v_job.most);
        IF (v_project.max_live IS NOT NULL OR v_project.pause_cause IS NOT NULL OR v_project.unproven > 0
            OR p_call.templates ? v_project.workscript
               AND left(p_call.templates ->> v_project.workscript, 16) <> ALL (v_project.tested_scripts))
            -- A job without time uses up no probe; one that has just given its slice back had room.
            AND (v_blocks > 0 OR v_has_merge) AND v_job.gave_back IS NOT TRUE THEN
            v_problem := osgprod._why_no_room(v_project, left(p_call.templates ->> v_project.workscript, 16));
            IF v_problem IS NOT NULL THEN
                RETURN osgprod._unassigned(v_problem, v_project.wait_s);
            END IF;
            v_blocks := least(v_blocks, CASE WHEN v_project.pause_cause IS NOT NULL THEN 1 END);  -- it is the probe
        END IF;
        -- (d) A merge, so that files are delivered early; else a requeued slice, so that files are completed in order.
        IF v_has_merge THEN
            v_slice := osgprod._claim_merge(v_project, p_call, v_nstart);
        END IF;
        IF v_blocks = 0 AND v_slice.block1 IS NULL THEN
            RETURN osgprod._unassigned(ARRAY[NULL, format('the job ends in %s s, and %s', greatest(p_call.time_left_s, 0),
                coalesce('a block takes up to ' || ceil(v_pace.slow_s_per_block / p_call.cpus) || ' s', 'no block is so short'))],
                0, 'no-time');
        ELSIF (v_is_ready OR v_job.gave_back) AND v_slice.block1 IS NULL THEN
            v_slice := osgprod._claim_ready(v_project, p_call, v_nstart, v_blocks);
        END IF;
        -- (e) Else the next blocks of the first file that is free.
        IF v_slice.block1 IS NULL THEN
            LOOP
                SELECT f.rawdata_id, f.run, f.seqno, f.block1, f.block2, f.state INTO v_file FROM osgprod_data.loaded_files f
                 WHERE f.project_id = v_project.project_id AND f.is_open
                 ORDER BY f.run, f.seqno LIMIT 1
                   FOR NO KEY UPDATE SKIP LOCKED;
                -- A transaction that has written may have a file: two that had one each could wait for each other.
                EXIT WHEN FOUND OR NOT p_may_wait OR pg_current_xact_id_if_assigned() IS NOT NULL
                    OR NOT osgprod._wait_for_file(v_project.project_id);
            END LOOP;
            IF v_file.rawdata_id IS NOT NULL THEN
                -- I1: it begins where the file's last slice ends, read while the file's row is locked, in a statement that
                -- began after that. The file's row is updated only for its first and last slice: with more dead versions of it, a
                -- snapshot held by pg_dump would slow later claims.
                v_slice := ROW(v_file.rawdata_id, coalesce((SELECT s.block2 FROM osgprod_data.slices s
                    WHERE s.project_id = v_project.project_id AND s.rawdata_id = v_file.rawdata_id
                    ORDER BY s.block1 DESC LIMIT 1), v_file.block1), NULL, clock_timestamp(), NULL)::osgprod.claim;
                v_slice.block2 := least(v_slice.block1 + v_blocks, v_file.block2);
                INSERT INTO osgprod_data.slices (project_id, rawdata_id, block1, block2, follows, run, seqno, cluster, process,
                       nstart, opened_at, due_at)
                VALUES (v_project.project_id, v_slice.rawdata_id, v_slice.block1, v_slice.block2,
                       nullif(v_slice.block1, v_file.block1), v_file.run, v_file.seqno, p_call.cluster, p_call.process, v_nstart,
                       v_slice.opened_at, v_slice.opened_at + make_interval(secs => v_project.lease_s));
                IF v_slice.block2 = v_file.block2 OR v_file.state = 'pending' THEN
                    UPDATE osgprod_data.loaded_files f
                       SET state = CASE WHEN v_slice.block2 = f.block2 THEN 'allocated'
                                        ELSE 'in_progress' END::osgprod_data.file_state
                     WHERE f.project_id = v_project.project_id AND f.rawdata_id = v_file.rawdata_id;
                END IF;
            -- (f) Else, in the tail, a second attempt on a slice that would end late.
            ELSIF v_project.max_backups > 0 AND v_project.pause_cause IS NULL THEN
                v_slice := osgprod._claim_backup(v_project, p_call, v_nstart, least(v_job.most, p_call.cpus * v_project.maxblockspercore,
                    osgprod._blocks_in_time(v_pace, p_call.cpus, p_call.time_left_s))::bigint);
            END IF;
        END IF;
    END IF;
    IF v_slice.block1 IS NULL THEN
        RETURN osgprod._why_no_work(v_project, v_can_merge, p_is_alone);
    -- (g) The attempt, and what its slice is as a file.
    ELSIF v_slice.merge_id IS NULL THEN
        v_script := v_project.workscript;
        v_content := osgprod._slice_file(v_slice.rawdata_id, v_slice.block1, v_slice.block2, v_project.xrootd_prefix,
                                         v_project.strip_prefix, p_call.site);
    ELSE
        v_script := v_project.mergescript;
        v_content := osgprod._merge_content(v_project, v_slice.merge_id);
    END IF;
    IF num_nonnulls(p_call.templates, p_call.exec_version, p_call.image) > 0 THEN
        p_call.exec_version := coalesce(osgprod._label(p_call.exec_version, 32), '');
        p_call.image := coalesce(osgprod._label(p_call.image, 256), '');
        SELECT v.version_id INTO v_version FROM osgprod_data.versions v
         WHERE v.project_id = v_project.project_id AND v.script = v_script
           AND v.digest = left(coalesce(p_call.templates ->> v_script, ''), 64)
           AND v.exec_version = p_call.exec_version AND v.image = p_call.image LIMIT 1;
        IF NOT FOUND THEN  -- it waits for nobody: two jobs that bring the same new version at the same moment make two rows
            INSERT INTO osgprod_data.versions AS v (project_id, script, digest, exec_version, image)
            VALUES (v_project.project_id, v_script, left(coalesce(p_call.templates ->> v_script, ''), 64), p_call.exec_version,
                    p_call.image)
            RETURNING v.version_id INTO v_version;
        END IF;
    END IF;
    v_token := gen_random_uuid();
    v_started_at := clock_timestamp();  -- not now(): the transaction may have waited for a lock since it began
    INSERT INTO osgprod_data.attempts (project_id, cluster, process, nstart, rawdata_id, block1, block2, opened_at, cpus,
           started_at, token_digest, client, host, site, job_key_digest, schedd, qdate, job_start, follows, time_left_s,
           merge_id, version_id, events)
    VALUES (v_project.project_id, p_call.cluster, p_call.process, v_nstart, v_slice.rawdata_id, v_slice.block1,
           v_slice.block2, v_slice.opened_at, p_call.cpus, v_started_at,
           sha256(convert_to(v_token::text, 'UTF8')), p_call.client, osgprod._label(p_call.host),
           osgprod._label(p_call.site), osgprod._digest(v_project.magic_salt, p_call.job_key),
           osgprod._label(p_call.schedd), p_call.qdate, nullif(coalesce(v_job.starts, 0) + 1, v_nstart), v_job.follows,
           p_call.time_left_s, v_slice.merge_id, v_version, CASE WHEN v_slice.merge_id IS NULL THEN v_content.events END);
    RETURN ROW('assigned', NULL, NULL, v_script, coalesce(v_job.starts, 0) + 1, v_token, v_project.lease_s,
        v_project.heartbeat_s, v_started_at, v_content.url, v_content.filename, v_slice.block1, v_slice.block2,
        v_content.size_bytes, v_content.events, v_content.pieces, NULL, NULL, NULL,
        CASE WHEN v_slice.merge_id IS NULL THEN 'slice' ELSE 'merge' END, v_content.merge, v_content.urls)::osgprod.checkout_answer;
END
$fn$;

CREATE FUNCTION osgprod._unassigned(
    p_problem text[], p_retry_s int DEFAULT NULL, p_status text DEFAULT NULL, p_task text DEFAULT NULL, p_script text DEFAULT NULL)
RETURNS osgprod.checkout_answer LANGUAGE sql IMMUTABLE
AS $fn$
    -- The answer to a call that gets nothing.
    -- Parameters: p_problem  code, message and hint; code NULL = no error;  p_retry_s  when to ask again [s]
    --             p_status   see checkout_slice; NULL = error with a code, else wait
    --             p_task, p_script  the template to fetch first
    SELECT ROW(coalesce(p_status, CASE WHEN p_problem[1] IS NULL THEN 'wait' ELSE 'error' END), p_problem[2],
        CASE WHEN p_problem[1] IS NULL THEN p_retry_s END, p_script, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
        NULL, NULL, NULL, p_problem[1], p_problem[3], p_task, NULL, NULL)::osgprod.checkout_answer
$fn$;

CREATE FUNCTION osgprod._banned(p_project osgprod_data.projects, p_client inet, p_host text, p_site text)
RETURNS text[] LANGUAGE sql STABLE
AS $fn$
    -- Says that a worker is banned, until when and why.
    -- Parameters: p_project  the project's row;  the others see checkout_slice
    -- Returns:    code (OG601), message and hint; NULL = it is not
    SELECT ARRAY['OG601', format('worker %s is banned until %s UTC: %s', w.name,
                     to_char(b.until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'), b.reason),
                 format('the operator can end the ban: osgprod workers unban %s %L', p_project.name, b.worker)]
      FROM osgprod._worker(p_client, p_host) AS w (name), osgprod._ban_of(p_project.project_id, w.name, p_site) b
$fn$;

CREATE FUNCTION osgprod._claim_ready(
    p_project osgprod_data.projects, p_call osgprod.checkout_call, p_nstart int, p_blocks bigint, OUT slice osgprod.claim)
LANGUAGE plpgsql VOLATILE
AS $fn$
-- Claims the first ready slice. If it is too long for the job, its end stays ready as another slice.
-- Promise:    passes over slices that are left to others (_is_left_to_others).
-- Parameters: p_project  the project's row;  p_call, p_nstart  the coming attempt;  p_blocks  at most so many
-- Returns:    the slice; NULLs when none is free, or when the first free one needs its file and another session has that
-- Locks:      the slice SKIP LOCKED; the file's row, SKIP LOCKED, when the slice is split, or when this transaction has
--             written it: see _try_work
DECLARE
    v_found record;
BEGIN
    SELECT s.rawdata_id, s.block1, s.block2 - s.block1 > p_blocks AS is_too_long,
           (s.xmin = pg_current_xact_id_if_assigned()::xid) IS TRUE AS is_written INTO v_found
      FROM osgprod_data.slices s
     WHERE s.project_id = p_project.project_id AND s.is_ready
       AND NOT osgprod._is_left_to_others(p_project, p_call, s.faulted_on, s.due_at, s.not_before)
     ORDER BY s.run, s.seqno, s.block1 LIMIT 1
       FOR NO KEY UPDATE SKIP LOCKED;
    IF (v_found.is_too_long OR v_found.is_written) AND NOT osgprod._try_file(p_project.project_id, v_found.rawdata_id) THEN
        RETURN;
    ELSIF v_found.is_too_long THEN
        PERFORM osgprod._split_slice(p_project.project_id, v_found.rawdata_id, v_found.block1, v_found.block1 + p_blocks::int);
    END IF;
    UPDATE osgprod_data.slices s
       SET state = 'leased', is_ready = NULL, not_before = NULL, cluster = p_call.cluster, process = p_call.process, nstart = p_nstart,
           due_at = clock_timestamp() + make_interval(secs => p_project.lease_s),
           progress_at = NULL, bytes_fetched = NULL, cpu_s = NULL
     WHERE (s.project_id, s.rawdata_id, s.block1) = (p_project.project_id, v_found.rawdata_id, v_found.block1)
    RETURNING s.rawdata_id, s.block1, s.block2, s.opened_at, NULL::int INTO slice;
END
$fn$;

CREATE FUNCTION osgprod._is_left_to_others(
    p_project osgprod_data.projects, p_call osgprod.checkout_call, p_faulted_on text, p_due_at timestamptz, p_not_before timestamptz)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Is a ready slice or merge left to other workers, since its last node fault was on this one: for wait_s after its backoff? A job
    -- that doesn't name its host can't be distinguished from its neighbours, and gets any.
    -- Parameters: p_project  the project's row;  p_call  the call;  p_faulted_on, p_due_at, p_not_before  of the slice or merge
    SELECT (p_due_at IS NULL AND p_not_before > now() - make_interval(secs => p_project.wait_s) AND p_call.host <> ''
            AND p_faulted_on = osgprod._worker(p_call.client, p_call.host)) IS TRUE
$fn$;

CREATE FUNCTION osgprod._wait_for_file(p_project_id int)
RETURNS boolean LANGUAGE plpgsql VOLATILE
SET lock_timeout = '500ms'
AS $fn$
-- Locks the first open file as soon as it is free: that all files are locked does not mean that there are none. The wait ends
-- after 0.5 s unless the file is freed, and is longer only while other sessions take the file first: PostgreSQL has two locks for
-- the wait for a row, and goes on to the next file when this one has been allocated to its end.
-- Parameters: p_project_id  project
-- Returns:    is it locked now? false: no file is open any more, or the first one is still locked
-- Locks:      its row
BEGIN
    PERFORM FROM osgprod_data.loaded_files f
     WHERE f.project_id = p_project_id AND f.is_open
     ORDER BY f.run, f.seqno LIMIT 1
       FOR NO KEY UPDATE;
    RETURN FOUND;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END
$fn$;

CREATE FUNCTION osgprod._why_no_work(p_project osgprod_data.projects, p_can_merge boolean, p_is_alone boolean)
RETURNS osgprod.checkout_answer LANGUAGE plpgsql STABLE
AS $fn$
-- Says whether a job that gets nothing should wait, since work may be requeued, or end.
-- Parameters: p_project  the project's row;  p_can_merge  may this job get a merge?  p_is_alone  see _checkout
-- Returns:    status wait with retry_s [s], no-work, or error (55P03)
DECLARE
    v_is_open boolean := EXISTS (SELECT FROM osgprod_data.loaded_files f WHERE f.project_id = p_project.project_id AND f.is_open);
BEGIN
    RETURN CASE
        WHEN p_project.state = 'draining' THEN osgprod._unassigned(
            ARRAY[NULL, format('project %s is draining, no new work is assigned', p_project.name)], 0, 'no-work')
        WHEN v_is_open AND NOT p_is_alone THEN osgprod._unassigned(osgprod._is_busy('each file of project ' || p_project.name))
        -- Other sessions have these files or slices, or this worker leaves the slices to others (_claim_ready).
        WHEN v_is_open OR EXISTS (SELECT FROM osgprod_data.slices s WHERE s.project_id = p_project.project_id AND s.is_ready)
        THEN osgprod._unassigned(ARRAY[NULL, format('project %s is busy, ask again soon', p_project.name)], least(p_project.wait_s, 5))
        WHEN osgprod._is_incomplete(p_project.project_id, p_can_merge)
             OR p_can_merge AND osgprod._has_open_merges(p_project.project_id) THEN osgprod._unassigned(
            ARRAY[NULL, format('no work of project %s can be assigned now: it is leased, in backoff, suspended, or on tape',
                p_project.name)], p_project.wait_s)
        ELSE osgprod._unassigned(ARRAY[NULL, 'no work left in project ' || p_project.name], 0, 'no-work') END;
END
$fn$;

CREATE FUNCTION osgprod._is_incomplete(p_project_id int, p_has_merges boolean)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Has the project work that is unallocated, leased, ready, or in a backoff? Also, where merges follow, a file whose completion the
    -- next tick will note.
    -- Parameters: p_project_id  project;  p_has_merges  do merges follow?
    SELECT EXISTS (SELECT FROM osgprod_data.loaded_files f
                    WHERE f.project_id = p_project_id AND f.state IN ('pending', 'in_progress'))
        OR EXISTS (SELECT FROM osgprod_data.loaded_files f
                    WHERE f.project_id = p_project_id AND f.state = 'allocated'
                      AND (p_has_merges OR osgprod._is_unsettled(p_project_id, f.rawdata_id)))
$fn$;
