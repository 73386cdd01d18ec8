CREATE FUNCTION osgprod.record_locality(p_found jsonb)
RETURNS TABLE (online bigint, nearline bigint, gone bigint, unknown bigint, files_skipped bigint, files_resumed bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Records what storage says of raw data files. Projects with skip_nearline assign nothing new of files that are nearline,
-- until something else is recorded of them.
-- Promise:    a repeated call changes nothing but the times.
-- Parameters: p_found  list of {"file_id": N, "locality": L}; L online, nearline, gone, or null = storage can't tell, or gave
--                      no answer: what is recorded stays
-- Returns:    one row: how many entries of p_found say which; how many files a project skips from now on, and how many no
--             longer, each counted once for each project
-- Errors:     OG108 another locality, or p_found is not such a list; OG901 isolation level
-- Locks:      which files are on tape only, alone (advisory: 0, -3): it waits for calls that load files; the rows of these raw
--             data files; see _mark_on_tape
DECLARE
    v_project record;
    v_marked  record;
BEGIN
    PERFORM osgprod._require_read_committed();
    PERFORM pg_advisory_xact_lock(0, -3);  -- see _mark_on_tape
    UPDATE rawdata r SET locality = n.locality, locality_at = now()
      FROM jsonb_to_recordset(p_found) AS n (file_id int, locality text)
     WHERE r.rawdata_id = n.file_id AND n.locality IS NOT NULL;
    SELECT count(*) FILTER (WHERE n.locality = 'online'), count(*) FILTER (WHERE n.locality = 'nearline'),
           count(*) FILTER (WHERE n.locality = 'gone'), count(*) FILTER (WHERE n.locality IS NULL), 0, 0
      INTO online, nearline, gone, unknown, files_skipped, files_resumed
      FROM jsonb_to_recordset(p_found) AS n (locality text);
    FOR v_project IN SELECT p.project_id, p.skip_nearline FROM projects p ORDER BY p.project_id LOOP
        v_marked := osgprod._mark_on_tape(v_project.project_id, v_project.skip_nearline);
        files_skipped := files_skipped + v_marked.skipped;
        files_resumed := files_resumed + v_marked.resumed;
    END LOOP;
    RETURN NEXT;
EXCEPTION WHEN data_exception THEN
    RAISE EXCEPTION 'p_found is not a list of files: %', SQLERRM USING ERRCODE = 'OG108',
        HINT = '[{"file_id": 1, "locality": "online"}]';
WHEN check_violation THEN
    RAISE EXCEPTION 'the locality of a file is online, nearline or gone, not %', (
        SELECT osgprod._quoted(n.locality) FROM jsonb_to_recordset(p_found) AS n (locality text)
         WHERE n.locality NOT IN ('online', 'nearline', 'gone') LIMIT 1)
        USING ERRCODE = 'OG108', HINT = 'osgprod rawdata check-online PROJECT asks storage';
END
$fn$;

COMMENT ON FUNCTION osgprod.record_locality(jsonb) IS
'Records which raw data files are online, on tape only, or gone, as storage says; projects with skip_nearline skip those on tape. For osgprod_operator.';
