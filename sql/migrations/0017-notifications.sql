-- Notifications are kept until they are delivered, and targets say who gets which.
-- depends: 0009-file-states

SET LOCAL ROLE osgprod_owner;

CREATE TABLE osgprod_data.notifications (
    written_by      xid8 NOT NULL DEFAULT pg_current_xact_id(),
    notification_id bigint GENERATED ALWAYS AS IDENTITY,
    project_id      int NOT NULL REFERENCES osgprod_data.projects ON DELETE CASCADE,
    event           text NOT NULL,
    details         jsonb NOT NULL,
    noted_at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (written_by, notification_id)
);
CREATE INDEX notifications_by_age ON osgprod_data.notifications (noted_at);
CREATE INDEX notifications_by_project ON osgprod_data.notifications (project_id);
COMMENT ON TABLE osgprod_data.notifications IS 'rare events that an operator may want to know of, kept for 30 days';
COMMENT ON COLUMN osgprod_data.notifications.written_by IS 'transaction that noted it: delivery goes by this order, and not beyond the oldest one that still runs';
COMMENT ON COLUMN osgprod_data.notifications.notification_id IS 'key, within the transaction the order';
COMMENT ON COLUMN osgprod_data.notifications.project_id IS 'which project';
COMMENT ON COLUMN osgprod_data.notifications.event IS 'what happened, like block-quarantined';
COMMENT ON COLUMN osgprod_data.notifications.details IS 'event, project, at, and what else belongs to it';
COMMENT ON COLUMN osgprod_data.notifications.noted_at IS 'when';

CREATE TABLE osgprod_data.notify_targets (
    name         text PRIMARY KEY CONSTRAINT notify_targets_name_is_a_word CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$'),
    place        text NOT NULL CONSTRAINT notify_targets_place_holds_no_secret CHECK (place ~ '^(env:[A-Za-z_][A-Za-z0-9_]*|file:/.+)$'),
    project_id   int REFERENCES osgprod_data.projects ON DELETE CASCADE,
    events       text[],
    sent_xid     xid8 NOT NULL DEFAULT pg_snapshot_xmin(pg_current_snapshot()),
    sent_id      bigint NOT NULL DEFAULT 0,
    sent_at      timestamptz,
    problem      text,
    created_at   timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE osgprod_data.notify_targets IS 'who gets notifications: mail, a webhook, a chat';
COMMENT ON COLUMN osgprod_data.notify_targets.name IS 'name in osgprod notify';
COMMENT ON COLUMN osgprod_data.notify_targets.place IS 'where the address with its secrets stands: env:VARIABLE or file:/PATH, on the machine that delivers';
COMMENT ON COLUMN osgprod_data.notify_targets.project_id IS 'only of this project; NULL = of all';
COMMENT ON COLUMN osgprod_data.notify_targets.events IS 'only these events; NULL = all but the frequent ones';
COMMENT ON COLUMN osgprod_data.notify_targets.sent_xid IS 'the last notification that was delivered: its transaction';
COMMENT ON COLUMN osgprod_data.notify_targets.sent_id IS 'the last notification that was delivered: its number';
COMMENT ON COLUMN osgprod_data.notify_targets.sent_at IS 'when it was delivered';
COMMENT ON COLUMN osgprod_data.notify_targets.problem IS 'why the last attempt to deliver failed; NULL = it did not';
COMMENT ON COLUMN osgprod_data.notify_targets.created_at IS 'when it was added: earlier events are not delivered';

CREATE TABLE osgprod_data.noted_health (
    project_id int PRIMARY KEY REFERENCES osgprod_data.projects ON DELETE CASCADE,
    level      text NOT NULL,
    what       text NOT NULL
);
COMMENT ON TABLE osgprod_data.noted_health IS 'the health of each project when it was last looked at, so that only a change is notified';
COMMENT ON COLUMN osgprod_data.noted_health.project_id IS 'which project';
COMMENT ON COLUMN osgprod_data.noted_health.level IS 'as in health';
COMMENT ON COLUMN osgprod_data.noted_health.what IS 'as in health';

RESET ROLE;
