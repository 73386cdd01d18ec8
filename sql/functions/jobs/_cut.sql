CREATE FUNCTION osgprod._cut_until(p_project_id int, p_rawdata_id int)
RETURNS TABLE (block2 int) LANGUAGE sql STABLE
AS $fn$
    -- Where a file's last slice ends; no row when there is none. (STABLE is what lets its callers inline it.)
    -- I1: a new slice begins there, read under the file's lock and in a statement that began after it was taken. Nothing
    -- that the next cut reads is updated, so a snapshot held by pg_dump slows nothing.
    -- Parameters: p_project_id, p_rawdata_id  the file, locked
    SELECT l.block2 FROM osgprod_data.slices l
     WHERE l.project_id = p_project_id AND l.rawdata_id = p_rawdata_id
     ORDER BY l.block1 DESC LIMIT 1
$fn$;

CREATE FUNCTION osgprod._cut(
    p_project_id int, p_lease_s int, p_block1 int, p_block2 int, p_is_fresh boolean, p_calls osgprod.checkout[])
RETURNS int LANGUAGE plpgsql VOLATILE
AS $fn$
-- Cuts slices from a file for attempts that are about to begin.
-- Parameters: p_project_id, p_lease_s [s]  the project's
--             p_block1, p_block2  what of the file is work;  p_is_fresh  nothing is cut from it yet
--             p_calls    with slices of this file, in order, the first where the file's last one ends (_cut_until)
-- Returns:    where the last of them ends
-- Locks:      none; the file is locked
DECLARE
    v_end int := p_calls[cardinality(p_calls)].block2;
BEGIN
    INSERT INTO osgprod_data.slices (project_id, rawdata_id, block1, block2, follows, cluster, process, nstart, opened_at,
           due_at)
    SELECT p_project_id, c.rawdata_id, c.block1, c.block2, nullif(c.block1, p_block1), c.cluster, c.process, c.nstart,
           c.opened_at, c.opened_at + make_interval(secs => p_lease_s)
      FROM unnest(p_calls) c;
    IF p_is_fresh OR v_end = p_block2 THEN
        UPDATE osgprod_data.loaded_files f
           SET state = CASE WHEN v_end = p_block2 THEN 'cut' ELSE 'begun' END::osgprod_data.file_state
         WHERE f.project_id = p_project_id AND f.rawdata_id = p_calls[1].rawdata_id
           AND f.state IN ('fresh', 'begun');
    END IF;
    RETURN v_end;
END
$fn$;
