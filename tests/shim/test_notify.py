"""Notifications: each is delivered once to each target, to a real webhook, and none is lost while nobody listens."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import Result

from shim.cli.notify import DeliveryError, deliver
from shim.database import call, connect
from shim.version import SQL_FOLDER
from tests.support import PATIENCE_S, World, wait_until

SECRET = "hunter22hunter22"


class Hook:
    """A web server that takes what Apprise posts to json://; with a status it refuses."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.status = 200
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if hook.status == 200:
                    hook.got.append(json.loads(body))
                self.send_response(hook.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # Apprise would wait 4 s for an answer.
        wait = f"?cto={PATIENCE_S:.0f}&rto={PATIENCE_S:.0f}"
        self.address = f"json://user:{SECRET}@127.0.0.1:{self._server.server_port}/{wait}"

    @property
    def events(self) -> list[str]:
        return [message["title"].partition(": ")[2] for message in self.got]


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()
    thread = threading.Thread(target=hook._server.serve_forever)
    thread.start()
    yield hook
    hook._server.shutdown()
    hook._server.server_close()
    thread.join()


@pytest.fixture
def target(hook: Hook, folder: Path, run: Any) -> str:
    """A target whose address is in a file; returns its place."""
    path = folder / "hook.url"
    path.write_text(hook.address + "\n")
    place = f"file:{path}"
    result: Result = run("notify", "add", "hook", place)
    assert result.exit_code == 0, result.output
    return place


def quarantine(world: World, process: int) -> None:
    """Loses one block for good: a file of one block whose only attempt fails."""
    world.set(max_failures=1, max_fast_failures=1000)
    world.add_file(1, seqno=process)
    world.checkout(process, host=f"wn{process}")
    world.report(process, 9 + process)  # failures alike would pause the project


@contextmanager
def another(world: World) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    with connect(world.dsn) as connection:
        yield connection


def test_what_happened_while_nobody_listened_is_delivered_later_and_once(
    world: World, hook: Hook, target: str, run: Any
) -> None:
    quarantine(world, 0)
    assert hook.got == []
    result = run("notify", "run", "--once")
    assert result.exit_code == 0, result.output
    assert hook.events.count("block quarantined") == 1
    before = list(hook.got)
    assert run("notify", "run", "--once").exit_code == 0
    assert hook.got == before, "nothing is delivered twice"
    quarantine(world, 1)
    run("notify", "run", "--once")
    assert hook.events.count("block quarantined") == 2


def test_events_before_a_target_was_added_are_not_delivered_to_it(
    world: World, hook: Hook, run: Any, folder: Path
) -> None:
    quarantine(world, 0)
    (folder / "late.url").write_text(hook.address)
    run("notify", "add", "late", f"file:{folder / 'late.url'}")
    world.db.execute("SELECT osgprod.note_health()")
    world.db.execute("DELETE FROM osgprod_data.notifications WHERE event LIKE 'health%'")
    run("notify", "run", "--once")
    assert hook.got == []


def test_refused_message_stays_and_the_list_says_why(world: World, hook: Hook, target: str, run: Any) -> None:
    quarantine(world, 0)
    hook.status = 500
    result = run("notify", "run", "--once")
    assert result.exit_code == 1 and "did not accept" in result.output
    (row,) = call(world.db, "list_notify_targets")
    assert row["waiting"] >= 1 and "did not accept" in row["problem"]
    hook.status = 200
    assert run("notify", "run", "--once").exit_code == 0
    (row,) = call(world.db, "list_notify_targets")
    assert (row["waiting"], row["problem"]) == (0, None) and "block quarantined" in hook.events


def test_deliverer_that_dies_before_the_commit_loses_nothing(world: World, hook: Hook, target: str) -> None:
    quarantine(world, 0)

    class DiedError(Exception):
        pass

    def die(address: str, title: str, body: str) -> None:
        raise DiedError

    with another(world) as connection, pytest.raises(DiedError):
        deliver(connection, "hook", target, die)
    with another(world) as connection:
        assert deliver(connection, "hook", target) >= 1
    assert hook.events.count("block quarantined") == 1


def test_two_deliverers_at_once_deliver_each_message_once(world: World, hook: Hook, target: str) -> None:
    for process in range(6):
        quarantine(world, process)

    def work() -> None:
        with another(world) as connection:
            deliver(connection, "hook", target)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    work()  # all three may have ended while another one had the target
    blocks = [message["message"] for message in hook.got if "quarantined" in message["title"]]
    assert len(blocks) == 6 and len(set(blocks)) == 6


def test_event_of_a_transaction_that_commits_late_is_not_skipped(
    world: World, hook: Hook, target: str
) -> None:
    with another(world) as late:
        late.execute("BEGIN")
        late.execute(
            "SELECT osgprod._notify(project_id, 'first', '{}') FROM osgprod_data.projects WHERE name = 'p'"
        )
        world.db.execute(
            "SELECT osgprod._notify(project_id, 'second', '{}') FROM osgprod_data.projects WHERE name = 'p'"
        )
        with another(world) as connection:
            assert deliver(connection, "hook", target) == 0, (
                "not beyond a transaction that may still note something"
            )
        late.execute("COMMIT")
    with another(world) as connection:
        deliver(connection, "hook", target)
    assert hook.events == ["first", "second"]


def test_notifications_go_on_after_a_dump_was_restored_on_another_server(
    world: World, hook: Hook, target: str, run: Any, folder: Path
) -> None:
    """It has smaller numbers of transactions, which order notifications: none would be delivered any more."""
    (folder / "never.url").write_text(hook.address.replace("json", "nowhere"))
    run("notify", "add", "never", f"file:{folder / 'never.url'}")  # gets nothing before the restore

    def note(event: str) -> None:
        world.db.execute(
            "SELECT osgprod._notify(project_id, %s, '{}') FROM osgprod_data.projects WHERE name = 'p'",
            [event],
        )

    note("delivered before")
    with another(world) as connection:
        deliver(connection, "hook", target)
    note("waiting")
    before = [(row["name"], row["waiting"]) for row in call(world.db, "list_notify_targets")]
    assert before == [("hook", 1), ("never", 2)]
    # In place of the restore: all these have the numbers of the former server.
    for column, table in (("written_by", "notifications"), ("sent_xid", "notify_targets")):
        world.db.execute(
            f"UPDATE osgprod_data.{table} SET {column} = ({column}::text::bigint + 1000000000)::text::xid8"
        )
    note("since the restore")
    with another(world) as busy:
        busy.execute("BEGIN")
        call(busy, "next_notifications", name="hook")
        call(world.db, "tick")  # waits for no deliverer
        busy.execute("COMMIT")
    for _ in range(2):
        call(world.db, "tick")
    after = [(row["name"], row["waiting"]) for row in call(world.db, "list_notify_targets")]
    assert after == [("hook", 2), ("never", 3)]
    note("later")
    for _ in range(2):
        with another(world) as connection:
            deliver(connection, "hook", target)
    assert hook.events == ["delivered before", "waiting", "since the restore", "later"]


def test_target_gets_only_its_project_and_its_events(world: World, hook: Hook, target: str, run: Any) -> None:
    world.with_project("q")
    run("notify", "add", "hook", target, "--project", "q", "--event", "file-resumed")
    for project in "pq":
        for event in ("file-resumed", "file-suspended"):
            world.db.execute(
                "SELECT osgprod._notify(project_id, %s, '{}') FROM osgprod_data.projects WHERE name = %s",
                (event, project),
            )
    run("notify", "run", "--once")
    assert [message["title"] for message in hook.got] == ["osgprod q: file resumed"]


def test_ban_that_release_0_13_0_noted_is_delivered_to_who_chose_bans(
    world: World, hook: Hook, target: str, run: Any
) -> None:
    """It called a ban worker-refused, and may do so while it is replaced."""
    refused = run("notify", "add", "hook", target, "--event", "worker-refused")
    assert "there is no event 'worker-refused': it is called worker-banned\n" in refused.stderr
    run("notify", "add", "hook", target, "--event", "worker-banned")
    world.db.execute("SELECT osgprod._notify(project_id, 'worker-refused', '{}') FROM osgprod_data.projects")
    with world.db.transaction():
        world.db.execute((SQL_FOLDER / "migrations" / "0055-ban-event-noted.sql").read_bytes())
    run("notify", "run", "--once")
    assert hook.events == ["worker banned"]


def test_bad_health_is_notified_once_and_so_is_its_end(
    world: World, hook: Hook, target: str, run: Any
) -> None:
    world.set(max_fast_failures=1000)
    world.add_file(400)
    for process in range(12):
        world.checkout(process, host=f"wn{process}")
        world.report(process, 9 + process)  # failures alike would pause the project
    world.db.execute("SELECT osgprod.tick()")
    for _ in range(2):
        assert call(world.db, "health", project="p")[0]["level"] == "bad"
        world.db.execute("SELECT osgprod.note_health()")
        run("notify", "run", "--once")
    assert hook.events.count("needs attention") == 1
    call(world.db, "set_project", project="p", settings='{"state": "paused"}')
    world.db.execute("UPDATE osgprod_data.reports SET reported_at = reported_at - interval '3 days'")
    assert call(world.db, "health", project="p")[0]["level"] != "bad"
    for _ in range(2):
        world.db.execute("SELECT osgprod.note_health()")
        run("notify", "run", "--once")
    assert hook.events.count("is healthy again") == 1


def test_no_secret_of_an_address_is_in_the_database_or_in_what_is_printed(
    world: World, hook: Hook, target: str, run: Any
) -> None:
    quarantine(world, 0)
    hook.status = 500
    printed = (
        run("notify", "run", "--once").output
        + run("notify", "list").output
        + run("notify", "test", "hook").output
    )
    stored = str(world.db.execute("SELECT to_jsonb(t) AS t FROM osgprod_data.notify_targets t").fetchall())
    assert SECRET not in printed and SECRET not in stored


@pytest.mark.parametrize(
    ("words", "line", "code"),
    [
        (("add", "hook", "mailto://me:secret@example.org"), "is env:VARIABLE or file:/PATH", 2),
        (("add", "no way", "env:X"), "the name of a target can't be 'no way'", 2),
        (("add", "hook", "env:X", "--project", "nope"), "there is no project 'nope'", 1),
        (("add", "hook", "env:X", "--event", "merge-fail"), "there is no event 'merge-fail'", 2),
        (("remove", "nope"), "there is no target 'nope'", 1),
        (("test", "nope"), "there is no target 'nope'", 1),
    ],
)
def test_bad_input_is_one_line_that_names_it(words: tuple[str, ...], line: str, code: int, run: Any) -> None:
    result = run("notify", *words)
    assert result.exit_code == code and line in result.output and "secret@" not in result.output
    assert len(result.output.splitlines()) == 2, result.output


def test_address_that_is_missing_or_unknown_is_one_line(world: World, run: Any, folder: Path) -> None:
    run("notify", "add", "gone", f"file:{folder / 'gone.url'}")
    (folder / "odd.url").write_text("nonsense")
    run("notify", "add", "odd", f"file:{folder / 'odd.url'}")
    for name, line in (
        ("gone", "can't be read: No such file"),
        ("odd", "Apprise does not know this kind of address"),
    ):
        result = run("notify", "test", name)
        assert result.exit_code == 1 and line in result.output, result.output


def test_notifications_are_kept_for_thirty_days(world: World, target: str) -> None:
    quarantine(world, 0)
    world.db.execute("UPDATE osgprod_data.notifications SET noted_at = now() - interval '31 days'")
    world.db.execute("SELECT osgprod.tick()")
    assert (
        world.db.execute(
            "SELECT FROM osgprod_data.notifications WHERE event = 'block-quarantined'"
        ).fetchall()
        == []
    )


def test_deliver_names_the_target_in_its_error(world: World, target: str) -> None:
    quarantine(world, 0)

    def refuse(address: str, title: str, body: str) -> None:
        raise DeliveryError("no", "later")

    with another(world) as connection, pytest.raises(DeliveryError, match="target hook: no"):
        deliver(connection, "hook", target, refuse)


def test_the_daemon_survives_a_migration(world: World, target: str, hook: Hook) -> None:
    world.db.execute("ALTER FUNCTION osgprod.list_notify_targets RENAME TO away")
    daemon = subprocess.Popen(
        [sys.executable, "-m", "shim", "notify", "run", "--interval", "1"], stderr=subprocess.PIPE, text=True
    )
    assert daemon.stderr is not None
    try:
        assert "list_notify_targets" in (line := daemon.stderr.readline()) and "trying again" in line
        quarantine(world, 0)
        world.db.execute("ALTER FUNCTION osgprod.away RENAME TO list_notify_targets")
        wait_until(lambda: "block quarantined" in hook.events, "the notification")
        daemon.send_signal(signal.SIGINT)
        assert daemon.wait(timeout=PATIENCE_S) == 0
    finally:
        daemon.kill()
        daemon.wait()
        daemon.stderr.close()
