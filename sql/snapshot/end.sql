DO $snapshot$
-- Gives back what operators had granted, names foreign objects, and records which functions these are.
DECLARE
    v_path  CONSTANT text := current_setting('search_path');
    v_owner CONSTANT oid := 'osgprod_owner'::regrole;
    v_item  record;
BEGIN
    PERFORM set_config('search_path', 'pg_catalog', true);
    FOR v_item IN
        SELECT g.function, g.role, g.option, p.oid::regprocedure::text AS signature
          FROM jsonb_to_recordset(current_setting('osgprod.kept_grants')::jsonb) g (function text, role text, option boolean)
          LEFT JOIN pg_proc p ON p.proname = g.function AND p.pronamespace = 'osgprod'::regnamespace AND p.proowner = v_owner
    LOOP
        IF v_item.signature IS NULL THEN
            RAISE NOTICE 'function osgprod.% is gone, and with it the grant to %', v_item.function, v_item.role;
        ELSE
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s%s', v_item.signature, v_item.role,
                           CASE WHEN v_item.option THEN ' WITH GRANT OPTION' ELSE '' END);
        END IF;
    END LOOP;
    -- The default privileges of osgprod_owner keep PUBLIC out; this holds where somebody has changed them.
    FOR v_item IN
        SELECT p.oid::regprocedure::text AS signature FROM pg_proc p
         WHERE p.pronamespace = 'osgprod'::regnamespace AND p.proowner = v_owner
           AND EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a WHERE a.grantee = 0)
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', v_item.signature);
    END LOOP;
    FOR v_item IN
        SELECT format('function %s', p.oid::regprocedure) AS what, p.proowner AS owner
          FROM pg_proc p WHERE p.pronamespace = 'osgprod'::regnamespace AND p.proowner <> v_owner
        UNION ALL
        SELECT format('%s %s', CASE c.relkind WHEN 'v' THEN 'view' WHEN 'c' THEN 'type' ELSE 'relation' END, c.oid::regclass),
               c.relowner
          FROM pg_class c
         WHERE c.relnamespace = 'osgprod'::regnamespace AND (c.relowner <> v_owner OR c.relkind <> 'c')
    LOOP
        RAISE NOTICE 'kept, though it is not ours: % of %', v_item.what, pg_get_userbyid(v_item.owner);
    END LOOP;
    IF EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = 'osgprod'::regnamespace)
        OR EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = 'osgprod'::regnamespace)
    THEN
        EXECUTE format('COMMENT ON SCHEMA osgprod IS %L', format(
            'functions of {name}, source {source}, catalog %s', {catalog}));
    ELSE
        DROP SCHEMA osgprod;
    END IF;
    PERFORM set_config('search_path', v_path, true);
END
$snapshot$;

RESET ROLE;

DO $snapshot$
-- alive() and osgprod doctor read yoyo's register.
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['osgprod_data._yoyo_migration', 'osgprod_data._yoyo_log'] LOOP
        IF to_regclass(v_table) IS NOT NULL AND NOT has_table_privilege('osgprod_operator', v_table, 'SELECT') THEN
            EXECUTE format('GRANT SELECT ON %s TO osgprod_owner, osgprod_operator', v_table);
        END IF;
    END LOOP;
END
$snapshot$;
