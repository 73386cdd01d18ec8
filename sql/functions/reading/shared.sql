CREATE FUNCTION osgprod._steps_back(p_hours int)
RETURNS timestamptz[] LANGUAGE sql STABLE
AS $fn$
    -- Since when to look for the latest rows: ten minutes, an hour, six, a day, a week, and at last the whole time.
    SELECT array_agg(greatest(now() - s.step, osgprod._since(p_hours)) ORDER BY s.step)
      FROM unnest(ARRAY['10 min', '1 h', '6 h', '1 d', '7 d', '1 y']::interval[]) AS s (step)
$fn$;
