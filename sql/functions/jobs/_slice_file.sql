CREATE FUNCTION osgprod._slice_file(
    p_rawdata_id int, p_block1 int, p_block2 int, p_xrootd_prefix text, p_strip_prefix text, p_site text DEFAULT NULL)
RETURNS osgprod.content LANGUAGE plpgsql STABLE
AS $fn$
-- Describes a slice as a separate EVIO file: lead, its blocks, a trailer.
-- Parameters: p_rawdata_id  file;  p_block1, p_block2  half-open range of blocks, 0-based
--             p_xrootd_prefix, p_strip_prefix  the project's;  p_site  of the job
-- Returns:    url of the whole file; urls: all in order of preference, NULL = only url; filename without folder; size_bytes [bytes]
--             and events of the slice's file; the pieces whose concatenation it is, one a line: 'range OFFSET LENGTH' [bytes] or 'hex ...'
-- Source:     EVIO 4 block header, EVIO 6 file header; which readers accept such a file: docs/evio.md
DECLARE
    v_file      record;
    v_starts_at bigint;
    v_ends_at   bigint;
    v_bits      bit(192);
    v_urls      text[];
    v_url       text;  -- first without its prefix
BEGIN
    -- One look into the index, from the first entry to the last: a second one costs more than what lies between. And one
    -- small statement: a query that works everything out takes three times as long to start.
    SELECT r.path, r.filename, r.trailer, r.gaps, coalesce(r.prefix, p_xrootd_prefix) AS prefix,
           substring(r.block_index FROM 12 * p_block1 + 1 FOR 12 * (p_block2 - p_block1) + 12) AS entries,
           CASE p_block1 WHEN 0 THEN CASE r.evio_version WHEN 6 THEN r.lead2 END  -- its file header
                         WHEN greatest(r.first_block, 1) THEN r.lead1 ELSE r.lead2 END AS lead
      INTO v_file FROM osgprod_data.rawdata r WHERE r.rawdata_id = p_rawdata_id;
    -- The first and the last entry: 64 bits of offset and 32 of events each.
    v_bits := ('x' || encode(substring(v_file.entries FROM 1 FOR 12)
        || substring(v_file.entries FROM 12 * (p_block2 - p_block1) + 1), 'hex'))::bit(192);
    v_starts_at := coalesce((v_file.lead).start_at, substring(v_bits FROM 1 FOR 64)::bigint);
    v_ends_at := substring(v_bits FROM 97 FOR 64)::bigint;
    v_url := CASE WHEN p_strip_prefix <> '' AND starts_with(v_file.path, p_strip_prefix || '/')
                   THEN substr(v_file.path, length(p_strip_prefix) + 1) ELSE v_file.path END;
    IF v_file.prefix ~ '[ =]' THEN  -- several, perhaps
        v_urls := osgprod._source_urls(v_file.prefix, v_url, p_site);
        v_url := v_urls[1];
    ELSE
        v_url := osgprod._source_url(v_file.prefix, v_url);
    END IF;
    RETURN ROW(v_url, v_urls, v_file.filename,
        coalesce((v_file.lead).bytes, 0) + length(v_file.trailer)
            + CASE WHEN v_file.gaps IS NULL THEN v_ends_at - v_starts_at
                   ELSE (osgprod._without_gaps(v_starts_at, v_ends_at, v_file.gaps)).bytes END,
        substring(v_bits FROM 161 FOR 32)::bigint - substring(v_bits FROM 65 FOR 32)::bigint + coalesce((v_file.lead).events, 0),
        concat_ws(E'\n', (v_file.lead).pieces,
            CASE WHEN v_file.gaps IS NULL THEN 'range ' || v_starts_at || ' ' || v_ends_at - v_starts_at
                 ELSE (osgprod._without_gaps(v_starts_at, v_ends_at, v_file.gaps)).ranges END,
            'hex ' || nullif(encode(v_file.trailer, 'hex'), '')), NULL)::osgprod.content;
END
$fn$;

CREATE FUNCTION osgprod._source_urls(p_prefix text, p_path text, p_site text)
RETURNS text[] LANGUAGE sql IMMUTABLE
AS $fn$
    -- The URLs of a raw data file for a job: those of its site first, then those for all jobs.
    -- Parameters: p_prefix  see _prefixes;  p_path  of the file;  p_site  of the job, in capitals or not; NULL = not known
    SELECT array_agg(osgprod._source_url(i.prefix, p_path) ORDER BY i.site IS NULL, i.n)
      FROM osgprod._prefixes(p_prefix) i
     WHERE i.site IS NULL OR lower(i.site) = lower(p_site)
