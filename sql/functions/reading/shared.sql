CREATE FUNCTION osgprod._steps_back(p_hours int)
RETURNS timestamptz[] LANGUAGE sql STABLE
AS $fn$
    -- Since when to look for the latest rows: ten minutes, an hour, six, a day, a week, and at last the whole time.
    SELECT array_agg(greatest(now() - s.step, osgprod._since(p_hours)) ORDER BY s.step)
      FROM unnest(ARRAY['10 min', '1 h', '6 h', '1 d', '7 d', '1 y']::interval[]) AS s (step)
$fn$;

CREATE FUNCTION osgprod._time_of(p_qdate bigint)
RETURNS timestamptz LANGUAGE sql IMMUTABLE
AS $fn$
    -- The time of submission that a job sent [s since 1970]; NULL = none, or one that no clock shows (after the year 9999).
    SELECT CASE WHEN p_qdate BETWEEN 0 AND 253402300799 THEN to_timestamp(p_qdate) END
$fn$;

CREATE FUNCTION osgprod._counted(p_number bigint, p_noun text)
RETURNS text LANGUAGE sql IMMUTABLE
AS $fn$
    -- A number with its noun: 1 start, 2 starts.
    SELECT format('%s %s%s', p_number, p_noun, CASE WHEN p_number <> 1 THEN 's' END)
$fn$;
