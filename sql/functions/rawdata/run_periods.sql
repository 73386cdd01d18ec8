CREATE FUNCTION osgprod.run_periods()
RETURNS TABLE (first_run int, last_run int, files bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Counts the registered files of each run period. Runs of the same ten thousand are one: GlueX begins each run period at a
-- new ten thousand (30000 in 2017, 40000 and 50000 in 2018, 70000 in 2019, ...).
-- Returns:    a row a run period, in order: its first and last run with a registered file, and how many files it has
-- Errors:     none
BEGIN
    RETURN QUERY
    SELECT min(w.run), max(w.run), count(*) FROM rawdata w GROUP BY w.run / 10000 ORDER BY 1;
END
$fn$;

COMMENT ON FUNCTION osgprod.run_periods() IS
'Counts the registered files of each run period (runs of the same ten thousand). For osgprod_operator.';
