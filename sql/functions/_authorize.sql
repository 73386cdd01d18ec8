CREATE FUNCTION osgprod._authorize(p_project text, p_magic text, p_client inet, p_bearer jsonb)
RETURNS osgprod_data.projects LANGUAGE plpgsql STABLE
AS $fn$
-- Gives the project's row to a caller who may work for it, and an error to everybody else.
-- Promise:    says the same of a wrong magic whatever is wrong with it, in the same time.
-- Parameters: p_project  project name
--             p_magic    the shared secret as the caller sent it; not needed with p_bearer
--             p_client   the caller's address; NULL = the address of this database session
--             p_bearer   claims of a bearer token whose signature the shim has verified; NULL = none
-- Returns:    the project's row
-- Errors:     OG101 no project named; OG301 unknown project; OG201 address outside the project's subnets;
--             OG202 wrong magic; OG203 the project has no magic; OG206 claims that the project doesn't accept
DECLARE
    v_project osgprod_data.projects;
    v_client  inet := osgprod._plain_address(p_client);
BEGIN
    IF coalesce(p_project, '') = '' THEN
        RAISE EXCEPTION 'parameter project is missing' USING ERRCODE = 'OG101',
            HINT = 'add project=NAME to the request';
    END IF;
    SELECT p.* INTO v_project FROM osgprod_data.projects p WHERE p.name = p_project;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'parameter project: there is no project %', quote_literal(left(p_project, 63))
            USING ERRCODE = 'OG301', HINT = 'osgprod project list shows the projects';
    END IF;
    IF NOT coalesce(v_client <<= ANY (v_project.subnets), host(v_client) LIKE v_project.subnet_pattern) THEN
        RAISE EXCEPTION 'address % is outside the subnets of project %', host(v_client), v_project.name
            USING ERRCODE = 'OG201', HINT = 'osgprod project set --subnet-pattern changes what is allowed';
    END IF;
    IF p_bearer IS NOT NULL THEN
        PERFORM osgprod._check_bearer(v_project, p_bearer);
        RETURN v_project;
    END IF;
    PERFORM osgprod._check_magic(v_project, p_magic);
    RETURN v_project;
END
$fn$;

CREATE FUNCTION osgprod._check_magic(p_project osgprod_data.projects, p_magic text)
RETURNS void LANGUAGE plpgsql STABLE
AS $fn$
-- Raises unless p_magic is the project's magic, or its former one in the time of overlap.
-- Parameters: p_project  the project's row;  p_magic  the secret as it was sent
-- Errors:     OG203 the project has no magic; OG202 wrong or missing magic
DECLARE
    -- A fresh nonce, hashed in with both sides, makes the time of the comparison tell nothing about the digest.
    v_nonce  bytea := uuid_send(gen_random_uuid());
    v_digest bytea := sha256(v_nonce || osgprod._magic_digest(p_project.magic_salt, coalesce(p_magic, '')));
BEGIN
    IF p_project.magic_digest IS NULL THEN
        RAISE EXCEPTION 'project % has no magic yet, so nobody can work for it', p_project.name
            USING ERRCODE = 'OG203', HINT = 'osgprod project set-magic gives it one';
    END IF;
    IF v_digest = sha256(v_nonce || p_project.magic_digest) THEN
        RETURN;
    END IF;
    IF p_project.old_magic_until > now() AND v_digest = sha256(v_nonce || p_project.old_magic_digest) THEN
        RETURN;
    END IF;
    RAISE EXCEPTION 'parameter magic is wrong or missing' USING ERRCODE = 'OG202',
        HINT = 'ask the production manager for the magic of this project';
END
$fn$;

CREATE FUNCTION osgprod._magic_digest(p_salt uuid, p_magic text)
RETURNS bytea LANGUAGE sql IMMUTABLE
AS $fn$
    -- The only form in which a magic is stored: SHA-256 of salt and text.
    SELECT sha256(uuid_send(p_salt) || convert_to(p_magic, 'UTF8'))
$fn$;

