CREATE FUNCTION osgprod._pause_project(p_project osgprod_data.projects, p_fault text, p_reason text)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Lets a project pause itself.
-- Parameters: p_project  the project's row;  p_fault  see _fault;  p_reason  in words
-- Returns:    false when another session has the project's row, or it is not active any more
-- Locks:      the project's row, SKIP LOCKED
BEGIN
    UPDATE osgprod_data.projects p
       SET state = 'paused', pause_reason = p_reason, paused_at = clock_timestamp(),
           pause_cause = CASE p_fault WHEN 'fetch' THEN 'input' WHEN 'delivery' THEN 'output' ELSE 'work' END,
           probe_at = clock_timestamp() + make_interval(secs => p.retest_s)
     WHERE p.project_id = (SELECT q.project_id FROM osgprod_data.projects q
                            WHERE q.project_id = p_project.project_id AND q.state = 'active' FOR NO KEY UPDATE SKIP LOCKED);
    IF FOUND THEN
        PERFORM osgprod._notify(p_project.project_id, 'project-paused', jsonb_build_object('reason', p_reason));
        RETURN true;
    END IF;
    RETURN false;
END
$fn$;

CREATE FUNCTION osgprod._note_success(
    p_project osgprod_data.projects, p_attempt osgprod_data.attempts, p_is_done boolean)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Ends the pause that the project has begun itself, and the suspension of the file, when a success shows that they work again.
-- Counts the successes that a new work script needs. The success of a merge ends the ban of all merges, and a pause only when no
-- slice is left that could. Called of slices only while the project's row says that there is such a thing.
-- Parameters: p_project  the project's row;  p_attempt  the attempt;  p_is_done  false = it has only fetched its slice
-- Locks:      the ban's row and the project's, SKIP LOCKED: a later success does it then; see _has_resumed and _resume_file
BEGIN
    IF p_attempt.merge_id IS NOT NULL THEN
        UPDATE osgprod_data.worker_bans b SET until = now(), banned_at = now(), times = 0, reason = 'a merge succeeded'
         WHERE (b.project_id, b.worker) = (
            SELECT c.project_id, c.worker FROM osgprod_data.worker_bans c
             WHERE c.project_id = p_project.project_id AND c.worker = 'merges:all' AND c.times > 0
               FOR NO KEY UPDATE SKIP LOCKED);
        IF p_project.pause_cause IS NULL OR osgprod._is_incomplete(p_project.project_id, false) THEN
            RETURN;
        END IF;
    END IF;
    IF p_project.pause_cause IS NOT NULL AND (p_is_done AND p_project.pause_cause = 'output'
        OR p_attempt.started_at > p_project.paused_at AND (p_is_done OR p_project.pause_cause = 'input'))
    THEN
        UPDATE osgprod_data.projects p
           SET state = 'active', pause_cause = NULL, pause_reason = NULL, paused_at = NULL, probe_at = NULL,
               resumed_at = clock_timestamp()
         WHERE p.project_id = (SELECT q.project_id FROM osgprod_data.projects q
                                WHERE q.project_id = p_project.project_id AND q.pause_cause IS NOT NULL
                                  FOR NO KEY UPDATE SKIP LOCKED);
        IF FOUND THEN
            PERFORM osgprod._has_resumed(p_project);
        END IF;
    END IF;
    IF p_project.nsuspended > 0 THEN
        PERFORM osgprod._resume_file(f.project_id, f.rawdata_id, 'it can be processed again')
           FROM osgprod_data.loaded_files f
          WHERE f.project_id = p_project.project_id AND f.rawdata_id = p_attempt.rawdata_id
            AND f.suspended_at < p_attempt.started_at
            -- A slice that has only arrived says nothing of a file on which the work fails.
            AND (p_is_done OR 'fetch' = (SELECT r.fault FROM osgprod_data.recent_failures r
                                          WHERE r.project_id = f.project_id AND r.rawdata_id = f.rawdata_id AND r.blamed = 'file'
                                          ORDER BY r.failed_at DESC LIMIT 1));
    END IF;
    IF p_is_done AND p_project.unproven > 0 AND p_attempt.started_at > p_project.tested_since THEN
        UPDATE osgprod_data.projects p SET unproven = greatest(p.unproven - 1, 0)
         WHERE p.project_id = (SELECT q.project_id FROM osgprod_data.projects q
                                WHERE q.project_id = p_project.project_id FOR NO KEY UPDATE SKIP LOCKED);
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._has_resumed(p_project osgprod_data.projects)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- What follows when a pause that the project had begun itself has ended: what failed during the pause is assigned at once.
-- Parameters: p_project  the project's row as it was while it was paused
-- Locks:      slices, SKIP LOCKED
BEGIN
    UPDATE osgprod_data.slices s SET is_ready = true, not_before = now()
     WHERE (s.project_id, s.rawdata_id, s.block1) IN (
        SELECT x.project_id, x.rawdata_id, x.block1 FROM osgprod_data.recent_failures r
          JOIN osgprod_data.slices x ON x.project_id = r.project_id AND x.rawdata_id = r.rawdata_id
                                    AND x.block1 = r.block1 AND x.opened_at = r.opened_at
         WHERE r.project_id = p_project.project_id AND r.failed_at >= p_project.paused_at AND x.is_ready IS FALSE
           AND x.not_before > now() AND osgprod._may_be_assigned(x.project_id, x.rawdata_id)
           FOR NO KEY UPDATE OF x SKIP LOCKED);
    PERFORM osgprod._notify(p_project.project_id, 'project-resumed', jsonb_build_object('reason', p_project.pause_reason));
