-- Comments in the words of the glossary.
-- depends: 0009-file-states

SET LOCAL ROLE osgprod_owner;

COMMENT ON COLUMN osgprod_data.attempts.opened_at IS 'as in slices when it was leased: the attempt can settle this slice only';
COMMENT ON COLUMN osgprod_data.attempts.started_at IS 'when the script was sent';
COMMENT ON COLUMN osgprod_data.loaded_files.run IS 'as in rawdata: blocks are allocated in this order';
COMMENT ON COLUMN osgprod_data.loaded_files.loaded_at IS 'when it was loaded, or reset';
COMMENT ON COLUMN osgprod_data.projects.subnet_pattern IS 'addresses that may call, as the operator wrote them: CIDR list or SQL LIKE pattern';
COMMENT ON COLUMN osgprod_data.projects.bearer_issuer IS 'issuer (claim iss) of the bearer tokens that are accepted in place of the magic; NULL = none is';
COMMENT ON COLUMN osgprod_data.projects.lease_s IS 'how long a slice stays leased after the last heartbeat [s]';
COMMENT ON COLUMN osgprod_data.projects.wedged_s IS 'how long an attempt that sends heartbeats may make no progress [s]; NULL = without limit';
COMMENT ON COLUMN osgprod_data.projects.wait_s IS 'after how long a job that gets no work asks again [s]';
COMMENT ON COLUMN osgprod_data.projects.backoff_s IS 'backoff of a slice after its first failure [s]; doubled with each more';
COMMENT ON COLUMN osgprod_data.projects.max_backoff_s IS 'longest backoff of a slice [s]';
COMMENT ON COLUMN osgprod_data.projects.fast_failure_s IS 'a failure within this time of the start counts against the worker [s]';
COMMENT ON COLUMN osgprod_data.projects.max_fast_failures IS 'such failures after which a worker is banned';
COMMENT ON COLUMN osgprod_data.projects.block_worker_s IS 'how long it is banned, and how far back its failures count [s]';
COMMENT ON COLUMN osgprod_data.refusals.reason IS 'what the job was answered';
COMMENT ON TABLE osgprod_data.reports IS 'how attempts ended, as the job reported or as the server judged; append-only';
COMMENT ON COLUMN osgprod_data.reports.worker IS 'worker node that it counts for: host@address';
COMMENT ON COLUMN osgprod_data.reports.output_bytes IS 'size of the delivered output [bytes]';
COMMENT ON COLUMN osgprod_data.slices.due_at IS 'when its lease expires; of a ready slice: when its attempt became lost, NULL = it has ended; of a done one nothing';
COMMENT ON TABLE osgprod_data.worker_bans IS 'workers that are, or were, banned';
COMMENT ON COLUMN osgprod_data.worker_bans.reason IS 'what jobs there are answered';
COMMENT ON COLUMN osgprod_data.worker_bans.times IS 'bans in a row, without a success between; 0 = by the operator, or unbanned';

RESET ROLE;
