CREATE FUNCTION osgprod.remove_notify_target(p_name text)
RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Removes a target: it gets no more notifications.
-- Parameters: p_name  of the target
-- Errors:     OG304 unknown target
-- Locks:      its row
BEGIN
    DELETE FROM notify_targets t WHERE t.name = p_name;
    IF NOT FOUND THEN
        PERFORM osgprod._refuse_target(p_name);
    END IF;
    PERFORM osgprod._log_operation('remove_notify_target', NULL, jsonb_build_object('name', p_name), 1);
END
$fn$;

COMMENT ON FUNCTION osgprod.remove_notify_target(text) IS
'Removes somebody who gets notifications. For osgprod_operator.';
