CREATE FUNCTION osgprod._subnets(p_pattern text)
RETURNS cidr[] LANGUAGE plpgsql STABLE
AS $fn$
-- Reads a subnet pattern: a list of CIDRs, or, as in the original, an SQL LIKE pattern on the address's text.
-- Parameters: p_pattern  list separated by commas or spaces, or a pattern with % or _
-- Returns:    the CIDRs; NULL for a LIKE pattern
-- Errors:     OG106 neither of the two
BEGIN
    IF p_pattern ~ '^[0-9A-Fa-f.:%_]*[%_][0-9A-Fa-f.:%_]*$' THEN
        RETURN NULL;
    END IF;
    IF coalesce(btrim(p_pattern), '') = '' THEN
        RAISE EXCEPTION 'a subnet pattern is needed' USING ERRCODE = 'OG106', HINT = '0.0.0.0/0, ::/0 lets everybody ask';
    END IF;
    RETURN ARRAY(SELECT osgprod._plain_network(trim(c)::inet) FROM regexp_split_to_table(btrim(p_pattern), '[ ,]+') AS c);
EXCEPTION WHEN invalid_text_representation THEN
    RAISE EXCEPTION 'subnet pattern % is neither a CIDR list nor a LIKE pattern', quote_literal(p_pattern)
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

CREATE FUNCTION osgprod._get_project(p_project text)
RETURNS osgprod_data.projects LANGUAGE plpgsql STABLE
AS $fn$
-- Returns a project's row, for the functions of operators.
-- Parameters: p_project  project name
-- Errors:     OG301 unknown project
DECLARE
    v_project osgprod_data.projects;
BEGIN
    SELECT p.* INTO v_project FROM osgprod_data.projects p WHERE p.name = p_project;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no project %', coalesce(quote_literal(left(p_project, 63)), 'NULL')
            USING ERRCODE = 'OG301', HINT = 'osgprod project list shows the projects';
    END IF;
    RETURN v_project;
END
$fn$;
