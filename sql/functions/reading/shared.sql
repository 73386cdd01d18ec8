CREATE FUNCTION osgprod._steps_back(p_hours int)
RETURNS timestamptz[] LANGUAGE sql STABLE
AS $fn$
    -- Since when to look for the latest rows: ten minutes, an hour, six hours, a day, a week, and at last p_hours, which none of
    -- these exceeds.
    -- Parameters: p_hours  how far back at most [h; 1 .. 8760]
    SELECT array_agg(greatest(now() - s.step, osgprod._since(p_hours)) ORDER BY s.step)
      FROM unnest(ARRAY['10 min', '1 h', '6 h', '1 d', '7 d', '1 y']::interval[]) AS s (step)
$fn$;

CREATE FUNCTION osgprod._time_of(p_qdate bigint)
RETURNS timestamptz LANGUAGE sql IMMUTABLE
AS $fn$
    -- The time of submission that a job sent [s since 1970]; NULL = none, or one that no clock shows (after the year 9999).
    SELECT CASE WHEN p_qdate BETWEEN 0 AND 253402300799 THEN to_timestamp(p_qdate) END
$fn$;

CREATE FUNCTION osgprod._counted(p_number numeric, p_one text, p_more text DEFAULT NULL)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- A number with its noun, and with the verb where that follows: 1 start, 2 starts; 1 block is left, 2 blocks are left.
    -- Parameters: p_number  how many;  p_one, p_more  the words behind 1, and behind other numbers; NULL = p_one with an s
    SELECT format('%s %s', p_number, CASE p_number WHEN 1 THEN p_one ELSE coalesce(p_more, p_one || 's') END)
$fn$;
