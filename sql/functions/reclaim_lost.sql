CREATE FUNCTION osgprod.reclaim_lost(p_project text DEFAULT NULL)
RETURNS TABLE (project text, reclaimed int)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Makes slices ready again whose attempts have been silent past their lease. tick does the same on the shims' timer.
-- Promise:    a repeated or simultaneous call does no harm; slices that somebody has locked at this moment are left to
--             the next call, so nothing here waits.
-- Parameters: p_project  project name; NULL = all projects
-- Returns:    a row for each project in which slices were reclaimed: how many
-- Errors:     OG301 unknown project
-- Locks:      slices SKIP LOCKED; a file when a slice is split
-- Source:     docs/design.md I4
DECLARE
    v_project osgprod_data.projects;
BEGIN
    PERFORM osgprod._get_project(p_project) WHERE p_project IS NOT NULL;
    FOR v_project IN
        SELECT p.* FROM projects p WHERE p.name = coalesce(p_project, p.name) ORDER BY p.project_id
    LOOP
        project := v_project.name;
        reclaimed := osgprod._reclaim_project(v_project);
        IF reclaimed > 0 THEN
            RETURN NEXT;
        END IF;
    END LOOP;
END
$fn$;

COMMENT ON FUNCTION osgprod.reclaim_lost(text) IS
'Makes slices ready again whose attempts have been silent past their lease; a row for each project that had some. For osgprod_operator; tick does the same on the shims'' timer.';

CREATE FUNCTION osgprod._reclaim_due(p_project_id int)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Reclaims lost slices of one project if any lease can have run out by now and no neighbour is at it.
-- Parameters: p_project_id  project
-- Returns:    true when something was reclaimed. One row is read when no lease can have run out, so that thousands of
--             waiting jobs may ask.
-- Source:     docs/design.md I4
DECLARE
    v_project osgprod_data.projects;
BEGIN
    SELECT p.* INTO v_project FROM osgprod_data.projects p
     WHERE p.project_id = p_project_id AND p.next_due_at <= now();
    IF NOT FOUND OR NOT pg_try_advisory_xact_lock(p_project_id, 0) THEN  -- no file has the number 0
        RETURN false;
    END IF;
    RETURN osgprod._reclaim_project(v_project) > 0;
END
$fn$;

CREATE FUNCTION osgprod._reclaim_project(p_project osgprod_data.projects)
RETURNS int LANGUAGE plpgsql VOLATILE
AS $fn$
-- Takes back every slice of the project whose lease has run out, and notes when the next one can.
-- Parameters: p_project  the project's row
-- Returns:    how many [slices]
-- Locks:      slices SKIP LOCKED, the project's row SKIP LOCKED
DECLARE
    v_slice   osgprod_data.slices;
    v_count   int := 0;
    v_next_at timestamptz;
BEGIN
    FOR v_slice IN
        -- Leased slices are in files in flight: thousands of rows are read, not millions.
        SELECT s.* FROM osgprod_data.loaded_files f
          JOIN osgprod_data.slices s ON s.project_id = f.project_id AND s.rawdata_id = f.rawdata_id
         WHERE f.project_id = p_project.project_id AND f.state IN ('begun', 'cut')
           AND s.state = 'leased' AND s.due_at <= now()
           FOR NO KEY UPDATE OF s SKIP LOCKED
    LOOP
        PERFORM osgprod._record_loss(v_slice);
        PERFORM osgprod._fail_slice(p_project, v_slice, 'lost', NULL);
        v_count := v_count + 1;
    END LOOP;
    SELECT min(s.due_at) INTO v_next_at FROM osgprod_data.loaded_files f
      JOIN osgprod_data.slices s ON s.project_id = f.project_id AND s.rawdata_id = f.rawdata_id
     WHERE f.project_id = p_project.project_id AND f.state IN ('begun', 'cut') AND s.state = 'leased';
    -- A slice lent after this look is due a whole lease from now at the earliest. Somebody who has the project's row
    -- locked, like an operator's open transaction, must not stand between a lease and its slice: then it is not noted, and
    -- the next call looks again.
    UPDATE osgprod_data.projects p
       SET next_due_at = least(v_next_at, now() + make_interval(secs => p.lease_s))
     WHERE p.project_id = (SELECT q.project_id FROM osgprod_data.projects q
                            WHERE q.project_id = p_project.project_id FOR NO KEY UPDATE SKIP LOCKED);
    RETURN v_count;
END
$fn$;

CREATE FUNCTION osgprod._record_loss(p_slice osgprod_data.slices)
RETURNS void LANGUAGE sql VOLATILE
AS $fn$
    -- Writes the server's own verdict on the attempt that holds a slice: lost.
    INSERT INTO osgprod_data.reports (project_id, cluster, process, nstart, by_worker, outcome, reported_at, ran_s,
           nblocks, worker, site)
    SELECT a.project_id, a.cluster, a.process, a.nstart, false, 'lost', now(),
           extract(epoch FROM now() - a.started_at)::int, p_slice.block2 - p_slice.block1,
           osgprod._worker(a.client, a.host), a.site
      FROM osgprod_data.attempts a
     WHERE a.project_id = p_slice.project_id AND a.cluster = p_slice.cluster AND a.process = p_slice.process
       AND a.nstart = p_slice.nstart
    ON CONFLICT DO NOTHING
$fn$;

CREATE FUNCTION osgprod._settle_files(p_project_id int)
RETURNS boolean LANGUAGE plpgsql VOLATILE
AS $fn$
-- Marks cut files finished whose slices are all done or quarantined, up to the first, in order, that isn't.
-- Promise:    each file is read to its end once when it is finished; asking again is cheap.
-- Parameters: p_project_id  project
-- Returns:    true when some loaded file is not finished
-- Locks:      each finished file's row
DECLARE
    v_file record;
    v_told boolean := false;
BEGIN
    FOR v_file IN
        SELECT f.rawdata_id FROM osgprod_data.loaded_files f
         WHERE f.project_id = p_project_id AND f.state = 'cut'
         ORDER BY f.run, f.seqno, f.rawdata_id
    LOOP
        IF EXISTS (SELECT FROM osgprod_data.slices s
                    WHERE s.project_id = p_project_id AND s.rawdata_id = v_file.rawdata_id
                      AND s.state IN ('leased', 'ready')) THEN
            RETURN true;
        END IF;
        UPDATE osgprod_data.loaded_files f SET state = 'finished'
         WHERE f.project_id = p_project_id AND f.rawdata_id = v_file.rawdata_id AND f.state = 'cut';
        IF FOUND THEN
            v_told := true;
            PERFORM osgprod._tell(p_project_id, 'file-finished', jsonb_build_object('path',
                (SELECT w.path FROM osgprod_data.rawdata w WHERE w.rawdata_id = v_file.rawdata_id)));
        END IF;
    END LOOP;
    IF EXISTS (SELECT FROM osgprod_data.loaded_files f
                WHERE f.project_id = p_project_id AND f.state IN ('fresh', 'begun')) THEN
        RETURN true;
    END IF;
    IF v_told THEN
        PERFORM osgprod._tell(p_project_id, 'project-done', '{}');
    END IF;
    RETURN false;
END
$fn$;
