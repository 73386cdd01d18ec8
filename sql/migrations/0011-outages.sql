-- Outages: whose fault a failure is, found out before anybody is blamed. Leases that outlive an absence of the server.
-- depends: 0009-file-states

SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.projects
    ADD COLUMN max_starts        int NOT NULL DEFAULT 20 CHECK (max_starts BETWEEN 1 AND 10000),
    ADD COLUMN suspend_after     int NOT NULL DEFAULT 3 CHECK (suspend_after BETWEEN 2 AND 100),
    ADD COLUMN retest_s          int NOT NULL DEFAULT 60 CHECK (retest_s BETWEEN 1 AND 86400),
    -- 0 for projects that there are: they are under way. The default is for new ones.
    ADD COLUMN probe_jobs        int NOT NULL DEFAULT 0 CHECK (probe_jobs BETWEEN 0 AND 1000),
    ADD COLUMN unproven          int NOT NULL DEFAULT 0,
    ADD COLUMN pause_cause       text,
    ADD COLUMN pause_reason      text,
    ADD COLUMN paused_at         timestamptz,
    ADD COLUMN probe_at          timestamptz,
    ADD COLUMN resumed_at        timestamptz NOT NULL DEFAULT '-infinity',
    ADD COLUMN nsuspended        int NOT NULL DEFAULT 0,
    ADD CONSTRAINT projects_only_a_paused_one_has_a_cause
        CHECK (pause_cause IS NULL OR state = 'paused' AND (pause_reason, paused_at, probe_at) IS NOT NULL);
ALTER TABLE osgprod_data.projects ALTER COLUMN probe_jobs SET DEFAULT 5, ALTER COLUMN wedged_s SET DEFAULT 14400;
COMMENT ON COLUMN osgprod_data.projects.max_starts        IS 'how often a job may start on one slice without a report, before the slice is requeued';
COMMENT ON COLUMN osgprod_data.projects.suspend_after     IS 'how many different workers must fail alike before a file is suspected, and suspended';
COMMENT ON COLUMN osgprod_data.projects.retest_s          IS 'when a suspended file or a project that paused itself is tried again for the first time [s]; doubled each time, up to max_backoff_s';
COMMENT ON COLUMN osgprod_data.projects.probe_jobs        IS 'how many attempts of a new project must succeed before more than so many run at a time; 0 = no such test';
COMMENT ON COLUMN osgprod_data.projects.unproven          IS 'successes that are lacking until the project is proven: until then few jobs run at a time';
COMMENT ON COLUMN osgprod_data.projects.pause_cause       IS 'why the project has paused itself: input, output, or work; NULL = it has not';
COMMENT ON COLUMN osgprod_data.projects.pause_reason      IS 'the same in words';
COMMENT ON COLUMN osgprod_data.projects.paused_at         IS 'when it has paused itself';
COMMENT ON COLUMN osgprod_data.projects.probe_at          IS 'when one job may try again';
COMMENT ON COLUMN osgprod_data.projects.resumed_at        IS 'when it last resumed: failures of attempts from before say nothing any more';
COMMENT ON COLUMN osgprod_data.projects.nsuspended        IS 'suspended files';

ALTER TABLE osgprod_data.loaded_files
    ADD COLUMN suspended_at   timestamptz,
    ADD COLUMN suspend_reason text,
    ADD COLUMN retest_at      timestamptz,
    ADD COLUMN retest_s       int,
    ADD CONSTRAINT loaded_files_suspended_for_a_reason
        CHECK (num_nulls(suspended_at, suspend_reason, retest_at, retest_s) IN (0, 4));
COMMENT ON COLUMN osgprod_data.loaded_files.suspended_at   IS 'since when nothing of it is assigned but a probe; NULL = it is not suspended';
COMMENT ON COLUMN osgprod_data.loaded_files.suspend_reason IS 'why it is suspended, in words';
COMMENT ON COLUMN osgprod_data.loaded_files.retest_at      IS 'when the next probe may be assigned';
COMMENT ON COLUMN osgprod_data.loaded_files.retest_s       IS 'time from that probe to the one after it [s]';
DROP INDEX osgprod_data.loaded_files_open;
CREATE INDEX loaded_files_open ON osgprod_data.loaded_files (project_id, run, seqno, rawdata_id)
    WHERE state IN ('pending', 'in_progress') AND suspended_at IS NULL;
