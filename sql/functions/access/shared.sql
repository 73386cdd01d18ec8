CREATE FUNCTION osgprod._is_inside(p_subnets cidr[], p_pattern text, p_client inet)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Is the address in one of the subnets, or like the pattern when there are none? (A small function that can be
    -- inlined, like _is_magic: it costs nothing. The seldom case is in one that can't be, so that not
    -- each call has to make it ready.)
    SELECT coalesce(p_client <<= ANY (p_subnets), osgprod._is_like(p_client, p_pattern))
$fn$;

CREATE FUNCTION osgprod._is_like(p_client inet, p_pattern text)
RETURNS boolean LANGUAGE plpgsql IMMUTABLE
AS $fn$
-- Is the address like an SQL LIKE pattern? One is about IPv6 only when it has a colon, or is the one for everybody:
-- '1%' was never meant to let 1000::1 in.
-- Parameters: p_client  address;  p_pattern  of LIKE
-- Returns:    true or false; NULL without an address
BEGIN
    RETURN host(p_client) LIKE p_pattern AND (family(p_client) = 4 OR p_pattern ~ ':|^%+$');
END
$fn$;

CREATE FUNCTION osgprod._is_magic(
    p_salt uuid, p_digest bytea, p_old_digest bytea, p_old_until timestamptz, p_magic text)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- Is this the project's magic, or its former one in the time of overlap? The time that the comparison takes tells
    -- how many bytes of two digests are the same; nobody who doesn't know the salt can do anything with that. Line ends behind a
    -- magic, LF or CRLF, are not part of it, neither when it is set nor when a job sends it.
    SELECT coalesce(osgprod._digest(p_salt, rtrim(p_magic, E'\r\n'))
                    = ANY (ARRAY[p_digest, CASE WHEN p_old_until > now() THEN p_old_digest END]), false)
$fn$;

CREATE FUNCTION osgprod._digest(p_salt uuid, p_secret text)
RETURNS bytea LANGUAGE sql STABLE
AS $fn$
    -- The only form in which a magic or a job key is stored: SHA-256 of the project's salt and the text; NULL for none or an empty
    -- one.
    SELECT sha256(uuid_send(p_salt) || convert_to(nullif(p_secret, ''), 'UTF8'))
$fn$;

CREATE FUNCTION osgprod._wrong_claim(p_project osgprod_data.projects, p_bearer jsonb)
RETURNS text LANGUAGE plpgsql STABLE
AS $fn$
-- Says which of the verified claims of a bearer token is not what the project asks for.
-- Parameters: p_project  the project's row
--             p_bearer   claims iss, aud (text or list), scope (words), exp (seconds since 1970)
-- Returns:    the claim by name, never its value, or the setting that is missing; NULL = it is accepted
-- Source:     WLCG common JWT profiles 1.0: scope is a list of words, aud may be text or list; SciTokens 2.0: aud ANY
BEGIN
    RETURN CASE
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
END
$fn$;

CREATE FUNCTION osgprod._plain_address(p_client inet)
RETURNS inet LANGUAGE sql STABLE
AS $fn$
    -- The address; a v4-mapped IPv6 address as IPv4.
    SELECT CASE WHEN p_client <<= inet '::ffff:0:0/96' THEN substring(host(p_client) FROM 8)::inet ELSE p_client END
$fn$;

CREATE FUNCTION osgprod._enter_project(p_project_id int, p_project text)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Until the end of the transaction no operator has this project alone (_enter_alone). An operator's call that moves slices or loads files needs this.
-- Parameters: p_project_id, p_project  the project and its name
-- Errors:     OG502 an operator has the project alone; OG301 it has just been removed
-- Locks:      the project, shared (advisory: project_id, -1), tried
BEGIN
    IF NOT pg_try_advisory_xact_lock_shared(p_project_id, -1) THEN
        RAISE EXCEPTION 'an operator resets, unloads or removes files of project %', p_project USING ERRCODE = 'OG502', HINT = 'try again later';
    END IF;
    PERFORM osgprod._require_project(p_project_id, p_project);
END
$fn$;

