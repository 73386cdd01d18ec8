-- Comments of settings in plain words: osgprod project set --help and docs/sql.md show them.
-- depends: 0020-tape

SET LOCAL ROLE osgprod_owner;

COMMENT ON COLUMN osgprod_data.projects.bearer_audience IS 'claim aud that a bearer token must have; NULL = it has none, or one that means everybody';
COMMENT ON COLUMN osgprod_data.projects.bearer_issuer IS 'issuer (claim iss) whose bearer tokens replace the magic; NULL = bearer tokens are refused';
COMMENT ON COLUMN osgprod_data.projects.bearer_scope IS 'word that the claim scope of a bearer token must contain; NULL = bearer tokens are refused';
COMMENT ON COLUMN osgprod_data.projects.block_worker_s IS 'how long a worker is banned, and how far back its failures count [s]';
COMMENT ON COLUMN osgprod_data.projects.keep_log_tail IS 'is the end of the log of a failed attempt kept for 30 days, and shown?';
COMMENT ON COLUMN osgprod_data.projects.max_failures IS 'data failures after which a slice is split or quarantined';
COMMENT ON COLUMN osgprod_data.projects.max_fast_failures IS 'failures within fast_failure_s of their start after which a worker is banned';
COMMENT ON COLUMN osgprod_data.projects.max_faults IS 'node faults on different workers that do not count against a slice; each further one counts as a data failure';
COMMENT ON COLUMN osgprod_data.projects.probe_jobs IS 'how many attempts must succeed, in a new project or with a new work script, before more than that run at a time; 0 = no limit';
COMMENT ON COLUMN osgprod_data.projects.shrink_tail IS 'do slices become smaller when fewer blocks are unallocated than running jobs would take?';
COMMENT ON COLUMN osgprod_data.projects.state IS 'active: jobs get work; draining: no new work, leased slices go on; paused: no work';
COMMENT ON COLUMN osgprod_data.projects.suspend_after IS 'how many workers must fail alike before a file is suspended, or the project pauses itself';
COMMENT ON COLUMN osgprod_data.projects.target_s IS 'how long a job shall work on a slice [s]; NULL = each slice has maxblockspercore blocks for each core';
COMMENT ON COLUMN osgprod_data.projects.wait_s IS 'after how long a job that got no work asks again [s]';
COMMENT ON COLUMN osgprod_data.projects.xrootd_prefix IS 'URL before the path of a file; of several, separated by spaces, a job tries the next one when one fails; SITE=PREFIX is for jobs of that site';

RESET ROLE;
