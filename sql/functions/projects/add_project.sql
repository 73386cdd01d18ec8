CREATE FUNCTION osgprod.add_project(
    p_project          text,
    p_subnet_pattern   text,
    p_workscript       text,
    p_xrootd_prefix    text,
    p_maxblockspercore int,
    p_magic            text DEFAULT NULL)
RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Makes a project: a production with settings, secrets and slices of its own.
-- Promise:    a repeated call is refused and changes nothing; set_project changes a project.
-- Parameters: p_project           name [1 .. 63 letters, digits, _ . + -]; also its folder below the document root
--             p_subnet_pattern    who may ask: CIDR list ('10.1.0.0/16, 2001:db8::/32') or SQL LIKE pattern ('129.57.%')
--             p_workscript        file name of its work script in that folder
--             p_xrootd_prefix     what stands before the path in a URL, like root://server/ or https://server
--             p_maxblockspercore  blocks of a slice for each core of the job [1 .. 1000000]
--             p_magic             the shared secret of its jobs; NULL = nobody may work until set_magic
-- Returns:    project_id
-- Errors:     OG404 the name is taken; OG106 bad subnet pattern; OG108 another bad value
DECLARE
    v_project_id int;
    v_rule       text;
BEGIN
    INSERT INTO projects (name, subnet_pattern, subnets, workscript, xrootd_prefix, maxblockspercore)
    VALUES (p_project, lower(btrim(p_subnet_pattern)), osgprod._subnets(p_subnet_pattern), p_workscript,
            coalesce(p_xrootd_prefix, ''), p_maxblockspercore)
    RETURNING projects.project_id INTO v_project_id;
    IF p_magic IS NOT NULL THEN
        PERFORM osgprod.set_magic(p_project => p_project, p_magic => p_magic);
    END IF;
    RETURN v_project_id;
EXCEPTION
    WHEN unique_violation THEN
        RAISE EXCEPTION 'project % exists already', p_project USING ERRCODE = 'OG404',
            HINT = format('osgprod project set %s changes it', p_project);
    WHEN check_violation OR not_null_violation THEN
        GET STACKED DIAGNOSTICS v_rule = CONSTRAINT_NAME;
        RAISE EXCEPTION 'project %: %', p_project, coalesce(osgprod._rule(v_rule), SQLERRM) USING ERRCODE = 'OG108',
            HINT = 'names are letters, digits and _ . + -; maxblockspercore is at least 1';
END
$fn$;

COMMENT ON FUNCTION osgprod.add_project(text, text, text, text, int, text) IS
'Makes a project with its name, who may ask, work script, URL prefix and blocks a core; returns project_id. For osgprod_operator.';

