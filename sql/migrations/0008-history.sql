-- Attempts and reports are only ever added to (I6), and a program of version 0.9.0 refuses a database of this one.
-- depends: 0007-claim

DO $do$
BEGIN
    -- yoyo's own register has the digests of the migrations now.
    IF (SELECT c.relkind FROM pg_class c WHERE c.oid = to_regclass('osgprod_data.migrated_files')) = 'r' THEN
        DROP TABLE osgprod_data.migrated_files;
    END IF;
END
$do$;

SET LOCAL ROLE osgprod_owner;

CREATE OR REPLACE FUNCTION osgprod_data.keep_history()
RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $fn$
-- Refuses every change of history by a function of ours (I6), but for the removal of a whole project.
-- Promise:    an administrator's own statements are not refused: only osgprod_owner, as which the functions run, is.
-- Errors:     55000 history would be changed
BEGIN
    IF current_user = 'osgprod_owner'
        AND NOT (TG_OP = 'DELETE' AND coalesce(current_setting('osgprod.removes_history', true), '') = 'on')
    THEN
        RAISE EXCEPTION '% of %: history is only ever added to', TG_OP, TG_TABLE_NAME USING ERRCODE = '55000',
            HINT = 'only osgprod._remove_history() may delete from it';
    END IF;
    RETURN NULL;
END
$fn$;

COMMENT ON FUNCTION osgprod_data.keep_history() IS 'refuses every change of history by a function of ours (I6)';

CREATE TRIGGER keep_history BEFORE UPDATE OR DELETE OR TRUNCATE ON osgprod_data.attempts
    FOR EACH STATEMENT EXECUTE FUNCTION osgprod_data.keep_history();
CREATE TRIGGER keep_history BEFORE UPDATE OR DELETE OR TRUNCATE ON osgprod_data.reports
    FOR EACH STATEMENT EXECUTE FUNCTION osgprod_data.keep_history();

-- osgprod migrate of version 0.9.0 reads this register first, and would then replace all functions by its own.
CREATE OR REPLACE FUNCTION osgprod_data.refuse_older_program()
RETURNS TABLE (name text, digest text) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $fn$
-- Tells a program of version 0.9.0 that it is older than the database.
BEGIN
    RAISE EXCEPTION 'this program is older than the database, which is of version 0.10.0 or later'
        USING HINT = 'update this program; nothing was changed';
END
$fn$;

COMMENT ON FUNCTION osgprod_data.refuse_older_program() IS 'tells a program of version 0.9.0 that it is older than the database';

CREATE OR REPLACE VIEW osgprod_data.migrated_files AS
SELECT f.name, f.digest FROM osgprod_data.refuse_older_program() f;

COMMENT ON VIEW osgprod_data.migrated_files IS 'where version 0.9.0 kept what the SQL files held; refuses that version';

RESET ROLE;
