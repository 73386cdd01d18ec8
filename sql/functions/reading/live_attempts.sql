CREATE FUNCTION osgprod.live_attempts(p_project text, p_limit int DEFAULT 100, p_site text DEFAULT NULL)
RETURNS TABLE (cluster int, process int, nstart int, file_id int, path text, block1 int, block2 int, started_at timestamptz,
    age_s int, lease_left_s int, progress_s int, bytes_fetched bigint, cpu_s bigint, worker text, site text,
    schedd text, task text, merge text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Lists the attempts that work at a slice, a merge or a backup, the oldest first.
-- Parameters: p_project  project name;  p_limit  rows at most [1 .. 100000];  p_site  only at this site; NULL = all
-- Returns:    a row an attempt: its slice, age_s since it began [s], lease_left_s until it counts as lost without a
--             heartbeat [s; negative = about to be requeued], progress_s since it last reported progress [s; NULL = not
--             yet], bytes_fetched [bytes] and cpu_s [s] of its last heartbeat, where it runs, the access
--             point of the job, and task: slice or merge, which it holds, or backup: another attempt holds the slice (what a
--             backup has done so far is not kept); merge: the merge's name (its blocks are -1 then); NULL = a slice
-- Errors:     OG301 unknown project; OG108 limit out of range
DECLARE
    v_project_id int := (osgprod._get_project(p_project)).project_id;
BEGIN
    RETURN QUERY
    SELECT a.cluster, a.process, a.nstart, a.rawdata_id, w.path, a.block1, a.block2, a.started_at,
           extract(epoch FROM now() - a.started_at)::int, extract(epoch FROM l.due_at - now())::int,
           extract(epoch FROM now() - l.progress_at)::int, l.bytes_fetched, l.cpu_s,
           osgprod._worker(a.client, a.host), a.site, a.schedd, l.task,
           CASE WHEN m.merge_id IS NOT NULL THEN osgprod._merge_name(m.run, m.seqno) END
      FROM osgprod._leases(v_project_id) l
      JOIN attempts a ON a.project_id = v_project_id AND a.cluster = l.cluster AND a.process = l.process
                     AND a.nstart = l.nstart
      JOIN rawdata w ON w.rawdata_id = a.rawdata_id
      LEFT JOIN merges m ON m.merge_id = a.merge_id
     WHERE p_site IS NULL OR a.site = p_site
     ORDER BY a.started_at, a.cluster, a.process
     LIMIT osgprod._limit(p_limit);
END
$fn$;

COMMENT ON FUNCTION osgprod.live_attempts(text, int, text) IS
'Lists the live attempts, the oldest first: slice, merge or backup, age [s], lease left [s], progress, worker. For osgprod_worker and osgprod_operator.';

CREATE FUNCTION osgprod._leases(p_project_id int)
RETURNS TABLE (task text, cluster int, process int, nstart int, due_at timestamptz, progress_at timestamptz,
    bytes_fetched bigint, cpu_s bigint)
LANGUAGE sql STABLE
AS $fn$
    -- The leases of a project, of slices, merges and backups, with the attempts that have them; see _work_of.
    -- Parameters: p_project_id  project
    SELECT 'slice', s.cluster, s.process, s.nstart, s.due_at, s.progress_at, s.bytes_fetched, s.cpu_s
      FROM osgprod._slices_in_flight(p_project_id) s WHERE s.state = 'leased'
    UNION ALL
    SELECT 'merge', m.cluster, m.process, m.nstart, m.due_at, m.progress_at, m.bytes_fetched, m.cpu_s
      FROM osgprod_data.merges m WHERE m.project_id = p_project_id AND m.state = 'leased'
    UNION ALL
    SELECT 'backup', b.cluster, b.process, b.nstart, b.due_at, NULL, NULL, NULL
      FROM osgprod_data.backups b
      JOIN osgprod_data.slices s ON s.project_id = b.project_id AND s.rawdata_id = b.rawdata_id AND s.block1 = b.block1
                                AND s.opened_at = b.opened_at AND s.state = 'leased'
     WHERE b.project_id = p_project_id AND b.due_at IS NOT NULL
$fn$;
