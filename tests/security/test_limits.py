"""Limits of one client: requests a minute and sizes. Requests beyond the rate get 429 and lease no slice."""

from __future__ import annotations

from pathlib import Path

import pytest

from shim.config import SettingError, Settings
from shim.web import rates
from shim.web.parameters import MAX_BODY_BYTES, MAX_QUERY_BYTES
from shim.web.rates import RateLimit, key_of
from tests.support import LiveShim, World


def attempts(world: World) -> int:
    row = world.db.execute("SELECT count(*) AS n FROM osgprod_data.attempts").fetchone()
    assert row is not None
    return int(row["n"])


def test_an_address_that_asks_too_often_gets_429_and_no_slice(world: World, folder: Path) -> None:
    world.set(subnet_pattern="%")
    world.add_file(99)
    settings = {"OSGPROD_CLIENT_RATE": "5", "OSGPROD_TRUSTED_PROXIES": "127.0.0.1"}
    with LiveShim(world.dsn, folder / "www", **settings) as live:
        live.add_template("p")

        def ask(process: int, address: str) -> int:
            headers = {"X-Forwarded-For": address}
            target = f"workscript.bash?project=p&cluster=1&process={process}&magic=m"
            answer = live.raw(target, headers=headers)
            if answer.status_code == 429:
                assert 1 <= int(answer.headers["Retry-After"]) <= 61
                assert answer.text.startswith("# osgprod error OG604: ") and "# hint: " in answer.text
            return answer.status_code

        assert [ask(n, "192.0.2.1") for n in range(8)] == [200] * 5 + [429] * 3
        assert attempts(world) == 5
        assert ask(8, "192.0.2.2") == 200, "others are not concerned"
        # All of an IPv6 network of 64 bits is one client: its host may take any address of it.
        assert [ask(n, f"2001:db8::{n}") for n in range(10, 18)] == [200] * 5 + [429] * 3
        assert ask(20, "2001:db8:0:1::1") == 200
    assert attempts(world) == 12


def test_requests_with_a_wrong_magic_count_for_the_address_rate(world: World, folder: Path) -> None:
    with LiveShim(world.dsn, folder / "www", OSGPROD_CLIENT_RATE="5") as live:
        live.add_template("p")
        assert [live.checkout(0, magic=f"guess{n}").status_code for n in range(7)] == [403] * 5 + [429] * 2
        assert live.checkout(0, magic="m").status_code == 429


def test_a_project_that_gets_too_many_requests_gives_429_and_no_slice(world: World, folder: Path) -> None:
    world.with_project("q")
    world.add_file(99)
    world.add_file(9, seqno=2, project="q")
    with LiveShim(world.dsn, folder / "www", OSGPROD_PROJECT_RATE="6") as live:
        live.add_template("p")
        live.add_template("q")
        codes = [live.checkout(n).status_code for n in range(8)]
        assert codes[:4] == [200] * 4 and codes[-1] == 429, (
            "the first request is two calls: the template was new"
        )
        assert attempts(world) == codes.count(200)
        assert live.checkout(0, project="q").status_code == 200, "others are not concerned"


def test_unauthorized_requests_do_not_consume_the_project_rate(world: World, folder: Path) -> None:
    world.add_file(99)
    with LiveShim(world.dsn, folder / "www", OSGPROD_PROJECT_RATE="6") as live:
        live.add_template("p")
        for n in range(20):
            assert live.checkout(n, magic="wrong").status_code == 403
        assert live.checkout(0).status_code == 200


def test_next_window_of_a_rate_begins_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(rates.time, "monotonic", lambda: now)
    rate = RateLimit(2)
    for _ in range(2):
        assert rate.wait_s("a") == 0
        rate.count("a")
    assert rate.wait_s("a") == 61
    assert rate.wait_s("b") == 0
    now += 59.5
    assert rate.wait_s("a") == 1
    now += 0.5
    assert rate.wait_s("a") == 0


def test_many_addresses_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MOST_KEYS", 1000)
    rate = RateLimit(1)
    for n in range(10_000):
        rate.wait_s(str(n))
        rate.count(str(n))
        assert len(rate._counts) <= 1001


