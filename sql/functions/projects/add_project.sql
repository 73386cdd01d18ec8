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
-- Creates a project: a production with its own settings, secrets and slices.
-- Promise:    a repeated call is refused and changes nothing; set_project changes a project.
-- Parameters: p_project           name [1 .. 63 letters, digits, _ . + -]; also its folder below the document root
--             p_subnet_pattern    which addresses may ask: CIDR list ('10.1.0.0/16, 2001:db8::/32') or SQL LIKE pattern ('129.57.%')
--             p_workscript        file name of its work script in that folder
--             p_xrootd_prefix     the part of a URL before the path, like root://server/ or https://server; several are
--                                 tried in order, separated by spaces or commas; site=prefix is for jobs of that site, first
--             p_maxblockspercore  blocks of a slice for each core of the job [1 .. 1000000]
--             p_magic             the shared secret of its jobs; NULL = none until set_magic
-- Returns:    project_id
-- Errors:     OG404 the name is taken; OG106 bad subnet pattern; OG108 another bad value, also a prefix that no job can read; OG109 bad
--             magic
-- Locks:      none but the name: a call with the same one waits for this transaction
DECLARE
    v_project_id int;
    v_rule       text;
    v_column     text;
BEGIN
    INSERT INTO projects AS p (name, subnet_pattern, subnets, workscript, xrootd_prefix, maxblockspercore)
    VALUES (p_project, lower(btrim(p_subnet_pattern)), osgprod._subnets(p_subnet_pattern), p_workscript,
            osgprod._checked_prefix(p_xrootd_prefix), p_maxblockspercore)
    RETURNING p.project_id INTO v_project_id;
    UPDATE projects p SET unproven = p.probe_jobs WHERE p.project_id = v_project_id;
    PERFORM osgprod._log_operation('add_project', p_project, jsonb_build_object('subnet_pattern', p_subnet_pattern,
        'workscript', p_workscript, 'xrootd_prefix', osgprod._without_secrets(p_xrootd_prefix),
        'maxblockspercore', p_maxblockspercore), 1);
    IF p_magic IS NOT NULL THEN
        PERFORM osgprod.set_magic(p_project => p_project, p_magic => p_magic);
    END IF;
    RETURN v_project_id;
EXCEPTION
    WHEN unique_violation THEN
        RAISE EXCEPTION 'project % exists already', p_project USING ERRCODE = 'OG404',
            HINT = format('osgprod project set %s NAME=VALUE changes it', p_project);
    WHEN check_violation OR not_null_violation THEN
        GET STACKED DIAGNOSTICS v_rule = CONSTRAINT_NAME, v_column = COLUMN_NAME;
        RAISE EXCEPTION 'project %: %', osgprod._shortened(p_project), coalesce(osgprod._rule(v_rule, jsonb_build_object(
            'name', p_project, 'workscript', p_workscript, 'mergescript', 'osgprod_merge.bash', 'maxblockspercore', p_maxblockspercore)),
            nullif(v_column, '') || ' needs a value', SQLERRM)
            USING ERRCODE = 'OG108', HINT = 'osgprod project add --help lists what each argument may be';
END
$fn$;

COMMENT ON FUNCTION osgprod.add_project(text, text, text, text, int, text) IS
'Creates a project with its name, the addresses that may ask, work script, URL prefix and blocks a core; returns project_id. For osgprod_operator.';