END
$fn$;

CREATE FUNCTION osgprod._why_no_room(p_project osgprod_data.projects, p_digest text, OUT problem text[])
LANGUAGE plpgsql VOLATILE
AS $fn$
-- Says why no more attempts of a project may start: as many live as max_live allows; or it is a test of what may not
-- work, and as many live as may during that. A project that has paused itself tries one job at a time, first after retest_s, later after
-- half of the time that the pause has lasted, at most 5 times retest_s; one that started more than 10 times retest_s ago is
-- not waited for, so there can be more. A new work script is tried by probe_jobs jobs at a time, until as many have succeeded:
-- this call begins that test when no job had its content. The first content that is noted begins none: a new project is in its
-- test already, and one from before contents were noted has proven itself.
-- Parameters: p_project  the project's row;  p_digest  of the work script that the job is about to get: 16 digits; NULL = not known
-- Returns:    code (OG603, OG501; none of a new work script), message and hint; NULL = this job may start
-- Locks:      of a pause and of a new work script the project's row, SKIP LOCKED; of the latter (advisory: project_id, -3), tried:
--             its first jobs start one after the other
DECLARE
    v_since timestamptz;
BEGIN
    IF p_digest IS NOT NULL AND p_digest <> ALL (p_project.tested_scripts) THEN
        p_project.unproven := CASE p_project.tested_scripts WHEN '{}' THEN p_project.unproven ELSE p_project.probe_jobs END;
        UPDATE osgprod_data.projects p
           SET tested_scripts = (p_digest || p.tested_scripts)[:8], unproven = p_project.unproven, tested_since = clock_timestamp()
         WHERE p.project_id = (SELECT q.project_id FROM osgprod_data.projects q WHERE q.project_id = p_project.project_id
                                  AND q.tested_scripts = p_project.tested_scripts FOR NO KEY UPDATE SKIP LOCKED)
        RETURNING p.tested_since INTO v_since;
        -- While another session has the row it is as if the test had begun: this job waits if it has to, and the next one notes it.
        p_project.tested_since := coalesce(v_since, p_project.tested_since);
    END IF;
    IF p_project.nlive >= p_project.max_live THEN
        problem := ARRAY['OG603', format('project %s has %s live attempts of at most %s', p_project.name, p_project.nlive,
            p_project.max_live), format('try again later; osgprod project set %s max_live=N changes it', p_project.name)];
    ELSIF p_project.pause_cause IS NOT NULL THEN
        UPDATE osgprod_data.projects p
           SET probe_at = now() + make_interval(secs => least(greatest(p.retest_s, extract(epoch FROM now() - p.paused_at) / 2), 5 * p.retest_s))
         WHERE p.project_id = (SELECT q.project_id FROM osgprod_data.projects q
                                WHERE q.project_id = p_project.project_id AND q.probe_at <= now() FOR NO KEY UPDATE SKIP LOCKED)
           AND osgprod._live_since(p.project_id, greatest(p.paused_at, now() - make_interval(secs => 10 * p.retest_s))) = 0;
        problem := CASE WHEN NOT FOUND THEN ARRAY['OG501',
            format('project %s has paused itself: %s', p_project.name, p_project.pause_reason),
            format('it tries again with one job at a time, and resumes by itself; osgprod project resume %s ends the pause now', p_project.name)] END;
    ELSIF p_project.unproven > 0 AND (NOT pg_try_advisory_xact_lock(p_project.project_id, -3)
            OR osgprod._live_since(p_project.project_id, p_project.tested_since) >= p_project.probe_jobs) THEN
        problem := ARRAY[NULL, format('the first jobs of project %s are a test (probe_jobs = %s), and successes are still lacking: %s',
            p_project.name, p_project.probe_jobs, p_project.unproven)];
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._live_since(p_project_id int, p_since timestamptz)
RETURNS bigint LANGUAGE sql STABLE
AS $fn$
    -- Attempts that hold a slice, of jobs that first started on it after a time. (project_id + 0: found by time.)
    SELECT count(*) FROM osgprod_data.attempts a JOIN osgprod_data.slices s USING (project_id, rawdata_id, block1, cluster, process, nstart)
     WHERE a.project_id + 0 = p_project_id AND a.started_at > p_since AND s.state = 'leased' AND NOT EXISTS (
        SELECT FROM osgprod_data.attempts b
         WHERE (b.project_id, b.cluster, b.process) = (a.project_id, a.cluster, a.process) AND b.started_at <= p_since
           AND (b.rawdata_id, b.block1, b.opened_at) = (a.rawdata_id, a.block1, a.opened_at))
$fn$;
