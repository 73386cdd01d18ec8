CREATE FUNCTION osgprod.live_attempts(p_project text, p_limit int DEFAULT 100, p_site text DEFAULT NULL)
RETURNS TABLE (cluster int, process int, nstart int, file_id int, path text, block1 int, block2 int, started_at timestamptz,
    age_s int, lease_left_s int, progress_s int, bytes_fetched bigint, cpu_s bigint, worker text, site text,
    schedd text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Lists the attempts that hold a slice, the oldest first; merges and backups are not among them.
-- Parameters: p_project  project name;  p_limit  rows at most [1 .. 100000];  p_site  only at this site; NULL = all
-- Returns:    a row an attempt: its slice, age_s since it began [s], lease_left_s until it counts as lost without a
--             heartbeat [s; negative = about to be requeued], progress_s since it last reported progress [s; NULL = not
--             yet], bytes_fetched [bytes] and cpu_s [s] of its last heartbeat, where it runs, and the access
--             point of the job
-- Errors:     OG301 unknown project; OG108 limit out of range
DECLARE
    v_project_id int := (osgprod._get_project(p_project)).project_id;
BEGIN
    RETURN QUERY
    SELECT a.cluster, a.process, a.nstart, s.rawdata_id, w.path, s.block1, s.block2, a.started_at,
           extract(epoch FROM now() - a.started_at)::int, extract(epoch FROM s.due_at - now())::int,
           extract(epoch FROM now() - s.progress_at)::int, s.bytes_fetched, s.cpu_s,
           osgprod._worker(a.client, a.host), a.site, a.schedd
      FROM osgprod._slices_in_flight(v_project_id) s
      JOIN attempts a ON a.project_id = s.project_id AND a.cluster = s.cluster AND a.process = s.process
                     AND a.nstart = s.nstart
      JOIN rawdata w ON w.rawdata_id = s.rawdata_id
     WHERE s.state = 'leased' AND (p_site IS NULL OR a.site = p_site)
     ORDER BY a.started_at, a.cluster, a.process
     LIMIT osgprod._limit(p_limit);
END
$fn$;

COMMENT ON FUNCTION osgprod.live_attempts(text, int, text) IS
'Lists the live attempts, the oldest first: slice, age [s], lease left [s], progress, worker. For osgprod_worker and osgprod_operator.';
