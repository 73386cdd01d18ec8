-- Roles and the private schema. Logins are made by the administrator as members of the two group roles
-- (GRANT osgprod_worker TO shim_login); no login is named here.

DO $do$
DECLARE
    v_role text;
BEGIN
    FOREACH v_role IN ARRAY ARRAY['osgprod_owner', 'osgprod_worker', 'osgprod_operator'] LOOP
        -- Roles belong to the whole server: another database of it may have made them already.
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = v_role) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', v_role);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;  -- a migration of another database of this server was faster
            END;
        END IF;
    END LOOP;
    -- From PostgreSQL 16 on the maker of a role is its administrator, but may not take it on.
    IF NOT pg_has_role(current_user, 'osgprod_owner',
        CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END)
    THEN
        EXECUTE format('GRANT osgprod_owner TO %I', current_user);
    END IF;
END
$do$;

CREATE SCHEMA IF NOT EXISTS osgprod_data;

GRANT USAGE, CREATE ON SCHEMA osgprod_data TO osgprod_owner;
GRANT USAGE ON SCHEMA osgprod_data TO osgprod_operator;

-- The per-schema form of this statement would leave PUBLIC's right in place.
ALTER DEFAULT PRIVILEGES FOR ROLE osgprod_owner REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

COMMENT ON SCHEMA osgprod_data IS 'tables of osgprod; nobody but their owner touches them, everybody else calls functions of schema osgprod';
