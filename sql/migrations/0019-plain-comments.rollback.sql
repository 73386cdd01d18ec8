SET LOCAL ROLE osgprod_owner;

COMMENT ON COLUMN osgprod_data.attempts.opened_at IS 'as in slices when it was lent: the slice that this attempt can settle';
COMMENT ON COLUMN osgprod_data.attempts.started_at IS 'when the script was handed out';
COMMENT ON COLUMN osgprod_data.loaded_files.run IS 'as in rawdata: files are lent out in this order';
COMMENT ON COLUMN osgprod_data.loaded_files.loaded_at IS 'when it was loaded, or begun anew';
COMMENT ON COLUMN osgprod_data.projects.subnet_pattern IS 'who may ask, as the operator wrote it: CIDR list or SQL LIKE pattern on the address';
COMMENT ON COLUMN osgprod_data.projects.bearer_issuer IS 'issuer (claim iss) of the bearer tokens that may stand in for the magic; NULL = none are taken';
COMMENT ON COLUMN osgprod_data.projects.lease_s IS 'how long an attempt may stay silent [s]';
COMMENT ON COLUMN osgprod_data.projects.wedged_s IS 'how long an attempt that beats may make no progress [s]; NULL = for ever';
COMMENT ON COLUMN osgprod_data.projects.wait_s IS 'when a job that is told to wait shall ask again [s]';
COMMENT ON COLUMN osgprod_data.projects.backoff_s IS 'how long a slice rests after its first failure [s]; doubled with each more';
COMMENT ON COLUMN osgprod_data.projects.max_backoff_s IS 'how long a slice rests at most [s]';
COMMENT ON COLUMN osgprod_data.projects.fast_failure_s IS 'a failure within this time of the start speaks against the worker [s]';
COMMENT ON COLUMN osgprod_data.projects.max_fast_failures IS 'such failures after which a worker is refused work';
COMMENT ON COLUMN osgprod_data.projects.block_worker_s IS 'how long it is refused work, and how far back its failures count [s]';
COMMENT ON COLUMN osgprod_data.refusals.reason IS 'what it was told';
COMMENT ON TABLE osgprod_data.reports IS 'how attempts ended, by the word of the job or by the verdict of the server; append-only';
COMMENT ON COLUMN osgprod_data.reports.worker IS 'node on whose account it goes: host@address';
COMMENT ON COLUMN osgprod_data.reports.output_bytes IS 'size of what was sent [bytes]';
COMMENT ON COLUMN osgprod_data.slices.due_at IS 'until when its attempt may stay silent; of a ready slice: when its attempt became lost, NULL = it has ended; of a done one nothing';
COMMENT ON TABLE osgprod_data.worker_bans IS 'workers that are, or were, refused work';
COMMENT ON COLUMN osgprod_data.worker_bans.reason IS 'what it is told';
COMMENT ON COLUMN osgprod_data.worker_bans.times IS 'in a row, without a success between; 0 = by the operator, or pardoned';

RESET ROLE;
