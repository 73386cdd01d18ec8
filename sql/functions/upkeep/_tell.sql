CREATE FUNCTION osgprod._tell(p_project_id int, p_event text, p_details jsonb)
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Tells whoever listens on channel osgprod (osgprod watch does) of something an operator may want to know, as one JSON
    -- object with event, project, at, and the details. For rare events only: a NOTIFY is delivered under a lock that all
    -- transactions with a NOTIFY share. Texts are cut so that it fits into the 8000 bytes that a payload has.
    SELECT pg_notify('osgprod', (jsonb_build_object('event', p_event, 'project', p.name, 'at', now())
        || coalesce((SELECT jsonb_object_agg(d.key, CASE WHEN jsonb_typeof(d.value) = 'string'
                THEN to_jsonb(left(d.value #>> '{}', 800)) ELSE d.value END) FROM jsonb_each(p_details) d), '{}'))::text)
      FROM osgprod_data.projects p WHERE p.project_id = p_project_id
$fn$;
