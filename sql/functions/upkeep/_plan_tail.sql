CREATE FUNCTION osgprod._plan_tail(p_project osgprod_data.projects)
RETURNS void LANGUAGE plpgsql VOLATILE SET enable_seqscan = off
AS $fn$
-- Looks ahead to the end of a project: how small slices should be when few blocks can be allocated, and which leased slices may
-- have a backup attempt when none can.
-- Promise:    jobs that ask read these notes, so that any number of them may ask in the tail. This reads at most 1,000 open
--             files, and without shrink_tail one.
-- Parameters: p_project  the project's row
-- Locks:      rows of backups and the project's row, SKIP LOCKED: nothing here waits. The caller has the project, shared.
-- Source:     docs/design.md "The tail"
DECLARE
    v_left int := osgprod._few_unallocated(p_project.project_id, CASE WHEN p_project.shrink_tail THEN 1000 ELSE 1 END);
    v_tail_blocks int;
BEGIN
    -- Guided self-scheduling: each slice is half of an equal share of these blocks.
    IF p_project.shrink_tail AND p_project.nlive > 0 AND v_left > 0 THEN
        v_tail_blocks := greatest(v_left / (2 * p_project.nlive), 1);
    END IF;
    IF v_tail_blocks IS DISTINCT FROM p_project.tail_blocks THEN
        UPDATE osgprod_data.projects p SET tail_blocks = v_tail_blocks
         WHERE p.project_id = (SELECT q.project_id FROM osgprod_data.projects q
                                WHERE q.project_id = p_project.project_id FOR NO KEY UPDATE SKIP LOCKED);
    END IF;
    PERFORM osgprod._end_backups(p_project);
    IF v_left = 0 AND p_project.state = 'active' THEN
        PERFORM osgprod._offer_backups(p_project);
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._few_unallocated(p_project_id int, p_files int)
RETURNS int LANGUAGE sql STABLE
AS $fn$
    -- How many blocks of a project can be allocated: those of its open files, which are neither suspended nor skipped; NULL when
    -- there are so many such files or more.
    -- Parameters: p_project_id  project;  p_files  how many files are many
    SELECT CASE WHEN count(*) < p_files THEN coalesce(sum(o.block2 - coalesce(
               (SELECT s.block2 FROM osgprod_data.slices s
                 WHERE s.project_id = p_project_id AND s.rawdata_id = o.rawdata_id
                 ORDER BY s.block1 DESC LIMIT 1), o.block1)), 0)::int END
      FROM (SELECT f.rawdata_id, f.block1, f.block2 FROM osgprod_data.loaded_files f
             WHERE f.project_id = p_project_id AND f.is_open
             ORDER BY f.run, f.seqno, f.rawdata_id LIMIT p_files) o
$fn$;

CREATE FUNCTION osgprod._end_backups(p_project osgprod_data.projects)
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Deletes backups and offers that are over: those of slices that are not leased any more, or not as they were, and backups
    -- that have vanished, it seems: their lease has expired, they have missed two heartbeats, or they took twice the time that
    -- they should take. Another job may be the backup then.
    -- Parameters: p_project  the project's row
    DELETE FROM osgprod_data.backups b
     USING (SELECT x.project_id, x.rawdata_id, x.block1 FROM osgprod_data.backups x
              LEFT JOIN osgprod_data.slices s ON s.project_id = x.project_id AND s.rawdata_id = x.rawdata_id
                                             AND s.block1 = x.block1 AND s.opened_at = x.opened_at AND s.state = 'leased'
              LEFT JOIN osgprod_data.attempts a ON a.project_id = x.project_id AND a.cluster = x.cluster
                                               AND a.process = x.process AND a.nstart = x.nstart
             WHERE x.project_id = p_project.project_id
               AND (s.project_id IS NULL OR x.due_at IS NOT NULL AND (osgprod._is_over(p_project.heartbeat_s, x.due_at)
                    OR now() > a.started_at + 2 * osgprod._expected_time(a, x.nblocks)
                    OR osgprod._has_missed(p_project, x.due_at, 2)))
               FOR UPDATE OF x SKIP LOCKED) o
     WHERE b.project_id = o.project_id AND b.rawdata_id = o.rawdata_id AND b.block1 = o.block1
$fn$;

