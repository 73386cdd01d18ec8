SET LOCAL ROLE osgprod_owner;

COMMENT ON COLUMN osgprod_data.projects.bearer_audience IS 'claim aud that they must have; NULL = none, or one of the two that mean everybody';
COMMENT ON COLUMN osgprod_data.projects.bearer_issuer IS 'issuer (claim iss) of the bearer tokens that are accepted in place of the magic; NULL = none is';
COMMENT ON COLUMN osgprod_data.projects.bearer_scope IS 'word that their claim scope must have; without it none are taken';
COMMENT ON COLUMN osgprod_data.projects.block_worker_s IS 'how long it is banned, and how far back its failures count [s]';
COMMENT ON COLUMN osgprod_data.projects.keep_log_tail IS 'is the end of the log that a failed job sends kept, and shown?';
COMMENT ON COLUMN osgprod_data.projects.max_failures IS 'failures after which a slice is split or quarantined';
COMMENT ON COLUMN osgprod_data.projects.max_fast_failures IS 'such failures after which a worker is banned';
COMMENT ON COLUMN osgprod_data.projects.max_faults IS 'faults of nodes, on different ones, that are forgiven a slice before more count as failures';
COMMENT ON COLUMN osgprod_data.projects.probe_jobs IS 'how many attempts of a new project must succeed before more than so many run at a time; 0 = no such test';
COMMENT ON COLUMN osgprod_data.projects.shrink_tail IS 'do slices become smaller when less is unallocated than the running jobs would take?';
COMMENT ON COLUMN osgprod_data.projects.state IS 'see type project_state';
COMMENT ON COLUMN osgprod_data.projects.suspend_after IS 'how many different workers must fail alike before a file is suspected, and suspended';
COMMENT ON COLUMN osgprod_data.projects.target_s IS 'how long the work on a slice shall take [s]; NULL = slices have maxblockspercore blocks for each core';
COMMENT ON COLUMN osgprod_data.projects.wait_s IS 'after how long a job that gets no work asks again [s]';
COMMENT ON COLUMN osgprod_data.projects.xrootd_prefix IS 'stands before the path of a file in its URL; of several, separated by spaces, a job tries the next one when one fails; site=prefix is for jobs of that site';

RESET ROLE;
