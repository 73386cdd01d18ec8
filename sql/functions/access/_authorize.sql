CREATE FUNCTION osgprod._authorize(
    p_project text, p_magic text, p_client inet, p_bearer jsonb, p_cluster bigint, p_process bigint)
RETURNS osgprod_data.projects LANGUAGE plpgsql VOLATILE
AS $fn$
-- Gives the project's row to a job that may work for it, and locks the job; gives an error to everybody else.
-- Promise:    says the same of a wrong magic whatever is wrong with it.
-- Parameters: p_project  project name
--             p_magic    the shared secret as the caller sent it; not needed with p_bearer
--             p_client   the caller's address, v4-mapped ones as IPv4; NULL = not known, and so not inside
--             p_bearer   claims of a bearer token whose signature the shim has verified; NULL = none
--             p_cluster, p_process  HTCondor's identity of the job [0 .. 2147483647]
-- Returns:    the project's row
-- Errors:     see _authorize_step_by_step
-- Locks:      see _lock_job
DECLARE
    v_project osgprod_data.projects;
BEGIN
    -- All conditions in the one query of the common case; which of them failed is found out only when one did. The row
    -- is taken as one value: as columns it would be taken apart and put together again.
    v_project := (SELECT p FROM osgprod_data.projects p
                   WHERE p.name = p_project
                     AND osgprod._let_in(p, p_magic, p_client, p_bearer, p_cluster, p_process));
    IF v_project.project_id IS NULL THEN
        RETURN osgprod._authorize_step_by_step(p_project, p_magic, p_client, p_bearer, p_cluster, p_process);
    END IF;
    RETURN v_project;
END
$fn$;

CREATE FUNCTION osgprod._let_in(
    p_project osgprod_data.projects, p_magic text, p_client inet, p_bearer jsonb, p_cluster bigint, p_process bigint)
RETURNS boolean LANGUAGE sql VOLATILE
AS $fn$
    -- The common case of _authorize: true when the job may work for the project, and it is locked then; false when
    -- _authorize_step_by_step has to tell why not. Never NULL, so that what stands behind an AND is not looked at for
    -- strangers. (To be inlined by its callers.)
    -- Parameters: p_project  the project's row;  the others see _authorize
    -- Errors:     OG206 claims that the project doesn't accept
    SELECT CASE WHEN p_cluster BETWEEN 0 AND 2147483647 AND p_process BETWEEN 0 AND 2147483647
                 AND osgprod._is_inside(p_project.subnets, p_project.subnet_pattern, p_client)
                 AND CASE WHEN p_bearer IS NULL
                          THEN osgprod._is_magic(p_project.magic_salt, p_project.magic_digest, p_project.old_magic_digest,
                                                 p_project.old_magic_until, p_magic)
                          ELSE osgprod._check_bearer(p_project, p_bearer) END
                THEN coalesce(osgprod._lock_job(p_project.project_id, p_cluster, p_process), false) ELSE false END
$fn$;

CREATE FUNCTION osgprod._authorize_step_by_step(
    p_project text, p_magic text, p_client inet, p_bearer jsonb, p_cluster bigint, p_process bigint)
RETURNS osgprod_data.projects LANGUAGE plpgsql VOLATILE
AS $fn$
-- The same as _authorize with the time to say what is wrong.
-- Parameters: see _authorize
-- Returns:    the project's row
-- Errors:     OG101 no project named; OG301 unknown project; OG201 address outside the project's subnets;
--             OG202 wrong magic; OG203 the project has no magic; OG206 claims that the project doesn't accept;
--             OG207 the address is not known; OG102 cluster, OG103 process; OG502 its files are begun anew at this moment
-- Locks:      see _lock_job
DECLARE
    v_project osgprod_data.projects;
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
    IF p_client IS NULL THEN
        RAISE EXCEPTION 'the address of the client is not known' USING ERRCODE = 'OG207',
            HINT = 'behind a proxy on a unix socket: OSGPROD_TRUSTED_PROXIES=unix, and the proxy sends X-Forwarded-For';
    END IF;
    IF NOT osgprod._is_inside(v_project.subnets, v_project.subnet_pattern, p_client) THEN
        RAISE EXCEPTION 'address % is outside the subnets of project %', host(p_client), v_project.name
            USING ERRCODE = 'OG201', HINT = 'osgprod project set PROJECT subnet_pattern=... changes what is allowed';
    END IF;
    IF p_bearer IS NOT NULL THEN
        PERFORM osgprod._check_bearer(v_project, p_bearer);
    ELSIF v_project.magic_digest IS NULL THEN
        RAISE EXCEPTION 'project % has no magic yet, so nobody can work for it', v_project.name
            USING ERRCODE = 'OG203', HINT = 'osgprod project set-magic gives it one';
    ELSIF NOT osgprod._is_magic(v_project.magic_salt, v_project.magic_digest, v_project.old_magic_digest,
                                v_project.old_magic_until, p_magic) THEN
        RAISE EXCEPTION 'parameter magic is wrong or missing' USING ERRCODE = 'OG202',
            HINT = 'ask the production manager for the magic of this project; in a URL a + in it is written %2B';
    END IF;
    PERFORM osgprod._check_job(p_cluster, p_process);
    IF NOT osgprod._lock_job(v_project.project_id, p_cluster, p_process) THEN
        PERFORM osgprod._raise_start_over(v_project.name);
    END IF;
    RETURN v_project;