CREATE FUNCTION osgprod._has_missed(p_project osgprod_data.projects, p_due_at timestamptz, p_heartbeats float8)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Has a lease not been renewed for so many heartbeat intervals, while the server could receive heartbeats?
    -- Parameters: p_project  the project's row;  p_due_at  the lease's end;  p_heartbeats  intervals
    SELECT p_project.heartbeat_s > 0
       AND p_due_at < now() + make_interval(secs => p_project.lease_s - p_heartbeats * p_project.heartbeat_s)
       AND (osgprod._leases_hold_until(p_project.heartbeat_s) > now()) IS NOT TRUE
$fn$;

CREATE FUNCTION osgprod._expected_time(p_attempt osgprod_data.attempts, p_blocks int)
RETURNS interval LANGUAGE sql STABLE
AS $fn$
    -- How long an attempt should take, at least a minute: for each block as long as the same job's slice before it took, since that
    -- was on the same node. A job's first slice: the median of the project's recent successes for a block on one core, over its
    -- cores; where none was measured, the mean of all its successes for a block. NULL = the project has no success yet.
    -- Parameters: p_attempt  the attempt;  p_blocks  of its slice
    SELECT make_interval(secs => greatest(60, p_blocks * e.s_per_block))
      FROM (SELECT coalesce(
          (SELECT r.ran_s::float8 / r.nblocks FROM osgprod_data.reports r
            WHERE r.project_id = p_attempt.project_id AND r.cluster = p_attempt.cluster AND r.process = p_attempt.process
              AND r.nstart = p_attempt.follows AND r.by_worker AND r.outcome = 'done' AND r.nblocks > 0),
          (SELECT p.s_per_block / p_attempt.cpus FROM osgprod_data.paces p
            WHERE p.project_id = p_attempt.project_id AND p.site = ''),
          (SELECT t.ran_s::float8 / t.blocks FROM osgprod_data.totals t
            WHERE t.project_id = p_attempt.project_id AND t.outcome = 'done' AND t.blocks > 0)) AS s_per_block) e
     WHERE e.s_per_block IS NOT NULL
$fn$;

CREATE FUNCTION osgprod._offer_backups(p_project osgprod_data.projects)
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Offers a backup attempt of the leased slices that are expected to end last, up to max_backups with those that live. A
    -- slice may have a backup if no failure counts against it, and if its attempt takes a quarter longer than it should, or has
    -- missed a heartbeat: it may have vanished. The first is expected to go on for as long as it is over its time, the second for
    -- ever.
    -- Parameters: p_project  the project's row
    INSERT INTO osgprod_data.backups (project_id, rawdata_id, block1, opened_at, worker, expected_end, nblocks)
    SELECT s.project_id, s.rawdata_id, s.block1, s.opened_at, osgprod._worker(a.client, a.host), e.expected_end,
           s.block2 - s.block1
      FROM osgprod._slices_in_flight(p_project.project_id) s
      JOIN osgprod_data.attempts a ON a.project_id = s.project_id AND a.cluster = s.cluster AND a.process = s.process
                                  AND a.nstart = s.nstart
     CROSS JOIN LATERAL (SELECT now() - a.started_at - osgprod._expected_time(a, s.block2 - s.block1) AS is_over) t
     CROSS JOIN LATERAL (
        SELECT CASE WHEN osgprod._has_missed(p_project, s.due_at, 1.5) THEN 'infinity'::timestamptz
                    WHEN t.is_over > 0.25 * (now() - a.started_at - t.is_over) THEN now() + t.is_over END AS expected_end) e
     WHERE s.state = 'leased' AND s.failures = 0 AND t.is_over IS NOT NULL AND e.expected_end IS NOT NULL
       AND NOT EXISTS (SELECT FROM osgprod_data.backups b
                        WHERE b.project_id = s.project_id AND b.rawdata_id = s.rawdata_id AND b.block1 = s.block1)
     ORDER BY e.expected_end DESC, a.started_at
     LIMIT greatest(p_project.max_backups - (SELECT count(*) FROM osgprod_data.backups b
                     WHERE b.project_id = p_project.project_id AND (b.nstart IS NULL OR b.due_at IS NOT NULL)), 0)
    ON CONFLICT DO NOTHING
$fn$;
