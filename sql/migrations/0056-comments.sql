-- Comments that were not true in every case.
-- depends: 0055-ban-event-noted

SET LOCAL ROLE osgprod_owner;

COMMENT ON COLUMN osgprod_data.merges.faults IS 'node faults and lost attempts, up to max_faults; of several in a row on one worker only the first and each fourth after it';
COMMENT ON COLUMN osgprod_data.projects.max_faults IS 'node faults of a slice that count nothing; each further one counts as a data failure, of several in a row on one worker only each fourth';
COMMENT ON COLUMN osgprod_data.slices.faults IS 'node faults and lost attempts, up to max_faults; of several in a row on one worker only the first and each fourth after it';

COMMENT ON TYPE osgprod_data.slice_state IS 'leased = an attempt holds it, ready = requeued, done = a success of it counts, quarantined = one block that failed too often';
COMMENT ON TYPE osgprod_data.merge_state IS 'waiting = slices that it needs are not done, or are quarantined, ready = a job can get it, leased = an attempt holds it, done = its files are delivered, failed = as often as the project allows, superseded = it no longer counts';
COMMENT ON TYPE osgprod_data.outcome IS 'how an attempt ended: done, failed = data failure, node-fault, lost = the lease expired or the server stopped it, superseded = it no longer counts';
COMMENT ON COLUMN osgprod_data.answers.answered_at IS 'beginning of the minute';
COMMENT ON COLUMN osgprod_data.answers.project_id IS 'project that the job named; NULL = it named none that is known';
COMMENT ON TABLE osgprod_data.attempts IS 'starts of jobs on slices and merges; append-only, the history from which all else can be recounted';
COMMENT ON COLUMN osgprod_data.attempts.follows IS 'nstart of the attempt after whose success the same job asked for this slice; NULL = it did not';
COMMENT ON TABLE osgprod_data.lost_outputs IS 'attempts whose outputs storage no longer has as they were reported; their slices or merges were requeued';
COMMENT ON COLUMN osgprod_data.merges.made_at IS 'when it was planned';
COMMENT ON TABLE osgprod_data.noted_health IS 'the state of a project''s health that was last notified: only a change is';
COMMENT ON COLUMN osgprod_data.operations.done_at IS 'when the transaction of the call began';
COMMENT ON COLUMN osgprod_data.pace_looks.digest IS 'SHA-256 of the work script that is measured, 64 hexadecimal digits; NULL = unknown';
COMMENT ON COLUMN osgprod_data.projects.max_backoff_s IS 'longest backoff of a slice, give or take half, and longest time between two probes of a suspended file [s]';
COMMENT ON COLUMN osgprod_data.projects.backoff_s IS 'backoff of a slice after its first data failure, give or take half [s]; doubled with each further one, up to max_backoff_s';
COMMENT ON COLUMN osgprod_data.projects.block_worker_s IS 'how long a worker is banned, doubled with each ban in a row, and how far back its failures count [s]';
COMMENT ON COLUMN osgprod_data.projects.max_live IS 'number of live attempts at which no further one starts; the server counts them every 10 s. NULL = no limit';
COMMENT ON COLUMN osgprod_data.projects.nlive IS 'leased slices and merges at the last count by a tick';
COMMENT ON COLUMN osgprod_data.projects.next_due_at IS 'when the next lease may expire: until then no tick looks for expired leases';
COMMENT ON COLUMN osgprod_data.projects.resumed_at IS 'when a pause that the project had begun itself last ended: failures of attempts that started before it count against nothing';
COMMENT ON COLUMN osgprod_data.projects.probe_at IS 'when the next job may try a project that has paused itself; NULL = it has not';
COMMENT ON COLUMN osgprod_data.projects.activated_at IS 'when an operator last ended a pause or a drain; -infinity = never';
COMMENT ON COLUMN osgprod_data.projects.skip_nearline IS 'true = slices of files that are on tape only are not assigned';
COMMENT ON COLUMN osgprod_data.projects.merge_output_url IS 'URL or folder to which merged files are delivered; {kind}, {run}, {seqno}, {project} are filled in. NULL = a folder with the project''s name in OSGPROD_OUTPUT_URL of the job';
COMMENT ON COLUMN osgprod_data.projects.merge_cleanup IS 'what a job does with the outputs of slices when the server has accepted their merge: keep or delete them';
COMMENT ON COLUMN osgprod_data.projects.max_backups IS 'largest number of slices that have a backup attempt at a time. Backup attempts start when no block can be allocated. 0 = none';
COMMENT ON COLUMN osgprod_data.projects.shrink_tail IS 'true = while few blocks are unallocated, a slice is at most half of a running job''s equal share of them';
COMMENT ON COLUMN osgprod_data.projects.tail_blocks IS 'largest number of blocks of a slice while few are unallocated (shrink_tail); NULL = no such limit';
COMMENT ON COLUMN osgprod_data.projects.noted_end IS 'the last notification of the project''s end: project-done or production-delivered; NULL = some file is not complete, or there is none';
COMMENT ON COLUMN osgprod_data.recent_failures.is_failure IS 'true = a data failure. false = a node fault';
COMMENT ON COLUMN osgprod_data.tallies.began_at IS 'beginning of the ten minutes';
COMMENT ON COLUMN osgprod_data.tallies.ran_s IS 'sum of ran_s of the reports on slices [s]';
COMMENT ON COLUMN osgprod_data.totals.ran_s IS 'sum of ran_s of the reports on slices [s]';
COMMENT ON COLUMN osgprod_data.worker_bans.worker IS 'worker host@address, or the host or address alone, a network, site:NAME, or all; with merges: before it, for merges only';

RESET ROLE;