END
$fn$;

CREATE FUNCTION osgprod._is_inside(p_subnets cidr[], p_pattern text, p_client inet)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Is the address in one of the subnets, or like the pattern when there are none? (A small function that can be
    -- inlined, like _is_magic: it costs nothing of its own. What is seldom asked is in one that can't be, so that not
    -- each call has to make it ready.)
    SELECT coalesce(p_client <<= ANY (p_subnets), osgprod._is_like(p_client, p_pattern))
$fn$;

CREATE FUNCTION osgprod._is_like(p_client inet, p_pattern text)
RETURNS boolean LANGUAGE plpgsql IMMUTABLE
AS $fn$
-- Is the address like an SQL LIKE pattern? One is about IPv6 only when it has a colon, or is the one for everybody:
-- '1%' was never meant to let 1000::1 in.
-- Parameters: p_client  address;  p_pattern  of LIKE
-- Returns:    true or false; NULL when there is no address
BEGIN
    RETURN host(p_client) LIKE p_pattern AND (family(p_client) = 4 OR p_pattern ~ ':|^%+$');
END
$fn$;

CREATE FUNCTION osgprod._is_magic(
    p_salt uuid, p_digest bytea, p_old_digest bytea, p_old_until timestamptz, p_magic text)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Is this the project's magic, or its former one in the time of overlap? The time that the comparison takes tells
    -- how many bytes of two digests are the same; nobody who doesn't know the salt can do anything with that.
    SELECT CASE WHEN osgprod._magic_digest(p_salt, p_magic) = p_digest THEN true
                ELSE osgprod._is_old_magic(p_salt, p_old_digest, p_old_until, p_magic) END
$fn$;

CREATE FUNCTION osgprod._is_old_magic(p_salt uuid, p_old_digest bytea, p_old_until timestamptz, p_magic text)
RETURNS boolean LANGUAGE plpgsql STABLE
AS $fn$
-- Is this the project's former magic, in the time of overlap?
-- Parameters: p_salt, p_old_digest, p_old_until  the project's;  p_magic  as sent
-- Returns:    true or false, never NULL
BEGIN
    RETURN coalesce(p_old_until > now() AND osgprod._magic_digest(p_salt, p_magic) = p_old_digest, false);
END
$fn$;

CREATE FUNCTION osgprod._magic_digest(p_salt uuid, p_magic text)
RETURNS bytea LANGUAGE sql STABLE
AS $fn$
    -- The only form in which a magic is stored: SHA-256 of salt and text. Line ends behind it, LF or CRLF, are not part of
    -- it, neither when it is set nor when a job sends it.
    SELECT sha256(uuid_send(p_salt) || convert_to(rtrim(p_magic, E'\r\n'), 'UTF8'))
$fn$;

CREATE FUNCTION osgprod._check_bearer(p_project osgprod_data.projects, p_bearer jsonb)
RETURNS boolean LANGUAGE plpgsql STABLE
AS $fn$
-- Raises unless verified bearer claims are what the project asks for.
-- Parameters: p_project  the project's row
--             p_bearer   claims iss, aud (text or list), scope (words), exp (seconds since 1970)
-- Returns:    true
-- Errors:     OG206 naming the claim that doesn't fit; never its value
-- Source:     WLCG common JWT profiles 1.0: scope is a list of words, aud may be text or list; SciTokens 2.0: aud ANY
DECLARE
    v_wrong text;
