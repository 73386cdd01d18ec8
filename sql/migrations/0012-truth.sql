-- What an operator reads is true: when an attempt of each kind ended last, what the shims answered, the end of a failed
-- job's log, who changed what. A project can be stopped.
-- depends: 0009-file-states

SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.tallies ADD COLUMN last_at timestamptz;
COMMENT ON COLUMN osgprod_data.tallies.last_at IS 'when the last of them came; NULL = tallied by a version that did not note it';
COMMENT ON COLUMN osgprod_data.tallies.site    IS 'as in reports, or "other" for sites that are not in tallied_sites';

CREATE TABLE osgprod_data.tallied_sites (
    project_id int  NOT NULL REFERENCES osgprod_data.projects ON DELETE CASCADE,
    site       text NOT NULL,
    PRIMARY KEY (project_id, site)
);
COMMENT ON TABLE osgprod_data.tallied_sites IS 'sites that the tallies of a project name; a job chooses its site''s name, so their number is bounded';
COMMENT ON COLUMN osgprod_data.tallied_sites.project_id IS 'which project';
COMMENT ON COLUMN osgprod_data.tallied_sites.site       IS 'name of the site, as jobs said';
INSERT INTO osgprod_data.tallied_sites (project_id, site)
SELECT x.project_id, x.site FROM (
    SELECT t.project_id, t.site, row_number() OVER (PARTITION BY t.project_id ORDER BY sum(t.reports) DESC, t.site) AS n
      FROM osgprod_data.tallies t WHERE t.site IS NOT NULL GROUP BY t.project_id, t.site) x
 WHERE x.n <= 200;

CREATE TABLE osgprod_data.answers (
    answered_at timestamptz NOT NULL,
    project_id  int REFERENCES osgprod_data.projects ON DELETE CASCADE,
    route       text NOT NULL,
    http_status int  NOT NULL CHECK (http_status BETWEEN 100 AND 599),
    reason      text NOT NULL,
    message     text,
    times       bigint NOT NULL CHECK (times > 0)
);
CREATE UNIQUE INDEX answers_once ON osgprod_data.answers
    (answered_at, coalesce(project_id, 0), route, http_status, reason);
COMMENT ON TABLE osgprod_data.answers IS 'what the shims answered to jobs, counted for each minute; kept for a day';
COMMENT ON COLUMN osgprod_data.answers.answered_at IS 'begin of the minute';
COMMENT ON COLUMN osgprod_data.answers.project_id  IS 'which project was named; NULL = none that there is';
COMMENT ON COLUMN osgprod_data.answers.route       IS 'checkout, heartbeat or report';
COMMENT ON COLUMN osgprod_data.answers.http_status IS 'HTTP status [100 .. 599]';
COMMENT ON COLUMN osgprod_data.answers.reason      IS 'header Osgprod-Status, or the code or kind of the error';
COMMENT ON COLUMN osgprod_data.answers.message     IS 'one message with that reason; NULL = none';
COMMENT ON COLUMN osgprod_data.answers.times       IS 'how often';

CREATE TABLE osgprod_data.log_tails (
    project_id int  NOT NULL REFERENCES osgprod_data.projects ON DELETE CASCADE,
    cluster    int  NOT NULL,
    process    int  NOT NULL,
    nstart     int  NOT NULL,
    kept_at    timestamptz NOT NULL DEFAULT now(),
    tail       text NOT NULL,
    PRIMARY KEY (project_id, cluster, process, nstart)
);
COMMENT ON TABLE osgprod_data.log_tails IS 'the end of the logs of failed attempts; kept for 30 days';
COMMENT ON COLUMN osgprod_data.log_tails.project_id IS 'of the attempt';
COMMENT ON COLUMN osgprod_data.log_tails.cluster    IS 'of the attempt';
COMMENT ON COLUMN osgprod_data.log_tails.process    IS 'of the attempt';
COMMENT ON COLUMN osgprod_data.log_tails.nstart     IS 'of the attempt';
COMMENT ON COLUMN osgprod_data.log_tails.kept_at    IS 'when the report came';
COMMENT ON COLUMN osgprod_data.log_tails.tail       IS 'last lines of the log, at most 4096 characters';

CREATE TABLE osgprod_data.operations (
    operation_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    done_at      timestamptz NOT NULL DEFAULT now(),
    login        text NOT NULL DEFAULT session_user,
    person       text,
    operation    text NOT NULL,
    project      text,
    details      jsonb NOT NULL,
    times        bigint NOT NULL,
    xact         xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX operations_of_project ON osgprod_data.operations (project, operation_id);
COMMENT ON TABLE osgprod_data.operations IS 'what operators changed; append-only';
COMMENT ON COLUMN osgprod_data.operations.operation_id IS 'number of the row, in the order of the calls';
COMMENT ON COLUMN osgprod_data.operations.done_at      IS 'when';
COMMENT ON COLUMN osgprod_data.operations.login        IS 'database login';
COMMENT ON COLUMN osgprod_data.operations.person       IS 'who it was, as the program says (setting osgprod.person); NULL = not said';
COMMENT ON COLUMN osgprod_data.operations.operation    IS 'function that was called';
COMMENT ON COLUMN osgprod_data.operations.project      IS 'name of the project; NULL = none. A name, since it outlives the project';
COMMENT ON COLUMN osgprod_data.operations.details      IS 'its arguments without secrets, and what came of it';
COMMENT ON COLUMN osgprod_data.operations.times        IS 'how many files, slices, settings, ... it changed';
COMMENT ON COLUMN osgprod_data.operations.xact         IS 'its transaction, which alone may still change the row';

CREATE FUNCTION osgprod_data.keep_operations()
RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $fn$
-- Refuses every change of the operators' log by a function of ours; the transaction that wrote a row may add to it.
-- Errors:     55000 the log would be changed
BEGIN
    IF current_user = 'osgprod_owner' AND (TG_OP <> 'UPDATE' OR OLD.xact <> pg_current_xact_id()) THEN
        RAISE EXCEPTION '% of %: the log is only ever added to', TG_OP, TG_TABLE_NAME USING ERRCODE = '55000',
            HINT = 'no function of osgprod changes it';
    END IF;
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END
$fn$;
COMMENT ON FUNCTION osgprod_data.keep_operations() IS 'refuses every change of the operators'' log by a function of ours';
CREATE TRIGGER keep_operations BEFORE UPDATE OR DELETE ON osgprod_data.operations
    FOR EACH ROW EXECUTE FUNCTION osgprod_data.keep_operations();

ALTER TABLE osgprod_data.projects
    ADD COLUMN stopped_at timestamptz,
    ADD COLUMN keep_log_tail boolean NOT NULL DEFAULT true;
COMMENT ON COLUMN osgprod_data.projects.stopped_at    IS 'when its jobs were told to stop; NULL = they are not';
COMMENT ON COLUMN osgprod_data.projects.keep_log_tail IS 'is the end of the log that a failed job sends kept, and shown?';

RESET ROLE;
