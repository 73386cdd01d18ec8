CREATE FUNCTION osgprod._blocks_for(p_project osgprod_data.projects, p_cpus bigint)
RETURNS bigint LANGUAGE sql IMMUTABLE
AS $fn$
    -- How many blocks a slice for this job has at most.
    -- Promise:    at least one for each core, up to maxblockspercore for each; fewer when little is unallocated
    --             (tail_blocks, which tick notes).
    -- Parameters: p_project  the project's row;  p_cpus  cores of the job [1 .. 4096]
    -- Source:     docs/design.md "The tail"
    SELECT least(p_cpus * p_project.maxblockspercore,
                 CASE WHEN p_project.tail_blocks IS NOT NULL THEN greatest(p_cpus, p_project.tail_blocks) END)
$fn$;
