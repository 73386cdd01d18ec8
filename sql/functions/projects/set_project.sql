CREATE FUNCTION osgprod.set_project(p_project text, p_settings jsonb)
RETURNS TABLE (setting text, value text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Changes settings of a project. They apply from the next call of a job.
-- Another work script, or another value of probe_jobs, begins the test by the first jobs again; any value of state ends a pause
-- that the project has begun itself. A changed setting may be the repair: what the server tries again from time to time is tried at
-- once (_try_again_now).
-- Promise:    all or nothing; a repeated call changes nothing more.
-- Parameters: p_project   project name
--             p_settings  object of setting: new value, like {"lease_s": 3600, "state": "paused"}; {} changes nothing. null is
--                         none, and so is the text none or an empty one where a setting may be none.
--                         docs/sql.md lists the settings with units; this function returns them
-- Returns:    a row for each setting with its value now, in the order of their names
-- Errors:     OG301 unknown project; OG106 bad subnet pattern; OG108 unknown setting, bad value, values that contradict each
--             other, or the merge_output_url of another project; OG420 merge_by with merges
--             that are done by something else; OG901 isolation level, unless nothing is to be changed
-- Locks:      in this order: with skip_nearline which files are on tape only, alone (advisory: 0, -3): it waits for calls that
--             load files; the project's row, unless nothing is to be changed; with merge_by and merge_incomplete these settings,
--             alone (advisory: project_id, -4): it waits for what plans merges; with merge_output_url this setting of all
--             projects (advisory: 0, -4); see _try_again_now; when a pause ends see _has_resumed; with skip_nearline see _mark_on_tape; with merge_by
--             and merge_incomplete see _change_merges
DECLARE
    v_project osgprod_data.projects := osgprod._get_project(p_project);
    -- Columns that are no settings; every other one is.
    v_fixed   text[] := ARRAY['unproven', 'tested_scripts', 'tested_since', 'pause_cause', 'pause_reason', 'paused_at', 'probe_at', 'resumed_at', 'nsuspended',
                              'project_id', 'name', 'magic_salt', 'magic_digest', 'old_magic_digest',
                              'old_magic_until', 'banned_until', 'next_due_at', 'nlive', 'tallied_until', 'tally_next',
                              'tally_after', 'created_at', 'stopped_at', 'subnets', 'merge_s', 'noted_end', 'tail_blocks', 'activated_at'];
    v_before  osgprod_data.projects;
    v_wrong   text;
    v_column  text;
    v_key     text;  -- the setting that is read; NULL = all are
BEGIN
    IF jsonb_typeof(p_settings) IS DISTINCT FROM 'object' THEN
        RAISE EXCEPTION 'the settings of project % are no JSON object', p_project USING ERRCODE = 'OG108',
            HINT = 'like {"lease_s": 3600}';
    END IF;
    PERFORM osgprod._require_read_committed() WHERE p_settings <> '{}';  -- project export only reads, in one snapshot
    SELECT k.key INTO v_wrong FROM jsonb_object_keys(p_settings) AS k (key)
     WHERE k.key = ANY (v_fixed) OR NOT to_jsonb(v_project) ? k.key LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'there is no setting %', osgprod._quoted(v_wrong) USING ERRCODE = 'OG108',
            HINT = format('osgprod project show %s lists the settings', p_project);
    END IF;
    IF p_settings ? 'skip_nearline' THEN
        PERFORM pg_advisory_xact_lock(0, -3);  -- see _mark_on_tape
    END IF;
    IF p_settings <> '{}' THEN
        -- All settings are written: as they are now, not as they were before somebody else's call ended.
        SELECT p.* INTO v_project FROM projects p WHERE p.project_id = v_project.project_id FOR NO KEY UPDATE;
        IF NOT FOUND THEN  -- another session has removed it; the name may be another project's by now
            RETURN QUERY SELECT s.setting, s.value FROM osgprod.set_project(p_project, p_settings) s;
            RETURN;
        END IF;
    END IF;
    IF p_settings ?| ARRAY['merge_by', 'merge_incomplete'] THEN
        PERFORM pg_advisory_xact_lock(v_project.project_id, -4);  -- see _hold_merge_settings
    END IF;
    v_before := v_project;
    BEGIN
        FOR v_key IN SELECT k.key FROM jsonb_object_keys(p_settings) AS k (key) LOOP  -- one by one, so that an error names it
            v_project := jsonb_populate_record(v_project, jsonb_build_object(v_key, CASE
                -- a list as it is shown, as PostgreSQL writes it, or bare
                WHEN v_key = 'node_fault_codes' AND jsonb_typeof(p_settings -> v_key) = 'string'
                    THEN to_jsonb('{' || btrim(p_settings ->> v_key, '[]{} ') || '}')
                WHEN p_settings ->> v_key IN ('', 'none') AND osgprod._may_be_none(v_key) THEN 'null'
                ELSE p_settings -> v_key END));
        END LOOP;
        v_key := NULL;
        IF p_settings ? 'xrootd_prefix' THEN
            v_project.xrootd_prefix := osgprod._checked_prefix(v_project.xrootd_prefix);
        END IF;
        IF p_settings ? 'strip_prefix' THEN  -- else it stays as it is: URLs of a running production depend on it
            v_project.strip_prefix := regexp_replace(coalesce(v_project.strip_prefix, ''), '(^|[^:/])/+$', '\1');
        END IF;
        v_project.node_fault_codes := coalesce(v_project.node_fault_codes, '{}');
        PERFORM osgprod._require_useful(v_project, p_settings);
        IF p_settings ? 'merge_output_url' THEN
            PERFORM osgprod._require_own_folder(v_project);
        END IF;
        v_project.subnet_pattern := lower(btrim(v_project.subnet_pattern));
        v_project.subnets := osgprod._subnets(v_project.subnet_pattern);
        v_project.stopped_at := CASE WHEN v_project.state = 'paused' THEN v_project.stopped_at END;
        v_project.tail_blocks := CASE WHEN v_project.shrink_tail THEN v_project.tail_blocks END;
        v_project.next_due_at := '-infinity';  -- a shorter lease may expire before the next look at leases
        IF p_settings ? 'state' THEN  -- what an operator decides stands for what the project decided itself
            v_project.resumed_at := CASE WHEN v_project.pause_cause IS NULL THEN v_project.resumed_at ELSE now() END;
            v_project.activated_at := CASE WHEN v_project.state = 'active' AND v_before.state <> 'active' THEN now()
                                           ELSE v_project.activated_at END;
            v_project.pause_cause := NULL;
            v_project.pause_reason := NULL;
            v_project.paused_at := NULL;
            v_project.probe_at := NULL;
        END IF;
        IF (v_project.workscript, v_project.probe_jobs) IS DISTINCT FROM (v_before.workscript, v_before.probe_jobs) THEN
            -- Nothing is known of another work script.
            v_project.unproven := v_project.probe_jobs;
            v_project.tested_since := now();
        END IF;
        IF p_settings <> '{}' THEN
            EXECUTE osgprod._update_of_project() USING v_project;
            PERFORM osgprod._log_settings(p_project, to_jsonb(v_before) - v_fixed, to_jsonb(v_project) - v_fixed);
            PERFORM osgprod._try_again_now(v_project) WHERE to_jsonb(v_before) - v_fixed <> to_jsonb(v_project) - v_fixed;
            IF v_before.pause_cause IS NOT NULL AND v_project.state = 'active' THEN
                PERFORM osgprod._has_resumed(v_before);
            END IF;
            IF p_settings ? 'skip_nearline' THEN
                PERFORM osgprod._mark_on_tape(v_project.project_id, v_project.skip_nearline);
            END IF;
        END IF;
        IF p_settings ?| ARRAY['merge_by', 'merge_incomplete'] THEN
            PERFORM osgprod._change_merges(v_project);
        END IF;
    EXCEPTION WHEN data_exception OR integrity_constraint_violation OR datatype_mismatch THEN
        GET STACKED DIAGNOSTICS v_wrong = CONSTRAINT_NAME, v_column = COLUMN_NAME;
        RAISE EXCEPTION 'project %: %', p_project, coalesce(osgprod._rule(v_wrong, to_jsonb(v_project)),
            nullif(v_column, '') || ' needs a value', v_key || ' can''t be ' || osgprod._quoted(p_settings ->> v_key), SQLERRM)
            USING ERRCODE = 'OG108',
            HINT = 'osgprod project set --help lists the settings with default, range and unit';
    END;
    RETURN QUERY SELECT j.key, j.value FROM jsonb_each_text(to_jsonb(v_project) - v_fixed) AS j ORDER BY j.key;
END
$fn$;

COMMENT ON FUNCTION osgprod.set_project(text, jsonb) IS
'Changes settings of a project, {"lease_s": 3600} for instance, and returns all settings with their values now. For osgprod_operator.';

CREATE FUNCTION osgprod._may_be_none(p_setting text)
RETURNS boolean LANGUAGE sql STABLE
AS $fn$
    -- May a setting have no value?
    -- Parameters: p_setting  name of a column of projects
    SELECT NOT a.attnotnull FROM pg_attribute a
     WHERE a.attrelid = 'osgprod_data.projects'::regclass AND a.attname = p_setting AND a.attnum > 0
$fn$;

CREATE FUNCTION osgprod._require_useful(p_project osgprod_data.projects, p_settings jsonb)
RETURNS void LANGUAGE plpgsql STABLE
AS $fn$
-- Refuses settings that could never do what they are for. Ranges of single numbers are checks of the table.
-- Parameters: p_project   the project's row as it is to be
--             p_settings  settings of this call: a rule is about new values, so that another setting can be changed in a project
--                         that was made before the rule
-- Errors:     OG108
DECLARE v_rule record;
BEGIN
    SELECT r.problem, r.hint INTO v_rule FROM (VALUES
        (ARRAY['merge_output_url'], 'merge_output_url ' || osgprod._why_no_folder(p_project.merge_output_url, '{kind,run,seqno,project}'),
         NULL),
        (ARRAY['output_home'], 'output_home ' || osgprod._why_no_folder(p_project.output_home, '{cluster,process,start,project}'),
         NULL),
        (ARRAY['output_home'], CASE WHEN p_project.output_home LIKE '%{process}%' AND p_project.output_home NOT LIKE '%{cluster}%'
            THEN format('output_home %s has {process} without {cluster}', osgprod._quoted(p_project.output_home)) END,
         'jobs of two clusters have the same process: add {cluster}'),
        (ARRAY['strip_prefix'], CASE WHEN p_project.strip_prefix <> ''
             AND (p_project.strip_prefix !~ '^/' OR osgprod._label(p_project.strip_prefix, 1024) <> p_project.strip_prefix)
            THEN format('strip_prefix %s is not an absolute folder', osgprod._quoted(p_project.strip_prefix)) END,
         'paths of raw data files are absolute: name a leading folder of them like /dcache, or nothing'),
        (ARRAY['bearer_issuer'], CASE WHEN p_project.bearer_issuer !~ '^[[:graph:]]+$' OR length(p_project.bearer_issuer) > 1024
            THEN format('bearer_issuer %s is not an issuer', osgprod._quoted(p_project.bearer_issuer)) END,
         'name the claim iss of the tokens, at most 1024 characters without a space, like https://cilogon.org/gluex'),
        (ARRAY['bearer_audience'], CASE WHEN p_project.bearer_audience !~ '^[[:graph:]]+$' OR length(p_project.bearer_audience) > 1024
            THEN format('bearer_audience %s is not an audience', osgprod._quoted(p_project.bearer_audience)) END,
         'name the claim aud of the tokens, at most 1024 characters without a space'),
        (ARRAY['bearer_scope'], CASE WHEN p_project.bearer_scope !~ '^[[:graph:]]+$' OR length(p_project.bearer_scope) > 1024
            THEN format('bearer_scope %s is not a single scope', osgprod._quoted(p_project.bearer_scope)) END,
         'name one scope of the tokens'' claim scope, at most 1024 characters without a space'),
        (ARRAY['node_fault_codes'], (SELECT format('node_fault_codes can''t contain %s', coalesce(c.code::text, 'NULL'))
            FROM unnest(p_project.node_fault_codes) AS c (code)
           WHERE c.code IS NULL OR c.code NOT BETWEEN 1 AND 255 LIMIT 1),
         'exit codes of failures are from 1 to 255; 0 means success'),
        (ARRAY['heartbeat_s'], CASE WHEN p_project.heartbeat_s > 1000000000  -- twice as much would overflow in the check of lease_s
            THEN osgprod._rule('projects_heartbeat_s_check', to_jsonb(p_project)) END,
         'osgprod project set --help lists the settings with default, range and unit'),
        (ARRAY['backoff_s', 'max_backoff_s'], CASE WHEN p_project.backoff_s > p_project.max_backoff_s
            THEN format('backoff_s, %s s, is more than max_backoff_s, %s s', p_project.backoff_s, p_project.max_backoff_s) END,
         'set both in one call: the first backoff is at most the longest one'),
        (ARRAY['target_s', 'lease_s', 'heartbeat_s'], CASE WHEN p_project.heartbeat_s = 0 AND p_project.target_s >= p_project.lease_s
            THEN format('lease_s, %s s, is not more than target_s, %s s, and jobs send no heartbeats (heartbeat_s = 0)',
                        p_project.lease_s, p_project.target_s) END,
         'without heartbeats a lease has to be longer than the work on a slice')
        ) AS r (settings, problem, hint)
     WHERE p_settings ?| r.settings AND r.problem IS NOT NULL LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'project %: %', p_project.name, v_rule.problem USING ERRCODE = 'OG108', HINT = coalesce(v_rule.hint,
            'use http://, https://, dav://, davs://, root://, roots://, xroot://, xroots://, osdf:///, pelican://HOST/, file:/// or an absolute folder');
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._why_no_folder(p_url text, p_placeholders text[])
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- Says why no job can deliver to a folder: its URL, and the reason; NULL = jobs can, or there is no URL. The job's own rule is
    -- storage_kind in condor/lib/storage.bash.
    -- Parameters: p_url  URL or absolute path;  p_placeholders  which names in braces are filled in
    SELECT osgprod._quoted(osgprod._without_secrets(p_url)) || ' ' || CASE
        WHEN p_url !~ '^[[:graph:]]+$' OR length(p_url) > 1024 THEN 'is not a URL of at most 1024 characters without spaces'
        WHEN osgprod._why_no_prefix(p_url) IS NOT NULL THEN osgprod._why_no_prefix(p_url)
        WHEN p_url ~ '^[^/]+://[^/]*:[^/@]*@' THEN 'contains a password, which each job would see'
        WHEN p_url ~ '[?#]' THEN 'has a query or a fragment, so it names no folder'
        WHEN regexp_replace(p_url, format('\{(%s)\}', array_to_string(p_placeholders, '|')), '', 'g') ~ '[{}]'
        THEN format('has another placeholder than %s', (SELECT string_agg(format('{%s}', x), ', ') FROM unnest(p_placeholders) x))
    END
$fn$;

CREATE FUNCTION osgprod._require_own_folder(p_project osgprod_data.projects)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Refuses a merge_output_url that is another project's: merged files are named by kind, run and number, so each project would
-- replace the other's.
-- Parameters: p_project  the project's row as it is to be
-- Errors:     OG108
-- Locks:      these settings of all projects (advisory: 0, -4): two sessions that set one folder would not see each other
DECLARE v_other text;
BEGIN
    PERFORM pg_advisory_xact_lock(0, -4);
    SELECT p.name INTO v_other FROM osgprod_data.projects p
     WHERE p.project_id <> p_project.project_id
       AND osgprod._folder(replace(p.merge_output_url, '{project}', p.name))
           = osgprod._folder(replace(p_project.merge_output_url, '{project}', p_project.name));
    IF FOUND THEN
        RAISE EXCEPTION 'merge_output_url % is that of project %, whose merged files would be replaced',
            osgprod._quoted(p_project.merge_output_url), v_other
            USING ERRCODE = 'OG108', HINT = 'put {project} into it, or name another folder';
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._folder(p_url text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- The folder that a URL names, in one spelling: class of the scheme (http, https, dav and davs are one; root, roots, xroot and
    -- xroots; file and a bare path), host in small letters, port if it is not a usual one of the class, path without "/.", double
    -- or trailing slashes.
    -- Parameters: p_url  URL or path; NULL = NULL
    SELECT concat(u.class, '://', CASE WHEN u.class <> 'file' THEN lower(u.m[2]) END,
                  ':' || nullif(u.m[3], CASE u.class WHEN 'http' THEN CASE u.m[3] WHEN '80' THEN '80' ELSE '443' END
                                                     WHEN 'root' THEN '1094' END),
                  regexp_replace('/' || u.m[4], '(/[.]?)+(?=/|$)', '', 'g'))
      FROM (SELECT x.m, CASE WHEN x.m[1] IS NULL OR x.m[1] ~* '^file$' THEN 'file' WHEN x.m[1] ~* '^(https?|davs?)$' THEN 'http'
                             WHEN x.m[1] ~* '^x?roots?$' THEN 'root' ELSE lower(x.m[1]) END AS class
              FROM (SELECT regexp_match(p_url, '^(?:([A-Za-z][A-Za-z0-9+.-]*)://(?:[^/@]*@)?(\[[^]/]*\]|[^/:]*)(?::([0-9]*))?)?/?([^?#]*)') AS m) x) u
     WHERE p_url IS NOT NULL
$fn$;

CREATE FUNCTION osgprod._log_settings(p_project text, p_before jsonb, p_after jsonb)
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Writes down which settings of a project were changed: {"lease_s": "21600 -> 7200"}.
    -- Parameters: p_project  project name;  p_before, p_after  all its settings
    SELECT osgprod._log_operation('set_project', p_project, jsonb_object_agg(a.key, format('%s -> %s',
               coalesce(osgprod._without_secrets(b.value), 'none'), coalesce(osgprod._without_secrets(a.value), 'none'))),
               count(*))
      FROM jsonb_each_text(p_after) a JOIN jsonb_each_text(p_before) b ON b.key = a.key
     WHERE a.value IS DISTINCT FROM b.value
$fn$;

CREATE FUNCTION osgprod._try_again_now(p_project osgprod_data.projects)
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Ends the wait before the server's next try: of a project that has paused itself, of each suspended file, and of merges that the
    -- server has banned everywhere. As few are tried as without this call.
    -- Parameters: p_project  the project's row, locked
    -- Locks:      the files' rows and the ban's, SKIP LOCKED: another session has just failed or succeeded there
    UPDATE osgprod_data.projects p SET probe_at = now() WHERE p.project_id = p_project.project_id AND p.probe_at > now();
    UPDATE osgprod_data.loaded_files f SET retest_at = now()
     WHERE p_project.nsuspended > 0 AND (f.project_id, f.rawdata_id) IN (
        SELECT x.project_id, x.rawdata_id FROM osgprod_data.loaded_files x
         WHERE x.project_id = p_project.project_id AND x.suspended_at IS NOT NULL AND x.retest_at > now()
           FOR NO KEY UPDATE SKIP LOCKED);
    UPDATE osgprod_data.worker_bans b SET until = now()
     WHERE (b.project_id, b.worker) = (
        SELECT c.project_id, c.worker FROM osgprod_data.worker_bans c
         WHERE c.project_id = p_project.project_id AND c.worker = 'merges:all' AND c.times > 0 AND c.until > now()
           FOR NO KEY UPDATE SKIP LOCKED)
$fn$;

CREATE FUNCTION osgprod._update_of_project()
RETURNS text LANGUAGE sql STABLE
AS $fn$
    -- The statement that writes a row of projects ($1) back as a whole: no column can be forgotten.
    SELECT format('UPDATE osgprod_data.projects p SET (%1$s) = (SELECT %1$s FROM (SELECT ($1).*) r)'
                  ' WHERE p.project_id = ($1).project_id', string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum))
      FROM pg_attribute a
     WHERE a.attrelid = 'osgprod_data.projects'::regclass AND a.attnum > 0 AND NOT a.attisdropped
       AND a.attname <> 'project_id'
$fn$;

CREATE FUNCTION osgprod._rule(p_constraint text, p_values jsonb)
RETURNS text LANGUAGE sql STABLE
AS $fn$
    -- The rule of a check on projects as a phrase, like 'lease_s must be from 1 to 2592000, not 0'.
    -- Parameters: p_constraint  name of the check;  p_values  object of column: value that broke it
    -- Returns:    NULL = no such check
    SELECT coalesce(CASE c.conname
           WHEN 'projects_a_lease_outlives_two_heartbeats' THEN 'lease_s must be at least twice heartbeat_s'
           WHEN 'projects_name_is_a_folder_name' THEN 'name must be 1 to 63 letters, digits and _ . + -, with a letter or digit first'
           WHEN 'projects_workscript_is_a_file_name' THEN 'workscript must be a file name of letters, digits and _ . + -, without a folder'
           WHEN 'projects_mergescript_is_a_file_name' THEN 'mergescript must be a file name of letters, digits and _ . + -, without a folder'
           WHEN 'projects_mergescript_is_not_the_workscript' THEN 'mergescript and workscript must be two files'
           END,
           CASE WHEN w.words IS NOT NULL THEN format('%s must be one of %s', w.words[1],
                                                     regexp_replace(w.words[2], '''|::text', '', 'g'))
                WHEN r.range IS NULL THEN replace(regexp_replace(c.conname, '^projects_', ''), '_', ' ')
                WHEN r.range[3] IS NULL THEN format('%s must be %s or more', r.range[1], r.range[2])
                ELSE format('%s must be from %s to %s', r.range[1], r.range[2], r.range[3]) END)
           || ', not ' || (SELECT string_agg(osgprod._shortened(p_values ->> a.attname), ' and ' ORDER BY k.n)
                             FROM unnest(c.conkey) WITH ORDINALITY AS k (attnum, n)
                             JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.attnum)
      FROM pg_constraint c
     CROSS JOIN regexp_match(pg_get_expr(c.conbin, c.conrelid),
                             '^\(+(\w+) >= (\d+)\)(?: AND \(\1 <= (\d+)\)\))?$') AS r(range)
     CROSS JOIN regexp_match(pg_get_expr(c.conbin, c.conrelid), '^\((\w+) = ANY \(ARRAY\[(.*)\]\)\)$') AS w(words)
     WHERE c.conrelid = 'osgprod_data.projects'::regclass AND c.conname = p_constraint AND c.contype = 'c'
$fn$;
