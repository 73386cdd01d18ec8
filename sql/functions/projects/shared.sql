CREATE FUNCTION osgprod._subnets(p_pattern text)
RETURNS cidr[] LANGUAGE plpgsql STABLE
AS $fn$
-- Reads a subnet pattern: a list of CIDRs, or, as in the original, an SQL LIKE pattern on the address's text.
-- Parameters: p_pattern  list separated by commas or spaces, or a pattern with % or _
-- Returns:    the CIDRs; NULL for a LIKE pattern
-- Errors:     OG106 neither of the two, or empty
BEGIN
    IF p_pattern ~ '^[0-9A-Fa-f.:%_]*[%_][0-9A-Fa-f.:%_]*$' THEN
        RETURN NULL;
    END IF;
    IF coalesce(btrim(p_pattern), '') = '' THEN
        RAISE EXCEPTION 'the subnet pattern is empty' USING ERRCODE = 'OG106', HINT = '0.0.0.0/0, ::/0 lets everybody ask';
    END IF;
    RETURN ARRAY(SELECT osgprod._plain_network(trim(c)::inet) FROM regexp_split_to_table(btrim(p_pattern), '[ ,]+') AS c);
EXCEPTION WHEN invalid_text_representation THEN
    RAISE EXCEPTION 'subnet pattern % is neither a CIDR list nor a LIKE pattern', osgprod._quoted(p_pattern)
        USING ERRCODE = 'OG106', HINT = 'like 129.57.0.0/16, 10.0.0.0/8 or 129.57.%';
END
$fn$;

CREATE FUNCTION osgprod._plain_network(p_network inet)
RETURNS cidr LANGUAGE sql IMMUTABLE
AS $fn$
    -- The network, without bits behind its mask; one of v4-mapped IPv6 addresses as the IPv4 network that it means.
    SELECT CASE WHEN p_network <<= inet '::ffff:0:0/96'
                THEN network(set_masklen(inet '0.0.0.0' + (host(p_network)::inet - inet '::ffff:0.0.0.0'),
                                         masklen(p_network) - 96))
                ELSE network(p_network) END
$fn$;

