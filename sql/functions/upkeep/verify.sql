CREATE FUNCTION osgprod.verify(p_project text, p_deep boolean DEFAULT false)
RETURNS TABLE (path text, block1 int, block2 int, fault text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Recounts a project from its tables: each block of each loaded file in exactly one slice or unallocated, each slice's
-- state and whether it may be assigned in agreement, each number of events that a job reported in agreement with the
-- index, each done merge made from the outputs of just its done slices, and a merge for each complete file or run that needs one;
-- names files that several versions made; and with p_deep, each slice's attempt and report as well.
-- Promise:    changes nothing and holds nobody up. It reads all slices of the project (docs/performance.md), with p_deep all
--             attempts and reports as well.
-- Parameters: p_project  project name;  p_deep  recount from the history too: is each done slice proven, and once?
-- Returns:    a row for each fault found; none = all is well
-- Errors:     OG301 unknown project
-- Source:     docs/design.md I1-I8
DECLARE
    v_project_id int := (osgprod._get_project(p_project)).project_id;
BEGIN
    -- I1, I2: the lengths of a file's slices add up to what they span, and every end but the last is a beginning.
    -- Sums of lengths and of hashes tell that without sorting; a file that fails is named as a whole, with the first fault.
    RETURN QUERY
    WITH recount AS (
        SELECT s.rawdata_id, min(s.block1) AS first, max(s.block2) AS last, sum(s.block2 - s.block1) AS blocks,
               sum(hashint4(s.block2)::bigint - hashint4(s.block1)) AS chain,
               -- (done, as nearly all are, is known by the first comparison)
               count(*) FILTER (WHERE s.state <> 'done' AND s.state <> 'quarantined') AS unsettled,
               min(s.run) AS run1, max(s.run) AS run2, min(s.seqno) AS seqno1, max(s.seqno) AS seqno2
          FROM slices s WHERE s.project_id = v_project_id GROUP BY s.rawdata_id
    ), faults AS (
        SELECT coalesce(f.rawdata_id, c.rawdata_id) AS rawdata_id, f.block1, f.block2, CASE
                WHEN f.rawdata_id IS NULL THEN 'slices of a file that is not loaded'
                WHEN c.first <> f.block1 OR c.last > f.block2 THEN 'slices reach beyond the work of the file'
                WHEN c.blocks <> c.last - c.first OR c.chain <> hashint4(c.last)::bigint - hashint4(c.first)
                    THEN 'slices overlap or leave a gap'
                WHEN f.state = 'pending' AND c.rawdata_id IS NOT NULL THEN 'slices of a file that is called pending'
                WHEN f.state <> 'pending' AND c.rawdata_id IS NULL THEN 'no slices of a file that is called ' || f.state
                WHEN (f.state IN ('allocated', 'complete')) <> (coalesce(c.last, -1) = f.block2)
                    THEN format('allocated to block %s but called %s', c.last, f.state)
                WHEN f.state = 'complete' AND c.unsettled > 0 THEN 'unsettled slices of a file that is called complete'
                WHEN (c.run1, c.run2, c.seqno1, c.seqno2) <> (f.run, f.run, f.seqno, f.seqno)
                    THEN 'slices of another run or number than the file has'
                WHEN (f.block1, f.block2) <> (f.first_block, f.nblocks) THEN 'the work of the file is not all of it'
            END AS fault
          FROM (SELECT l.*, w.first_block, w.nblocks FROM loaded_files l JOIN rawdata w ON w.rawdata_id = l.rawdata_id
                 WHERE l.project_id = v_project_id) f
          FULL JOIN recount c ON c.rawdata_id = f.rawdata_id
    )
    SELECT w.path, x.block1, x.block2, x.fault FROM faults x LEFT JOIN rawdata w ON w.rawdata_id = x.rawdata_id
     WHERE x.fault IS NOT NULL;

    RETURN QUERY SELECT x.path, x.block1, x.block2, x.fault FROM osgprod._verify_ready(v_project_id) x;
    RETURN QUERY
    SELECT w.path, c.block1, c.block2, 'done, but ' || c.contradiction
      FROM osgprod._contradicted_slices(v_project_id) c JOIN rawdata w ON w.rawdata_id = c.rawdata_id;

    RETURN QUERY SELECT m.path, m.block1, m.block2, m.fault FROM osgprod._verify_merges(v_project_id) m;
    RETURN QUERY SELECT x.path, x.block1, x.block2, x.fault FROM osgprod._mixed_files(v_project_id) x;

    IF p_deep THEN
        RETURN QUERY SELECT h.path, h.block1, h.block2, h.fault FROM osgprod._verify_history(v_project_id) h;
    END IF;
END
$fn$;

COMMENT ON FUNCTION osgprod.verify(text, boolean) IS
'Recounts a project from its tables: each block covered once, states in agreement, with p_deep also with all attempts and reports; returns rows only where that is not so. For osgprod_operator.';

CREATE FUNCTION osgprod._verify_ready(p_project_id int)
RETURNS TABLE (path text, block1 int, block2 int, fault text) LANGUAGE plpgsql STABLE
-- The few slices that are ready or quarantined have an index each, which the planner does not see: it takes NOT NULL for true.
SET enable_seqscan = off
AS $fn$
-- Compares the state of slices that are ready, in a backoff or quarantined with when they may be assigned.
-- Parameters: p_project_id  project
-- Returns:    a row for each fault found
-- Source:     docs/design.md I7
BEGIN
    RETURN QUERY
    SELECT w.path, s.block1, s.block2, format('%s, but %s', s.state, coalesce('not before ' || s.not_before, 'without an end of its backoff'))
      FROM (SELECT x.* FROM osgprod_data.slices x WHERE x.project_id = p_project_id AND x.is_ready
            UNION ALL SELECT x.* FROM osgprod_data.slices x WHERE x.project_id = p_project_id AND x.is_ready IS FALSE) s
      LEFT JOIN osgprod_data.rawdata w ON w.rawdata_id = s.rawdata_id
     WHERE s.state <> CASE WHEN s.not_before IS NULL THEN 'quarantined' ELSE 'ready' END::osgprod_data.slice_state;
END
$fn$;

CREATE FUNCTION osgprod._verify_history(p_project_id int)
RETURNS TABLE (path text, block1 int, block2 int, fault text) LANGUAGE plpgsql STABLE
-- All rows are read: millions must not be looked up one by one because the statistics are from before they came.
SET enable_nestloop = off
AS $fn$
-- Compares a project's slices with the history of its attempts.
-- Parameters: p_project_id  project
-- Returns:    a row for each fault found
-- Source:     docs/design.md I3, I5, I6
BEGIN
    RETURN QUERY
    SELECT w.path, x.block1, x.block2, x.fault FROM (
        SELECT s.rawdata_id, s.block1, s.block2, CASE
                -- I3, I5: the attempt that holds it, or did it, was leased just this slice
                WHEN a.nstart IS NULL THEN format('%s by attempt %s of job %s.%s, which is not on record', s.state, s.nstart,
                    s.cluster, s.process)
                WHEN (a.rawdata_id, a.block1, a.block2, a.opened_at) <> (s.rawdata_id, s.block1, s.block2, s.opened_at)
                    THEN format('%s by attempt %s of job %s.%s, which was leased another slice', s.state, s.nstart, s.cluster,
                        s.process)
                WHEN s.state = 'done' AND r.outcome IS DISTINCT FROM 'done' THEN 'done without a success on record'
                WHEN s.state = 'leased' AND r.outcome IS NOT NULL THEN 'leased by an attempt that reported ' || r.outcome
            END AS fault
          FROM osgprod_data.slices s
          LEFT JOIN osgprod_data.attempts a ON a.project_id = s.project_id AND a.cluster = s.cluster
                                           AND a.process = s.process AND a.nstart = s.nstart
          LEFT JOIN osgprod_data.reports r ON r.project_id = s.project_id AND r.cluster = s.cluster
                                          AND r.process = s.process AND r.nstart = s.nstart AND r.by_worker
         WHERE s.project_id = p_project_id AND s.state IN ('leased', 'done')
        UNION ALL
        -- I3: one job holds at most one slice
        SELECT min(s.rawdata_id), min(s.block1), min(s.block2), format('one of %s slices that job %s.%s holds', count(*),
                s.cluster, s.process)
          FROM osgprod_data.slices s
          LEFT JOIN osgprod_data.attempts a ON a.project_id = s.project_id AND a.cluster = s.cluster
                                           AND a.process = s.process AND a.nstart = s.nstart
         WHERE s.project_id = p_project_id AND s.state = 'leased'
         GROUP BY s.cluster, s.process, a.schedd, a.qdate HAVING count(*) > 1
        UNION ALL
        -- I3: a backup attempt is another job's attempt on just this slice, and its job has no other
        SELECT s.rawdata_id, s.block1, s.block2, CASE
                WHEN a.nstart IS NULL THEN format('backup attempt %s of job %s.%s is not on record', b.nstart, b.cluster,
                    b.process)
                WHEN (a.rawdata_id, a.block1, a.block2, a.opened_at) <> (s.rawdata_id, s.block1, s.block2, s.opened_at)
                    THEN format('backup by attempt %s of job %s.%s, which was leased another slice', b.nstart, b.cluster,
                        b.process)
                WHEN EXISTS (SELECT FROM osgprod_data.slices h
                               JOIN osgprod_data.attempts o ON o.project_id = h.project_id AND o.cluster = h.cluster
                                                           AND o.process = h.process AND o.nstart = h.nstart
                              WHERE h.project_id = b.project_id AND h.state = 'leased' AND h.cluster = b.cluster
                                AND h.process = b.process
                                AND (o.schedd, o.qdate) IS NOT DISTINCT FROM (a.schedd, a.qdate))
                    THEN format('job %s.%s holds a slice and has a backup attempt', b.cluster, b.process)
            END
          FROM osgprod_data.backups b
          JOIN osgprod_data.slices s ON s.project_id = b.project_id AND s.rawdata_id = b.rawdata_id AND s.block1 = b.block1
                                    AND s.opened_at = b.opened_at AND s.state = 'leased'
          LEFT JOIN osgprod_data.attempts a ON a.project_id = b.project_id AND a.cluster = b.cluster
                                           AND a.process = b.process AND a.nstart = b.nstart
         WHERE b.project_id = p_project_id AND b.due_at > now()
        UNION ALL
        SELECT min(b.rawdata_id), min(b.block1), min(b.block1) + 1, format('one of %s backup attempts of job %s.%s', count(*),
                b.cluster, b.process)
          FROM osgprod_data.backups b
          JOIN osgprod_data.slices s ON s.project_id = b.project_id AND s.rawdata_id = b.rawdata_id AND s.block1 = b.block1
                                    AND s.opened_at = b.opened_at AND s.state = 'leased'
          LEFT JOIN osgprod_data.attempts a ON a.project_id = b.project_id AND a.cluster = b.cluster
                                           AND a.process = b.process AND a.nstart = b.nstart
         WHERE b.project_id = p_project_id AND b.due_at > now()
         GROUP BY b.cluster, b.process, a.schedd, a.qdate HAVING count(*) > 1
        UNION ALL
        -- I5: one success for a slice as it was allocated, split or recycled
        SELECT a.rawdata_id, a.block1, min(a.block2), format('%s attempts did it', count(*))
          FROM osgprod_data.reports r
          JOIN osgprod_data.attempts a ON a.project_id = r.project_id AND a.cluster = r.cluster AND a.process = r.process
                                      AND a.nstart = r.nstart
         WHERE r.project_id = p_project_id AND r.by_worker AND r.outcome = 'done'
         GROUP BY a.rawdata_id, a.block1, a.opened_at HAVING count(*) > 1
        UNION ALL
        -- I6: nothing is taken out of the history
        SELECT NULL, NULL, NULL, format('report on attempt %s of job %s.%s, which is not on record', r.nstart, r.cluster,
                r.process)
          FROM osgprod_data.reports r
          LEFT JOIN osgprod_data.attempts a ON a.project_id = r.project_id AND a.cluster = r.cluster
                                           AND a.process = r.process AND a.nstart = r.nstart
         WHERE r.project_id = p_project_id AND a.nstart IS NULL
        ) x
      LEFT JOIN osgprod_data.rawdata w ON w.rawdata_id = x.rawdata_id
     WHERE x.fault IS NOT NULL
     ORDER BY w.path, x.block1, x.fault;
END
$fn$;
