CREATE FUNCTION osgprod.attempts_by_worker(
    p_project text, p_hours int DEFAULT 6, p_order text DEFAULT 'failing', p_limit int DEFAULT 20,
    p_site text DEFAULT NULL)
RETURNS TABLE (worker text, site text, attempts bigint, done bigint, failed bigint, node_faults bigint, lost bigint,
    superseded bigint, s_per_block float8, last_at timestamptz, banned_until timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Lists worker nodes by their attempts in the last hours: the failing, the slowest, or the busiest.
-- Parameters: p_project  project name;  p_hours  how far back [h; 1 .. 8760]; the reports of that time are read
--             p_order    failing (most failures, faults and losses first), slow (most time a block first) or busy
--             p_limit    rows at most [1 .. 100000];  p_site  only at this site; NULL = all
-- Returns:    a row a worker node; attempts = done + failed + node_faults + lost + superseded; s_per_block: time of successes for each of their blocks [s]; banned_until: of its ban,
--             under any of its names or of its site; NULL = it is not banned. failing: only those
--             with a failure, fault or loss; slow: only those with a done slice
-- Errors:     OG301 unknown project; OG108 hours, order or limit out of range
DECLARE
    v_project_id int := (osgprod._get_project(p_project)).project_id;
    v_since      timestamptz := osgprod._since(p_hours);  -- once, not for each report
BEGIN
    IF p_order NOT IN ('failing', 'slow', 'busy') OR p_order IS NULL THEN
        RAISE EXCEPTION 'the order of workers is failing, slow or busy, not %', osgprod._quoted(p_order)
            USING ERRCODE = 'OG108', HINT = 'use one of these, or leave p_order out for failing';
    END IF;
    RETURN QUERY
    WITH accounts AS (
        SELECT r.worker, max(r.site) AS site, count(*) AS attempts,
               count(*) FILTER (WHERE r.outcome = 'done') AS done,
               count(*) FILTER (WHERE r.outcome = 'failed') AS failed,
               count(*) FILTER (WHERE r.outcome = 'node-fault') AS node_faults,
               count(*) FILTER (WHERE r.outcome = 'lost') AS lost,
               count(*) FILTER (WHERE r.outcome = 'superseded') AS superseded,
               (sum(r.ran_s) FILTER (WHERE r.outcome = 'done' AND r.nblocks > 0))::float8  -- a merge has no blocks
                   / nullif(sum(r.nblocks) FILTER (WHERE r.outcome = 'done'), 0) AS s_per_block,
               max(r.reported_at) AS last_at
          FROM reports r
         WHERE r.project_id = v_project_id AND r.reported_at >= v_since
           AND (p_site IS NULL OR r.site = p_site)
         GROUP BY r.worker
    )
    SELECT a.*, (SELECT b.until FROM osgprod._ban_of(v_project_id, a.worker, a.site) b)
      FROM accounts a
     WHERE CASE p_order WHEN 'failing' THEN a.failed + a.node_faults + a.lost > 0
                        WHEN 'slow' THEN a.s_per_block IS NOT NULL ELSE true END
     ORDER BY CASE p_order WHEN 'failing' THEN a.failed + a.node_faults + a.lost
                           WHEN 'slow' THEN a.s_per_block ELSE a.attempts END DESC, a.worker
     LIMIT osgprod._limit(p_limit);
END
$fn$;

COMMENT ON FUNCTION osgprod.attempts_by_worker(text, int, text, int, text) IS
'Lists worker nodes by their attempts in the last p_hours [h]: the failing, slowest or busiest, with failures and time a block [s]. For osgprod_worker and osgprod_operator.';
