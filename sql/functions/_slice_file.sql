CREATE FUNCTION osgprod._slice_file(
    p_project osgprod_data.projects, p_rawdata_id int, p_block1 int, p_block2 int,
    OUT url text, OUT filename text, OUT size_bytes bigint, OUT events bigint, OUT pieces text[])
LANGUAGE plpgsql STABLE
AS $fn$
-- Tells what a slice is as an EVIO file of its own: preamble, its blocks, a trailer.
-- Parameters: p_project  the project's row;  p_rawdata_id  file;  p_block1, p_block2  half-open range of blocks, 0-based
-- Returns:    url of the whole file, filename without folder, size_bytes [bytes] and events of the slice's file, and the
--             pieces whose concatenation it is: 'range OFFSET LENGTH' [bytes] or 'hex ...'
-- Source:     EVIO 4 block header; which readers accept such a file: docs/evio.md
DECLARE
    v_file   record;
    v_entry1 bytea;
    v_entry2 bytea;
    v_offset bigint;
    v_bytes  bigint;
    v_piece  record;
BEGIN
    SELECT r.path, r.nblocks, r.last_has_bit, r.trailer, r.preamble,
           substring(r.block_index FROM 12 * p_block1 + 1 FOR 12) AS entry1,
           substring(r.block_index FROM 12 * p_block2 + 1 FOR 12) AS entry2
      INTO v_file FROM osgprod_data.rawdata r WHERE r.rawdata_id = p_rawdata_id;
    url := p_project.xrootd_prefix || CASE
        WHEN p_project.strip_prefix <> '' AND starts_with(v_file.path, p_project.strip_prefix || '/')
        THEN substr(v_file.path, length(p_project.strip_prefix) + 1) ELSE v_file.path END;
    filename := substring(v_file.path FROM '[^/]+$');
    v_offset := osgprod._int8_at(v_file.entry1, 0);
    v_bytes := osgprod._int8_at(v_file.entry2, 0) - v_offset;
    size_bytes := v_bytes;
    events := osgprod._int4_at(v_file.entry2, 8) - osgprod._int4_at(v_file.entry1, 8);

    FOR v_piece IN
        SELECT (p ->> 'offset')::bigint AS first, (p ->> 'bytes')::bigint AS bytes, p ->> 'hex' AS hex,
               (p ->> 'events')::bigint AS events
          FROM jsonb_array_elements(v_file.preamble) WITH ORDINALITY AS e (p, n)
         WHERE (p ->> 'from_block')::int <= p_block1
         ORDER BY n
    LOOP
        events := events + coalesce(v_piece.events, 0);
        size_bytes := size_bytes + coalesce(v_piece.bytes, length(v_piece.hex) / 2);
        IF v_piece.first + v_piece.bytes = v_offset THEN
            -- The preamble's last range runs on into the slice: one request less.
            v_offset := v_piece.first;
            v_bytes := v_bytes + v_piece.bytes;
        ELSE
            pieces := pieces || coalesce('hex ' || v_piece.hex, format('range %s %s', v_piece.first, v_piece.bytes));
        END IF;
    END LOOP;
    pieces := pieces || format('range %s %s', v_offset, v_bytes);
    -- A last block that says so itself needs no trailer behind it.
    IF NOT (v_file.last_has_bit AND p_block2 = v_file.nblocks) THEN
        pieces := pieces || ('hex ' || encode(v_file.trailer, 'hex'));
        size_bytes := size_bytes + 32;
    END IF;
END
$fn$;

CREATE FUNCTION osgprod._int8_at(p_bytes bytea, p_at int)
RETURNS bigint LANGUAGE sql IMMUTABLE
AS $fn$
    -- The big-endian 64-bit number at byte p_at (0-based) of p_bytes.
    SELECT ('x' || encode(substring(p_bytes FROM p_at + 1 FOR 8), 'hex'))::bit(64)::bigint
$fn$;

CREATE FUNCTION osgprod._int4_at(p_bytes bytea, p_at int)
RETURNS bigint LANGUAGE sql IMMUTABLE
AS $fn$
    -- The big-endian unsigned 32-bit number at byte p_at (0-based) of p_bytes.
    SELECT ('x' || encode(substring(p_bytes FROM p_at + 1 FOR 4), 'hex'))::bit(32)::bigint
$fn$;
