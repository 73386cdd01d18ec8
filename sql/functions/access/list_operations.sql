CREATE FUNCTION osgprod.list_operations(p_project text DEFAULT NULL, p_hours int DEFAULT 720, p_limit int DEFAULT 100)
RETURNS TABLE (done_at timestamptz, who text, operation text, project text, times bigint, details jsonb)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Lists what operators changed, the latest first.
-- Parameters: p_project  project name, also of one that was removed; NULL = all, and what belongs to no project
--             p_hours    how far back [h; 1 .. 8760];  p_limit  rows at most [1 .. 100000]
-- Returns:    a row an operation: when, who (the database login, and in brackets the person whom the program names), the
--             function that was called, the project, how many files, slices, settings ... it changed, and its arguments
--             without secrets
-- Errors:     OG108 hours or limit out of range
DECLARE
    v_since timestamptz := osgprod._since(p_hours);
BEGIN
    RETURN QUERY
    SELECT o.done_at, o.login || coalesce(' (' || o.person || ')', ''), o.operation, o.project, o.times, o.details
      FROM operations o
     WHERE o.done_at >= v_since AND (p_project IS NULL OR o.project = p_project)
     ORDER BY o.operation_id DESC LIMIT osgprod._limit(p_limit);
END
$fn$;

COMMENT ON FUNCTION osgprod.list_operations(text, int, int) IS
'Lists what operators changed in the last p_hours [h], the latest first: when, who, what, how many. For osgprod_operator.';
