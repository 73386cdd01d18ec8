CREATE FUNCTION osgprod.set_magic(p_project text, p_magic text, p_overlap_s int DEFAULT 0)
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Gives a project a new magic; only a salted digest of it is stored.
-- Promise:    a repeated call with the same magic changes nothing: the former one stays valid until its time.
-- Parameters: p_project    project name
--             p_magic      the new secret [1 .. 1024 characters, no control characters; line ends behind it don't count]
--             p_overlap_s  how long the former magic stays valid [s; 0 .. 31536000]
-- Returns:    true; false = it is the project's magic already, and nothing is changed
-- Errors:     OG301 unknown project; OG109 magic empty, too long or with a control character, or the overlap out of range
-- Locks:      the project's row
DECLARE
    v_project osgprod_data.projects := osgprod._get_project(p_project);
    v_digest  bytea;
BEGIN
    IF rtrim(p_magic, E'\r\n') !~ '^[^[:cntrl:]]+$' OR length(p_magic) > 1024 OR p_magic IS NULL THEN
        RAISE EXCEPTION 'a magic of % characters is refused: it must have 1 to 1024, all of them printable',
            coalesce(length(p_magic), 0) USING ERRCODE = 'OG109', HINT = 'openssl rand -hex 24 makes a good magic';
    END IF;
    IF p_overlap_s NOT BETWEEN 0 AND 31536000 OR p_overlap_s IS NULL THEN
        RAISE EXCEPTION 'the overlap of two magics must be from 0 to 31536000 s, not %', coalesce(p_overlap_s::text, 'NULL')
            USING ERRCODE = 'OG109', HINT = '604800 s are a week; 0 makes the former magic void at once';
    END IF;
    v_digest := osgprod._digest(v_project.magic_salt, rtrim(p_magic, E'\r\n'));
    IF v_digest = v_project.magic_digest THEN
        RETURN false;
    END IF;
    UPDATE projects p
       SET magic_digest = v_digest, old_magic_digest = p.magic_digest,
           old_magic_until = now() + make_interval(secs => p_overlap_s)
     WHERE p.project_id = v_project.project_id AND p.magic_digest IS DISTINCT FROM v_digest;
    IF NOT FOUND THEN  -- another session has set this magic meanwhile, or has removed the project
        PERFORM osgprod._get_project(p_project);
        RETURN false;
    END IF;
    PERFORM osgprod._log_operation('set_magic', p_project, jsonb_build_object('overlap_s', p_overlap_s), 1);
    RETURN true;
END
$fn$;

COMMENT ON FUNCTION osgprod.set_magic(text, text, int) IS
'Gives a project a new magic, the former one staying valid for p_overlap_s [s]; only a salted digest is stored; returns whether it is new. For osgprod_operator.';