$fn$;

CREATE FUNCTION osgprod._source_url(p_prefix text, p_path text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- The URL of a raw data file. Paths are percent-encoded here, once, where the URL is of http or Pelican; XRootD and a file system
    -- take a path as it is.
    -- Parameters: p_prefix  an operator's URL that stays as it is;  p_path  of the file
    SELECT p_prefix || CASE WHEN p_path ~ '[^A-Za-z0-9/._~-]' AND p_prefix ~* '^(https?|davs?|osdf|pelican)://'
                            THEN osgprod._percent_encoded(p_path) ELSE p_path END
$fn$;

CREATE FUNCTION osgprod._percent_encoded(p_path text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- A path with each byte of its UTF-8 percent-encoded that is neither a slash nor unreserved.
    -- Source: RFC 3986, sections 2.1 and 2.3
    SELECT string_agg(CASE WHEN c ~ '[A-Za-z0-9/._~-]' THEN c
                           ELSE regexp_replace(upper(encode(convert_to(c, 'UTF8'), 'hex')), '(..)', '%\1', 'g') END,
                      '' ORDER BY n)
      FROM regexp_split_to_table(p_path, '') WITH ORDINALITY AS s (c, n)
$fn$;

CREATE FUNCTION osgprod._without_gaps(
    p_starts_at bigint, p_ends_at bigint, p_gaps int8range[], OUT bytes bigint, OUT ranges text)
LANGUAGE sql IMMUTABLE
AS $fn$
    -- A range of bytes without the gaps in it. (A separate function, so that a file without gaps, as nearly all are, does not
    -- prepare a query for them.)
    -- Parameters: p_starts_at, p_ends_at  half-open range [bytes];  p_gaps  not overlapping, none at either end of it
    -- Returns:    how many bytes they are, and its parts as lines 'range OFFSET LENGTH' [bytes]
    SELECT sum(w.ends_at - w.starts_at)::bigint,
           string_agg('range ' || w.starts_at || ' ' || w.ends_at - w.starts_at, E'\n' ORDER BY w.starts_at)
      FROM (SELECT lag(upper(g.gap), 1, p_starts_at) OVER (ORDER BY lower(g.gap)) AS starts_at, lower(g.gap) AS ends_at
              FROM (SELECT u.gap FROM unnest(p_gaps) AS u (gap)
                     WHERE lower(u.gap) >= p_starts_at AND upper(u.gap) <= p_ends_at
                     UNION ALL SELECT int8range(p_ends_at, NULL)) AS g (gap)) w
     WHERE w.starts_at < w.ends_at
$fn$;

CREATE FUNCTION osgprod._lead(p_preamble jsonb, p_block1 int, p_offset bigint)
RETURNS osgprod_data.lead LANGUAGE plpgsql IMMUTABLE
AS $fn$
-- Works out what the file of a slice that starts at p_block1 begins with.
-- Parameters: p_preamble  pieces in order (docs/evio.md): offset and bytes or hex; events; from_block and, where it is not
--                         for all later slices, until_block: first and last block at which slices with the piece start
--             p_block1    first block of the slice;  p_offset  where it starts in the raw data file [bytes]
-- Returns:    see type lead
DECLARE
    v_lead  osgprod_data.lead := (NULL, 0, 0, NULL);
    v_piece jsonb;
BEGIN
    FOR v_piece IN SELECT e.p FROM jsonb_array_elements(p_preamble) WITH ORDINALITY AS e (p, n)
                    WHERE (e.p ->> 'from_block')::int <= p_block1
                      AND p_block1 <= coalesce((e.p ->> 'until_block')::int, p_block1) ORDER BY e.n LOOP
        v_lead.events := v_lead.events + coalesce((v_piece ->> 'events')::bigint, 0);
        IF (v_piece ->> 'offset')::bigint + (v_piece ->> 'bytes')::bigint = p_offset THEN
            v_lead.start_at := (v_piece ->> 'offset')::bigint;
            CONTINUE;
        END IF;
        v_lead.bytes := v_lead.bytes + coalesce((v_piece ->> 'bytes')::bigint, length(v_piece ->> 'hex') / 2);
        v_lead.pieces := concat_ws(E'\n', v_lead.pieces,
            coalesce('hex ' || (v_piece ->> 'hex'), format('range %s %s', v_piece ->> 'offset', v_piece ->> 'bytes')));
    END LOOP;
    RETURN v_lead;
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
