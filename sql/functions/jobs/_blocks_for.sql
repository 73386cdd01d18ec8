CREATE FUNCTION osgprod._blocks_for(
    p_project osgprod_data.projects, p_cpus bigint, p_pace osgprod.pace, p_time_left_s bigint)
RETURNS bigint LANGUAGE sql IMMUTABLE
AS $fn$
    -- How many blocks a slice for a job may have: the smallest of these limits. (Inlined: see _why_rejected.)
    -- Promise:    between 1 and cpus * maxblockspercore, or 0 when not even one block fits into the time that the job has. When
    --             little is unallocated: tail_blocks, which tick notes, or one a core if that is more. With target_s: what the
    --             median attempt does in that time, up to 4 times the largest recent success; without a measured time one block
    --             a core, as a probe.
    -- Parameters: p_project  the project's row;  p_cpus  cores of the job [1 .. 4096]
    --             p_pace  see _pace_at; needed with target_s and with a time that is left;  p_time_left_s  see _blocks_in_time
    -- Source:     docs/grid.md "Let the server size the slices"; docs/design.md "The tail"
    SELECT least(p_cpus * p_project.maxblockspercore,
                 CASE WHEN p_project.tail_blocks IS NOT NULL THEN greatest(p_cpus, p_project.tail_blocks) END,
                 CASE WHEN p_project.target_s IS NULL THEN NULL
                      WHEN p_pace.s_per_block IS NULL THEN p_cpus
                      ELSE greatest(floor(least(p_project.target_s / p_pace.s_per_block, 4 * p_pace.most_per_core) * p_cpus), 1)
                 END,
                 osgprod._blocks_in_time(p_pace, p_cpus, p_time_left_s))::bigint
$fn$;

CREATE FUNCTION osgprod._blocks_in_time(p_pace osgprod.pace, p_cpus bigint, p_time_left_s bigint)
RETURNS float8 LANGUAGE sql IMMUTABLE
AS $fn$
    -- How many blocks fit into the time that a job has, with a margin: the slow attempts count, and a fifth of the time stays
    -- free. NULL = any number: the time is not known, or nothing was measured.
    -- Parameters: p_pace  see _pace_at;  p_cpus  cores of the job
    --             p_time_left_s  until the job must end [s]; below 1 = it must end now; NULL = not known
    SELECT CASE WHEN p_time_left_s < 1 THEN 0 ELSE floor(0.8 * p_time_left_s * p_cpus / p_pace.slow_s_per_block) END
$fn$;

CREATE FUNCTION osgprod._pace_at(p_project_id int, p_site text)
RETURNS osgprod.pace LANGUAGE sql STABLE
AS $fn$
    -- How fast recent attempts were at a site; at all sites while this one has few; NULLs = nothing was measured.
    -- Parameters: p_project_id  project;  p_site  as the job names it; NULL = none
    SELECT ROW(p.site, p.attempts, p.s_per_block, p.slow_s_per_block, p.most_per_core)::osgprod.pace FROM osgprod_data.paces p
     WHERE p.project_id = p_project_id AND (p.site = '' OR p.site = osgprod._label(p_site) AND p.attempts >= 10)
     ORDER BY p.site DESC LIMIT 1
$fn$;
