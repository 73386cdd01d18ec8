CREATE FUNCTION osgprod.find(p_text text, p_limit int DEFAULT 100)
RETURNS TABLE (kind text, project text, name text, found text, banned_until timestamptz, banned_by text, command text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Finds what a text names: a job, a cluster, a run, a file, a worker, a site, a project.
-- Parameters: p_text   as operators write it: 4711.0, 4711, 90001, hd_rawdata_090001_003 (with or without .evio), a path, a
--                      host or address or host@address, a site, a project; control characters count as spaces
--             p_limit  rows at most [1 .. 100000]
-- Returns:    a row for each thing in each project: its kind, the project (NULL = of none), its full name, a summary,
--             of a worker the end and the name of the ban that keeps it from work, NULL = it is not banned,
--             and the command that shows more, as a shell takes it. Workers and sites are those of the last seven days
-- Errors:     OG108 no text, or limit out of range
DECLARE
    v_text text := btrim(regexp_replace(p_text, '[\u0001-\u001f\u007f-\u009f]', ' ', 'g'));
    v_job  text[] := regexp_match(v_text, '^(\d{1,9})\.(\d{1,9})$');
    v_number int := CASE WHEN v_text ~ '^\d{1,9}$' THEN v_text::int END;
    v_name    text := substring(v_text, '^(.*)@[^@]*$');  -- of host@address
    v_address text := substring(v_text, '(?:^|@)([0-9a-f.:]+)$');
BEGIN
    IF coalesce(v_text, '') = '' THEN
        RAISE EXCEPTION 'the text to find is empty' USING ERRCODE = 'OG108',
            HINT = 'name a job like 4711.0, a file, a run, a worker, a site or a project';
    END IF;
    RETURN QUERY
    WITH recent AS MATERIALIZED (
        -- There may be a million attempts: compare the stored columns, and make the names of the few workers that are left.
        SELECT g.project_id, osgprod._worker(g.client, g.host) AS worker, g.site, g.attempts, g.last_at
          FROM (SELECT a.project_id, a.client, a.host, a.site, count(*) AS attempts, max(a.started_at) AS last_at
                  FROM attempts a
                 WHERE a.started_at > now() - interval '7 d' AND v_job IS NULL
                   AND (a.host = v_text OR a.site = v_text OR starts_with(a.host, v_text || '.')
                        OR host(a.client) = v_address AND (v_name IS NULL OR coalesce(a.host, 'unnamed') = v_name))
                 GROUP BY a.project_id, a.client, a.host, a.site) g
    )
    SELECT x.kind, x.project, x.name, x.found, x.banned_until, x.banned_by, x.command FROM (
        SELECT 1 AS place, 'project' AS kind, p.name AS project, p.name AS name, p.state::text AS found,
               NULL::timestamptz AS banned_until, NULL AS banned_by, format('osgprod status %s', p.name) AS command
          FROM projects p WHERE p.name = v_text
        UNION ALL
        SELECT 2, 'job', p.name, v_text, format('%s, the last one at %s UTC on %s', osgprod._counted(max(a.nstart), 'start'),
                   to_char(max(a.started_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'),
                   (array_agg(osgprod._worker(a.client, a.host) ORDER BY a.nstart DESC))[1]),
               NULL, NULL, format('osgprod jobs %s %s', p.name, v_text)
          FROM projects p
          JOIN attempts a ON a.project_id = p.project_id AND a.cluster = v_job[1]::int AND a.process = v_job[2]::int
         GROUP BY p.name
        UNION ALL
        SELECT 3, 'cluster', p.name, v_text, osgprod._counted(count(DISTINCT a.process), 'job'),
               NULL, NULL, format('osgprod jobs %s --cluster %s', p.name, v_text)
          FROM projects p JOIN attempts a ON a.project_id = p.project_id AND a.cluster = v_number
         GROUP BY p.name
        UNION ALL
        SELECT 4, 'run', p.name, v_text, format('%s, %s of them complete', osgprod._counted(count(*), 'file'),
                   count(*) FILTER (WHERE f.state = 'complete')), NULL, NULL, format('osgprod files %s --runs %s', p.name, v_text)
          FROM loaded_files f JOIN projects p ON p.project_id = f.project_id WHERE f.run = v_number GROUP BY p.name
        UNION ALL
        SELECT 5, 'file', p.name, w.path, coalesce(f.state::text, 'registered, and work of no project'),
               NULL, NULL,
               CASE WHEN p.name IS NULL THEN format('osgprod rawdata list --path %s', osgprod._shell_word(w.path))
                    ELSE format('osgprod slices list %s --path %s', p.name, osgprod._shell_word(w.path)) END
          FROM rawdata w
          LEFT JOIN loaded_files f ON f.rawdata_id = w.rawdata_id
          LEFT JOIN projects p ON p.project_id = f.project_id
         WHERE v_number IS NULL AND v_job IS NULL
           AND (w.path = v_text OR w.filename = v_text OR w.filename = v_text || '.evio')
        UNION ALL
        SELECT 6, 'worker', p.name, r.worker, format('%s in seven days, the last one at %s UTC',
                   osgprod._counted(r.attempts, 'attempt'), to_char(r.last_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI')),
               b.until, b.worker, format('osgprod attempts %s --worker %s', p.name, osgprod._shell_word(r.worker))
          FROM (SELECT r.project_id, r.worker, max(r.site) AS site, sum(r.attempts) AS attempts, max(r.last_at) AS last_at
                  FROM recent r WHERE r.site IS DISTINCT FROM v_text GROUP BY r.project_id, r.worker) r
          JOIN projects p ON p.project_id = r.project_id
          LEFT JOIN LATERAL osgprod._ban_of(p.project_id, r.worker, r.site) b ON true
        UNION ALL
        SELECT 7, 'site', p.name, r.site, format('%s on %s in seven days',
                   osgprod._counted(sum(r.attempts), 'attempt'), osgprod._counted(count(DISTINCT r.worker), 'worker')),
               NULL, NULL, format('osgprod attempts %s --site %s', p.name, osgprod._shell_word(r.site))
          FROM recent r JOIN projects p ON p.project_id = r.project_id
         WHERE r.site = v_text GROUP BY p.name, r.site) x
     ORDER BY x.place, x.project, x.name LIMIT osgprod._limit(p_limit);
END
$fn$;

COMMENT ON FUNCTION osgprod.find(text, int) IS
'Finds what a text names: a job, a cluster, a run, a file, a worker, a site, a project; with the command that shows more. For osgprod_worker and osgprod_operator.';

CREATE FUNCTION osgprod._shell_word(p_text text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- Quotes a text as one argument of a command: in single quotes if a shell could interpret it. Jobs choose these texts.
    SELECT CASE WHEN p_text ~ '^[A-Za-z0-9_./=@:%+-]+$' THEN p_text
                ELSE '''' || replace(p_text, '''', '''"''"''') || '''' END
$fn$;
