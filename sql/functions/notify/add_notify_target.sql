CREATE FUNCTION osgprod.add_notify_target(
    p_name text, p_place text, p_project text DEFAULT NULL, p_events text[] DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Adds somebody who gets notifications from now on, or changes what a target gets.
-- Promise:    a repeated call changes nothing more. What was delivered stays delivered. No secret is stored: place only names
--             where the deliverer finds the address.
-- Parameters: p_name     of the target: letters, digits, '_', '.', '-', a letter or digit first [1 .. 63 characters]
--             p_place    env:VARIABLE or file:/PATH, of which osgprod notify run reads the address
--             p_project  only notifications of this project; NULL = of all
--             p_events   only these (docs/sql.md "Events" has the names); NULL = all but the frequent ones
-- Errors:     OG301 unknown project; OG108 bad name, place or event
-- Locks:      of p_project see _keep_project; the target's row
DECLARE
    v_wrong text;
    v_changed int;
    v_known text[] := ARRAY['file-finished', 'run-finished', 'project-done', 'block-quarantined', 'worker-banned', 'file-suspended',
                            'file-resumed', 'project-paused', 'project-resumed', 'merge-done', 'merge-failed',
                            'production-delivered', 'health-bad', 'health-well'];
BEGIN
    SELECT e.event INTO v_wrong FROM unnest(p_events) AS e (event) WHERE e.event <> ALL (v_known) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'there is no event %', osgprod._quoted(v_wrong)
            || CASE v_wrong WHEN 'worker-refused' THEN ': it is called worker-banned' ELSE '' END USING ERRCODE = 'OG108',
            HINT = 'events are ' || array_to_string(v_known, ', ');
    END IF;
    INSERT INTO notify_targets AS t (name, place, project_id, events)
    VALUES (p_name, p_place, CASE WHEN p_project IS NOT NULL THEN (osgprod._keep_project(p_project)).project_id END, p_events)
    ON CONFLICT (name) DO UPDATE SET place = excluded.place, project_id = excluded.project_id, events = excluded.events
       WHERE (t.place, t.project_id, t.events) IS DISTINCT FROM (excluded.place, excluded.project_id, excluded.events);
    GET DIAGNOSTICS v_changed = ROW_COUNT;
    PERFORM osgprod._log_operation('add_notify_target', p_project, jsonb_build_object('name', p_name, 'place', p_place, 'events', to_jsonb(p_events)), v_changed);
EXCEPTION
    WHEN check_violation OR not_null_violation THEN
        GET STACKED DIAGNOSTICS v_wrong = CONSTRAINT_NAME;
        IF v_wrong = 'notify_targets_name_is_a_word' OR p_name IS NULL THEN
            RAISE EXCEPTION 'the name of a target can''t be %', osgprod._quoted(p_name) USING ERRCODE = 'OG108',
                HINT = 'a name has 1 to 63 letters, digits, _, . or -, and begins with a letter or digit';
        END IF;
        RAISE EXCEPTION 'the place of a target is env:VARIABLE or file:/PATH, not %', osgprod._quoted(left(p_place, 12) || '...')
            USING ERRCODE = 'OG108', HINT = 'put the address into that file or variable, since it holds secrets: osgprod notify add --help';
END
$fn$;

COMMENT ON FUNCTION osgprod.add_notify_target(text, text, text, text[]) IS
'Adds somebody who gets notifications, by mail, webhook or chat, or changes what a target gets. For osgprod_operator.';