def test_rate_without_a_limit_counts_nothing() -> None:
    rate = RateLimit(0)
    for _ in range(10):
        rate.count("a")
        assert rate.wait_s("a") == 0


@pytest.mark.parametrize(("address", "key"), [
    ("192.0.2.1", "192.0.2.1"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"), ("::1", "::"), (None, "unknown"),
])  # fmt: skip
def test_what_counts_as_one_client(address: str | None, key: str) -> None:
    assert key_of(address) == key


@pytest.mark.parametrize("value", ["-1", "x", "1.5", "1e3", "٣", "9" * 5000])
@pytest.mark.parametrize("setting", ["OSGPROD_CLIENT_RATE", "OSGPROD_PROJECT_RATE", "OSGPROD_POOL_SIZE"])
def test_setting_that_is_not_a_number_is_reported_at_the_start(setting: str, value: str) -> None:
    with pytest.raises(SettingError, match=setting) as refused:
        Settings.read({setting: value})
    assert len(str(refused.value)) < 120 and refused.value.hint


def test_queries_and_bodies_beyond_their_size_are_refused_unread(world: World, shim: LiveShim) -> None:
    world.add_file(3)
    good = "project=p&cluster=1&process=0&magic=m"
    padding = "&host=" + "x" * (MAX_QUERY_BYTES - len(good) - 6)
    assert shim.raw(f"workscript.bash?{good}{padding}").status_code == 200
    answer = shim.raw(f"workscript.bash?{good}{padding}x")
    assert (answer.status_code, str(MAX_QUERY_BYTES) in answer.text) == (400, True)

    def body() -> object:
        for _ in range(64):
            sent.append(65536)
            yield b"x" * 65536

    sent: list[int] = []
    try:
        answer = shim.raw("workscript.bash", "POST", content=body())
        assert (answer.status_code, str(MAX_BODY_BYTES) in answer.text) == (400, True)
    except OSError:
        pass  # the server has hung up, which is an answer as well
    assert attempts(world) == 1


def test_a_thousand_parameters_are_refused_or_ignored_without_an_internal_error(shim: LiveShim) -> None:
    query = "&".join(f"a{n}=" for n in range(1400))
    assert shim.raw(f"workscript.bash?{query}").status_code == 400


def test_part_of_a_secret_behind_a_bare_ampersand_is_not_repeated(
    shim: LiveShim, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "osgprod")
    caplog.set_level("DEBUG", "uvicorn.access")
    for query in (
        "magic=half&SECRET",
        "magic=half&SECRET=1&SECRET=2",
        "magic=a&SECRET=%zz",
        "magic=a&SECRET=%ff",
    ):
        answer = shim.raw(f"workscript.bash?{query}")
        assert answer.status_code == 400
        assert "SECRET" not in answer.text
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("http")]
    assert any("uvicorn.access" in record.name for record in caplog.records), (
        "the server's own log was looked at too"
    )
    assert not [line for line in ours if "SECRET" in line or "magic=" in line]
    assert "not known here" in caplog.text


def test_a_name_with_control_characters_leaves_one_plain_line_in_the_log(
    shim: LiveShim, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    shim.raw("workscript.bash?project=%0Arequest%3Dforged%20%1B%5B2J%E2%80%A8x&cluster=1&process=1&magic=m")
    shim.raw("project/%0Arequest%3Dforged%1B%5B2J", headers={"Host": "x/y\\z"})
    shim.raw("x%20status=200%20answer=assigned")
    for wrong in ("%3Fproject=p%26magic=SECRET", ";magic=SECRET", "&magic=SECRET"):
        shim.raw(f"workscript.bash{wrong}")
    lines = [record.getMessage() for record in caplog.records if record.name == "osgprod"]
    assert len(lines) == 6
    assert all(line.isprintable() and line.isascii() for line in lines)
    assert "path=/osgprod/project/?request=forged?[2J " in lines[1]
    assert "path=/osgprod/x?status=200?answer=assigned status=404 " in lines[2]
    assert all("path=/osgprod/workscript.bash status=404 " in line for line in lines[3:])
