"""The client's address: that of the connection, or the one that a trusted proxy adds. Other headers change nothing."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from hypothesis import strategies as st

from shim.config import SettingError
from shim.web.address import TrustedProxies, plain
from tests.examples import given, settings
from tests.support import LiveShim, World

FORGED = ("X-Forwarded-For", "X-Real-IP", "Forwarded", "X-Client-IP", "True-Client-IP", "CF-Connecting-IP", "Via",
          "X-Forwarded-Host", "X-Original-Forwarded-For", "Client-IP", "Remote-Addr")  # fmt: skip


def client(setting: str, peer: str | None, *lines: str) -> str | None:
    return TrustedProxies(setting).client(peer, [(b"x-forwarded-for", line.encode()) for line in lines])


@pytest.mark.parametrize(
    ("setting", "peer", "lines", "expected"),
    [
        ("", "192.0.2.1", ["10.0.0.1"], "192.0.2.1"),
        ("", None, ["10.0.0.1"], None),
        ("127.0.0.1", "192.0.2.1", ["10.0.0.1"], "192.0.2.1"),
        ("127.0.0.1", "127.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("127.0.0.1", "127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1", [""], "127.0.0.1"),
        # only the right end counts: the client itself may have written the left
        ("127.0.0.1", "127.0.0.1", ["10.0.0.1, 192.0.2.1"], "192.0.2.1"),
        ("127.0.0.1", "127.0.0.1", ["10.0.0.1", "192.0.2.1"], "192.0.2.1"),
        ("127.0.0.1, 10.0.0.0/8", "127.0.0.1", ["127.0.0.1, 192.0.2.1, 10.1.1.1"], "192.0.2.1"),
        ("10.0.0.0/8", "10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),  # all trusted: the first of them asks
        ("10.0.0.0/8 127.0.0.1", "127.0.0.1", ["10.0.0.2,,  ,"], "10.0.0.2"),
        # a text that is not an address is an unknown client, which is refused everywhere
        ("127.0.0.1", "127.0.0.1", ["unknown"], None),
        ("127.0.0.1", "127.0.0.1", ["10.0.0.1, garbage"], None),
        ("127.0.0.1", "127.0.0.1", ["_hidden, 127.0.0.1"], None),
        ("127.0.0.1", "127.0.0.1", ["127.0.0.1.example.org"], None),
        # IPv6, v4-mapped, zones, ports
        ("::1", "::1", ["2001:db8::5"], "2001:db8::5"),
        ("2001:db8::/32", "2001:db8::1", ["192.0.2.1"], "192.0.2.1"),
        ("127.0.0.0/8", "::ffff:127.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("::ffff:127.0.0.1", "127.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("::ffff:10.0.0.0/104", "10.9.9.9", ["192.0.2.1"], "192.0.2.1"),
        ("", "::ffff:192.0.2.1", [], "192.0.2.1"),
        ("", "fe80::1%eth0", [], "fe80::1"),
        ("127.0.0.1", "127.0.0.1", ["192.0.2.1:4711"], "192.0.2.1"),
        ("127.0.0.1", "127.0.0.1", ["[2001:db8::5]:4711"], "2001:db8::5"),
        ("127.0.0.1", "127.0.0.1", ["[2001:db8::5]"], "2001:db8::5"),
        # a unix socket
        ("unix", None, ["192.0.2.1"], "192.0.2.1"),
        ("unix", "", ["192.0.2.1"], "192.0.2.1"),
        ("unix", None, [], None),
        ("unix", "192.0.2.9", ["192.0.2.1"], "192.0.2.9"),
        ("unix", None, ["192.0.2.1, unix"], None),
        ("unix, 10.0.0.0/8", None, ["192.0.2.1, 10.0.0.1"], "192.0.2.1"),
    ],
)  # fmt: skip
def test_the_address_is_that_of_the_rightmost_hop_that_is_not_trusted(
    setting: str, peer: str | None, lines: list[str], expected: str | None
) -> None:
    assert client(setting, peer, *lines) == expected


@settings(max_examples=30)
@given(st.lists(st.text(alphabet="0123456789abcdef.:[], %\xe9", max_size=60), max_size=5))
def test_forwarding_headers_of_an_untrusted_client_are_ignored(lines: list[str]) -> None:
    assert client("127.0.0.1, unix", "192.0.2.1", *lines) == "192.0.2.1"


@settings(max_examples=30)
@given(st.lists(st.text(alphabet="0123456789abcdef.:[], %\xe9", max_size=60), max_size=5))
def test_addresses_left_of_the_entry_of_the_proxy_are_ignored(lines: list[str]) -> None:
    assert client("127.0.0.1", "127.0.0.1", *lines, "192.0.2.1") == "192.0.2.1"


@settings(max_examples=30)
@given(st.text(max_size=60))
def test_an_address_is_an_address_or_none(text: str) -> None:
    assert plain(text) is None or plain(plain(text) or "") == plain(text)


@pytest.mark.parametrize(
    "setting", ["*", "localhost", "10.0.0.0/99", "10.0.0", "unix:/run/x", "1.2.3.4;5.6.7.8"]
)
def test_wrong_setting_is_reported_at_the_start(setting: str) -> None:
    with pytest.raises(SettingError, match="OSGPROD_TRUSTED_PROXIES"):
        TrustedProxies(setting)


def recorded(world: World) -> list[str]:
    rows = world.db.execute(
        "SELECT host(client) AS client FROM osgprod_data.attempts ORDER BY process"
    ).fetchall()
    return [row["client"] for row in rows]


def ask(client: httpx.Client, url: str, process: int, *headers: tuple[str, str]) -> httpx.Response:
    target = f"{url}/workscript.bash?project=p&cluster=1&process={process}&magic=m"
    return client.get(target, headers=list(headers))


def test_forged_headers_change_nothing_without_a_trusted_proxy(world: World, shim: LiveShim) -> None:
    world.add_file(9)
    headers = [(name, "10.0.0.1") for name in FORGED]
    assert ask(shim.client, shim.url, 0, *headers).status_code == 200
    assert recorded(world) == ["127.0.0.1"]
    world.set(subnet_pattern="10.0.0.0/8")
    assert ask(shim.client, shim.url, 1, *headers).status_code == 403
    answer = shim.get("workscript.bash", project="p", cluster=1, process=1, magic="m", client="10.0.0.1")
    assert answer.status_code == 403, "nor does a parameter"


def test_only_the_address_that_a_trusted_proxy_added_counts(world: World, folder: Path) -> None:
    world.set(subnet_pattern="192.0.2.0/24, 2001:db8::/32")
    world.add_file(9)
    with LiveShim(world.dsn, folder / "www", OSGPROD_TRUSTED_PROXIES="127.0.0.1") as live:
        live.add_template("p")
        assert ask(live.client, live.url, 0, ("X-Forwarded-For", "10.0.0.1, 192.0.2.7")).status_code == 200
        assert ask(live.client, live.url, 1, ("X-Forwarded-For", "2001:DB8::5")).status_code == 200
        refused = ask(live.client, live.url, 2, ("X-Forwarded-For", "192.0.2.7, 10.0.0.1"))
        assert (refused.status_code, "address 10.0.0.1 is outside" in refused.text) == (403, True)
        forged = [
            ("X-Forwarded-For", "192.0.2.7"),
            ("X-Forwarded-For", "10.0.0.1"),
            ("X-Real-IP", "192.0.2.7"),
        ]
        assert ask(live.client, live.url, 2, *forged).status_code == 403
        unknown = ask(live.client, live.url, 2, ("X-Forwarded-For", "192.0.2.7, unknown"))
        assert (unknown.status_code, "OG207" in unknown.text) == (403, True)
    assert recorded(world) == ["192.0.2.7", "2001:db8::5"]


@pytest.mark.parametrize("trusted", ["", "unix"])
def test_a_client_behind_a_unix_socket_is_never_taken_for_loopback(
    world: World, folder: Path, trusted: str
) -> None:
    """World's project admits 127.0.0.0/8; a client without an address must not profit from that."""
    world.add_file(9)
    with LiveShim(world.dsn, folder / "www", folder / "s", OSGPROD_TRUSTED_PROXIES=trusted) as live:
        live.add_template("p")
        unknown = ask(live.client, live.url, 0)
        assert (unknown.status_code, "OG207" in unknown.text) == (403, True)
        assert "OSGPROD_TRUSTED_PROXIES" in unknown.text
        named = ask(live.client, live.url, 0, ("X-Forwarded-For", "127.0.0.3"))
        assert named.status_code == (200 if trusted else 403)
    assert recorded(world) == (["127.0.0.3"] if trusted else [])
