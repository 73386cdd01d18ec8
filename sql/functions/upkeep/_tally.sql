CREATE FUNCTION osgprod._tally(p_project osgprod_data.projects)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Adds the reports of each ten minutes of the clock that are over to the tallies, so that nobody counts millions again. It also
-- deletes ends of logs that are older than 30 days.
-- Promise:    each report is counted once, however late its transaction ends and wherever the clock jumps. A look notes a
--             time and its own transaction number; a later look counts the reports from before that time as soon as all
--             transactions from before that number are over. A report that comes then gets a later time (_report), also
--             when the clock is set back. Readers count reports that are not yet tallied themselves (_recent).
-- Parameters: p_project  the project's row
-- Locks:      the project's row SKIP LOCKED; a caller holds the lock of tick(), so there is one at a time
DECLARE
    -- A report reads the clock in the statement that gives its transaction a number, or later. So a report with a larger number
    -- than this transaction has a later time than this: no such statement takes 10 s.
    v_now      timestamptz := osgprod._ten_minutes(now() - interval '10 s');
    v_snapshot pg_snapshot := pg_current_snapshot();
    v_from     timestamptz;
    v_until    timestamptz;
    v_after    xid8;
BEGIN
    -- As it is now: the caller may have waited since it read the project's row.
    SELECT p.tallied_until, p.tally_next, p.tally_after INTO v_from, v_until, v_after FROM osgprod_data.projects p
     WHERE p.project_id = p_project.project_id FOR NO KEY UPDATE SKIP LOCKED;
    IF v_until > v_from THEN
        -- (Numbers that are still to come: a dump was restored, and no transaction from before lives.)
        IF v_after > pg_snapshot_xmin(v_snapshot) AND v_after <= pg_snapshot_xmax(v_snapshot) THEN
            RETURN;
        END IF;
        PERFORM osgprod._name_sites(p_project.project_id, v_from, v_until);
        WITH tallied AS (
            INSERT INTO osgprod_data.tallies AS t (project_id, began_at, outcome, exit_code, site, reports, blocks, ran_s,
                   last_at)
            SELECT p_project.project_id, osgprod._ten_minutes(r.reported_at), r.outcome, r.exit_code,
                   CASE WHEN r.site IS NOT NULL THEN coalesce(n.site, 'other') END, count(*), sum(r.nblocks),
                   coalesce(sum(r.ran_s) FILTER (WHERE r.nblocks > 0), 0),  -- not of merges, which have no blocks
                   max(r.reported_at)
              FROM osgprod_data.reports r
              LEFT JOIN osgprod_data.tallied_sites n ON n.project_id = r.project_id AND n.site = r.site
             WHERE r.project_id = p_project.project_id AND r.reported_at >= v_from AND r.reported_at < v_until
             GROUP BY 2, 3, 4, 5, r.nblocks > 0  -- merges in rows of their own
            RETURNING t.outcome, t.reports, t.blocks, t.ran_s
        )
        INSERT INTO osgprod_data.totals AS t (project_id, outcome, reports, blocks, ran_s)
        SELECT p_project.project_id, n.outcome, sum(n.reports), sum(n.blocks), sum(n.ran_s) FROM tallied n GROUP BY n.outcome
        ON CONFLICT ON CONSTRAINT totals_pkey DO UPDATE
           SET reports = t.reports + excluded.reports, blocks = t.blocks + excluded.blocks,
               ran_s = t.ran_s + excluded.ran_s;
        DELETE FROM osgprod_data.log_tails l
         WHERE l.project_id = p_project.project_id AND l.kept_at < now() - interval '30 d';
        UPDATE osgprod_data.projects p SET tallied_until = v_until WHERE p.project_id = p_project.project_id;
    ELSIF v_now > v_from THEN
        UPDATE osgprod_data.projects p SET tally_next = v_now, tally_after = pg_current_xact_id()
         WHERE p.project_id = p_project.project_id;
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._ten_minutes(p_at timestamptz)
RETURNS timestamptz LANGUAGE sql STABLE
AS $fn$
    -- The beginning of the ten minutes of the clock in which a time lies. (date_bin needs PostgreSQL 14.)
    SELECT to_timestamp(floor(date_part('epoch', p_at) / 600) * 600)  -- (extract gives a numeric, which is slower)
$fn$;

CREATE FUNCTION osgprod._recent(
    p_project_id int, p_since timestamptz, p_by_site boolean DEFAULT false, p_site text DEFAULT NULL)
