CREATE FUNCTION osgprod._tally(p_project osgprod_data.projects)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Counts the reports of the ten minutes that have passed since it last did, so that nobody counts millions again.
-- Promise:    each report is counted once, also when the clock is set back; a repeated call within ten minutes does nothing.
--             Whoever reads takes what is not yet tallied from the reports (_recent), so it may come late.
-- Parameters: p_project  the project's row
-- Locks:      the project's row SKIP LOCKED; a caller holds the lock of tick(), so there is one at a time
DECLARE
    -- A report gets its time shortly before it is committed: half a minute is left for that.
    v_until timestamptz := osgprod._ten_minutes(clock_timestamp() - interval '30 s');
    v_from  timestamptz;
BEGIN
    IF p_project.tallied_until = v_until THEN
        RETURN;
    END IF;
    -- As it is now: the caller may have waited since it read the project's row.
    SELECT p.tallied_until INTO v_from FROM osgprod_data.projects p
     WHERE p.project_id = p_project.project_id FOR NO KEY UPDATE SKIP LOCKED;
    IF v_from > v_until AND p_project.state <> 'archived' THEN
        PERFORM osgprod._untally(p_project.project_id, v_until);
    END IF;
    IF NOT coalesce(v_from < v_until, false) THEN
        RETURN;
    END IF;
    WITH tallied AS (
        INSERT INTO osgprod_data.tallies AS t (project_id, began_at, outcome, exit_code, site, reports, blocks, ran_s)
        SELECT p_project.project_id, osgprod._ten_minutes(r.reported_at), r.outcome, r.exit_code, r.site, count(*),
               sum(r.nblocks), sum(r.ran_s)
          FROM osgprod_data.reports r
         WHERE r.project_id = p_project.project_id AND r.reported_at >= v_from AND r.reported_at < v_until
         GROUP BY 2, 3, 4, 5
        RETURNING t.outcome, t.reports, t.blocks, t.ran_s
    )
    INSERT INTO osgprod_data.totals AS t (project_id, outcome, reports, blocks, ran_s)
    SELECT p_project.project_id, n.outcome, sum(n.reports), sum(n.blocks), sum(n.ran_s) FROM tallied n GROUP BY n.outcome
    ON CONFLICT ON CONSTRAINT totals_pkey DO UPDATE
       SET reports = t.reports + excluded.reports, blocks = t.blocks + excluded.blocks, ran_s = t.ran_s + excluded.ran_s;
    UPDATE osgprod_data.projects p SET tallied_until = v_until WHERE p.project_id = p_project.project_id;
END
$fn$;

CREATE FUNCTION osgprod._untally(p_project_id int, p_from timestamptz)
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Takes back what was tallied by a clock that has been set back since: what comes now would be taken for tallied. It is
    -- tallied again when its time comes; until then it is counted from the reports.
    -- Parameters: p_project_id  project, its row locked;  p_from  begin of ten minutes: what is tallied from then on
    WITH gone AS (
        DELETE FROM osgprod_data.tallies t WHERE t.project_id = p_project_id AND t.began_at >= p_from
        RETURNING t.outcome, t.reports, t.blocks, t.ran_s
    ), summed AS (
        SELECT g.outcome, sum(g.reports) AS reports, sum(g.blocks) AS blocks, sum(g.ran_s) AS ran_s FROM gone g
         GROUP BY g.outcome
    ), less AS (
        UPDATE osgprod_data.totals t
           SET reports = t.reports - s.reports, blocks = t.blocks - s.blocks, ran_s = t.ran_s - s.ran_s
          FROM summed s WHERE t.project_id = p_project_id AND t.outcome = s.outcome
    )
    UPDATE osgprod_data.projects p SET tallied_until = p_from WHERE p.project_id = p_project_id
$fn$;

CREATE FUNCTION osgprod._ten_minutes(p_at timestamptz)
RETURNS timestamptz LANGUAGE sql STABLE
AS $fn$
    -- The begin of the ten minutes of the clock in which a time lies. (date_bin needs PostgreSQL 14.)
    SELECT to_timestamp(floor(extract(epoch FROM p_at) / 600) * 600)
$fn$;

CREATE FUNCTION osgprod._recent(p_project_id int, p_since timestamptz)
RETURNS TABLE (began_at timestamptz, outcome osgprod_data.outcome, exit_code int, site text, reports bigint, blocks bigint,
    ran_s bigint)
LANGUAGE plpgsql STABLE
AS $fn$
-- Counts the reports since a time: what is tallied from the tallies, the rest from the reports themselves.
-- Parameters: p_project_id  project;  p_since  begin of ten minutes of the clock
-- Returns:    a row for each ten minutes, outcome, exit code and site, in two parts where they are not wholly tallied;
--             ran_s [s] is a sum
DECLARE
    v_until timestamptz;
BEGIN
    SELECT p.tallied_until INTO v_until FROM osgprod_data.projects p WHERE p.project_id = p_project_id;
    v_until := greatest(v_until, p_since);
    RETURN QUERY
    SELECT t.began_at, t.outcome, t.exit_code, t.site, t.reports::bigint, t.blocks, t.ran_s
      FROM osgprod_data.tallies t WHERE t.project_id = p_project_id AND t.began_at >= p_since;
    RETURN QUERY
    SELECT osgprod._ten_minutes(r.reported_at), r.outcome, r.exit_code, r.site, count(*), sum(r.nblocks)::bigint,
           sum(r.ran_s)::bigint
      FROM osgprod_data.reports r
     WHERE r.project_id = p_project_id AND r.reported_at >= v_until
     GROUP BY 1, 2, 3, 4;
END
$fn$;

CREATE FUNCTION osgprod._since(p_hours int)
RETURNS timestamptz LANGUAGE plpgsql STABLE
AS $fn$
-- The begin of a time window that ends now, on ten minutes of the clock.
-- Parameters: p_hours  its length [h; 1 .. 8760]
-- Errors:     OG108 out of range
BEGIN
    IF p_hours NOT BETWEEN 1 AND 8760 OR p_hours IS NULL THEN
        RAISE EXCEPTION 'hours must be a number from 1 to 8760, not %', coalesce(p_hours::text, 'nothing')
            USING ERRCODE = 'OG108', HINT = 'one day is 24, thirty days are 720';
    END IF;
    RETURN osgprod._ten_minutes(now() - make_interval(hours => p_hours));
END
$fn$;

CREATE FUNCTION osgprod._limit(p_limit int)
RETURNS int LANGUAGE plpgsql IMMUTABLE
AS $fn$
-- How many rows a list may have.
-- Parameters: p_limit  as the caller wishes [rows; 1 .. 100000]
-- Errors:     OG108 out of range
BEGIN
    IF p_limit NOT BETWEEN 1 AND 100000 OR p_limit IS NULL THEN
        RAISE EXCEPTION 'limit must be a number from 1 to 100000, not %', coalesce(p_limit::text, 'nothing')
            USING ERRCODE = 'OG108', HINT = 'narrow the list by its other parameters';
    END IF;
    RETURN p_limit;
END
$fn$;

CREATE FUNCTION osgprod._without_secrets(p_url text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- A URL as it may be shown: without a user, a password and a query, which may be keys to a store.
    SELECT regexp_replace(regexp_replace(p_url, '[?#].*$', ''), '^([A-Za-z0-9+.-]+://)[^/@]*@', '\1')
$fn$;
