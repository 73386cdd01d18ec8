CREATE FUNCTION osgprod.log_tail(p_project text, p_cluster int, p_process int, p_nstart int DEFAULT NULL)
RETURNS TABLE (nstart int, kept_at timestamptz, tail text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Returns the ends of the logs that the failed attempts of a job sent.
-- Parameters: p_project  project name;  p_cluster, p_process  HTCondor's identity of the job [0 .. 2147483647]
--             p_nstart   one attempt [1 ..]; NULL = all
-- Returns:    a row for each attempt that has one, the latest first: when it came, and its last lines, at most 4096
--             characters, without indents; control characters are spaces. They are kept for 30 days
-- Errors:     OG301 unknown project
DECLARE
    v_project_id int := (osgprod._get_project(p_project)).project_id;
BEGIN
    RETURN QUERY
    SELECT t.nstart, t.kept_at, t.tail FROM log_tails t
     WHERE t.project_id = v_project_id AND t.cluster = p_cluster AND t.process = p_process
       AND t.nstart = coalesce(p_nstart, t.nstart)
     ORDER BY t.nstart DESC;
END
$fn$;

COMMENT ON FUNCTION osgprod.log_tail(text, int, int, int) IS
'Returns the ends of the logs that the failed attempts of a job sent. For osgprod_worker and osgprod_operator.';

CREATE FUNCTION osgprod._keep_log_tail(p_attempt osgprod_data.attempts, p_tail text)
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Keeps the end of the log of a failed attempt: the last 4096 characters, each line as _label has it.
    -- Parameters: p_attempt  the attempt;  p_tail  as the job sent it
    INSERT INTO osgprod_data.log_tails (project_id, cluster, process, nstart, tail)
    SELECT p_attempt.project_id, p_attempt.cluster, p_attempt.process, p_attempt.nstart, l.tail
      FROM (SELECT string_agg(coalesce(osgprod._label(x.line, 4096), ''), E'\n' ORDER BY x.n) AS tail
              FROM regexp_split_to_table(right(p_tail, 4096), '\r?\n') WITH ORDINALITY AS x (line, n)) l
     WHERE l.tail <> ''
    ON CONFLICT DO NOTHING
$fn$;
