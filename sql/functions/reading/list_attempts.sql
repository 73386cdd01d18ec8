CREATE FUNCTION osgprod.list_attempts(
    p_project   text,
    p_hours     int  DEFAULT 24,
    p_outcome   text DEFAULT NULL,
    p_exit_code int  DEFAULT NULL,
    p_worker    text DEFAULT NULL,
    p_site      text DEFAULT NULL,
    p_limit     int  DEFAULT 100)
RETURNS TABLE (reported_at timestamptz, cluster int, process int, nstart int, outcome text, exit_code int, ran_s int,
    file_id int, path text, block1 int, block2 int, worker text, site text, reason text, log_url text,
    schedd text, door text, merge text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Lists attempts that ended in the last hours, the latest first.
-- Parameters: p_project    project name;  p_hours  how far back [h; 1 .. 8760]; the reports of that time are read
--             p_outcome    done, failed, node-fault, lost or superseded; NULL = all
--             p_exit_code  [0 .. 255];  p_worker, p_site  as the reports name them; NULL = all
--             p_limit      rows at most [1 .. 100000]
-- Returns:    a row a report: time, job, outcome, run time ran_s [s], slice, where it ran, why it
--             failed, the URL of its output or log, without secrets, the access point of the job, and the door that its
--             slice was read from; merge: the merge's name (its blocks are -1 then); NULL = a slice
-- Errors:     OG301 unknown project; OG108 hours, outcome or limit out of range
DECLARE
    v_project_id int := (osgprod._get_project(p_project)).project_id;
    v_since      timestamptz;
    v_found      reports[];
BEGIN
    IF p_outcome <> ALL (enum_range(NULL::outcome)::text[]) THEN
        RAISE EXCEPTION 'an outcome is done, failed, node-fault, lost or superseded, not %', osgprod._quoted(p_outcome)
            USING ERRCODE = 'OG108', HINT = 'leave it out for all';
    END IF;
    -- Look back in steps, no further than needed for p_limit rows.
    FOREACH v_since IN ARRAY osgprod._steps_back(p_hours) LOOP
        SELECT array_agg(f.r) INTO v_found FROM (
            SELECT r FROM reports r
             WHERE r.project_id = v_project_id AND r.reported_at >= v_since
               AND (p_outcome IS NULL OR r.outcome = p_outcome::outcome)
               AND (p_exit_code IS NULL OR r.exit_code = p_exit_code)
               AND (p_worker IS NULL OR r.worker = p_worker)
               AND (p_site IS NULL OR r.site = p_site)
             ORDER BY r.reported_at DESC LIMIT osgprod._limit(p_limit)) f;
        EXIT WHEN cardinality(v_found) >= p_limit;
    END LOOP;
    RETURN QUERY
    SELECT l.reported_at, l.cluster, l.process, l.nstart, l.outcome::text, l.exit_code, l.ran_s, a.rawdata_id, w.path,
           a.block1, a.block2, l.worker, l.site, l.reason, osgprod._without_secrets(l.output_url), a.schedd,
           osgprod._without_secrets(l.door), CASE WHEN a.merge_id IS NOT NULL THEN osgprod._merge_name(m.run, m.seqno) END
      FROM unnest(v_found) l
      JOIN attempts a ON a.project_id = v_project_id AND a.cluster = l.cluster AND a.process = l.process
                     AND a.nstart = l.nstart
      LEFT JOIN rawdata w ON w.rawdata_id = a.rawdata_id
      LEFT JOIN merges m ON m.merge_id = a.merge_id
     ORDER BY l.reported_at DESC, l.cluster, l.process, l.nstart;
END
$fn$;

COMMENT ON FUNCTION osgprod.list_attempts(text, int, text, int, text, text, int) IS
'Lists the attempts that ended in the last p_hours [h], the latest first, chosen by outcome, exit code, worker and site. For osgprod_worker and osgprod_operator.';
