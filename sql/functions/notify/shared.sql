CREATE FUNCTION osgprod._refuse_target(p_name text)
RETURNS void LANGUAGE plpgsql IMMUTABLE
AS $fn$
-- Raises the error that a target of notifications is unknown.
-- Errors:     OG304
BEGIN
    RAISE EXCEPTION 'there is no target %', osgprod._quoted(p_name) USING ERRCODE = 'OG304',
        HINT = 'osgprod notify list shows the targets';
END
$fn$;
