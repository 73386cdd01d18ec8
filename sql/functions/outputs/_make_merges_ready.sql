CREATE FUNCTION osgprod._make_merges_ready(p_project_id int)
RETURNS void LANGUAGE plpgsql VOLATILE
AS $fn$
-- Lets jobs have the merges that were planned, and those whose backoff has ended, and notes the slices that each is made of.
-- Promise:    each file of such a merge is complete. A session that planned the merge while another one loaded a file, or made
--             a slice ready again, has not seen that, nor did the other one see the merge. Such a merge waits again. One of whose
--             files another session has the lock is left to the next call.
-- Parameters: p_project_id  project
-- Locks:      the merges, at most 1,000, and their files, shared: all SKIP LOCKED. What makes a slice ready again waits for the
--             file, and takes the merge back then. Of a whole run (advisory: project_id, -2), tried, shared: what loads files
--             waits for it. The caller has the project, shared (advisory: project_id, -1)
-- Source:     docs/design.md "Merges"
DECLARE
    v_merge osgprod_data.merges;
    v_held  bigint;  -- files
BEGIN
    FOR v_merge IN
        SELECT m.* FROM osgprod._ended_backoffs() e
          JOIN osgprod_data.merges m ON m.not_before BETWEEN e.since AND e.until
         WHERE m.project_id = p_project_id AND m.is_ready IS FALSE
           AND (m.seqno IS NOT NULL OR pg_try_advisory_xact_lock_shared(p_project_id, -2))
         ORDER BY m.not_before LIMIT 1000
           FOR NO KEY UPDATE OF m SKIP LOCKED
    LOOP
        v_held := (SELECT count(*) FROM (
            SELECT FROM osgprod_data.loaded_files f WHERE f.project_id = p_project_id AND f.run = v_merge.run
               AND f.seqno = coalesce(v_merge.seqno, f.seqno) FOR SHARE SKIP LOCKED) h);
        -- In a statement that starts under these locks: what changes these slices from now on takes the merge back
        -- (_reopen_merges), whoever has it then.
        UPDATE osgprod_data.merges m
           SET state = CASE WHEN i.is_whole THEN 'ready' ELSE 'waiting' END::osgprod_data.merge_state,
               is_ready = nullif(i.is_whole, false), not_before = CASE WHEN i.is_whole THEN m.not_before END,
               inputs = i.inputs, missing = i.missing
          FROM osgprod._slices_of_merge(p_project_id, v_merge.run, v_merge.seqno) i
         WHERE m.merge_id = v_merge.merge_id AND i.nfiles = v_held;
    END LOOP;
END
$fn$;

CREATE FUNCTION osgprod._slices_of_merge(
    p_project_id int, p_run int, p_seqno int, OUT inputs osgprod_data.merge_input[], OUT missing text, OUT nfiles bigint,
    OUT is_whole boolean)
LANGUAGE sql STABLE
AS $fn$
    -- The slices that a merge is made of, in order, and the quarantined blocks that it is made without. In a merge of a run the
    -- blocks are numbered through: those of a file begin where those of the file before it end.
    -- Parameters: p_project_id, p_run  which;  p_seqno  NULL = of the whole run
    -- Returns:    inputs: the done slices; missing: the others;  nfiles: loaded files; is_whole: each file is complete, and some
    --             slice is done
    SELECT array_agg(ROW(s.rawdata_id, s.block1, s.block2, s.block1 + f.shift, s.cluster, s.process,
                         s.nstart)::osgprod_data.merge_input ORDER BY f.seqno, s.block1) FILTER (WHERE s.state = 'done'),
           string_agg(format('%s,%s', s.block1 + f.shift, s.block2 + f.shift), ':' ORDER BY f.seqno, s.block1)
               FILTER (WHERE s.state <> 'done'),
           count(DISTINCT f.rawdata_id), coalesce(bool_and(f.state = 'complete') AND bool_or(s.state = 'done'), false)
      FROM (SELECT l.rawdata_id, l.seqno, l.state, CASE WHEN p_seqno IS NOT NULL THEN 0 ELSE
                   coalesce(sum(l.block2) OVER (ORDER BY l.seqno ROWS UNBOUNDED PRECEDING EXCLUDE CURRENT ROW), 0) END::int AS shift
              FROM osgprod_data.loaded_files l
             WHERE l.project_id = p_project_id AND l.run = p_run AND l.seqno = coalesce(p_seqno, l.seqno)) f
      LEFT JOIN osgprod_data.slices s ON s.project_id = p_project_id AND s.rawdata_id = f.rawdata_id
$fn$;
