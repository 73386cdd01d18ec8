"""Notifications: ``osgprod notify`` says who gets them, and delivers them by mail, webhook or chat with Apprise."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import click

from shim.cli.base import PROJECT, as_json, ask, change, dry, mention, osgprod, until_ctrl_c, whole
from shim.cli.terminal import cell, show
from shim.config import secret_at
from shim.errors import OperatorError

if TYPE_CHECKING:
    import psycopg

HEALTH_EVERY_S = 300.0
TITLES = {"health-bad": "needs attention", "health-well": "is healthy again"}


class Sender(Protocol):
    """Sends one message to an address."""

    def __call__(self, address: str, title: str, body: str) -> None:
        """Send it, or raise DeliveryError."""


class DeliveryError(OperatorError):
    """A message that could not be delivered; the text holds nothing of the address."""


def send(address: str, title: str, body: str) -> None:
    """Send a message with Apprise.

    Parameters
    ----------
    address : str
        One of Apprise's URLs, like ``mailtos://user:password@smtp.example.org/?to=me@example.org``.
    title, body : str
        The message.

    Raises
    ------
    DeliveryError
        Apprise is not installed, doesn't know this kind of address, or the service did not accept the message.
    """
    try:
        import apprise
    except ImportError:
        raise DeliveryError(
            "notifications need Apprise, which is not installed",
            "pip install --require-hashes -r requirements-notify.txt",
        ) from None
    service = apprise.Apprise()
    if not service.add(address):
        raise DeliveryError(
            "Apprise does not know this kind of address", "https://appriseit.com has the forms"
        )
    if not service.notify(title=title, body=body, body_format=apprise.NotifyFormat.TEXT):
        raise DeliveryError(
            "the service did not accept the message", "check the address, and whether the service is up"
        )


def deliver(connection: psycopg.Connection[Any], name: str, place: str, sender: Sender = send) -> int:
    """Deliver what a target has not got yet, one transaction a message.

    A message is marked as delivered after the service has accepted it. If this process dies in between, the message is
    delivered again.

    Parameters
    ----------
    connection : psycopg.Connection
        To the database, in autocommit mode, as an operator.
    name, place : str
        Of the target.
    sender : Sender
        Sends one message.

    Returns
    -------
    int
        Messages delivered.

    Raises
    ------
    DeliveryError
        A message could not be delivered; it stays to be delivered, and the target notes why.
    """
    from shim.database import call

    count = 0
    try:
        address = secret_at(place)
        while True:
            with connection.transaction():
                rows = call(connection, "next_notifications", name=name, limit=1)
                if not rows:
                    return count
                sender(address, *_text(rows[0]["details"]))
                key = {key: rows[0][key] for key in ("written_by", "notification_id")}
                call(connection, "mark_notified", name=name, **key)
            count += 1
    except OperatorError as error:
        call(connection, "mark_notified", name=name, problem=str(error))
        raise DeliveryError(f"target {name}: {error}", error.hint) from error


def _text(details: Mapping[str, Any]) -> tuple[str, str]:
    """Title and body of a message."""
    event = str(details.get("event", ""))
    title = f"osgprod {details.get('project')}: {TITLES.get(event, event.replace('-', ' '))}"
    lines = [f"{name}: {cell(value)}" for name, value in details.items() if name not in ("event", "project")]
    return title, "\n".join(lines)


@osgprod.group()
def notify() -> None:
    """Send notifications by mail, webhook or chat."""


@notify.command("add")
@click.argument("name")
@click.argument("place")
@click.option("--project", type=PROJECT, help="Only notifications of this project. Default: of all.")
@click.option(
    "--event", "events", multiple=True,
    help="Only this event; may be repeated. Default: all but file-finished and merge-done.",
)  # fmt: skip
@dry
def notify_add(name: str, place: str, project: str | None, events: tuple[str, ...], dry_run: bool) -> None:
    """Add a target, or change it. PLACE says where its address is: env:VARIABLE or file:/PATH.

    The address is one of Apprise's URLs (https://appriseit.com). It holds secrets, so the database does not store it.
    """
    change("add_notify_target", dry_run, name=name, place=place, project=project, events=list(events) or None)
    if dry_run:
        click.echo(f"{name} would get notifications")
    else:
        click.echo(f"{name} gets notifications from now on; check it with: osgprod notify test {name}")


@notify.command("remove")
@click.argument("name")
@dry
def notify_remove(name: str, dry_run: bool) -> None:
    """Remove a target."""
    change("remove_notify_target", dry_run, name=name)
    click.echo(f"{name} {'would get' if dry_run else 'gets'} no more notifications")


@notify.command("list")
@as_json
def notify_list(as_json: bool) -> None:
    """List the targets, how many notifications wait for each, and what went wrong."""
    show(ask("list_notify_targets"), as_json, "no targets; osgprod notify add adds one")


@notify.command("test")
@click.argument("name")
def notify_test(name: str) -> None:
    """Send a test message to a target."""
    found = {row["name"]: row["place"] for row in ask("list_notify_targets")}
    if name not in found:
        raise OperatorError(f"there is no target {name!r}", "osgprod notify list shows the targets")
    send(secret_at(found[name]), "osgprod: test", "Notifications from osgprod arrive here.")
    click.echo(f"{name} got a test message")


@notify.command("run")
@click.option("--once", is_flag=True, help="Deliver the waiting notifications, and end; for cron.")
@whole((1, 3600), "--interval", default=30, help="Time between two deliveries [s].")
def notify_run(once: bool, interval: int) -> None:
    """Deliver notifications, until Ctrl-C. Nothing is lost while this does not run: it delivers up to 30 days later.

    With --once the exit code is 1 when something could not be delivered.
    """
    import psycopg

    from shim.database import call, connect

    looked_at = float("-inf")
    is_stopped = until_ctrl_c()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            failed = 0
            try:
                with connect() as connection:
                    if time.monotonic() - looked_at >= HEALTH_EVERY_S:
                        call(connection, "note_health")
                        looked_at = time.monotonic()
                    failed = _deliver_to_all(connection, lambda line: mention(line, err=True))
            except psycopg.Error as error:  # a failover, or a migration: it is over some time
                if once:
                    raise
                line = (str(error).splitlines() or [type(error).__name__])[0]
                mention(f"osgprod: {line}; trying again", err=True)
            if once:
                raise SystemExit(1 if failed else 0)
            if is_stopped.wait(interval):
                return


def _deliver_to_all(connection: psycopg.Connection[Any], say: Callable[[str], None]) -> int:
    from shim.database import call

    failed = 0
    for target in call(connection, "list_notify_targets"):
        if not target["waiting"]:
            continue
        try:
            say(f"{target['name']}: {deliver(connection, target['name'], target['place'])} delivered")
        except DeliveryError as error:
            failed += 1
            say(f"osgprod: {error}\nhint: {error.hint}")
    return failed