CREATE INDEX loaded_files_suspended ON osgprod_data.loaded_files (project_id, run, seqno) WHERE suspended_at IS NOT NULL;

-- Working memory: reports hold the history. Only failing attempts write here.
CREATE TABLE osgprod_data.recent_failures (
    failure_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id int NOT NULL REFERENCES osgprod_data.projects ON DELETE CASCADE,
    failed_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz NOT NULL,
    fault      text NOT NULL,
    exit_code  int NOT NULL,
    is_failure boolean NOT NULL,
    is_first   boolean NOT NULL,
    worker     text NOT NULL,
    address    text NOT NULL,
    place      text NOT NULL,
    rawdata_id int NOT NULL,
    block1     int NOT NULL,
    opened_at  timestamptz NOT NULL,
    reason     text,
    blamed     text
);
CREATE INDEX recent_failures_in_time ON osgprod_data.recent_failures (project_id, fault, failed_at);
CREATE INDEX recent_failures_by_place ON osgprod_data.recent_failures (project_id, place, failed_at);
CREATE INDEX recent_failures_by_address ON osgprod_data.recent_failures (project_id, address, failed_at);
ALTER TABLE osgprod_data.recent_failures SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
COMMENT ON TABLE osgprod_data.recent_failures IS 'failed attempts of the last hours, from which the server works out whose fault they are';
COMMENT ON COLUMN osgprod_data.recent_failures.failure_id IS 'key';
COMMENT ON COLUMN osgprod_data.recent_failures.project_id IS 'which project';
COMMENT ON COLUMN osgprod_data.recent_failures.failed_at  IS 'when it was reported';
COMMENT ON COLUMN osgprod_data.recent_failures.started_at IS 'when its attempt started';
COMMENT ON COLUMN osgprod_data.recent_failures.fault      IS 'fetch, delivery, program, node (killed, or another node fault) or work (any other exit code)';
COMMENT ON COLUMN osgprod_data.recent_failures.exit_code  IS 'as reported';
COMMENT ON COLUMN osgprod_data.recent_failures.is_failure IS 'did it count against the slice as a failure of the data? false = a node fault';
COMMENT ON COLUMN osgprod_data.recent_failures.is_first   IS 'had nothing of its slice failed before?';
COMMENT ON COLUMN osgprod_data.recent_failures.worker     IS 'host@address';
COMMENT ON COLUMN osgprod_data.recent_failures.address    IS 'of the worker';
COMMENT ON COLUMN osgprod_data.recent_failures.place      IS 'the site of its report; the network of the address for a job that names no site';
COMMENT ON COLUMN osgprod_data.recent_failures.rawdata_id IS 'the file';
COMMENT ON COLUMN osgprod_data.recent_failures.block1     IS 'the slice';
COMMENT ON COLUMN osgprod_data.recent_failures.opened_at  IS 'of the slice: it is another one when this differs';
COMMENT ON COLUMN osgprod_data.recent_failures.reason     IS 'as reported';
COMMENT ON COLUMN osgprod_data.recent_failures.blamed     IS 'what else is to blame: project, place, file or address; NULL = the slice or the worker, as far as is known';

CREATE TABLE osgprod_data.presence (
    seen_at timestamptz NOT NULL DEFAULT '-infinity',
    back_at timestamptz NOT NULL DEFAULT '-infinity',
    away    interval NOT NULL DEFAULT '0'
);
CREATE UNIQUE INDEX presence_has_one_row ON osgprod_data.presence ((true));
INSERT INTO osgprod_data.presence DEFAULT VALUES;
COMMENT ON TABLE osgprod_data.presence IS 'when the server was last there to receive heartbeats; one row';
COMMENT ON COLUMN osgprod_data.presence.seen_at IS 'the last tick; -infinity = there was none yet';
COMMENT ON COLUMN osgprod_data.presence.back_at IS 'when it was there again after its last absence';
COMMENT ON COLUMN osgprod_data.presence.away    IS 'how long that absence was';

RESET ROLE;
