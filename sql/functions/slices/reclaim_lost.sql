CREATE FUNCTION osgprod.reclaim_lost(
    p_project text DEFAULT NULL, p_cluster int DEFAULT NULL, p_process int DEFAULT NULL, p_schedd text DEFAULT NULL)
RETURNS TABLE (project text, reclaimed int)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Requeues slices and merges whose lease has expired (tick does the same on the shims' timer), or those of jobs that are known to
-- be gone, removed by condor_rm for instance, without waiting for their leases. Backups of these jobs end. Backoffs that have ended
-- do so now, too.
-- Promise:    a repeated or simultaneous call does no harm; what another session has locked at this moment, or a project that an
--             operator has alone, is left to the next call, so nothing here waits. A job taken for gone that is not, gets its slice or
--             merge back at its next heartbeat, as long as nobody else has it. The removal of a job counts against neither slice
--             nor worker.
-- Parameters: p_project  project name; NULL = all projects
--             p_cluster  HTCondor's cluster whose jobs are gone [0 .. 2147483647]; NULL = those whose lease has expired
--             p_process  only this one of them [0 .. 2147483647]; NULL = all of the cluster
--             p_schedd   only jobs of this access point, as they name it; NULL = of all: they may have the same numbers
-- Returns:    a row for each project in which slices or merges were reclaimed: how many
-- Errors:     OG301 unknown project; OG108 a process or an access point without a cluster; OG901 isolation level
-- Locks:      see _requeue_project
-- Source:     docs/design.md I4
DECLARE
    v_project osgprod_data.projects;
BEGIN
    PERFORM osgprod._require_read_committed();
    PERFORM osgprod._get_project(p_project) WHERE p_project IS NOT NULL;
    IF p_process IS NOT NULL AND p_cluster IS NULL THEN
        RAISE EXCEPTION 'process % is given without its cluster', p_process USING ERRCODE = 'OG108',
            HINT = format('add the cluster: osgprod reclaim %s --cluster N --process M', coalesce(p_project, 'PROJECT'));
    ELSIF p_schedd IS NOT NULL AND p_cluster IS NULL THEN
        RAISE EXCEPTION 'access point % is given without a cluster', osgprod._quoted(p_schedd) USING ERRCODE = 'OG108',
            HINT = 'name the cluster whose jobs are gone';
    END IF;
    FOR v_project IN
        SELECT p.* FROM projects p WHERE p.name = coalesce(p_project, p.name) ORDER BY p.project_id
    LOOP
        project := v_project.name;
        reclaimed := osgprod._requeue_project(v_project, p_cluster, p_process, p_schedd);
        IF reclaimed > 0 THEN
            PERFORM osgprod._log_operation('reclaim_lost', v_project.name, jsonb_build_object('cluster', p_cluster,
                'process', p_process), reclaimed);
            RETURN NEXT;
        END IF;
    END LOOP;
END
$fn$;

COMMENT ON FUNCTION osgprod.reclaim_lost(text, int, int, text) IS
'Requeues slices and merges whose lease has expired, or those of a cluster that is gone; a row for each project that had some. For osgprod_operator; tick does the same on the shims'' timer.';
