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
    p_block_index  bytea,
    p_gaps         int8range[] DEFAULT NULL,
    p_has_bor      boolean     DEFAULT NULL,
    p_evio_version int         DEFAULT 4,
    p_prefix       text        DEFAULT NULL)
RETURNS TABLE (status text, differences text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Registers a raw data file with its block index, or compares the file with the registered one.
-- Promise:    The blocks of a registered file that is work of a project never change: the numbers in its slices keep their
--             meaning. What older releases registered is renewed as far as that allows. A call that returned new or renewed
--             returns same when it is repeated.
-- Parameters: p_path         absolute path as the workers' server knows it
--             p_run, p_seqno from the file's name
--             p_size_bytes   [bytes]
--             p_nblocks      blocks that hold events [1 ..]
--             p_first_block  first block that is work [0 ..]
--             p_byte_order   big or little;  p_has_trailer, p_last_has_bit  how the file ends
--             p_trailer      bytes that end a slice, in the file's byte order [32, or 0 in EVIO 6]
--             p_preamble     pieces that slices begin with (docs/evio.md)
--             p_block_index  nblocks + 1 entries of 12 bytes, big-endian: offset of a block [bytes, 64 bits], events
--                            before it [32 bits]; the last entry is the end of the data
--             p_gaps         ranges between blocks that are part of no slice, in order [bytes]; NULL = none
--             p_has_bor      is a begin-of-run record among the preamble? NULL = not known; of a registered file: as it was
--             p_evio_version 4 or 6
--             p_prefix       of this file, in the place of the project's (see add_project); NULL = as it was; empty = none
-- Returns:    one row: new; same; renewed: an older release registered it, and what its slices begin with is now right, and, if
--             no project works on it, its blocks, too; or differs with the differences named: nothing is changed
-- Errors:     OG108 a value that can't be
-- Locks:      the file's row
-- Source:     EVIO block and record headers
DECLARE
    v_prefix text := CASE WHEN p_prefix <> '' THEN osgprod._checked_prefix(p_prefix) END;
    v_known rawdata;
    v_lead1 lead;
    v_lead2 lead;
BEGIN
    v_lead1 := osgprod._lead(p_preamble, greatest(p_first_block, 1), osgprod._int8_at(p_block_index, 12 * greatest(p_first_block, 1)));
    v_lead2 := osgprod._lead(p_preamble, 2147483647, NULL);
    LOOP
        INSERT INTO rawdata (path, run, seqno, size_bytes, nblocks, first_block, byte_order, has_trailer, last_has_bit,
                trailer, preamble, lead1, lead2, block_index, gaps, has_bor, evio_version, prefix, events)
        VALUES (p_path, p_run, p_seqno, p_size_bytes, p_nblocks, p_first_block, p_byte_order, p_has_trailer,
                p_last_has_bit, p_trailer, p_preamble, v_lead1, v_lead2, p_block_index, p_gaps, p_has_bor,
                p_evio_version, CASE WHEN p_prefix IS NULL THEN v_known.prefix ELSE v_prefix END,
                osgprod._int4_at(p_block_index, 12 * p_nblocks + 8)
                    - osgprod._int4_at(p_block_index, 12 * p_first_block + 8))
        ON CONFLICT ON CONSTRAINT rawdata_path_unique DO NOTHING;
        IF FOUND THEN
            PERFORM osgprod._log_operation('register_rawdata', NULL,
                jsonb_build_object('folder', regexp_replace(p_path, '/[^/]*$', '')), 1);
            RETURN QUERY SELECT CASE WHEN v_known.path IS NULL THEN 'new' ELSE 'renewed' END, NULL::text;
            RETURN;
        END IF;
        SELECT r.* INTO v_known FROM rawdata r WHERE r.path = p_path FOR NO KEY UPDATE;
        SELECT string_agg(format('%s: known %s, found %s', d.what, d.known, d.found), '; ') INTO differences
          FROM (VALUES ('run', v_known.run::text, p_run::text), ('seqno', v_known.seqno::text, p_seqno::text),
                       ('size_bytes', v_known.size_bytes::text, p_size_bytes::text),
                       ('nblocks', v_known.nblocks::text, p_nblocks::text),
                       -- What an older release gave a project keeps its first block, which may be too early.
                       ('first_block', v_known.first_block::text, CASE WHEN v_known.preamble = p_preamble
                        THEN least(v_known.first_block, p_first_block) ELSE p_first_block END::text),
                       ('byte_order', v_known.byte_order, p_byte_order),
                       ('has_trailer', v_known.has_trailer::text, p_has_trailer::text),
                       ('last_has_bit', v_known.last_has_bit::text, p_last_has_bit::text),
                       ('trailer', encode(v_known.trailer, 'hex'), encode(p_trailer, 'hex')),
                       ('block index', left(md5(v_known.block_index), 8), left(md5(p_block_index), 8)),
                       ('empty blocks', left(md5(v_known.gaps::text), 8), left(md5(p_gaps::text), 8)),
                       ('EVIO version', v_known.evio_version::text, p_evio_version::text),
                       ('preamble', left(md5(v_known.preamble::text), 8), left(md5(p_preamble::text), 8))
               ) AS d (what, known, found)
         WHERE d.known IS DISTINCT FROM d.found;
        IF differences IS NULL THEN
            UPDATE rawdata r SET checked_at = now(), has_bor = coalesce(p_has_bor, r.has_bor),
                   prefix = CASE WHEN p_prefix IS NULL THEN r.prefix ELSE v_prefix END
             WHERE r.path = p_path;
            RETURN QUERY SELECT 'same', NULL::text;
            RETURN;
        END IF;
        IF (v_known.size_bytes, v_known.run, v_known.seqno) <> (p_size_bytes, p_run, p_seqno)
           OR v_known.has_bor IS NOT NULL OR p_has_bor IS NULL THEN
            EXIT;  -- the file has changed: an older release would have found the same size
        END IF;
        BEGIN
            DELETE FROM rawdata r WHERE r.rawdata_id = v_known.rawdata_id;
        EXCEPTION WHEN foreign_key_violation THEN  -- a project works on it, or loads it now
            IF (v_known.nblocks, v_known.byte_order, v_known.block_index, v_known.trailer)
               <> (p_nblocks, p_byte_order, p_block_index, p_trailer) OR p_gaps IS NOT NULL THEN
                EXIT;
            END IF;
            UPDATE rawdata r
               SET preamble = p_preamble, lead2 = v_lead2, has_trailer = p_has_trailer, last_has_bit = p_last_has_bit,
                   lead1 = CASE greatest(r.first_block, 1) WHEN greatest(p_first_block, 1) THEN v_lead1 ELSE v_lead2 END,
                   has_bor = p_has_bor, checked_at = now(),
                   prefix = CASE WHEN p_prefix IS NULL THEN r.prefix ELSE v_prefix END
             WHERE r.path = p_path;
            PERFORM osgprod._log_operation('register_rawdata', NULL,
                jsonb_build_object('folder', regexp_replace(p_path, '/[^/]*$', '')), 1);
            RETURN QUERY SELECT 'renewed', NULL::text;
            RETURN;
        END;
    END LOOP;
    status := 'differs';
    RETURN NEXT;
EXCEPTION
    WHEN check_violation OR not_null_violation OR data_exception THEN
        RAISE EXCEPTION 'raw data file %: %', osgprod._label(p_path, 512), SQLERRM USING ERRCODE = 'OG108',
            HINT = 'osgprod rawdata load reads all of this from the file itself';
END
$fn$;

COMMENT ON FUNCTION osgprod.register_rawdata(text, int, int, bigint, int, int, text, boolean, boolean, bytea, jsonb, bytea, int8range[], boolean, int, text) IS
'Registers a raw data file with its block index (offsets in bytes), or compares it with the registered one: new, same, renewed or differs. For osgprod_operator.';
