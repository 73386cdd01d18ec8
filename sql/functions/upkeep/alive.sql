CREATE FUNCTION osgprod.alive()
RETURNS timestamptz
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Tells that the database answers and is migrated.
-- Returns:    the time [UTC offset of the session]; a repeated call changes nothing
BEGIN
    RETURN now();
END
$fn$;

COMMENT ON FUNCTION osgprod.alive() IS
'Tells that the database answers and is migrated: the time. For osgprod_worker and osgprod_operator.';
