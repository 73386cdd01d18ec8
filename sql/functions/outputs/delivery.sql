CREATE FUNCTION osgprod.delivery(p_project text DEFAULT NULL)
RETURNS TABLE (project text, merge_by text, files bigint, files_in_slices bigint, files_complete bigint, files_delivered bigint,
    merges_waiting bigint, merges_ready bigint, merges_leased bigint, merges_failed bigint, merges_done bigint,
    bytes_delivered bigint, is_delivered boolean, why_no_merges text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Counts the files of each project by stage, its merges by state, and what was delivered.
-- Parameters: p_project  project name; NULL = all projects
-- Returns:    a row a project; files = in slices + complete (their merge is not done) + delivered. merges_ready: those in a
--             backoff included; bytes_delivered [bytes]: of done merges; is_delivered: nothing is left to be done, merges
--             included; why_no_merges: why merges are not assigned, NULL = they are, or there is none
-- Errors:     OG301 unknown project
BEGIN
    PERFORM osgprod._get_project(p_project) WHERE p_project IS NOT NULL;
    RETURN QUERY
    SELECT p.name, p.merge_by, f.files, f.files - f.complete, f.complete - f.delivered, f.delivered, m.waiting, m.ready, m.leased,
           m.failed, m.done, m.bytes, f.files > 0 AND f.files = f.complete AND (p.merge_by = 'none' OR f.files = f.delivered),
           osgprod._why_no_merges(p)
      FROM projects p
     CROSS JOIN LATERAL (
        SELECT count(*) AS files, count(*) FILTER (WHERE l.state = 'complete') AS complete,
               count(d.merge_id) FILTER (WHERE l.state = 'complete') AS delivered
          FROM loaded_files l
          LEFT JOIN merges d ON d.project_id = l.project_id AND d.run = l.run AND coalesce(d.seqno, l.seqno) = l.seqno
                            AND d.state = 'done'
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
