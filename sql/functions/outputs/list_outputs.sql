CREATE FUNCTION osgprod.list_outputs(
    p_project text,
    p_runs    int[]   DEFAULT NULL,
    p_what    text    DEFAULT 'all',
    p_history boolean DEFAULT false,
    p_file_id int     DEFAULT NULL,
    p_any     boolean DEFAULT false)
RETURNS TABLE (run int, seqno int, path text, block1 int, block2 int, merge_id int, merged_in int, kind text, url text,
    bytes bigint, adler32 text, events bigint, cluster int, process int, nstart int, reported_at timestamptz, state text,
    script text, digest text, exec_version text, image text, software text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Lists the files that accepted attempts delivered, in the order of run, number and blocks, with what made them.
-- Promise:    changes nothing. Any number of rows: read them by a cursor.
-- Parameters: p_project  project name;  p_runs  run numbers; NULL = all
--             p_what     merged, slices, or all
--             p_history  also those that were replaced or lost;  p_file_id  of one file, as the lists name it; NULL = all
--             p_any  also what other reports name: those of failures, and those that came too late
-- Returns:    a row a file. seqno NULL = of a whole run; block1, block2 NULL = merged, by merge_id; merged_in: the done merge
--             that holds it; url NULL = unknown (see the setting output_home); bytes [bytes], adler32, events: as reported,
--             NULL = not reported; state: current, replaced or lost, with p_any also the outcome of the
--             report; script and digest (SHA-256) of the work or merge script
-- Errors:     OG301 unknown project; OG108 p_what is none of these
-- Source:     docs/outputs.md
DECLARE
    v_project projects := osgprod._get_project(p_project);
    v_by_run  boolean := osgprod._merges_runs(v_project.project_id);
BEGIN
    IF NOT coalesce(p_what IN ('merged', 'slices', 'all'), false) THEN
        RAISE EXCEPTION 'outputs are merged, slices or all, not %', osgprod._quoted(p_what)
            USING ERRCODE = 'OG108', HINT = 'leave it out for all';
    END IF;
    RETURN QUERY
    SELECT x.run, x.seqno, x.path, x.block1, x.block2, x.merge_id, x.merged_in, x.kind, x.url, x.bytes, x.adler32, x.events,
           x.cluster, x.process, x.nstart, x.reported_at, x.state, v.script, v.digest, v.exec_version, v.image, x.software
      FROM (
        SELECT coalesce(m.run, w.run) AS run, CASE WHEN a.merge_id IS NULL THEN w.seqno ELSE m.seqno END AS seqno, w.path,
               nullif(a.block1, -1) AS block1, nullif(a.block2, -1) AS block2, a.merge_id,
               CASE WHEN s.project_id IS NOT NULL THEN d.merge_id END AS merged_in,
               coalesce(o.n, 1) AS n, coalesce(o.kind, 'tarball') AS kind,
               coalesce(o.url, r.output_url, CASE WHEN v_project.output_home IS NOT NULL THEN osgprod._home_url(v_project, a) END) AS url,
               CASE WHEN o.n IS NULL THEN r.output_bytes ELSE o.bytes END AS bytes,
               CASE WHEN o.n IS NULL THEN r.output_adler32 ELSE o.adler32 END AS adler32,
               CASE WHEN o.n IS NULL THEN r.events ELSE o.events END AS events,
               a.cluster, a.process, a.nstart, r.reported_at, a.version_id, r.software,
               CASE WHEN r.outcome <> 'done' THEN r.outcome::text WHEN l.project_id IS NOT NULL THEN 'lost'
                    WHEN s.project_id IS NOT NULL OR m.state = 'done' AND (m.cluster, m.process, m.nstart)
                         = (a.cluster, a.process, a.nstart) THEN 'current' ELSE 'replaced' END AS state
          FROM reports r
          JOIN attempts a ON a.project_id = r.project_id AND a.cluster = r.cluster AND a.process = r.process
                         AND a.nstart = r.nstart
          LEFT JOIN rawdata w ON w.rawdata_id = a.rawdata_id
          LEFT JOIN merges m ON m.merge_id = a.merge_id
          LEFT JOIN slices s ON s.project_id = a.project_id AND s.rawdata_id = a.rawdata_id AND s.block1 = a.block1
                            AND s.state = 'done' AND s.cluster = a.cluster AND s.process = a.process AND s.nstart = a.nstart
          LEFT JOIN merges d ON d.project_id = s.project_id AND d.run = s.run AND d.state = 'done'
                            AND coalesce(d.seqno, -1) = CASE WHEN v_by_run THEN -1 ELSE s.seqno END
          LEFT JOIN outputs o ON o.project_id = r.project_id AND o.cluster = r.cluster AND o.process = r.process
                             AND o.nstart = r.nstart
          LEFT JOIN lost_outputs l ON l.project_id = r.project_id AND l.cluster = r.cluster AND l.process = r.process
                                  AND l.nstart = r.nstart
         WHERE r.project_id = v_project.project_id AND r.by_worker AND (p_any OR r.outcome = 'done')
           AND (p_what = 'all' OR (p_what = 'merged') = (a.merge_id IS NOT NULL))
           AND (p_file_id IS NULL OR a.rawdata_id = p_file_id)) x
      LEFT JOIN versions v ON v.version_id = x.version_id
     WHERE (p_history OR p_any OR x.state = 'current') AND (p_runs IS NULL OR x.run = ANY (p_runs))
     ORDER BY x.run, x.seqno NULLS LAST, x.block1 NULLS LAST, x.reported_at, x.n;
END
$fn$;

COMMENT ON FUNCTION osgprod.list_outputs(text, int[], text, boolean, int, boolean) IS
'Lists the files that accepted attempts delivered, of slices or merged, with size [bytes], checksum, events, and what made them. For osgprod_operator.';
