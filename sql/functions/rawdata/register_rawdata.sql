CREATE FUNCTION osgprod.register_rawdata(
    p_path         text,
    p_run          int,
    p_seqno        int,
    p_size_bytes   bigint,
    p_nblocks      int,
    p_first_block  int,
    p_byte_order   text,
    p_has_trailer  boolean,
    p_last_has_bit boolean,
    p_trailer      bytea,
    p_preamble     jsonb,
    p_block_index  bytea)
RETURNS TABLE (status text, differences text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Makes a raw data file known by its block index, or compares it with what is known.
-- Promise:    a known file is never changed by this; a repeated call says same.
-- Parameters: p_path         absolute path as the workers' server knows it
--             p_run, p_seqno from its name hd_rawdata_RRRRRR_SSS.evio
--             p_size_bytes   [bytes]
--             p_nblocks      data blocks, the trailer not counted [1 ..]
--             p_first_block  first block that is work: 1, or 0 when block 0 holds physics
--             p_byte_order   big or little;  p_has_trailer, p_last_has_bit  how the file ends
--             p_trailer      32 bytes that end a slice, in the file's byte order
--             p_preamble     pieces that slices begin with (docs/evio.md)
--             p_block_index  nblocks + 1 entries of 12 bytes, big-endian: offset of a block [bytes, 64 bits], events
--                            before it [32 bits]; the last entry is the end of the data
-- Returns:    one row: new, same, or differs with the differences named
-- Errors:     OG108 a value that can't be
-- Source:     EVIO 4 block header
DECLARE
    v_known rawdata;
BEGIN
    INSERT INTO rawdata (path, run, seqno, size_bytes, nblocks, first_block, byte_order, has_trailer,
            last_has_bit, trailer, preamble, lead1, lead2, block_index)
    VALUES (p_path, p_run, p_seqno, p_size_bytes, p_nblocks, p_first_block, p_byte_order,
            p_has_trailer, p_last_has_bit, p_trailer, p_preamble,
            osgprod._lead(p_preamble, 1, osgprod._int8_at(p_block_index, 12)), osgprod._lead(p_preamble, 2, NULL),
            p_block_index)
    ON CONFLICT ON CONSTRAINT rawdata_path_unique DO NOTHING;
    IF FOUND THEN
        RETURN QUERY SELECT 'new', NULL::text;
        RETURN;
    END IF;
    SELECT r.* INTO v_known FROM rawdata r WHERE r.path = p_path FOR NO KEY UPDATE;
    SELECT string_agg(format('%s: known %s, found %s', d.what, d.known, d.found), '; ') INTO differences
      FROM (VALUES ('run', v_known.run::text, p_run::text), ('seqno', v_known.seqno::text, p_seqno::text),
                   ('size_bytes', v_known.size_bytes::text, p_size_bytes::text),
                   ('nblocks', v_known.nblocks::text, p_nblocks::text),
                   ('first_block', v_known.first_block::text, p_first_block::text),
                   ('byte_order', v_known.byte_order, p_byte_order),
                   ('has_trailer', v_known.has_trailer::text, p_has_trailer::text),
                   ('last_has_bit', v_known.last_has_bit::text, p_last_has_bit::text),
                   ('trailer', encode(v_known.trailer, 'hex'), encode(p_trailer, 'hex')),
                   ('block index', left(md5(v_known.block_index), 8), left(md5(p_block_index), 8)),
                   ('preamble', left(md5(v_known.preamble::text), 8), left(md5(p_preamble::text), 8))
           ) AS d (what, known, found)
     WHERE d.known IS DISTINCT FROM d.found;
    status := CASE WHEN differences IS NULL THEN 'same' ELSE 'differs' END;
    UPDATE rawdata r SET checked_at = now() WHERE r.path = p_path AND differences IS NULL;
    RETURN NEXT;
EXCEPTION
    WHEN check_violation OR not_null_violation THEN
        RAISE EXCEPTION 'raw data file %: %', p_path, SQLERRM USING ERRCODE = 'OG108',
            HINT = 'osgprod rawdata load reads all of this from the file itself';
END
$fn$;

COMMENT ON FUNCTION osgprod.register_rawdata(text, int, int, bigint, int, int, text, boolean, boolean, bytea, jsonb, bytea) IS
'Makes a raw data file known by its block index (offsets in bytes), or compares it with what is known: new, same or differs. For osgprod_operator.';
