CREATE FUNCTION osgprod.blocked_workers(p_project text DEFAULT NULL, p_limit int DEFAULT 100000)
RETURNS TABLE (project text, worker text, until timestamptz, reason text, banned_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Lists the bans that hold at present: of workers, hosts, addresses, sites and networks, and of merges only.
-- Parameters: p_project  project name; NULL = all projects;  p_limit  rows at most [1 .. 100000]
-- Returns:    a row a ban, the one that ends last first; none = nobody is banned
-- Errors:     OG301 unknown project; OG108 limit out of range
BEGIN
    PERFORM osgprod._get_project(p_project) WHERE p_project IS NOT NULL;
    RETURN QUERY SELECT p.name, b.worker, b.until, b.reason, b.banned_at
      FROM worker_bans b JOIN projects p ON p.project_id = b.project_id
     WHERE osgprod._is_in_force(b.banned_at, b.until) AND p.name = coalesce(p_project, p.name)
     ORDER BY b.until DESC, p.name, b.worker
     LIMIT osgprod._limit(p_limit);
END
$fn$;

COMMENT ON FUNCTION osgprod.blocked_workers(text, int) IS
'Lists the bans that hold at present, of workers, addresses, sites and networks: until when and why. For osgprod_worker and osgprod_operator.';
