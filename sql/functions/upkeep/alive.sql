CREATE FUNCTION osgprod.alive()
RETURNS TABLE (alive timestamptz, version text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Tells that the database answers, and which version it is of.
-- Promise:    a repeated call changes nothing.
-- Returns:    one row: alive, the time; version, the name of the newest migration, which a
--             program compares with its own
-- Errors:     none
-- Source:     yoyo's register of migrations
BEGIN
    RETURN QUERY SELECT now(), max(m.migration_id::text COLLATE "C") FROM osgprod_data._yoyo_migration m;
END
$fn$;

COMMENT ON FUNCTION osgprod.alive() IS
'Tells that the database answers, and which version it is of: the time and the name of the newest migration. For osgprod_worker and osgprod_operator.';
