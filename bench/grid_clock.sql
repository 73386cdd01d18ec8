-- Simulated time for the functions of a migrated database, and a way to call them at a time. Production can't be changed
-- like this: there pg_catalog stands first in the search_path of each function, and schema sim does not exist.
CREATE SCHEMA sim;
GRANT USAGE ON SCHEMA sim TO PUBLIC;

CREATE FUNCTION sim.now() RETURNS timestamptz LANGUAGE sql STABLE
AS $fn$
    -- The simulated time: the setting sim.at [s] behind the start of the simulation.
    SELECT pg_catalog.to_timestamp(1893456000 + pg_catalog.current_setting('sim.at')::pg_catalog.float8)
$fn$;

CREATE FUNCTION sim.clock_timestamp() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT sim.now()';
CREATE FUNCTION sim.transaction_timestamp() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT sim.now()';
CREATE FUNCTION sim.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT sim.now()';

DO $do$
-- sim goes first in the search_path of each function that has one (helpers inherit their caller's), and into the defaults
-- of columns, which were bound to pg_catalog's when they were made.
DECLARE
    v_what record;
BEGIN
    FOR v_what IN
        SELECT p.oid::regprocedure AS name, split_part(c.setting, '=', 2) AS path
          FROM pg_proc p CROSS JOIN LATERAL unnest(p.proconfig) AS c (setting)
         WHERE p.pronamespace = 'osgprod'::regnamespace AND c.setting LIKE 'search_path=%'
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = sim, %s', v_what.name, v_what.path);
    END LOOP;
    FOR v_what IN
        SELECT a.attrelid::regclass AS name, a.attname
          FROM pg_attrdef d
          JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
          JOIN pg_class c ON c.oid = a.attrelid
         WHERE c.relnamespace = 'osgprod_data'::regnamespace AND pg_get_expr(d.adbin, d.adrelid) = 'now()'
    LOOP
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT sim.now()', v_what.name, v_what.attname);
    END LOOP;
END
$do$;

CREATE FUNCTION sim.checkout(p_at float8, p_calls json) RETURNS SETOF osgprod.checkout_answer LANGUAGE plpgsql
AS $fn$
BEGIN
    PERFORM set_config('sim.at', p_at::text, false);
    RETURN QUERY SELECT * FROM osgprod.checkout_slices(p_calls);
END
$fn$;

CREATE FUNCTION sim.report(p_at float8, p_calls json) RETURNS SETOF osgprod.report_answer LANGUAGE plpgsql
AS $fn$
BEGIN
    PERFORM set_config('sim.at', p_at::text, false);
    RETURN QUERY SELECT * FROM osgprod.report_exits(p_calls);
END
$fn$;

CREATE FUNCTION sim.send_heartbeats(p_at float8, p_calls json) RETURNS SETOF osgprod.report_answer LANGUAGE plpgsql
AS $fn$
BEGIN
    PERFORM set_config('sim.at', p_at::text, false);
    RETURN QUERY SELECT * FROM osgprod.heartbeats(p_calls);
END
$fn$;

CREATE FUNCTION sim.tick(p_at float8, OUT has_unallocated boolean, OUT is_complete boolean) LANGUAGE plpgsql
AS $fn$
BEGIN
    PERFORM set_config('sim.at', p_at::text, false);
    PERFORM osgprod.tick();
    SELECT coalesce(bool_or(f.state IN ('pending', 'in_progress')), false), coalesce(bool_and(f.state = 'complete'), true)
      INTO has_unallocated, is_complete FROM osgprod_data.loaded_files f;
END
$fn$;
