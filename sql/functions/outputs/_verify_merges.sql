CREATE FUNCTION osgprod._verify_merges(p_project_id int)
RETURNS TABLE (path text, block1 int, block2 int, fault text) LANGUAGE plpgsql STABLE
AS $fn$
-- Recounts the merges of a project: the output of each done slice is in exactly one merge, and in one merged file of a kind;
-- each complete file, or run, has its merge; and the merges that jobs have, or may have, are made of the done slices.
-- Parameters: p_project_id  project
-- Returns:    a row for each fault found
-- Source:     docs/outputs.md
BEGIN
    RETURN QUERY
    WITH made AS (
        SELECT m.* FROM osgprod_data.merges m WHERE m.project_id = p_project_id AND (m.state IN ('leased', 'done') OR m.is_ready)
    ), held AS (
        SELECT m.merge_id, i.* FROM made m CROSS JOIN LATERAL unnest(m.inputs) i
    ), merged AS (
        SELECT m.* FROM made m WHERE m.state = 'done'
    )
    SELECT w.path, x.block1, x.block2, x.fault FROM (
        SELECT h.rawdata_id, h.block1, h.block2, CASE
                WHEN s.state IS DISTINCT FROM 'done' OR s.block2 <> h.block2
                    THEN format('in merge %s, but it is not a done slice', h.merge_id)
                WHEN (s.cluster, s.process, s.nstart) <> (h.cluster, h.process, h.nstart)
                    THEN format('in merge %s by attempt %s of job %s.%s, but done by another', h.merge_id, h.nstart, h.cluster, h.process)
                WHEN l.project_id IS NOT NULL THEN format('in merge %s, but its output is lost', h.merge_id)
            END AS fault
          FROM held h
          LEFT JOIN osgprod_data.slices s ON s.project_id = p_project_id AND s.rawdata_id = h.rawdata_id AND s.block1 = h.block1
          LEFT JOIN osgprod_data.lost_outputs l ON l.project_id = p_project_id AND l.cluster = h.cluster
                                               AND l.process = h.process AND l.nstart = h.nstart
        UNION ALL
        SELECT s.rawdata_id, s.block1, s.block2, format('done, and not in merge %s of its file', m.merge_id)
          FROM made m
          JOIN osgprod_data.slices s ON s.project_id = p_project_id AND s.run = m.run AND s.seqno = coalesce(m.seqno, s.seqno)
                                    AND s.state = 'done'
         WHERE NOT EXISTS (SELECT FROM held h
                            WHERE h.merge_id = m.merge_id AND h.rawdata_id = s.rawdata_id AND h.block1 = s.block1)
        UNION ALL
        SELECT h.rawdata_id, h.block1, h.block2, format('in %s merges', count(*))
          FROM held h GROUP BY h.rawdata_id, h.block1, h.block2 HAVING count(*) > 1
        UNION ALL
        SELECT f.rawdata_id, NULL, NULL, format('merge %s is %s, but the file is %s', m.merge_id, m.state, f.state)
          FROM made m
          JOIN osgprod_data.loaded_files f ON f.project_id = p_project_id AND f.run = m.run
                                          AND f.seqno = coalesce(m.seqno, f.seqno) AND f.state <> 'complete'
        UNION ALL
        SELECT m.rawdata_id, NULL, NULL, format('merge %s is done without a success on record', m.merge_id)
          FROM merged m
          LEFT JOIN osgprod_data.reports r ON r.project_id = p_project_id AND r.cluster = m.cluster AND r.process = m.process
                                          AND r.nstart = m.nstart AND r.by_worker
          LEFT JOIN osgprod_data.attempts a ON a.project_id = p_project_id AND a.cluster = m.cluster AND a.process = m.process
                                           AND a.nstart = m.nstart
         WHERE r.outcome IS DISTINCT FROM 'done' OR a.merge_id IS DISTINCT FROM m.merge_id OR a.opened_at <> m.opened_at
        UNION ALL
        SELECT m.rawdata_id, NULL, NULL, format('merge %s has %s files of kind %s', m.merge_id, count(*), o.kind)
          FROM merged m
          JOIN osgprod_data.outputs o ON o.project_id = p_project_id AND o.cluster = m.cluster AND o.process = m.process
                                     AND o.nstart = m.nstart
         GROUP BY m.merge_id, m.rawdata_id, o.kind HAVING count(*) > 1
        UNION ALL
        SELECT u.rawdata_id, NULL, NULL, 'complete, and no merge'
          FROM osgprod_data.projects p CROSS JOIN LATERAL osgprod._unplanned(p) u WHERE p.project_id = p_project_id
        ) x
      LEFT JOIN osgprod_data.rawdata w ON w.rawdata_id = x.rawdata_id
     WHERE x.fault IS NOT NULL
     ORDER BY w.path, x.block1, x.fault;