CREATE FUNCTION osgprod.set_magic(p_project text, p_magic text, p_overlap_s int DEFAULT 0)
RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Gives a project a new magic; only a salted digest of it is stored.
-- Promise:    a repeated call with the same magic and overlap keeps the former one valid until its time.
-- Parameters: p_project    project name
--             p_magic      the new secret [1 .. 1024 characters, no control characters; line ends behind it don't count]
--             p_overlap_s  how long the former magic stays valid [s; 0 .. 31536000]
-- Errors:     OG301 unknown project; OG109 magic empty, too long, or the overlap out of range
DECLARE
    v_project osgprod_data.projects := osgprod._get_project(p_project);
    v_digest  bytea;
BEGIN
    IF rtrim(p_magic, E'\r\n') !~ '^[^[:cntrl:]]+$' OR length(p_magic) > 1024 OR p_magic IS NULL OR p_overlap_s NOT BETWEEN 0 AND 31536000 THEN
        RAISE EXCEPTION 'a magic is 1 to 1024 printable characters, an overlap 0 to 31536000 s' USING ERRCODE = 'OG109',
            HINT = 'openssl rand -hex 24 makes a good magic';
    END IF;
    v_digest := osgprod._magic_digest(v_project.magic_salt, p_magic);
    IF v_digest = v_project.magic_digest THEN
        RETURN;
    END IF;
    UPDATE projects p
       SET magic_digest = v_digest, old_magic_digest = v_project.magic_digest,
           old_magic_until = now() + make_interval(secs => p_overlap_s)
     WHERE p.project_id = v_project.project_id;
END
$fn$;

COMMENT ON FUNCTION osgprod.set_magic(text, text, int) IS
'Gives a project a new magic, the former one staying valid for p_overlap_s [s]; only a salted digest is stored. For osgprod_operator.';

CREATE FUNCTION osgprod.set_project(p_project text, p_settings jsonb)
RETURNS TABLE (setting text, value text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Changes settings of a project; they hold from the next call of a job on.
-- Promise:    all or nothing; a repeated call changes nothing more.
-- Parameters: p_project   project name
--             p_settings  object of setting: new value, like {"lease_s": 3600, "state": "paused"}; {} changes nothing.
--                         Which there are, with units: docs/sql.md, or what this function returns
-- Returns:    a row for each setting with its value now, in the order of their names
-- Errors:     OG301 unknown project; OG106 bad subnet pattern; OG108 unknown setting or bad value
-- Locks:      the project's row, unless nothing is to be changed
DECLARE
    v_project osgprod_data.projects := osgprod._get_project(p_project);
    v_fixed   text[] := ARRAY['project_id', 'name', 'magic_salt', 'magic_digest', 'old_magic_digest',
                              'old_magic_until', 'banned_until', 'next_due_at', 'nlive', 'tallied_until', 'tally_next', 'tally_after',
                              'created_at',
                              'subnets'];
    v_wrong   text;
    v_key     text;
BEGIN
    SELECT k.key INTO v_wrong FROM jsonb_object_keys(p_settings) AS k (key)
     WHERE k.key = ANY (v_fixed) OR NOT to_jsonb(v_project) ? k.key LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'there is no setting %', quote_literal(v_wrong) USING ERRCODE = 'OG108',
            HINT = format('osgprod project show %s lists the settings', p_project);
    END IF;
    IF p_settings <> '{}' THEN
        -- All settings are written: as they are now, not as they were before somebody else's call ended.
        SELECT p.* INTO v_project FROM projects p WHERE p.project_id = v_project.project_id FOR NO KEY UPDATE;
    END IF;
    BEGIN
        FOR v_key IN SELECT k.key FROM jsonb_object_keys(p_settings) AS k (key) LOOP  -- one by one, so that an error names it
            v_project := jsonb_populate_record(v_project, jsonb_build_object(v_key, CASE
                -- a list as it is shown, as PostgreSQL writes it, or bare
                WHEN v_key = 'node_fault_codes' AND jsonb_typeof(p_settings -> v_key) = 'string'
                    THEN to_jsonb('{' || btrim(p_settings ->> v_key, '[]{} ') || '}')
                ELSE p_settings -> v_key END));
        END LOOP;
        v_key := NULL;
        v_project.xrootd_prefix := coalesce(v_project.xrootd_prefix, '');  -- files of a file system
        v_project.strip_prefix := coalesce(v_project.strip_prefix, '');
        v_project.node_fault_codes := coalesce(v_project.node_fault_codes, '{}');
        UPDATE projects p
           SET (state, subnet_pattern, subnets, workscript, xrootd_prefix, strip_prefix, maxblockspercore,
                token_required, bearer_issuer, bearer_audience, bearer_scope, lease_s, heartbeat_s, wedged_s, wait_s,
                max_failures, max_faults, backoff_s, max_backoff_s, node_fault_codes, fast_failure_s,
                max_fast_failures, block_worker_s, demand_events, demand_outputs, demand_checksum, demand_bor,
                max_live, max_starts_per_min, restart_proof, next_due_at)
             = (v_project.state, lower(btrim(v_project.subnet_pattern)), osgprod._subnets(v_project.subnet_pattern),
                v_project.workscript, v_project.xrootd_prefix, v_project.strip_prefix, v_project.maxblockspercore,
                v_project.token_required, v_project.bearer_issuer, v_project.bearer_audience, v_project.bearer_scope,
                v_project.lease_s, v_project.heartbeat_s, v_project.wedged_s, v_project.wait_s,
                v_project.max_failures, v_project.max_faults, v_project.backoff_s, v_project.max_backoff_s,
                v_project.node_fault_codes, v_project.fast_failure_s, v_project.max_fast_failures,
                v_project.block_worker_s, v_project.demand_events, v_project.demand_outputs,
                v_project.demand_checksum, v_project.demand_bor, v_project.max_live, v_project.max_starts_per_min,
                v_project.restart_proof,
                '-infinity')  -- a shorter lease may be due before the next look at leases
         WHERE p.project_id = v_project.project_id AND p_settings <> '{}';
    EXCEPTION WHEN data_exception OR integrity_constraint_violation OR datatype_mismatch THEN
        GET STACKED DIAGNOSTICS v_wrong = CONSTRAINT_NAME;
        RAISE EXCEPTION 'project %: %', p_project, coalesce(osgprod._rule(v_wrong), v_key || ': ' || SQLERRM, SQLERRM)
            USING ERRCODE = 'OG108',
            HINT = 'osgprod project set --help lists the settings with default, range and unit';
    END;
    RETURN QUERY SELECT j.key, j.value FROM jsonb_each_text(to_jsonb(v_project) - v_fixed) AS j ORDER BY j.key;
END
$fn$;

COMMENT ON FUNCTION osgprod.set_project(text, jsonb) IS
'Changes settings of a project, {"lease_s": 3600} for instance, and returns all settings with their values now. For osgprod_operator.';

CREATE FUNCTION osgprod._rule(p_constraint text)
RETURNS text LANGUAGE sql STABLE
AS $fn$
    -- The rule of a check on projects as a phrase: 'lease_s must be from 1 to 2592000', or the check's name in words.
    -- Returns:    NULL = no such check
    SELECT CASE WHEN w.words IS NOT NULL THEN format('%s must be one of %s', w.words[1],
                                                     regexp_replace(w.words[2], '''|::text', '', 'g'))
                WHEN r.range IS NULL THEN replace(regexp_replace(c.conname, '^projects_', ''), '_', ' ')
                WHEN r.range[3] IS NULL THEN format('%s must be %s or more', r.range[1], r.range[2])
                ELSE format('%s must be from %s to %s', r.range[1], r.range[2], r.range[3]) END
      FROM pg_constraint c
     CROSS JOIN regexp_match(pg_get_expr(c.conbin, c.conrelid),
                             '^\(+(\w+) >= (\d+)\)(?: AND \(\1 <= (\d+)\)\))?$') AS r(range)
     CROSS JOIN regexp_match(pg_get_expr(c.conbin, c.conrelid), '^\((\w+) = ANY \(ARRAY\[(.*)\]\)\)$') AS w(words)
     WHERE c.conrelid = 'osgprod_data.projects'::regclass AND c.conname = p_constraint AND c.contype = 'c'
$fn$;

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
-- Gives a project's row to an operator's function.
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