BEGIN
    v_wrong := CASE
        WHEN p_project.bearer_issuer IS NULL THEN 'it takes no bearer tokens'
        -- Any member of a collaboration can get a token of its issuer: without a scope it would say nothing.
        WHEN p_project.bearer_scope IS NULL THEN 'its setting bearer_scope is missing'
        WHEN p_bearer ->> 'iss' IS DISTINCT FROM p_project.bearer_issuer THEN 'claim iss'
        WHEN coalesce(to_timestamp((p_bearer ->> 'exp')::float8) <= now(), true) THEN 'claim exp'
        WHEN NOT CASE
            WHEN p_project.bearer_audience IS NOT NULL
            THEN coalesce(p_bearer -> 'aud' @> to_jsonb(p_project.bearer_audience), false)
            -- RFC 7519: a token that names other audiences than us is not for us; these two name everybody.
            ELSE coalesce(p_bearer -> 'aud', 'null') @> ANY (ARRAY['null', '"ANY"',
                '"https://wlcg.cern.ch/jwt/v1/any"']::jsonb[]) END THEN 'claim aud'
        WHEN NOT coalesce(p_project.bearer_scope = ANY (string_to_array(p_bearer ->> 'scope', ' ')), false)
            THEN 'claim scope'
    END;
    IF v_wrong IS NOT NULL THEN
        RAISE EXCEPTION 'bearer token is not accepted by project %: %', p_project.name, v_wrong
            USING ERRCODE = 'OG206', HINT = 'ask the production manager which issuer, audience and scope are right';
    END IF;
    RETURN true;
END
$fn$;

CREATE FUNCTION osgprod._plain_address(p_client inet)
RETURNS inet LANGUAGE sql STABLE
AS $fn$
    -- The address; a v4-mapped IPv6 address as IPv4.
    SELECT CASE
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
RETURNS boolean LANGUAGE sql VOLATILE
AS $fn$
    -- Until the end of the transaction nothing else happens to this job. Two jobs that share a key only wait for each
    -- other. Always the first lock that a function takes. False: the project's files are begun anew at this moment.
    SELECT CASE WHEN pg_advisory_xact_lock((p_cluster << 32 | p_process) # (p_project_id::bigint << 48))::text = ''
                THEN pg_try_advisory_xact_lock_shared(p_project_id, -1) END
$fn$;

CREATE FUNCTION osgprod._enter_project(p_project_id int)
RETURNS boolean LANGUAGE sql VOLATILE
AS $fn$
    -- Until the end of the transaction no files of this project are begun anew; false: they are at this moment. Whoever
    -- moves slices needs this, and never waits for it. (No file has the number -1.)
    SELECT pg_try_advisory_xact_lock_shared(p_project_id, -1)
$fn$;

CREATE FUNCTION osgprod._enter_alone(p_project osgprod_data.projects)
RETURNS void LANGUAGE plpgsql VOLATILE
SET lock_timeout = '10s'
AS $fn$
-- Until the end of the transaction nobody else is in the project. Who comes while this waits is told to try again, so it does
-- not wait for long: somebody's forgotten transaction must not keep all jobs from their work.
-- Parameters: p_project  the project's row
-- Errors:     OG505 a call that was there before does not end
-- Locks:      the project (advisory: project_id, -1), alone
BEGIN
    PERFORM pg_advisory_xact_lock(p_project.project_id, -1);
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'a call that works on project % has not ended for 10 s', p_project.name USING ERRCODE = 'OG505',
        HINT = 'try again; if it stays so, somebody has left a transaction open: osgprod doctor';
END
$fn$;

CREATE FUNCTION osgprod._raise_start_over(p_project text)
RETURNS void LANGUAGE plpgsql IMMUTABLE
AS $fn$
-- Tells a caller that the project can't be worked for at this moment.
-- Parameters: p_project  its name
-- Errors:     OG502
BEGIN
    RAISE EXCEPTION 'files of project % are being begun anew', p_project USING ERRCODE = 'OG502', HINT = 'try again later';
END
$fn$;

CREATE FUNCTION osgprod._label(p_text text, p_most int DEFAULT 128)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- What a job says of itself (host, site, reason, URL of its outputs): one line of at most p_most characters, NULL when
    -- it is empty. Control characters, line separators and format characters, which can hide or turn round what stands
    -- beside them, become spaces.
    -- Source: Unicode 15, general categories Cc, Cf, Zl and Zp; a test compares them all
    SELECT nullif(left(btrim(regexp_replace(p_text, '[\u0001-\u001F\u007F-\u009F\u00AD\u0600-\u0605\u061C\u06DD\u070F'
        '\u0890\u0891\u08E2\u180E\u200B-\u200F\u2028-\u202E\u2060-\u2064\u2066-\u206F\uFEFF\uFFF9-\uFFFB'
        '\U000110BD\U000110CD\U00013430-\U0001343F\U0001BCA0-\U0001BCA3\U0001D173-\U0001D17A\U000E0001'
        '\U000E0020-\U000E007F]+', ' ', 'g')), p_most), '')
$fn$;