END
$fn$;

CREATE FUNCTION osgprod._mixed_files(p_project_id int)
RETURNS TABLE (path text, block1 int, block2 int, fault text) LANGUAGE plpgsql STABLE
-- All rows are read: see _verify_history.
SET enable_nestloop = off
AS $fn$
-- Names the files whose done slices were made with different versions of work script, exec script, image or software.
-- Parameters: p_project_id  project
-- Returns:    a row a file; blocks are NULL. Slices are read only where the project has several versions or software
DECLARE
    v_software text := (SELECT r.software FROM osgprod_data.reports r  -- of any
                         WHERE r.project_id = p_project_id AND r.by_worker AND r.outcome = 'done' LIMIT 1);
BEGIN
    IF (SELECT count(DISTINCT (v.script, v.digest, v.exec_version, v.image)) FROM osgprod_data.versions v
         WHERE v.project_id = p_project_id) < 2 AND NOT osgprod._has_other_software(p_project_id, v_software)
    THEN
        RETURN;
    END IF;
    RETURN QUERY
    SELECT w.path, NULL::int, NULL::int, format('done, but by %s versions: %s', count(*), string_agg(x.version, '; ' ORDER BY x.version))
      FROM (SELECT DISTINCT s.rawdata_id, concat_ws(', ', v.script || ' ' || left(v.digest, 12), nullif(v.exec_version, ''),
                   nullif(v.image, ''), r.software) AS version
              FROM osgprod_data.slices s
              JOIN osgprod_data.attempts a ON a.project_id = s.project_id AND a.cluster = s.cluster AND a.process = s.process
                                          AND a.nstart = s.nstart
              JOIN osgprod_data.versions v ON v.version_id = a.version_id
              LEFT JOIN osgprod_data.reports r ON r.project_id = s.project_id AND r.cluster = s.cluster
                                              AND r.process = s.process AND r.nstart = s.nstart AND r.by_worker
             WHERE s.project_id = p_project_id AND s.state = 'done') x
      JOIN osgprod_data.rawdata w ON w.rawdata_id = x.rawdata_id
     GROUP BY w.path HAVING count(*) > 1;
END
$fn$;

CREATE FUNCTION osgprod._has_other_software(p_project_id int, p_software text)
RETURNS boolean LANGUAGE plpgsql STABLE
-- The block range index reports_software leads to the few pages that hold another name. The planner would read all pages,
-- or look up all reports of the project by key.
SET enable_seqscan = off SET enable_indexscan = off SET plan_cache_mode = force_custom_plan
AS $fn$
-- Tells whether the report of a success names other software.
-- Parameters: p_project_id  project;  p_software  than this; NULL = than none
BEGIN
    IF p_software IS NULL THEN
        RETURN (SELECT count(*) FROM osgprod_data.reports r
                 WHERE r.project_id = p_project_id AND r.by_worker AND r.outcome = 'done' AND r.software IS NOT NULL) > 0;
    END IF;
    RETURN (SELECT count(*) FROM osgprod_data.reports r
             WHERE r.project_id = p_project_id AND r.by_worker AND r.outcome = 'done'
               AND (r.software COLLATE "C" < p_software OR r.software COLLATE "C" > p_software OR r.software IS NULL)) > 0;
END
$fn$;
