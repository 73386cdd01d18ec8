CREATE FUNCTION osgprod._evidence_adler32(p_adler32 text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- A checksum of a report's evidence as 8 lower-case hexadecimal digits; NULL when it is none. Some storage drops leading
    -- zeros.
    SELECT CASE WHEN p_adler32 ~ '^[0-9A-Fa-f]{1,8}$' THEN lpad(lower(p_adler32), 8, '0') END
$fn$;

CREATE FUNCTION osgprod._kept_evidence(INOUT kept osgprod.report_call, OUT ignored text)
LANGUAGE plpgsql STABLE
AS $fn$
-- Leaves out of a report the evidence and the measured resources that can't be kept, since these must not keep it from being recorded.
-- Parameters: kept  the report
-- Returns:    kept; ignored: what is left out, as a line for the answer; NULL = nothing
DECLARE
    v_wrong text[] := array_remove(ARRAY[
        CASE WHEN kept.events < 0 THEN 'events (below 0)' END,
        CASE WHEN kept.outputs NOT BETWEEN 0 AND 2147483647 THEN 'outputs (not from 0 to 2147483647)' END,
        CASE WHEN kept.output_bytes < 0 THEN 'output_bytes (below 0)' END,
        CASE WHEN kept.output_adler32 !~ '^[0-9A-Fa-f]{1,8}$' THEN 'output_adler32 (not 8 hexadecimal digits)' END,
        CASE WHEN kept.memory_bytes < 0 THEN 'memory_bytes (below 0)' END,
        CASE WHEN kept.wall_s NOT BETWEEN 0 AND 2147483647 THEN 'wall_s (not from 0 to 2147483647)' END,
        CASE WHEN kept.cpu_s < 0 THEN 'cpu_s (below 0)' END,
        CASE WHEN kept.fetched_bytes < 0 THEN 'fetched_bytes (below 0)' END,
        CASE WHEN kept.disk_bytes < 0 THEN 'disk_bytes (below 0)' END], NULL);
BEGIN
    ignored := E'\nignored: ' || nullif(array_to_string(v_wrong, ', '), '');
    -- The name before the reason is the field's.
    kept := jsonb_populate_record(kept, (SELECT jsonb_object_agg(split_part(w, ' ', 1), NULL::text) FROM unnest(v_wrong) w));
    kept.output_adler32 := osgprod._evidence_adler32(kept.output_adler32);
END
$fn$;

CREATE FUNCTION osgprod._events_of(p_attempt osgprod_data.attempts)
RETURNS bigint LANGUAGE plpgsql STABLE
AS $fn$
-- The number of events of the slice of an attempt that has none on record, since release 0.11.0 or an older one leased it.
-- Parameters: p_attempt  the attempt
BEGIN
    RETURN (osgprod._slice_file(p_attempt.rawdata_id, p_attempt.block1, p_attempt.block2, '', '')).events;
END
$fn$;

CREATE FUNCTION osgprod._contradicted_slices(p_project_id int)
RETURNS TABLE (rawdata_id int, block1 int, block2 int, contradiction text) LANGUAGE sql STABLE
AS $fn$
    -- Lists the slices that are done by an attempt whose number of events contradicts the index. (STABLE is what lets its
    -- callers inline it: a LIMIT of theirs ends the search.)
    -- Parameters: p_project_id  project
    -- Returns:    a row a slice; the partial index reports_contradicted makes it cheap
    SELECT s.rawdata_id, s.block1, s.block2, r.contradiction
      FROM osgprod_data.reports r
     CROSS JOIN LATERAL (  -- LIMIT: by key, never by reading all attempts of the project
         SELECT a.rawdata_id, a.block1 FROM osgprod_data.attempts a
          WHERE a.project_id = r.project_id AND a.cluster = r.cluster AND a.process = r.process AND a.nstart = r.nstart
          LIMIT 1) a
     CROSS JOIN LATERAL (
         SELECT t.* FROM osgprod_data.slices t
          WHERE t.project_id = r.project_id AND t.rawdata_id = a.rawdata_id AND t.block1 = a.block1 AND t.state = 'done'
            AND t.cluster = r.cluster AND t.process = r.process AND t.nstart = r.nstart
          LIMIT 1) s
     WHERE r.project_id = p_project_id AND r.contradiction IS NOT NULL AND r.by_worker AND r.outcome = 'done'
$fn$;
