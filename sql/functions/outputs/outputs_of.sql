CREATE FUNCTION osgprod.outputs_of(
    p_project text, p_file_id int DEFAULT NULL, p_cluster int DEFAULT NULL, p_process int DEFAULT NULL)
RETURNS TABLE (nstart int, block1 int, block2 int, merge text, kind text, url text, bytes bigint, adler32 text, events bigint,
    cluster int, process int, state text, merged_in text, script text, digest text, exec_version text, image text, software text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Lists what accepted attempts delivered of one file, or of one job, by key: for the pages of the dashboard.
-- Promise:    reads a file's slices, or a job's attempts, and no others.
-- Parameters: p_project  project name;  p_file_id  as the lists name it: its slices' outputs, and the files that its merge, or
--                        its run's, delivered, as they count now
--             p_cluster, p_process  instead: the outputs of a job's attempts [0 .. 2147483647], also those that no longer count
-- Returns:    a row a file, merged ones first. block1, block2 NULL = merged, by the merge of this name; bytes [bytes]; url
--             without passwords and queries; state: current, replaced or lost; merged_in: the done merge that holds it
-- Errors:     OG301 unknown project
-- Source:     docs/outputs.md "What was delivered"
DECLARE
    v_project projects := osgprod._get_project(p_project);
    v_by_run  boolean := osgprod._merges_runs(v_project.project_id);
BEGIN
    RETURN QUERY
    WITH chosen AS (
        SELECT s.cluster, s.process, s.nstart FROM slices s
         WHERE s.project_id = v_project.project_id AND s.rawdata_id = p_file_id AND s.state = 'done'
        UNION ALL
        SELECT m.cluster, m.process, m.nstart FROM loaded_files f
          JOIN merges m ON m.project_id = f.project_id AND m.run = f.run AND m.state = 'done'
                       AND coalesce(m.seqno, -1) = CASE WHEN v_by_run THEN -1 ELSE f.seqno END
         WHERE f.project_id = v_project.project_id AND f.rawdata_id = p_file_id
        UNION ALL
        SELECT a.cluster, a.process, a.nstart FROM attempts a
         WHERE a.project_id = v_project.project_id AND a.cluster = p_cluster AND a.process = p_process
    )
    SELECT a.nstart, nullif(a.block1, -1), nullif(a.block2, -1), CASE WHEN a.merge_id IS NOT NULL THEN osgprod._merge_name(m.run, m.seqno) END, o.kind,
           osgprod._without_secrets(o.url), o.bytes, o.adler32, o.events, a.cluster, a.process,
           CASE WHEN EXISTS (SELECT FROM lost_outputs l WHERE l.project_id = a.project_id AND l.cluster = a.cluster
                                AND l.process = a.process AND l.nstart = a.nstart) THEN 'lost'
                WHEN s.project_id IS NOT NULL OR m.state = 'done' AND (m.cluster, m.process, m.nstart)
                     = (a.cluster, a.process, a.nstart) THEN 'current' ELSE 'replaced' END,
           CASE WHEN d.merge_id IS NOT NULL THEN osgprod._merge_name(d.run, d.seqno) END, v.script, v.digest, v.exec_version, v.image, r.software
      FROM chosen c
      JOIN attempts a ON a.project_id = v_project.project_id AND a.cluster = c.cluster AND a.process = c.process
                     AND a.nstart = c.nstart
      JOIN reports r ON r.project_id = a.project_id AND r.cluster = a.cluster AND r.process = a.process
                    AND r.nstart = a.nstart AND r.by_worker AND r.outcome = 'done'
     CROSS JOIN LATERAL osgprod._outputs_of_attempt(v_project, a.cluster, a.process, a.nstart) o
      LEFT JOIN merges m ON m.merge_id = a.merge_id
      LEFT JOIN slices s ON s.project_id = a.project_id AND s.rawdata_id = a.rawdata_id AND s.block1 = a.block1
                        AND s.state = 'done' AND s.cluster = a.cluster AND s.process = a.process AND s.nstart = a.nstart
      LEFT JOIN merges d ON d.project_id = s.project_id AND d.run = s.run AND d.state = 'done'
                        AND coalesce(d.seqno, -1) = CASE WHEN v_by_run THEN -1 ELSE s.seqno END
      LEFT JOIN versions v ON v.version_id = a.version_id
     ORDER BY a.merge_id IS NULL, a.block1, a.cluster, a.process, a.nstart, o.n;
END
$fn$;

COMMENT ON FUNCTION osgprod.outputs_of(text, int, int, int) IS
'Lists the outputs of one file or of one job, with size [bytes], checksum, events, state, and what made it. For osgprod_worker and osgprod_operator.';
