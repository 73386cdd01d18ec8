CREATE FUNCTION osgprod.list_outputs(
    p_project text,
    p_runs    int[]   DEFAULT NULL,
    p_what    text    DEFAULT 'all',
    p_history boolean DEFAULT false,
    p_file_id int     DEFAULT NULL,
    p_any     boolean DEFAULT false,
    p_limit   int     DEFAULT NULL)
RETURNS TABLE (run int, seqno int, path text, block1 int, block2 int, merge_id int, merged_in int, kind text, url text,
    bytes bigint, adler32 text, events bigint, cluster int, process int, nstart int, reported_at timestamptz, state text,
    script text, digest text, exec_version text, image text, software text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Lists the files that accepted attempts delivered, in the order of run, number and blocks, with what made them.
-- Promise:    changes nothing. Any number of rows: read them by a cursor. Reads the slices and merges of the runs or the file
--             that are asked for, and no others; with p_history or p_any all attempts of the project.
-- Parameters: p_project  project name;  p_runs  run numbers; NULL = all
--             p_what     merged, slices, final (merged, and those of slices that are in no merged file), or all
--             p_history  also those that were replaced or lost
--             p_file_id  of one file, as the lists name it; NULL = all. The merge of a run is that of its first file
--             p_any  also what other reports name: those of failures, and those that came too late
--             p_limit  rows at most [1 .. 100000]; NULL = all
-- Returns:    a row a file. seqno NULL = of a whole run; block1, block2 NULL = merged, by merge_id; merged_in: the done merge
--             that holds it; url NULL = unknown (see the setting output_home); bytes [bytes], adler32, events: as reported,
--             NULL = not reported; state: current, replaced or lost, with p_any also the outcome of the
--             report; script and digest (SHA-256) of the work or merge script
-- Errors:     OG301 unknown project; OG108 p_what is none of these, or p_limit out of range
-- Source:     docs/outputs.md
DECLARE
    v_project projects := osgprod._get_project(p_project);
    v_by_run  boolean := osgprod._merges_runs(v_project.project_id);
    v_all     boolean := coalesce(p_history, false) OR coalesce(p_any, false);
    v_limit   int := CASE WHEN p_limit IS NOT NULL THEN osgprod._limit(p_limit) END;
BEGIN
    IF NOT coalesce(p_what IN ('merged', 'slices', 'final', 'all'), false) THEN
        RAISE EXCEPTION 'outputs are merged, slices, final or all, not %', osgprod._quoted(p_what)
            USING ERRCODE = 'OG108', HINT = 'leave it out for all';
    END IF;
    RETURN QUERY
    WITH chosen AS (  -- attempts, with what they were at; of those that count by their slices and merges
        SELECT s.cluster, s.process, s.nstart, s.run, s.seqno, s.block1, d.merge_id AS merged_in, true AS counts
          FROM slices s
          LEFT JOIN merges d ON d.project_id = s.project_id AND d.run = s.run AND d.state = 'done'
                            AND coalesce(d.seqno, -1) = CASE WHEN v_by_run THEN -1 ELSE s.seqno END
         WHERE NOT v_all AND p_what <> 'merged' AND s.project_id = v_project.project_id AND s.state = 'done'
           AND (p_runs IS NULL OR s.rawdata_id IN (
                    SELECT f.rawdata_id FROM loaded_files f WHERE f.project_id = v_project.project_id AND f.run = ANY (p_runs)))
           AND (p_file_id IS NULL OR s.rawdata_id = p_file_id) AND (p_what <> 'final' OR d.merge_id IS NULL)
        UNION ALL
        SELECT m.cluster, m.process, m.nstart, m.run, m.seqno, NULL, NULL, true FROM merges m
         WHERE NOT v_all AND p_what <> 'slices' AND m.project_id = v_project.project_id AND m.state = 'done'
           AND (p_runs IS NULL OR m.run = ANY (p_runs)) AND (p_file_id IS NULL OR m.rawdata_id = p_file_id)
        UNION ALL
        SELECT a.cluster, a.process, a.nstart, coalesce(m.run, w.run), CASE WHEN a.merge_id IS NULL THEN w.seqno ELSE m.seqno END,
               nullif(a.block1, -1), d.merge_id, s.project_id IS NOT NULL
               OR coalesce(m.state = 'done' AND (m.cluster, m.process, m.nstart) = (a.cluster, a.process, a.nstart), false)
          FROM attempts a
          LEFT JOIN rawdata w ON w.rawdata_id = a.rawdata_id
          LEFT JOIN merges m ON m.merge_id = a.merge_id
          LEFT JOIN slices s ON s.project_id = a.project_id AND s.rawdata_id = a.rawdata_id AND s.block1 = a.block1
                            AND s.state = 'done' AND s.cluster = a.cluster AND s.process = a.process AND s.nstart = a.nstart
          LEFT JOIN merges d ON d.project_id = s.project_id AND d.run = s.run AND d.state = 'done'
                            AND coalesce(d.seqno, -1) = CASE WHEN v_by_run THEN -1 ELSE s.seqno END
         WHERE v_all AND a.project_id = v_project.project_id
           AND (p_what IN ('all', 'final') OR (p_what = 'merged') = (a.merge_id IS NOT NULL))
           AND (p_runs IS NULL OR coalesce(m.run, w.run) = ANY (p_runs))
           AND (p_file_id IS NULL OR a.rawdata_id = p_file_id) AND (p_what <> 'final' OR d.merge_id IS NULL)
    ), first AS (
        SELECT c.* FROM chosen c
         ORDER BY c.run, c.seqno NULLS LAST, c.block1 NULLS LAST LIMIT CASE WHEN NOT v_all THEN v_limit END
    )
    SELECT c.run, c.seqno, w.path, c.block1, nullif(a.block2, -1), a.merge_id, c.merged_in, coalesce(o.kind, 'tarball'),
           coalesce(o.url, r.output_url, osgprod._home_url(v_project, a, v.exec_version)),
           CASE WHEN o.n IS NULL THEN r.output_bytes ELSE o.bytes END,
           CASE WHEN o.n IS NULL THEN r.output_adler32 ELSE o.adler32 END,
           CASE WHEN o.n IS NULL THEN r.events ELSE o.events END,
           a.cluster, a.process, a.nstart, r.reported_at,
           CASE WHEN r.outcome <> 'done' THEN r.outcome::text WHEN l.project_id IS NOT NULL THEN 'lost'
                WHEN c.counts THEN 'current' ELSE 'replaced' END,
           v.script, v.digest, v.exec_version, v.image, r.software
      FROM first c
      JOIN attempts a ON a.project_id = v_project.project_id AND a.cluster = c.cluster AND a.process = c.process
                     AND a.nstart = c.nstart
      JOIN reports r ON r.project_id = a.project_id AND r.cluster = a.cluster AND r.process = a.process
                    AND r.nstart = a.nstart AND r.by_worker
      LEFT JOIN rawdata w ON w.rawdata_id = a.rawdata_id
      LEFT JOIN outputs o ON o.project_id = r.project_id AND o.cluster = r.cluster AND o.process = r.process
                         AND o.nstart = r.nstart
      LEFT JOIN lost_outputs l ON l.project_id = r.project_id AND l.cluster = r.cluster AND l.process = r.process
                              AND l.nstart = r.nstart
      LEFT JOIN versions v ON v.version_id = a.version_id
     WHERE (p_any OR r.outcome = 'done') AND (v_all OR l.project_id IS NULL)
     ORDER BY c.run, c.seqno NULLS LAST, c.block1 NULLS LAST, r.reported_at, coalesce(o.n, 1)
     LIMIT v_limit;
END
$fn$;

COMMENT ON FUNCTION osgprod.list_outputs(text, int[], text, boolean, int, boolean, int) IS
'Lists the files that accepted attempts delivered, of slices or merged, with size [bytes], checksum, events, and what made them. For osgprod_operator.';
