CREATE FUNCTION osgprod.note_health()
RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Notifies of each project whose health has become bad, also for another reason than before, or is no longer bad. osgprod
-- notify run calls it.
-- Promise:    a repeated call notifies of nothing twice.
-- Returns:    how many projects it notified of
-- Errors:     none
-- Locks:      advisory (0, -2): one at a time; the others return at once; the projects' rows, FOR KEY SHARE SKIP LOCKED
DECLARE
    v_now   record;
    v_count int := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(0, -2) THEN
        RETURN 0;
    END IF;
    FOR v_now IN
        SELECT DISTINCT ON (p.project_id) p.project_id, h.level, h.what, h.found, h.advice, coalesce(n.level, 'well') AS before,
               n.what AS what_before
          FROM osgprod.health() h
          JOIN projects p ON p.name = h.project
          LEFT JOIN noted_health n ON n.project_id = p.project_id
         ORDER BY p.project_id, h.level = 'bad' DESC, h.what
    LOOP
        PERFORM FROM projects p WHERE p.project_id = v_now.project_id FOR KEY SHARE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;  -- another session removes it
        IF v_now.level = 'bad' AND (v_now.before <> 'bad' OR v_now.what <> v_now.what_before) THEN
            PERFORM osgprod._notify(v_now.project_id, 'health-bad', jsonb_build_object('what', v_now.what, 'found', v_now.found,
                'advice', v_now.advice));
        ELSIF v_now.level <> 'bad' AND v_now.before = 'bad' THEN
            PERFORM osgprod._notify(v_now.project_id, 'health-well', jsonb_build_object('what', v_now.what_before));
        ELSE
            CONTINUE;
        END IF;
        v_count := v_count + 1;
        INSERT INTO noted_health AS h (project_id, level, what) VALUES (v_now.project_id, v_now.level, v_now.what)
        ON CONFLICT (project_id) DO UPDATE SET level = excluded.level, what = excluded.what;
    END LOOP;
    RETURN v_count;
END
$fn$;

COMMENT ON FUNCTION osgprod.note_health() IS
'Notifies of each project whose health has become bad, or is no longer bad; returns how many. For osgprod_operator.';
