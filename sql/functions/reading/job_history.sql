CREATE FUNCTION osgprod.job_history(p_project text, p_cluster int, p_process int)
RETURNS TABLE (nstart int, started_at timestamptz, worker text, client text, site text, cpus int, file_id int, path text,
    block1 int, block2 int, outcome text, by_worker boolean, exit_code int, reported_at timestamptz, ran_s int,
    events bigint, outputs int, output_bytes bigint, output_adler32 text, log_url text, reason text, holds_slice boolean,
    lease_left_s int, schedd text, submitted_at timestamptz, job_start int, follows int, memory_bytes bigint, wall_s bigint,
    used_cpu_s bigint, fetched_bytes bigint, disk_bytes bigint, merge text, task text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
AS $fn$
-- Lists everything that is recorded of a job: each attempt, with the job's report and the server's verdict.
-- Parameters: p_project  project name;  p_cluster, p_process  HTCondor's identity of the job [0 .. 2147483647]
-- Returns:    a row for each attempt and report, in their order; an attempt with no report yet has NULLs there.
--             path NULL = the file was forgotten since; by_worker false = the server's verdict; ran_s [s]; output_bytes [bytes]; holds_slice: it has the lease, of
--             which lease_left_s [s] are left. Jobs of several access points may have these numbers: schedd and
--             submitted_at tell them apart, and job_start counts the attempts of each; follows is the attempt after whose
--             success the same job asked for this slice. memory_bytes, wall_s, used_cpu_s, fetched_bytes, disk_bytes: what
--             the work used, if it was measured. merge: the name of the merge that it worked on (its blocks are -1 then, and
--             holds_slice is that it has the merge's lease); NULL = a slice. task: what it works at, slice, merge or backup
--             (another attempt holds the slice, but it has a lease as well); NULL = at nothing any more
-- Errors:     OG301 unknown project; OG303 the job has no attempt
DECLARE
    v_project_id int := (osgprod._get_project(p_project)).project_id;
BEGIN
    RETURN QUERY
    SELECT a.nstart, a.started_at, osgprod._worker(a.client, a.host), host(a.client), a.site, a.cpus, a.rawdata_id, w.path,
           a.block1, a.block2, r.outcome::text, r.by_worker, r.exit_code, r.reported_at, r.ran_s, r.events, r.outputs,
           r.output_bytes, r.output_adler32, osgprod._without_secrets(r.output_url), r.reason,
           coalesce(h.task <> 'backup', false), extract(epoch FROM h.due_at - now())::int,
           a.schedd, osgprod._time_of(a.qdate), coalesce(a.job_start, a.nstart), a.follows, r.memory_bytes, r.wall_s, r.cpu_s,
           r.fetched_bytes, r.disk_bytes, CASE WHEN a.merge_id IS NOT NULL THEN osgprod._merge_name(m.run, m.seqno) END,
           h.task
      FROM attempts a
      LEFT JOIN rawdata w ON w.rawdata_id = a.rawdata_id
      LEFT JOIN reports r ON r.project_id = a.project_id AND r.cluster = a.cluster AND r.process = a.process
                         AND r.nstart = a.nstart
      LEFT JOIN merges m ON m.merge_id = a.merge_id
      LEFT JOIN LATERAL osgprod._work_of(a) h ON NOT h.is_done
     WHERE a.project_id = v_project_id AND a.cluster = p_cluster AND a.process = p_process
     ORDER BY a.schedd NULLS FIRST, a.qdate NULLS FIRST, a.nstart, r.reported_at;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'job %.% has no attempt in project %', p_cluster, p_process, p_project
            USING ERRCODE = 'OG303', HINT = format('osgprod jobs %s lists the jobs that started recently', p_project);
    END IF;
END
$fn$;

COMMENT ON FUNCTION osgprod.job_history(text, int, int) IS
'Lists everything that is recorded of a job: each attempt, with its report and verdict. For osgprod_worker and osgprod_operator.';
