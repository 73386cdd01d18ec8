CREATE FUNCTION osgprod.archive(p_project text, p_limit int DEFAULT 10000, p_dry_run boolean DEFAULT false)
RETURNS TABLE (files int, slices bigint, attempts bigint, reports bigint, waiting bigint, more boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Moves one batch of a production that has ended out of the hot tables: its slices, then its attempts with their reports.
-- Call it until more is false.
-- Promise:    a batch is whole or not at all, and nothing is ever in both places or in none: a call after one that was
--             killed goes on where that ended, calls at once take turns. The first call closes the project (its state
--             becomes archived, so nothing can begin again in it) and moves nothing yet. No table and no row of another
--             project is locked. A repeated call after the last one finds nothing to do.
--             Files with a quarantined block stay where they are with their attempts, so that quarantined() tells why.
-- Parameters: p_project  project name;  p_limit  slices or attempts of a batch, about [rows; 1 .. 100000]
--             p_dry_run  only tell what all batches together would move
-- Returns:    one row: files whose slices were moved, slices, attempts and reports moved by this call; waiting: attempts
--             that can't be moved yet, since their reports are not in the tallies before ten minutes have passed; more:
--             call again
-- Errors:     OG301 unknown project; OG405 the production has not ended; OG108 limit out of range; OG502 files of the
--             project are begun anew at this moment; OG505 a call that moves slices does not end
-- Locks:      the project, as every caller (advisory: project_id, -1), alone when it is closed; its row in archivings;
--             the slices, attempts and reports that are moved
DECLARE
    v_project projects := osgprod._get_project(p_project);
    v_limit   int := osgprod._limit(p_limit);
BEGIN
    IF p_dry_run THEN
        RETURN QUERY SELECT f.* FROM osgprod._foretell_archive(v_project) f;
        RETURN;
    END IF;
    IF v_project.state <> 'archived' THEN
        PERFORM osgprod._close_project(v_project);
        RETURN QUERY SELECT 0, 0::bigint, 0::bigint, 0::bigint, 0::bigint, true;
        RETURN;
    END IF;
    IF NOT osgprod._enter_project(v_project.project_id) THEN
        PERFORM osgprod._raise_start_over(p_project);
    END IF;
    PERFORM FROM archivings a WHERE a.project_id = v_project.project_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN  -- begun anew since this call began
        PERFORM osgprod._raise_start_over(p_project);
    END IF;
    SELECT m.files, m.slices INTO files, slices FROM osgprod._archive_slices(v_project.project_id, v_limit) m;
    IF files > 0 THEN
        RETURN QUERY SELECT files, slices, 0::bigint, 0::bigint, 0::bigint, true;
        RETURN;
    END IF;
    RETURN QUERY SELECT 0, 0::bigint, m.attempts, m.reports, m.waiting, m.more
      FROM osgprod._archive_attempts(v_project, v_limit) m;
END
$fn$;

COMMENT ON FUNCTION osgprod.archive(text, int, boolean) IS
'Moves one batch of p_limit [rows] of a production that has ended out of the hot tables; call it until more is false; p_dry_run only tells. For osgprod_operator.';

CREATE FUNCTION osgprod._close_project(p_project osgprod_data.projects)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Makes an ended production archived: nothing is lent, loaded or recycled in it from now on.
-- Parameters: p_project  the project's row
-- Errors:     OG405 work is left, or there never was any; OG505 a call that moves slices does not end
-- Locks:      the project (advisory: project_id, -1) alone: it waits for calls that move slices now
BEGIN
    PERFORM osgprod._check_has_ended(p_project);  -- before a lock that jobs at work would notice
    PERFORM osgprod._enter_alone(p_project);
    PERFORM osgprod._settle_files(p_project.project_id, true);
    PERFORM osgprod._check_has_ended(p_project);
    UPDATE osgprod_data.projects p SET state = 'archived' WHERE p.project_id = p_project.project_id;
    INSERT INTO osgprod_data.archivings (project_id) VALUES (p_project.project_id) ON CONFLICT DO NOTHING;
END
$fn$;

CREATE FUNCTION osgprod._check_has_ended(p_project osgprod_data.projects)
RETURNS void LANGUAGE plpgsql STABLE
AS $fn$
-- Raises unless all work of the project is done or in quarantine.
-- Parameters: p_project  the project's row
-- Errors:     OG405
DECLARE
    v_progress record;
BEGIN
    SELECT g.files, g.blocks - g.blocks_done - g.blocks_quarantined AS blocks_left INTO v_progress
      FROM osgprod.progress(p_project => p_project.name) g;
    IF v_progress.blocks_left > 0 OR v_progress.files = 0 THEN
        RAISE EXCEPTION 'project % has not ended: % blocks of its % files are left', p_project.name, v_progress.blocks_left,
            v_progress.files USING ERRCODE = 'OG405',
            HINT = format('osgprod files %s --state open shows where; all have to be done or in quarantine', p_project.name);
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._foretell_archive(p_project osgprod_data.projects)
RETURNS TABLE (files int, slices bigint, attempts bigint, reports bigint, waiting bigint, more boolean)
LANGUAGE plpgsql STABLE
AS $fn$
-- Tells what archive() would move in all its batches.
-- Parameters: p_project  the project's row
-- Returns:    as archive(); waiting is told when it is done
-- Errors:     OG405
BEGIN
    PERFORM osgprod._check_has_ended(p_project);
    SELECT count(*) INTO files FROM osgprod._files_to_archive(p_project.project_id) f;
    SELECT count(*) INTO slices FROM osgprod._files_to_archive(p_project.project_id) f
      JOIN osgprod_data.slices s ON s.project_id = f.project_id AND s.rawdata_id = f.rawdata_id;
    WITH going AS (
        SELECT a.cluster, a.process, a.nstart FROM osgprod_data.attempts a
         WHERE a.project_id = p_project.project_id AND NOT EXISTS (
               SELECT FROM osgprod_data.idle_slices i
                WHERE i.project_id = a.project_id AND i.rawdata_id = a.rawdata_id)
    )
    SELECT (SELECT count(*) FROM going),
           (SELECT count(*) FROM going g
              JOIN osgprod_data.reports r ON r.project_id = p_project.project_id AND r.cluster = g.cluster
                                         AND r.process = g.process AND r.nstart = g.nstart)
      INTO attempts, reports;
    more := false;
    RETURN NEXT;
END
$fn$;

CREATE FUNCTION osgprod._files_to_archive(p_project_id int)
RETURNS SETOF osgprod_data.loaded_files LANGUAGE sql STABLE
AS $fn$
    -- Files of an ended production of which every block is done, and whose slices are not in the archive yet.
    SELECT f.* FROM osgprod_data.loaded_files f
     WHERE f.project_id = p_project_id AND f.archived_at IS NULL AND NOT EXISTS (
           SELECT FROM osgprod_data.idle_slices i WHERE i.project_id = f.project_id AND i.rawdata_id = f.rawdata_id)
$fn$;

CREATE FUNCTION osgprod._archive_slices(p_project_id int, p_limit int, OUT files int, OUT slices bigint)
LANGUAGE plpgsql VOLATILE
AS $fn$
-- Moves the slices of the next files, each file's in one statement.
-- Parameters: p_project_id  an archived project, entered;  p_limit  no more files when so many slices are moved [slices]
-- Returns:    how many; no files: there are none left
-- Locks:      the slices. Nobody else changes them: recycle is refused, a late report finds them done
DECLARE
    v_file osgprod_data.loaded_files;
    v_rows bigint;
BEGIN
    files := 0;
    slices := 0;
    FOR v_file IN
        SELECT f.* FROM osgprod._files_to_archive(p_project_id) f WHERE f.state = 'finished'
         ORDER BY f.rawdata_id LIMIT p_limit
    LOOP
        EXIT WHEN slices >= p_limit;
        WITH moved AS (
            DELETE FROM osgprod_data.slices s
             WHERE s.project_id = v_file.project_id AND s.rawdata_id = v_file.rawdata_id
            RETURNING s.*
        )
        INSERT INTO osgprod_data.archived_slices SELECT m.* FROM moved m;
        GET DIAGNOSTICS v_rows = ROW_COUNT;
        UPDATE osgprod_data.loaded_files f SET archived_at = now()
         WHERE f.project_id = v_file.project_id AND f.rawdata_id = v_file.rawdata_id;
        files := files + 1;
        slices := slices + v_rows;
    END LOOP;
END
$fn$;

CREATE FUNCTION osgprod._archive_attempts(
    p_project osgprod_data.projects, p_limit int,
    OUT attempts bigint, OUT reports bigint, OUT waiting bigint, OUT more boolean)
LANGUAGE plpgsql VOLATILE
-- What statistics say of a table from which millions of rows have just gone is wrong.
SET enable_seqscan = off SET enable_bitmapscan = off
AS $fn$
-- Moves the next attempts on archived files, in the order of their keys, with their reports; and reports that came since
-- on attempts that are in the archive already.
-- Promise:    counts stay right: who counts takes tallied reports from the tallies, and only those are moved. Rows that are
--             dead but not yet vacuumed are not walked through again: the last key is noted.
-- Parameters: p_project  an archived project, its row in archivings locked;  p_limit  how many keys [attempts]
-- Returns:    see archive(); more = false: the last key was reached, the next call begins with the first again
-- Locks:      the attempts and reports
DECLARE
    v_project_id int := p_project.project_id;
    v_from       osgprod_data.archivings;
    v_to         record;
    v_tallied    timestamptz;
    v_rows       tid[];
BEGIN
    PERFORM osgprod._tally_if_due(p_project);
    SELECT p.tallied_until INTO v_tallied FROM osgprod_data.projects p WHERE p.project_id = v_project_id;
    SELECT a.* INTO v_from FROM osgprod_data.archivings a WHERE a.project_id = v_project_id;
    SELECT a.cluster, a.process, a.nstart INTO v_to FROM osgprod_data.attempts a
     WHERE a.project_id = v_project_id
       AND (a.cluster, a.process, a.nstart) > (v_from.cluster, v_from.process, v_from.nstart)
     ORDER BY a.cluster, a.process, a.nstart OFFSET p_limit - 1 LIMIT 1;
    more := FOUND;
    IF NOT FOUND THEN
        SELECT 2147483647 AS cluster, 2147483647 AS process, 2147483647 AS nstart INTO v_to;
    END IF;

    -- Rows are picked in one statement and moved by their place in the next: both go by key or place whatever the planner
    -- believes. A place holds, since history is never updated (I6).
    SELECT coalesce(array_agg(k.ctid) FILTER (WHERE k.untallied = 0), '{}'), count(*) FILTER (WHERE k.untallied > 0)
      INTO v_rows, waiting
      FROM (SELECT a.ctid, (SELECT f.archived_at FROM osgprod_data.loaded_files f
                             WHERE f.project_id = a.project_id AND f.rawdata_id = a.rawdata_id) AS archived_at,
                   (SELECT count(*) FROM osgprod_data.reports r
                     WHERE r.project_id = a.project_id AND r.cluster = a.cluster AND r.process = a.process
                       AND r.nstart = a.nstart AND r.reported_at >= v_tallied) AS untallied
              FROM osgprod_data.attempts a
             WHERE a.project_id = v_project_id
               AND (a.cluster, a.process, a.nstart) > (v_from.cluster, v_from.process, v_from.nstart)
               AND (a.cluster, a.process, a.nstart) <= (v_to.cluster, v_to.process, v_to.nstart)) k
     WHERE k.archived_at IS NOT NULL;
    WITH moved AS (
        DELETE FROM osgprod_data.attempts a WHERE a.ctid = ANY (v_rows) RETURNING a.*
    )
    INSERT INTO osgprod_data.archived_attempts SELECT m.* FROM moved m;
    GET DIAGNOSTICS attempts = ROW_COUNT;
    SELECT coalesce(array_agg(k.ctid), '{}') INTO v_rows
      FROM (SELECT r.ctid, (SELECT a.nstart FROM osgprod_data.archived_attempts a
                             WHERE a.project_id = r.project_id AND a.cluster = r.cluster AND a.process = r.process
                               AND a.nstart = r.nstart) AS archived
              FROM osgprod_data.reports r
             WHERE r.project_id = v_project_id AND r.reported_at < v_tallied
               AND (r.cluster, r.process, r.nstart) > (v_from.cluster, v_from.process, v_from.nstart)
               AND (r.cluster, r.process, r.nstart) <= (v_to.cluster, v_to.process, v_to.nstart)) k
     WHERE k.archived IS NOT NULL;
    WITH moved AS (
        DELETE FROM osgprod_data.reports r WHERE r.ctid = ANY (v_rows) RETURNING r.*
    )
    INSERT INTO osgprod_data.archived_reports SELECT m.* FROM moved m;
    GET DIAGNOSTICS reports = ROW_COUNT;

    UPDATE osgprod_data.archivings a
       SET cluster = CASE WHEN more THEN v_to.cluster ELSE -1 END, process = CASE WHEN more THEN v_to.process ELSE -1 END,
           nstart = CASE WHEN more THEN v_to.nstart ELSE -1 END
     WHERE a.project_id = v_project_id;
END
$fn$;

CREATE FUNCTION osgprod._tally_if_due(p_project osgprod_data.projects)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Tallies a project's reports when ten minutes have passed: when a production has ended there may be no shim to do it.
-- Parameters: p_project  the project's row
-- Locks:      advisory (0, 0), tried, and only when there is something to tally; see _tally
BEGIN
    IF p_project.tallied_until < osgprod._ten_minutes(clock_timestamp() - interval '30 s')
       AND pg_try_advisory_xact_lock(0, 0) THEN
        PERFORM osgprod._tally(p_project);
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._unarchive(p_project_id int)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Opens an archived project again, for whoever begins files of it anew: its attempts and reports come back, so that each
-- job goes on counting its starts; slices of the other files stay in the archive.
-- Parameters: p_project_id  project, which the caller has for itself (advisory: project_id, -1)
BEGIN
    UPDATE osgprod_data.projects p SET state = 'active' WHERE p.project_id = p_project_id AND p.state = 'archived';
    IF NOT FOUND THEN
        RETURN;
    END IF;
    DELETE FROM osgprod_data.archivings a WHERE a.project_id = p_project_id;
    WITH back AS (
        DELETE FROM osgprod_data.archived_attempts a WHERE a.project_id = p_project_id RETURNING a.*
    )
    INSERT INTO osgprod_data.attempts SELECT b.* FROM back b;
    WITH back AS (
        DELETE FROM osgprod_data.archived_reports r WHERE r.project_id = p_project_id RETURNING r.*
    )
    INSERT INTO osgprod_data.reports SELECT b.* FROM back b;
END
$fn$;

CREATE FUNCTION osgprod._check_not_archived(p_project_id int)
RETURNS void LANGUAGE plpgsql STABLE
AS $fn$
-- Raises when the project is archived.
-- Parameters: p_project_id  project; asked anew, since its row may have been read before its lock was taken
-- Errors:     OG406
DECLARE
    v_name text;
BEGIN
    SELECT p.name INTO v_name FROM osgprod_data.projects p WHERE p.project_id = p_project_id AND p.state = 'archived';
    IF FOUND THEN
        RAISE EXCEPTION 'project % is archived', v_name USING ERRCODE = 'OG406',
            HINT = 'its work can only be begun anew: osgprod slices load --start-over; new work is for a new project';
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._all_attempts(p_project_id int)
RETURNS SETOF osgprod_data.attempts LANGUAGE sql STABLE
AS $fn$
    -- Attempts wherever they are. (This and the next ones are inlined: a condition on their rows reaches both tables.)
    SELECT a.* FROM osgprod_data.attempts a WHERE a.project_id = p_project_id
    UNION ALL
    SELECT a.* FROM osgprod_data.archived_attempts a WHERE a.project_id = p_project_id
$fn$;

CREATE FUNCTION osgprod._all_reports(p_project_id int)
RETURNS SETOF osgprod_data.reports LANGUAGE sql STABLE
AS $fn$
    -- Reports wherever they are.
    SELECT r.* FROM osgprod_data.reports r WHERE r.project_id = p_project_id
    UNION ALL
    SELECT r.* FROM osgprod_data.archived_reports r WHERE r.project_id = p_project_id
$fn$;

CREATE FUNCTION osgprod._all_slices(p_project_id int)
RETURNS SETOF osgprod_data.slices LANGUAGE sql STABLE
AS $fn$
    -- Slices wherever they are.
    SELECT s.* FROM osgprod_data.slices s WHERE s.project_id = p_project_id
    UNION ALL
    SELECT s.* FROM osgprod_data.archived_slices s WHERE s.project_id = p_project_id
$fn$;
