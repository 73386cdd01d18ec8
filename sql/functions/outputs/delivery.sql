CREATE FUNCTION osgprod.delivery(p_project text DEFAULT NULL)
RETURNS TABLE (project text, merge_by text, files bigint, files_in_slices bigint, files_complete bigint, files_delivered bigint,
    files_without_outputs bigint, merges_waiting bigint, merges_ready bigint, merges_leased bigint, merges_failed bigint, merges_done bigint,
    bytes_delivered bigint, is_delivered boolean, why_no_merges text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Counts the files of each project by stage, its merges by state, and the delivered bytes.
-- Parameters: p_project  project name; NULL = all projects
-- Returns:    a row a project; files = in slices + complete (their merge is not done) + delivered + without outputs (they are
--             complete and need no merge, see _without_outputs). merges_ready: those in a backoff included; bytes_delivered
--             [bytes]: of done merges; is_delivered: nothing is left to be done, merges included; why_no_merges: why merges are not assigned, NULL = they are, or there is none
-- Errors:     OG301 unknown project
BEGIN
    PERFORM osgprod._get_project(p_project) WHERE p_project IS NOT NULL;
    RETURN QUERY
    SELECT p.name, p.merge_by, f.files, f.files - f.complete, f.complete - f.delivered - f.without, f.delivered, f.without, m.waiting, m.ready, m.leased,
           m.failed, m.done, m.bytes, f.files > 0 AND f.files = f.complete AND osgprod._merges_left(p) = 0,
           osgprod._why_no_merges(p)
      FROM projects p
     CROSS JOIN LATERAL (SELECT osgprod._merges_runs(p.project_id) AS by_run) b
     CROSS JOIN LATERAL (
        SELECT count(*) AS files, count(*) FILTER (WHERE l.state = 'complete') AS complete,
               count(d.merge_id) FILTER (WHERE l.state = 'complete') AS delivered,
               count(w.run) FILTER (WHERE d.merge_id IS NULL) AS without
          FROM loaded_files l
          LEFT JOIN merges d ON d.project_id = l.project_id AND d.run = l.run AND d.state = 'done'
                            AND coalesce(d.seqno, -1) = CASE WHEN b.by_run THEN -1 ELSE l.seqno END
          LEFT JOIN osgprod._without_outputs(p, NULL) w ON w.run = l.run AND coalesce(w.seqno, l.seqno) = l.seqno
         WHERE l.project_id = p.project_id) f
     CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE x.state = 'waiting') AS waiting, count(*) FILTER (WHERE x.state = 'ready') AS ready,
               count(*) FILTER (WHERE x.state = 'leased') AS leased, count(*) FILTER (WHERE x.state = 'failed') AS failed,
               count(*) FILTER (WHERE x.state = 'done') AS done,
               coalesce(sum((SELECT sum(o.bytes) FROM outputs o
                              WHERE x.state = 'done' AND o.project_id = x.project_id AND o.cluster = x.cluster
                                AND o.process = x.process AND o.nstart = x.nstart)), 0)::bigint AS bytes
          FROM merges x WHERE x.project_id = p.project_id) m
     WHERE p.name = coalesce(p_project, p.name)
     ORDER BY p.name;
END
$fn$;

COMMENT ON FUNCTION osgprod.delivery(text) IS
'Counts the files of each project by stage (slices, merge, delivered), its merges by state, and the bytes delivered. For osgprod_worker and osgprod_operator.';

CREATE FUNCTION osgprod._merges_runs(p_project_id int)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Are the done merges of a project of whole runs? They are all of one kind (_change_merges), also where merge_by is none
    -- now. So what joins them to slices or files can compare run and coalesce(seqno, -1), as the index merges_once has them.
    -- Parameters: p_project_id  project
    SELECT EXISTS (SELECT FROM osgprod_data.merges m WHERE m.project_id = p_project_id AND m.seqno IS NULL AND m.state = 'done')
$fn$;

CREATE FUNCTION osgprod._merges_left(p_project osgprod_data.projects)
RETURNS bigint LANGUAGE sql STABLE
AS $fn$
    -- How many merges of a project are not done yet, those of files that are not complete included; 0 also when it merges nothing.
    -- Files of which there is nothing to merge count as needing none (_without_outputs).
    -- Parameters: p_project  the project's row
    SELECT CASE p_project.merge_by
           WHEN 'none' THEN 0
           WHEN 'file' THEN (SELECT count(*) FROM osgprod_data.loaded_files f WHERE f.project_id = p_project.project_id)
           ELSE (SELECT count(DISTINCT f.run) FROM osgprod_data.loaded_files f WHERE f.project_id = p_project.project_id) END
         - (SELECT count(*) FROM osgprod_data.merges m
             WHERE m.project_id = p_project.project_id AND m.state = 'done' AND p_project.merge_by <> 'none')
         - (SELECT count(*) FROM osgprod._without_outputs(p_project, NULL))
$fn$;

CREATE FUNCTION osgprod._merge_time(p_project_id int, p_share float8 DEFAULT 0.5)
RETURNS float8 LANGUAGE sql STABLE
AS $fn$
    -- How long a merge takes [s], of the last 100 that were done; NULL = none was.
    -- Parameters: p_project_id  project;  p_share  so much of them took no longer [0 .. 1]; default: the median
    SELECT percentile_cont(p_share) WITHIN GROUP (ORDER BY x.ran_s)
      FROM (SELECT m.* FROM osgprod_data.merges m
             WHERE m.project_id = p_project_id AND m.state = 'done' ORDER BY m.done_at DESC LIMIT 100) d
      JOIN osgprod_data.reports x ON x.project_id = d.project_id AND x.cluster = d.cluster AND x.process = d.process
                                 AND x.nstart = d.nstart AND x.by_worker
$fn$;
