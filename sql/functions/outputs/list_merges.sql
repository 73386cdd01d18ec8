CREATE FUNCTION osgprod.list_merges(
    p_project text, p_runs int[] DEFAULT NULL, p_state text DEFAULT NULL, p_limit int DEFAULT 100)
RETURNS TABLE (merge_id int, run int, seqno int, state text, inputs int, missing text, failures int, last_exit int,
    cluster int, process int, nstart int, worker text, lease_left_s int, made_at timestamptz, done_at timestamptz, files bigint,
    bytes bigint, events bigint, reason text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Lists merges in the order in which they are assigned.
-- Parameters: p_project  project name;  p_runs  run numbers; NULL = all
--             p_state    waiting, ready, leased, done, failed or superseded, or open (waiting, ready or leased); NULL = all
--             p_limit    rows at most [1 .. 100000]
-- Returns:    a row a merge. seqno NULL = of the whole run; inputs: slices of its last attempt; missing: quarantined blocks it was
--             made without; the job that holds or held it last; lease_left_s [s] of a leased one; files, bytes [bytes] and
--             events that a done one delivered; reason: why it is not assigned while merge_by is none, and what its last report said
-- Errors:     OG301 unknown project; OG108 state or limit out of range
DECLARE
    v_project osgprod_data.projects := osgprod._get_project(p_project);
BEGIN
    IF p_state <> ALL (enum_range(NULL::merge_state)::text[] || 'open'::text) THEN
        RAISE EXCEPTION 'the state of a merge is waiting, ready, leased, done, failed, superseded or open, not %', osgprod._quoted(p_state)
            USING ERRCODE = 'OG108', HINT = 'leave it out for all';
    END IF;
    RETURN QUERY
    SELECT m.merge_id, m.run, m.seqno, m.state::text, coalesce(cardinality(m.inputs), 0), m.missing, m.failures::int,
           m.exit_codes[cardinality(m.exit_codes)], nullif(m.cluster, CASE m.nstart WHEN 0 THEN 0 END),
           nullif(m.process, CASE m.nstart WHEN 0 THEN 0 END), nullif(m.nstart, 0), osgprod._worker(a.client, a.host),
           CASE m.state WHEN 'leased' THEN extract(epoch FROM m.due_at - now())::int END, m.made_at, m.done_at,
           o.files, o.bytes, o.events,
           nullif(concat_ws('; ', CASE WHEN v_project.merge_by = 'none' AND m.state IN ('waiting', 'ready')
                                       THEN 'not assigned: merge_by is none' END, r.reason), '')
      FROM (SELECT x.* FROM merges x
             WHERE x.project_id = v_project.project_id AND (p_runs IS NULL OR x.run = ANY (p_runs))
               AND CASE p_state WHEN 'open' THEN x.state IN ('waiting', 'ready', 'leased')
                   ELSE x.state::text = coalesce(p_state, x.state::text) END
             ORDER BY x.run, x.seqno, x.merge_id LIMIT osgprod._limit(p_limit)) m
      LEFT JOIN attempts a ON a.project_id = m.project_id AND a.cluster = m.cluster AND a.process = m.process
                          AND a.nstart = m.nstart
      LEFT JOIN reports r ON r.project_id = m.project_id AND r.cluster = m.cluster AND r.process = m.process
                         AND r.nstart = m.nstart AND r.by_worker
      LEFT JOIN LATERAL (
        SELECT nullif(count(*), 0) AS files, sum(f.bytes)::bigint AS bytes, sum(f.events)::bigint AS events
          FROM outputs f WHERE m.state = 'done' AND f.project_id = m.project_id AND f.cluster = m.cluster
                           AND f.process = m.process AND f.nstart = m.nstart) o ON true
     ORDER BY m.run, m.seqno, m.merge_id;
END
$fn$;

COMMENT ON FUNCTION osgprod.list_merges(text, int[], text, int) IS
'Lists merges, chosen by runs and state, with the jobs that hold or held them, and number and size [bytes] of the files that they delivered. For osgprod_worker and osgprod_operator.';
