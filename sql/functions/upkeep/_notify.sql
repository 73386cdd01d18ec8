CREATE FUNCTION osgprod._notify(p_project_id int, p_event text, p_details jsonb)
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Notifies of something that an operator may want to know: records it for osgprod notify, and sends it to the
    -- listeners of channel osgprod, like osgprod watch, as one JSON object with event, project, at, and the details.
    -- For rare events only: transactions with a NOTIFY commit one after the other. Texts are shortened, since a payload has
    -- less than 8000 bytes.
    WITH noted AS (
        INSERT INTO osgprod_data.notifications (project_id, event, details)
        SELECT p.project_id, p_event, jsonb_build_object('event', p_event, 'project', p.name, 'at', now())
               || coalesce((SELECT jsonb_object_agg(d.key, CASE WHEN jsonb_typeof(d.value) = 'string'
                       THEN to_jsonb(left(d.value #>> '{}', 800)) ELSE d.value END) FROM jsonb_each(p_details) d), '{}')
          FROM osgprod_data.projects p WHERE p.project_id = p_project_id
        RETURNING details)
    SELECT pg_notify('osgprod', n.details::text) FROM noted n
$fn$;

CREATE FUNCTION osgprod._prune_notifications()
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Deletes notifications that are older than 30 days, delivered or not.
    DELETE FROM osgprod_data.notifications n WHERE n.noted_at < now() - interval '30 days'
$fn$;