CREATE FUNCTION osgprod._enter_alone(p_project osgprod_data.projects)
RETURNS void LANGUAGE plpgsql VOLATILE
SET lock_timeout = '10s'
AS $fn$
-- Until the end of the transaction no other call moves slices of the project. A call that comes while this waits must try again,
-- so it does not wait for long: somebody's forgotten transaction must not keep all jobs from their work.
-- Parameters: p_project  the project's row
-- Errors:     OG505 a call that was there before does not end; OG301 it has removed the project
-- Locks:      the project (advisory: project_id, -1), alone; it waits for 10 s at most
BEGIN
    PERFORM pg_advisory_xact_lock(p_project.project_id, -1);
    PERFORM osgprod._require_project(p_project.project_id, p_project.name);
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'a call that works on project % has not ended for 10 s', p_project.name USING ERRCODE = 'OG505',
        HINT = 'try again; if the error stays, end the transaction that somebody left open: osgprod doctor shows its age';
END
$fn$;

CREATE FUNCTION osgprod._label(p_text text, p_most int DEFAULT 128)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- What a job says of itself (host, site, reason, URL of its outputs): one line of at most p_most characters, NULL when
    -- it is empty. Control characters, line separators and format characters, which can hide or turn round what stands beside
    -- them, become spaces: one for each row of them.
    -- Source: Unicode 15, general categories Cc, Cf, Zl and Zp; a test compares them all
    SELECT nullif(left(btrim(regexp_replace(p_text, '[\u0001-\u001F\u007F-\u009F\u00AD\u0600-\u0605\u061C\u06DD\u070F'
        '\u0890\u0891\u08E2\u180E\u200B-\u200F\u2028-\u202E\u2060-\u2064\u2066-\u206F\uFEFF\uFFF9-\uFFFB'
        '\U000110BD\U000110CD\U00013430-\U0001343F\U0001BCA0-\U0001BCA3\U0001D173-\U0001D17A\U000E0001'
        '\U000E0020-\U000E007F]+', ' ', 'g')), p_most), '')
$fn$;

CREATE FUNCTION osgprod._reason(p_text text)
RETURNS text LANGUAGE sql IMMUTABLE STRICT
AS $fn$
    -- The reason that a report gives: one line of at most 300 characters with both its ends, since the cause stands at the end,
    -- behind a path or a URL. NULL when it is empty.
    SELECT CASE WHEN length(l.line) > 300 THEN left(l.line, 120) || ' ... ' || right(l.line, 175) ELSE l.line END
      FROM osgprod._label(p_text, 20000) AS l (line)
$fn$;

CREATE FUNCTION osgprod._log_operation(p_operation text, p_project text, p_details jsonb, p_times bigint)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Records what an operator changes, in the transaction that changes it: a change that is rolled back is not recorded.
-- Promise:    in one transaction, calls of an operation with the same project and details, one after the other, make one row.
-- Parameters: p_operation  function that was called;  p_project  project name; NULL = none
--             p_details    its arguments without secrets, NULLs left out
--             p_times      how many files, slices, settings ... it changed; 0 = nothing, and nothing is written
DECLARE
    v_details jsonb := jsonb_strip_nulls(coalesce(p_details, '{}'));
    v_key     text := 'osgprod.logged_' || p_operation;
    v_before  text := current_setting(v_key, true);
    v_number  bigint;
BEGIN
    IF coalesce(p_times, 0) = 0 THEN
        RETURN;
    END IF;
    UPDATE osgprod_data.operations o SET times = o.times + p_times
     WHERE v_before <> '' AND o.operation_id = v_before::bigint AND o.xact = pg_current_xact_id()
       AND o.project IS NOT DISTINCT FROM p_project AND o.details = v_details;
    IF NOT FOUND THEN
        INSERT INTO osgprod_data.operations (person, operation, project, details, times)
        VALUES (osgprod._label(current_setting('osgprod.person', true)), p_operation, p_project, v_details, p_times)
        RETURNING operations.operation_id INTO v_number;
        PERFORM set_config(v_key, v_number::text, true);
    END IF;
END
$fn$;
