CREATE FUNCTION osgprod.map_files(p_project text, p_rows int DEFAULT 400, p_columns int DEFAULT 300)
RETURNS TABLE (first_run int, last_run int, files bigint, files_finished bigint, blocks bigint, blocks_done bigint,
    blocks_quarantined bigint, files_a_cell int, cells text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Draws a map of the work of a project: runs down, files across, each cell as complete as its files are.
-- Parameters: p_project  project name
--             p_rows     rows at most [1 .. 10000]: several neighbouring runs share one when there are more
--             p_columns  cells of a row at most [1 .. 10000]: several neighbouring files share one when there are more
-- Returns:    a row for each run or group of runs, in order, with its sums; cells: one character for each files_a_cell
--             numbers (seqno) from 0 on: . = no file; 0 = nothing done, 1 .. 9 = tenths done, # = all; q = has a
--             quarantined block. Cells after the last file of a row are left out
-- Errors:     OG301 unknown project; OG108 rows or columns out of range
DECLARE
    v_project_id int := (osgprod._get_project(p_project)).project_id;
BEGIN
    IF p_rows NOT BETWEEN 1 AND 10000 OR p_columns NOT BETWEEN 1 AND 10000 OR num_nulls(p_rows, p_columns) > 0 THEN
        RAISE EXCEPTION 'a map has 1 to 10000 rows and columns, not % and %', coalesce(p_rows::text, 'NULL'),
            coalesce(p_columns::text, 'NULL') USING ERRCODE = 'OG108', HINT = 'several runs share a row, several files a cell';
    END IF;
    RETURN QUERY
    WITH runs AS MATERIALIZED (
        SELECT l.run, max(l.seqno) AS last, count(*) AS files, count(*) FILTER (WHERE l.state = 'complete') AS finished,
               sum(l.block2 - l.block1) AS blocks, min(l.state) AS least, max(l.state) AS most,
               -- each number from 0 on once
               count(*) = max(l.seqno) + 1 AND sum(l.seqno) = max(l.seqno)::bigint * (max(l.seqno) + 1) / 2 AS is_whole
          FROM loaded_files l WHERE l.project_id = v_project_id GROUP BY l.run
    ), bad AS MATERIALIZED (
        SELECT i.run, i.rawdata_id, count(*) AS blocks FROM slices i
         WHERE i.project_id = v_project_id AND i.is_ready IS FALSE AND i.not_before IS NULL GROUP BY i.run, i.rawdata_id
    ), shape AS (
        SELECT greatest(ceil(count(*)::numeric / p_rows), 1)::int AS runs_a_line, max(r.last) / p_columns + 1 AS a_cell
          FROM runs r
    ), placed_runs AS MATERIALIZED (
        SELECT r.*, (row_number() OVER (ORDER BY r.run) - 1) / s.runs_a_line AS line, s.a_cell
          FROM runs r CROSS JOIN shape s
    ), lines AS MATERIALIZED (
        -- Most rows are wholly finished or untouched: their files need not be read one by one.
        SELECT r.line, min(r.run) AS first_run, max(r.run) AS last_run, sum(r.files) AS files, sum(r.finished) AS finished,
               sum(r.blocks) AS blocks, max(r.last) / min(r.a_cell) + 1 AS ncells, min(r.least) AS state,
               min(r.a_cell) AS a_cell,
               bool_and(r.is_whole AND r.least = r.most AND r.least IN ('pending', 'complete')
                        AND NOT EXISTS (SELECT FROM bad b WHERE b.run = r.run)) AND min(r.least) = max(r.least) AS is_plain
          FROM placed_runs r GROUP BY r.line
    ), in_flight AS (
        SELECT s.rawdata_id, sum(s.block2 - s.block1) FILTER (WHERE s.state = 'done') AS done
          FROM osgprod._slices_in_flight(v_project_id) s GROUP BY s.rawdata_id
    ), counted AS (
        SELECT n.line, l.seqno / n.a_cell AS place, sum(l.block2 - l.block1) AS blocks,
               coalesce(sum(CASE l.state WHEN 'complete' THEN l.block2 - l.block1 - coalesce(b.blocks, 0)
                                         ELSE c.done END), 0) AS done,
               coalesce(sum(b.blocks), 0) AS bad
          FROM lines n
          JOIN placed_runs r ON r.line = n.line
          JOIN loaded_files l ON l.project_id = v_project_id AND l.run = r.run
          LEFT JOIN in_flight c ON c.rawdata_id = l.rawdata_id
          LEFT JOIN bad b ON b.rawdata_id = l.rawdata_id
         WHERE NOT n.is_plain
         GROUP BY n.line, l.seqno / n.a_cell
    ), drawn AS (
        SELECT p.line, sum(p.done) AS done, sum(p.bad) AS bad,
               string_agg(repeat('.', p.gap) || CASE WHEN p.bad > 0 THEN 'q' WHEN p.done >= p.blocks THEN '#'
                   WHEN p.done = 0 THEN '0' ELSE greatest(floor(10 * p.done / p.blocks), 1)::text END, '' ORDER BY p.place)
                   AS cells
          FROM (SELECT c.*, c.place - coalesce(lag(c.place) OVER (PARTITION BY c.line ORDER BY c.place), -1) - 1 AS gap
                  FROM counted c) p
         GROUP BY p.line
    )
    SELECT n.first_run, n.last_run, n.files::bigint, n.finished::bigint, n.blocks::bigint,
           coalesce(d.done, CASE n.state WHEN 'complete' THEN n.blocks ELSE 0 END)::bigint, coalesce(d.bad, 0)::bigint,
           n.a_cell, coalesce(d.cells, repeat(CASE n.state WHEN 'complete' THEN '#' ELSE '0' END, n.ncells))
      FROM lines n LEFT JOIN drawn d ON d.line = n.line
     ORDER BY n.line;
END
$fn$;

COMMENT ON FUNCTION osgprod.map_files(text, int, int) IS
'Draws a map of the work of a project, runs by files, one character a cell by how complete it is. For osgprod_worker and osgprod_operator.';
