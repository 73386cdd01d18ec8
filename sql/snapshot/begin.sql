SET LOCAL check_function_bodies = off;  -- functions may name each other in any order; tests check their bodies

DO $snapshot$
-- Prepares schema osgprod for the functions below. Ours is what belongs to osgprod_owner there; nothing else is changed.
-- Drops functions and types of osgprod_owner that CREATE OR REPLACE can't turn into those below (another signature, or gone), never
-- with CASCADE: objects of others that depend on them are named, and nothing changes. The other functions keep their OID,
-- so that running calls and prepared statements survive. Comments and the grants to our roles and PUBLIC are reset.
DECLARE
    -- what follows in this file, by signature
    v_functions CONSTANT text[] := ARRAY[{functions}]::text[];
    v_types     CONSTANT text[] := ARRAY[{types}]::text[];
    v_path      CONSTANT text := current_setting('search_path');
    v_owner     oid := 'osgprod_owner'::regrole;
    v_named     text;
    v_changed   oid[];  -- types
    v_dropped   oid[];  -- functions
    v_kept      oid[];
BEGIN
    PERFORM set_config('search_path', 'pg_catalog', true);  -- signatures are compared as text
    IF to_regnamespace('osgprod') IS NULL THEN
        CREATE SCHEMA osgprod AUTHORIZATION osgprod_owner;
    END IF;
    SET LOCAL ROLE osgprod_owner;

    SELECT string_agg(format('%s (belongs to %s)', p.oid::regprocedure, pg_get_userbyid(p.proowner)), ', ') INTO v_named
      FROM pg_proc p
     WHERE p.pronamespace = 'osgprod'::regnamespace AND p.proowner <> v_owner
       AND p.proname = ANY (SELECT split_part(s, '(', 1) FROM unnest(v_functions) s);
    IF v_named IS NOT NULL THEN
        RAISE EXCEPTION 'schema osgprod has functions of somebody else where ours belong: %', v_named
            USING ERRCODE = '42501',
                  HINT = 'drop them, or ALTER FUNCTION ... OWNER TO osgprod_owner lets them be replaced';
    END IF;

    -- If one type changes, all are made again: they may contain each other.
    SELECT array_agg(t.oid) INTO v_changed
      FROM pg_type t JOIN pg_class c ON c.oid = t.typrelid AND c.relkind = 'c'
     WHERE t.typnamespace = 'osgprod'::regnamespace AND t.typowner = v_owner;
    IF NOT EXISTS (SELECT FROM pg_type t WHERE t.oid = ANY (v_changed) AND {type_signature} <> ALL (v_types)) THEN
        v_changed := '{}';
    END IF;

    SELECT array_agg(f.oid) FILTER (WHERE f.is_dropped), array_agg(f.oid) FILTER (WHERE NOT f.is_dropped)
      INTO v_dropped, v_kept
      FROM (SELECT p.oid, {function_signature} <> ALL (v_functions) OR EXISTS (
                       SELECT FROM pg_depend d JOIN pg_type t ON d.refobjid IN (t.oid, t.typarray)
                        WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
                          AND d.refclassid = 'pg_type'::regclass AND t.oid = ANY (v_changed)) AS is_dropped
              FROM pg_proc p
             WHERE p.pronamespace = 'osgprod'::regnamespace AND p.proowner = v_owner AND p.prokind = 'f') f;

    -- What operators granted on functions that are made again; the last statements of this file give it back.
    PERFORM set_config('osgprod.kept_grants', coalesce((
        SELECT jsonb_agg(jsonb_build_object('function', p.proname, 'role', a.grantee::regrole, 'option', a.is_grantable))
          FROM pg_proc p CROSS JOIN LATERAL aclexplode(p.proacl) a
         WHERE p.oid = ANY (v_dropped) AND a.grantee <> 0
           AND a.grantee <> ALL ({our_roles})), '[]')::text, true);

    BEGIN
        IF v_dropped <> '{}' THEN
            EXECUTE (SELECT 'DROP FUNCTION ' || string_agg(f::regprocedure::text, ', ') FROM unnest(v_dropped) f);
        END IF;
        IF v_changed <> '{}' THEN
            EXECUTE (SELECT 'DROP TYPE ' || string_agg(t::regtype::text, ', ') FROM unnest(v_changed) t);
        END IF;
    EXCEPTION WHEN dependent_objects_still_exist THEN
        GET STACKED DIAGNOSTICS v_named = PG_EXCEPTION_DETAIL;
        RAISE EXCEPTION 'objects that are not ours depend on functions that change: %', replace(v_named, E'\n', '; ')
            USING ERRCODE = '2BP01', HINT = 'drop them, run it again, and make them again';
    END;

    IF v_kept <> '{}' THEN
        EXECUTE (SELECT format('REVOKE ALL ON FUNCTION %s FROM PUBLIC, osgprod_worker, osgprod_operator',
                               string_agg(f::regprocedure::text, ', ')) FROM unnest(v_kept) f);
    END IF;
    FOR v_named IN
        SELECT p.oid::regprocedure::text FROM pg_proc p
         WHERE p.oid = ANY (v_kept) AND obj_description(p.oid, 'pg_proc') IS NOT NULL
    LOOP
        EXECUTE format('COMMENT ON FUNCTION %s IS NULL', v_named);
    END LOOP;
    PERFORM set_config('search_path', v_path, true);
END
$snapshot$;
