CREATE FUNCTION osgprod.verify(p_project text)
RETURNS TABLE (path text, block1 int, block2 int, fault text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Recounts a project from its tables: each block of each loaded file in exactly one slice or not yet cut, and each
-- slice's state, place in the list of idle ones, and report in agreement.
-- Parameters: p_project  project name
-- Returns:    a row for each fault found; none = all is well
-- Errors:     OG301 unknown project
-- Source:     docs/design.md I1-I6
DECLARE
    v_project_id int := (osgprod._get_project(p_project)).project_id;
BEGIN
    -- I1, I2: the lengths of a file's slices add up to what they span, and every end but the last is a beginning.
    -- Sums of lengths and of hashes tell that without sorting; the first file that fails is named as a whole.
    RETURN QUERY
    WITH recount AS (
        SELECT s.rawdata_id, min(s.block1) AS first, max(s.block2) AS last, sum(s.block2 - s.block1) AS blocks,
               sum(hashint4(s.block2)::bigint - hashint4(s.block1)) AS chain,
               count(*) FILTER (WHERE s.state IN ('ready', 'quarantined')) AS idle,
               count(*) FILTER (WHERE s.state IN ('ready', 'leased')) AS unsettled
          FROM slices s WHERE s.project_id = v_project_id GROUP BY s.rawdata_id
    ), idle AS (
        SELECT i.rawdata_id, count(*) AS idle FROM idle_slices i WHERE i.project_id = v_project_id GROUP BY i.rawdata_id
    ), faults AS (
        SELECT coalesce(f.rawdata_id, c.rawdata_id) AS rawdata_id, f.block1, f.block2, CASE
                WHEN f.rawdata_id IS NULL THEN 'slices of a file that is not loaded'
                WHEN c.first <> f.block1 OR c.last > f.block2 THEN 'slices reach beyond the work of the file'
                WHEN c.blocks <> c.last - c.first OR c.chain <> hashint4(c.last)::bigint - hashint4(c.first)
                    THEN 'slices overlap or leave a gap'
                WHEN f.state = 'fresh' AND c.rawdata_id IS NOT NULL THEN 'slices of a file that is called fresh'
                WHEN f.state <> 'fresh' AND c.rawdata_id IS NULL THEN 'no slices of a file that is called ' || f.state
                WHEN (f.state IN ('cut', 'finished')) <> (coalesce(c.last, -1) = f.block2)
                    THEN format('cut to block %s but called %s', c.last, f.state)
                WHEN f.state = 'finished' AND c.unsettled > 0 THEN 'unsettled slices of a file that is called finished'
                WHEN coalesce(c.idle, 0) <> coalesce(i.idle, 0) THEN 'the list of idle slices disagrees with their states'
            END AS fault
          FROM (SELECT l.* FROM loaded_files l WHERE l.project_id = v_project_id) f
          FULL JOIN recount c ON c.rawdata_id = f.rawdata_id
          LEFT JOIN idle i ON i.rawdata_id = coalesce(f.rawdata_id, c.rawdata_id)
    )
    SELECT w.path, x.block1, x.block2, x.fault FROM faults x LEFT JOIN rawdata w ON w.rawdata_id = x.rawdata_id
     WHERE x.fault IS NOT NULL;

    RETURN QUERY
    SELECT w.path, s.block1, s.block2, format('%s, but listed as idle until %s', s.state, i.not_before)
      FROM idle_slices i
      JOIN slices s ON s.project_id = i.project_id AND s.rawdata_id = i.rawdata_id AND s.block1 = i.block1
      LEFT JOIN rawdata w ON w.rawdata_id = i.rawdata_id
     WHERE i.project_id = v_project_id
       AND s.state <> CASE WHEN i.not_before = 'infinity' THEN 'quarantined' ELSE 'ready' END::slice_state;
END
$fn$;

COMMENT ON FUNCTION osgprod.verify(text) IS
'Recounts a project from its tables: each block covered once, states in agreement; returns rows only where that is not so. For osgprod_operator.';
