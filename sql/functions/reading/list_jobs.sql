CREATE FUNCTION osgprod.list_jobs(
    p_project text,
    p_cluster int DEFAULT NULL,
    p_hours   int DEFAULT 24,
    p_limit   int DEFAULT 100)
RETURNS TABLE (cluster int, process int, starts int, state text, exit_code int, started_at timestamptz,
    reported_at timestamptz, file_id int, path text, block1 int, block2 int, worker text, site text,
    schedd text, submitted_at timestamptz, task text, merge text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Lists jobs by their last start, the latest first.
-- Parameters: p_project  project name
--             p_cluster  HTCondor's cluster, all its jobs, whenever they ran; NULL = all jobs that started in p_hours
--             p_hours    how far back [h; 1 .. 8760]; not with p_cluster
--             p_limit    rows at most [1 .. 100000]
-- Returns:    a row a job: how many attempts it made; the state of its last attempt: live, its outcome, or silent (neither:
--             see docs/glossary.md); when it began and
--             reported, its slice (path NULL = the file was forgotten since), where it ran,
--             at which access point it was submitted, and when (NULL = it did not say). task: slice, merge, or backup (it is
--             live, and another attempt holds its slice); merge: the merge's name (its blocks are -1 then); NULL = a slice.
--             Jobs of different access points may have the same numbers
-- Errors:     OG301 unknown project; OG108 hours or limit out of range
DECLARE
    v_project_id int := (osgprod._get_project(p_project)).project_id;
    v_since      timestamptz;
    v_found      attempts[];
BEGIN
    -- Look back in steps, no further than needed for p_limit rows.
    FOREACH v_since IN ARRAY CASE WHEN p_cluster IS NULL THEN osgprod._steps_back(p_hours) ELSE '{-infinity}' END LOOP
        SELECT array_agg(f.r) INTO v_found FROM (
            SELECT l.r FROM (SELECT DISTINCT ON (a.cluster, a.process, a.schedd, a.qdate) ROW(a.*)::attempts AS r, a.started_at
                               FROM attempts a
                              WHERE a.project_id = v_project_id AND a.started_at >= v_since
                                AND (p_cluster IS NULL OR a.cluster = p_cluster)
                              ORDER BY a.cluster, a.process, a.schedd, a.qdate, a.nstart DESC) l
             ORDER BY l.started_at DESC LIMIT osgprod._limit(p_limit)) f;
        EXIT WHEN cardinality(v_found) >= p_limit;
    END LOOP;
    RETURN QUERY
    SELECT j.cluster, j.process, coalesce(j.job_start, j.nstart), coalesce(CASE WHEN h.task IS NOT NULL THEN 'live' END, r.outcome::text,
           'silent'), r.exit_code, j.started_at, r.reported_at, j.rawdata_id, w.path, j.block1, j.block2,
           osgprod._worker(j.client, j.host), j.site, j.schedd, osgprod._time_of(j.qdate),
           coalesce(h.task, CASE WHEN j.merge_id IS NULL THEN 'slice' ELSE 'merge' END),
           CASE WHEN j.merge_id IS NOT NULL THEN osgprod._merge_name(m.run, m.seqno) END
      FROM unnest(v_found) j
      LEFT JOIN rawdata w ON w.rawdata_id = j.rawdata_id
      LEFT JOIN LATERAL osgprod._work_of(j) h ON NOT h.is_done
      LEFT JOIN merges m ON m.merge_id = j.merge_id
      LEFT JOIN LATERAL (
          SELECT x.* FROM reports x
           WHERE x.project_id = j.project_id AND x.cluster = j.cluster AND x.process = j.process AND x.nstart = j.nstart
           ORDER BY x.by_worker DESC LIMIT 1) r ON true
     ORDER BY j.started_at DESC, j.cluster, j.process, j.schedd, j.qdate;
END
$fn$;

COMMENT ON FUNCTION osgprod.list_jobs(text, int, int, int) IS
'Lists jobs by their last start, the latest first: those of the last p_hours [h], or all of one cluster. For osgprod_worker and osgprod_operator.';
