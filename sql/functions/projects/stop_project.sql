CREATE FUNCTION osgprod.stop_project(p_project text)
RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Pauses a project, and tells each running job at its next heartbeat to end.
-- Promise:    that a job is stopped is nobody's fault: it counts against neither its slice nor its worker. A success that is
--             reported all the same counts. set_project with another state than paused ends it; jobs that got the order by then
--             are gone. A repeated call does no harm.
-- Parameters: p_project  project name
-- Returns:    how many jobs still run: leased slices and merges, and backup attempts
-- Errors:     OG301 unknown project
-- Locks:      the project's row
DECLARE
    v_project osgprod_data.projects := osgprod._get_project(p_project);
BEGIN
    UPDATE projects p SET state = 'paused', stopped_at = now(), pause_cause = NULL, pause_reason = NULL,
           paused_at = NULL, probe_at = NULL, resumed_at = CASE WHEN p.pause_cause IS NULL THEN p.resumed_at ELSE now() END
     WHERE p.project_id = v_project.project_id AND p.stopped_at IS NULL;
    IF FOUND THEN
        PERFORM osgprod._log_operation('stop_project', p_project, NULL, 1);
    ELSE
        PERFORM osgprod._get_project(p_project);  -- another session may have removed it
    END IF;
    RETURN (SELECT count(*) FROM osgprod._leases(v_project.project_id));
END
$fn$;

COMMENT ON FUNCTION osgprod.stop_project(text) IS
'Pauses a project and tells each running job at its next heartbeat to end; returns how many still run. For osgprod_operator.';
