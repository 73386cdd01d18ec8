CREATE FUNCTION osgprod.note_answers(p_answers jsonb)
RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Adds up what a shim answered to jobs, minute by minute: also what never reached a function of the database. health reads it.
-- Promise:    adds at most 500 rows; tick keeps a day, and 500 rows of a minute. A repeated call counts twice.
-- Parameters: p_answers  list of objects: minute [s since 1970; a day ago .. an hour ahead], project (NULL = none), route,
--                        status [100 .. 599], reason, message (NULL = none), times [1 ..]; objects out of range are left out; the
--                        route is cut to 32 characters, other texts to 200
-- Returns:    how many rows were written
-- Errors:     22xxx not a list, or a value that is not a number; 23502 no route
-- Locks:      the projects' rows, FOR KEY SHARE SKIP LOCKED; the rows of answers, in the order of their key; tick does not wait for them
DECLARE
    v_rows int;
BEGIN
    WITH known AS MATERIALIZED (  -- without projects that another session removes: these count as none
        SELECT p.project_id, p.name FROM projects p
         WHERE p.name IN (SELECT x.project FROM jsonb_to_recordset(p_answers) AS x (project text))
           FOR KEY SHARE SKIP LOCKED
    )
    INSERT INTO answers AS a (answered_at, project_id, route, http_status, reason, message, times)
    SELECT date_trunc('minute', to_timestamp(x.minute)), p.project_id, left(x.route, 32), x.status,
           coalesce(osgprod._label(x.reason, 200), '-'), max(osgprod._label(x.message, 200)), sum(x.times)
      FROM jsonb_to_recordset(p_answers) AS x (minute float8, project text, route text, status int, reason text, message text,
                                               times bigint)
      LEFT JOIN known p ON p.name = x.project
     WHERE x.status BETWEEN 100 AND 599 AND x.times > 0
       AND x.minute BETWEEN extract(epoch FROM now() - interval '1 d') AND extract(epoch FROM now() + interval '1 h')
     GROUP BY 1, 2, 3, 4, 5
     ORDER BY 1, coalesce(p.project_id, 0), 3, 4, 5
     LIMIT 500
    ON CONFLICT (answered_at, coalesce(project_id, 0), route, http_status, reason)
        DO UPDATE SET times = a.times + excluded.times, message = coalesce(a.message, excluded.message);
    GET DIAGNOSTICS v_rows = ROW_COUNT;
    RETURN v_rows;
END
$fn$;

COMMENT ON FUNCTION osgprod.note_answers(jsonb) IS
'Adds up what a shim answered to jobs, minute by minute, for health. For osgprod_worker and osgprod_operator.';

CREATE FUNCTION osgprod._prune_answers()
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Deletes answers older than a day, and the rarest beyond 500 rows of a minute; not those that a shim writes at this moment.
    DELETE FROM osgprod_data.answers a
     WHERE a.ctid IN (SELECT x.ctid FROM osgprod_data.answers x WHERE x.answered_at < now() - interval '1 d' FOR UPDATE SKIP LOCKED);
    DELETE FROM osgprod_data.answers a
     WHERE a.ctid IN (SELECT z.ctid FROM osgprod_data.answers z WHERE z.ctid IN (SELECT x.ctid FROM (
               SELECT y.ctid, row_number() OVER (PARTITION BY y.answered_at ORDER BY y.times DESC) AS n
                 FROM osgprod_data.answers y WHERE y.answered_at > now() - interval '10 min') x WHERE x.n > 500)
                         FOR UPDATE SKIP LOCKED);
$fn$;