CREATE FUNCTION osgprod._check_bearer(p_project osgprod_data.projects, p_bearer jsonb)
RETURNS void LANGUAGE plpgsql STABLE
AS $fn$
-- Raises unless verified bearer claims are what the project asks for.
-- Parameters: p_project  the project's row
--             p_bearer   claims iss, aud (text or list), scope (words), exp (seconds since 1970)
-- Errors:     OG206 naming the claim that doesn't fit; never its value
-- Source:     WLCG common JWT profiles 1.0: scope is a list of words, aud may be text or list
DECLARE
    v_wrong text;
BEGIN
    v_wrong := CASE
        WHEN p_project.bearer_issuer IS NULL THEN 'project takes no bearer tokens'
        WHEN p_bearer ->> 'iss' IS DISTINCT FROM p_project.bearer_issuer THEN 'claim iss'
        WHEN coalesce(to_timestamp((p_bearer ->> 'exp')::float8) <= now(), true) THEN 'claim exp'
        WHEN p_project.bearer_audience IS NOT NULL
            AND NOT coalesce(p_bearer -> 'aud' @> to_jsonb(p_project.bearer_audience), false) THEN 'claim aud'
        WHEN p_project.bearer_scope IS NOT NULL
            AND NOT coalesce(p_project.bearer_scope = ANY (string_to_array(p_bearer ->> 'scope', ' ')), false)
            THEN 'claim scope'
    END;
    IF v_wrong IS NOT NULL THEN
        RAISE EXCEPTION 'bearer token is not accepted by project %: %', p_project.name, v_wrong
            USING ERRCODE = 'OG206', HINT = 'ask the production manager which issuer, audience and scope are right';
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._plain_address(p_client inet)
RETURNS inet LANGUAGE sql STABLE
AS $fn$
    -- The client's address; a v4-mapped IPv6 address as IPv4; NULL = this session's own address.
    SELECT CASE
        WHEN p_client IS NULL THEN coalesce(host(inet_client_addr())::inet, '127.0.0.1')
        WHEN p_client <<= inet '::ffff:0:0/96' THEN substring(host(p_client) FROM 8)::inet
        ELSE p_client
    END
$fn$;

CREATE FUNCTION osgprod._check_job(p_cluster bigint, p_process bigint)
RETURNS void LANGUAGE plpgsql IMMUTABLE
AS $fn$
-- Raises unless both numbers can be HTCondor's.
-- Parameters: p_cluster, p_process  HTCondor's job identity [0 .. 2147483647]
-- Errors:     OG102 cluster, OG103 process
BEGIN
    IF p_cluster BETWEEN 0 AND 2147483647 AND p_process BETWEEN 0 AND 2147483647 THEN
        RETURN;
    END IF;
    IF p_cluster BETWEEN 0 AND 2147483647 THEN
        RAISE EXCEPTION 'parameter process must be a number from 0 to 2147483647, not %',
            coalesce(p_process::text, 'nothing') USING ERRCODE = 'OG103', HINT = 'pass HTCondor''s $(Process)';
    END IF;
    RAISE EXCEPTION 'parameter cluster must be a number from 0 to 2147483647, not %',
        coalesce(p_cluster::text, 'nothing') USING ERRCODE = 'OG102', HINT = 'pass HTCondor''s $(Cluster)';
END
$fn$;

CREATE FUNCTION osgprod._lock_job(p_project_id int, p_cluster bigint, p_process bigint)
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Until the end of the transaction nothing else happens to this job. Two jobs that share a key only wait for each
    -- other. Always the first lock that a function takes.
    SELECT pg_advisory_xact_lock((p_cluster << 32 | p_process) # (p_project_id::bigint << 48))
$fn$;

CREATE FUNCTION osgprod._label(p_text text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- What a job says of itself (host, site, reason): at most 128 characters, printable, NULL when empty.
    SELECT nullif(left(btrim(regexp_replace(p_text, '[[:cntrl:]]+', ' ', 'g')), 128), '')
$fn$;
