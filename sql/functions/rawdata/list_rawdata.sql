CREATE FUNCTION osgprod.list_rawdata(
    p_runs int[] DEFAULT NULL, p_path text DEFAULT NULL, p_limit int DEFAULT 100, p_after int DEFAULT NULL)
RETURNS TABLE (file_id int, run int, seqno int, path text, size_bytes bigint, blocks int, events bigint, first_block int,
    byte_order text, has_trailer boolean, projects bigint, registered_at timestamptz, checked_at timestamptz,
    has_bor boolean, evio_version int, prefix text, locality text, locality_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Lists the raw data files that are registered, by run and number.
-- Parameters: p_runs   run numbers; NULL = all;  p_path  path of one file, or an SQL LIKE pattern; NULL = all
--             p_limit  rows at most [1 .. 100000];  p_after  only files after this one, by its file_id; NULL = from the first
-- Returns:    a row a file: size_bytes [bytes], data blocks and events in it, first block that is work, byte order, how
--             many projects have it as work, when it was registered and last found unchanged; has_bor: do its slices begin with
--             a begin-of-run record? NULL = not known; version of the EVIO format; prefix of its
--             own; locality: what storage said last, and when: online, nearline (on tape only) or gone; NULL = not known
-- Errors:     OG108 limit out of range
BEGIN
    RETURN QUERY
    SELECT f.rawdata_id, f.run, f.seqno, f.path, f.size_bytes, f.nblocks,
           osgprod._int4_at(substring(f.block_index FROM 12 * f.nblocks + 1 FOR 12), 8), f.first_block, f.byte_order,
           f.has_trailer,
           (SELECT count(*) FROM projects p JOIN loaded_files l ON l.project_id = p.project_id
             WHERE l.rawdata_id = f.rawdata_id),
           f.registered_at, f.checked_at, f.has_bor, f.evio_version::int, f.prefix, f.locality, f.locality_at
      FROM (SELECT r.* FROM rawdata r
             WHERE (p_runs IS NULL OR r.run = ANY (p_runs)) AND (p_path IS NULL OR r.path = p_path OR r.path LIKE osgprod._pattern(p_path))
               AND (p_after IS NULL OR (r.run, r.seqno, r.rawdata_id) > (
                    SELECT a.run, a.seqno, a.rawdata_id FROM rawdata a WHERE a.rawdata_id = p_after))
             ORDER BY r.run, r.seqno, r.rawdata_id LIMIT osgprod._limit(p_limit)) f
     ORDER BY f.run, f.seqno, f.rawdata_id;
END
$fn$;

COMMENT ON FUNCTION osgprod.list_rawdata(int[], text, int, int) IS
'Lists the raw data files that are registered, chosen by runs and path: size [bytes], blocks, events, byte order. For osgprod_operator.';