RETURNS TABLE (began_at timestamptz, outcome osgprod_data.outcome, exit_code int, site text, reports bigint, blocks bigint,
    ran_s bigint, last_at timestamptz)
LANGUAGE plpgsql STABLE
AS $fn$
-- Counts the reports since a time: from the tallies, and those not yet tallied from the reports themselves.
-- Parameters: p_project_id  project;  p_since  beginning of ten minutes of the clock
--             p_by_site  count reports that are not tallied by site, and not by time: a job chooses its site's name, so
--                        there may be a row a report with both;  p_site  only this site, with p_by_site; NULL = all
-- Returns:    a row for each ten minutes, outcome, exit code and site, in two parts where they are not wholly tallied; reports of
--             merges have their own rows, with 0 blocks (those that were tallied before 0.15.0 are among the others);
--             the site of reports that are not tallied only with p_by_site, and then began_at is the beginning of the untallied time;
--             ran_s [s] is a sum over slices; last_at: when the last of them came. Tallied sites beyond the first 200 are "other"
DECLARE
    v_until timestamptz;
BEGIN
    SELECT p.tallied_until INTO v_until FROM osgprod_data.projects p WHERE p.project_id = p_project_id;
    v_until := greatest(v_until, p_since);
    RETURN QUERY
    SELECT t.began_at, t.outcome, t.exit_code, t.site, t.reports::bigint, t.blocks, t.ran_s,
           coalesce(t.last_at, t.began_at)
      FROM osgprod_data.tallies t
     WHERE t.project_id = p_project_id AND t.began_at >= p_since AND (p_site IS NULL OR t.site = p_site);
    RETURN QUERY
    SELECT CASE WHEN p_by_site THEN v_until ELSE osgprod._ten_minutes(r.reported_at) END, r.outcome, r.exit_code,
           CASE WHEN p_by_site THEN r.site END, count(*), sum(r.nblocks)::bigint,
           coalesce(sum(r.ran_s) FILTER (WHERE r.nblocks > 0), 0)::bigint, max(r.reported_at)
      FROM osgprod_data.reports r
     WHERE r.project_id = p_project_id AND r.reported_at >= v_until AND (p_site IS NULL OR r.site = p_site)
     GROUP BY 1, 2, 3, 4, r.nblocks > 0;
END
$fn$;

CREATE FUNCTION osgprod._since(p_hours int)
RETURNS timestamptz LANGUAGE plpgsql STABLE
AS $fn$
-- The beginning of a time window that ends now, on ten minutes of the clock.
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
-- Parameters: p_limit  rows [1 .. 100000]
-- Errors:     OG108 out of range
BEGIN
    IF p_limit NOT BETWEEN 1 AND 100000 OR p_limit IS NULL THEN
        RAISE EXCEPTION 'limit must be a number from 1 to 100000, not %', coalesce(p_limit::text, 'nothing')
            USING ERRCODE = 'OG108', HINT = 'leave it out for the default; the other parameters narrow the list';
    END IF;
    RETURN p_limit;
END
$fn$;

CREATE FUNCTION osgprod._without_secrets(p_url text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- A URL as it may be shown: without user, password, query and fragment, which may be keys to a store.
    SELECT regexp_replace(regexp_replace(p_url, '[?#].*$', ''), '^([A-Za-z0-9+.-]+://)[^/@]*@', '\1')
$fn$;

CREATE FUNCTION osgprod._name_sites(p_project_id int, p_from timestamptz, p_until timestamptz)
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Adds the sites of some reports to those that the tallies name, the busiest first, up to 200 a project. Further ones
    -- are tallied as "other": a job chooses its site's name, and a list of 50,000 would be of use to nobody.
    -- Parameters: p_project_id  project;  p_from, p_until  time of the reports, end exclusive
    -- Locks:      a caller holds the lock of tick(), so there is one at a time
    INSERT INTO osgprod_data.tallied_sites (project_id, site)
    SELECT p_project_id, r.site
      FROM osgprod_data.reports r
     WHERE r.project_id = p_project_id AND r.reported_at >= p_from AND r.reported_at < p_until AND r.site <> 'other'
       AND NOT EXISTS (SELECT FROM osgprod_data.tallied_sites n WHERE n.project_id = p_project_id AND n.site = r.site)
     GROUP BY r.site ORDER BY count(*) DESC, r.site
     LIMIT 200 - (SELECT count(*) FROM osgprod_data.tallied_sites n WHERE n.project_id = p_project_id)
$fn$;