CREATE FUNCTION osgprod._shortened(p_text text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- A value for a message: one line of at most 128 characters; the word none for NULL, empty where nothing can be seen.
    SELECT coalesce(CASE WHEN length(p_text) > 128 THEN osgprod._label(p_text, 125) || '...' ELSE osgprod._label(p_text) END,
                    CASE WHEN p_text IS NULL THEN 'none' ELSE 'empty' END)
$fn$;

CREATE FUNCTION osgprod._quoted(p_text text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- A text for a message, in quotes: one line of at most 128 characters; a blank where nothing of it can be seen.
    SELECT CASE WHEN p_text IS NULL THEN 'NULL' WHEN p_text = '' THEN '''''' WHEN osgprod._label(p_text) IS NULL THEN ''' '''
                ELSE '''' || osgprod._shortened(p_text) || '''' END
$fn$;

CREATE FUNCTION osgprod._get_project(p_project text)
RETURNS osgprod_data.projects LANGUAGE plpgsql STABLE
AS $fn$
-- Returns a project's row.
-- Parameters: p_project  project name
-- Errors:     OG301 unknown project
DECLARE
    v_project osgprod_data.projects;
BEGIN
    SELECT p.* INTO v_project FROM osgprod_data.projects p WHERE p.name = p_project;
    IF p_project IS NULL THEN
        RAISE EXCEPTION 'no project is named'
            USING ERRCODE = 'OG301', HINT = 'name one; osgprod project list shows the projects';
    ELSIF NOT FOUND THEN
        RAISE EXCEPTION 'there is no project %', osgprod._quoted(p_project)
            USING ERRCODE = 'OG301', HINT = 'osgprod project list shows the projects';
    END IF;
    RETURN v_project;
END
$fn$;

CREATE FUNCTION osgprod._keep_project(p_project text)
RETURNS osgprod_data.projects LANGUAGE plpgsql VOLATILE
AS $fn$
-- Returns a project's row, and keeps the project from being removed until the end of the transaction. For calls that write rows of a
-- project and move none of its slices (those use _enter_project): a removal would end them with a foreign key error.
-- Parameters: p_project  project name
-- Errors:     OG301 unknown project
-- Locks:      the project's row, FOR KEY SHARE: it waits only for remove_project
DECLARE
    v_project osgprod_data.projects;
BEGIN
    LOOP
        SELECT p.* INTO v_project FROM osgprod_data.projects p WHERE p.name = p_project FOR KEY SHARE;
        IF FOUND THEN
            RETURN v_project;
        END IF;
        PERFORM osgprod._get_project(p_project);  -- it is unknown; or another one has got its name
    END LOOP;
END
$fn$;

CREATE FUNCTION osgprod._require_project(p_project_id int, p_project text)
RETURNS void LANGUAGE plpgsql STABLE
AS $fn$
-- Refuses a project that another session has removed since its row was read.
-- Parameters: p_project_id, p_project  the project and its name
-- Errors:     OG301
BEGIN
    IF NOT EXISTS (SELECT FROM osgprod_data.projects p WHERE p.project_id = p_project_id) THEN
        RAISE EXCEPTION 'project % has just been removed', osgprod._quoted(p_project)
            USING ERRCODE = 'OG301', HINT = 'osgprod project list shows the projects';
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._prefixes(p_prefix text)
RETURNS TABLE (n bigint, site text, prefix text) LANGUAGE sql IMMUTABLE
AS $fn$
    -- Takes a list of prefixes apart. A prefix begins with a scheme or a slash, so a space or a comma inside of one, with
    -- neither behind it, separates nothing.
    -- Parameters: p_prefix  prefixes in order of preference, separated by spaces or commas; site=prefix is for jobs of a site
    -- Returns:    a row a prefix; site NULL = for all jobs
    SELECT s.n, m.parts[1], m.parts[2]
      FROM regexp_split_to_table(p_prefix, '[\s,]+(?=(?:[^\s,=/:]+=)?(?:[A-Za-z][A-Za-z0-9+.-]*:/|/))')
           WITH ORDINALITY AS s (item, n)
     CROSS JOIN regexp_match(s.item, '^(?:([^\s,=/:]+)=)?(.*)$') AS m (parts)
$fn$;

CREATE FUNCTION osgprod._why_no_prefix(p_prefix text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- Says why no job can read files behind one prefix; NULL = jobs can. What jobs can read: worker/lib/url.bash.
    SELECT CASE
        WHEN p_prefix = '' OR p_prefix ~ '^/[^[:cntrl:]]*$' THEN NULL
        WHEN p_prefix ~ '[[:cntrl:]]' THEN 'has a control character'
        WHEN p_prefix !~ '^[A-Za-z][A-Za-z0-9+.-]*://' THEN 'is neither a URL nor an absolute folder'
        WHEN p_prefix !~* '^(https?|davs?|x?roots?|osdf|pelican|file)://' THEN 'has a scheme that no job knows'
        WHEN p_prefix !~* '^(osdf://|file://(/|$)|(https?|davs?|x?roots?|pelican)://[^/])' THEN 'names no host'
    END
$fn$;

CREATE FUNCTION osgprod._checked_prefix(p_prefix text)
RETURNS text LANGUAGE plpgsql IMMUTABLE
AS $fn$
-- Checks that jobs can read files behind a prefix, or a list of prefixes.
-- Parameters: p_prefix  see _prefixes; NULL or empty = paths of a file system
-- Returns:    the same with one space between two prefixes
-- Errors:     OG108 a prefix that no job can read, or none for jobs that run at other sites than those that are named
DECLARE
    v_text  text := btrim(coalesce(p_prefix, ''), E' \t\r\n,');
    v_wrong text;
BEGIN
    SELECT osgprod._quoted(osgprod._without_secrets(i.prefix)) || ' ' || osgprod._why_no_prefix(i.prefix) INTO v_wrong
      FROM osgprod._prefixes(v_text) i WHERE osgprod._why_no_prefix(i.prefix) IS NOT NULL ORDER BY i.n LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'prefix %', v_wrong USING ERRCODE = 'OG108',
            HINT = 'use http://, https://, dav://, davs://, root://, roots://, xroot://, xroots://, osdf:///, pelican://HOST/, file:/// or an absolute folder';
    END IF;
    IF NOT EXISTS (SELECT FROM osgprod._prefixes(v_text) i WHERE i.site IS NULL) THEN
        RAISE EXCEPTION 'prefix % is for jobs of some sites only', osgprod._quoted(osgprod._without_secrets(v_text)) USING ERRCODE = 'OG108',
            HINT = 'add one without a site, for jobs elsewhere';
    END IF;
    RETURN (SELECT string_agg(concat_ws('=', i.site, i.prefix), ' ' ORDER BY i.n) FROM osgprod._prefixes(v_text) i);
END
$fn$;
