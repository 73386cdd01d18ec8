"""The parts of the job scripts: each function that has a rule, by sourcing its part; and the files built from them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support import CHECKOUT

SHIPPED = ("condor/osgprod_exec.sh", "worker/osgprod_work.bash")
SHARED = ("shell", "log", "settings", "backoff", "url", "token", "http")


def bash(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script that may call every function of the shared parts."""
    sources = "".join(f"source {CHECKOUT}/worker/lib/{name}.bash\n" for name in SHARED)
    return subprocess.run(
        ["/bin/bash", "-c", sources + script, "parts", *arguments],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_shipped_scripts_are_what_make_scripts_builds(tmp_path: Path) -> None:
    subprocess.run([str(CHECKOUT / "worker/lib/make-scripts"), str(tmp_path)], check=True)
    for name in SHIPPED:
        built, shipped = tmp_path / name, CHECKOUT / name
        assert built.read_text() == shipped.read_text(), f"{name} is not current: make scripts"
        assert shipped.stat().st_mode & 0o111


# --- backoff -------------------------------------------------------------------------------------------------


def pause(attempt: int, *more: str) -> float:
    return float(bash('backoff "$@"', str(attempt), "1000", *more).stdout)


def test_pauses_double_up_to_32_fold_with_a_random_part_of_up_to_a_half() -> None:
    for attempt, seconds in ((1, 1), (2, 2), (3, 4), (6, 32), (7, 32), (60, 32)):
        assert seconds <= pause(attempt) <= 1.5 * seconds


def test_eight_attempts_outlast_a_server_that_is_away_for_half_a_minute() -> None:
    assert 60 < sum(pause(attempt) for attempt in range(1, 8)) < 150


@pytest.mark.parametrize(
    "wanted, least, most",
    [
        ("60", 60, 90),
        ("900", 300, 450),
        ("Sat, 28 Nov 2026 02:00:00 GMT", 1, 1.5),
        ("08", 8, 12),
        ("", 1, 1.5),
    ],
)
def test_pause_is_what_the_server_wants_within_bounds(wanted: str, least: float, most: float) -> None:
    assert least <= pause(1, wanted) <= most


# --- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, number", [("", "10"), ("1", "1"), ("007", "7"), ("1000", "1000")])
def test_number_in_the_environment(text: str, number: str) -> None:
    assert bash("number_setting OSGPROD_TRIES 10 1 1000", OSGPROD_TRIES=text).stdout == number


@pytest.mark.parametrize(
    "text", ["10m", "three", "1s", "-1", "0", "1001", "1 ", "1e2", "99999999999999999999", "$(id)"]
)
def test_what_is_no_number_is_named_with_its_rule(text: str) -> None:
    done = bash("number_setting OSGPROD_TRIES 10 1 1000", OSGPROD_TRIES=text)
    assert (done.returncode, done.stdout) == (1, "")
    rule = f"OSGPROD_TRIES is '{text}': it must be a whole number from 1 to 1000, without a unit"
    assert done.stderr.endswith(rule + "\n")


# --- URLs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url, kind, client",
    [
        ("http://h/p", "http", "http://h/p"),
        ("https://h:1/p", "http", "https://h:1/p"),
        ("dav://h/p", "http", "http://h/p"),
        ("DAVS://h/p", "http", "https://h/p"),
        ("root://h//p", "root", "root://h//p"),
        ("xroot://h//p", "root", "root://h//p"),
        ("roots://h//p", "root", "roots://h//p"),
        ("xroots://h//p", "root", "roots://h//p"),
        ("osdf:///a/p", "pelican", "osdf:///a/p"),
        ("pelican://h/p", "pelican", "pelican://h/p"),
        ("file:///a/p q", "file", "/a/p q"),
        ("/a/p", "file", "/a/p"),
        ("/a/odd://p", "file", "/a/odd://p"),
    ],
)
def test_scheme_says_which_client_a_url_needs(url: str, kind: str, client: str) -> None:
    assert bash('url_kind "$1"; echo; client_url "$1"', url).stdout == f"{kind}\n{client}"


@pytest.mark.parametrize(
    "url", ["gsiftp://h/p", "s3://b/p", "p", "./p", "", "http://", "file://h/p", "/a\nb", "http:/h"]
)
def test_any_other_scheme_is_no_url(url: str) -> None:
    done = bash('url_kind "$1"', url)
    assert (done.returncode, done.stdout) == (1, "")


# --- who gets the bearer token -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url, first, hosts, may",
    [
        ("https://a.org/p", "https://a.org/p", "", True),
        ("https://A.org:443/q", "https://a.org/p", "", True),
        ("https://a.org:8443/p", "https://a.org/p", "", False),
        ("https://b.org/p", "https://a.org/p", "", False),
        ("https://b.org:8443/p", "https://a.org/p", "c.org, b.org", True),
        ("https://b.org:8443/p", "https://a.org/p", "b.org:443", False),
        ("https://notb.org/p", "https://a.org/p", "b.org *", False),
        ("https://b.org@evil.org/p", "https://a.org/p", "b.org", False),
        ("http://a.org/p", "http://a.org/p", "a.org", False),
    ],
)
def test_token_goes_over_https_to_the_named_host_and_to_listed_ones(
    url: str, first: str, hosts: str, may: bool
) -> None:
    variable = {"OSGPROD_TOKEN_HOSTS": hosts} if hosts else {}
    done = bash('may_have_token "$@"', url, first, **variable)
    assert (done.returncode == 0, done.stderr) == (may, "")


# --- heads of answers ----------------------------------------------------------------------------------------

HEAD = "HTTP/1.1 200 OK\r\nA: 1\r\nOsgprod-Status:  done \r\na:2"


@pytest.mark.parametrize(
    "text, head, status",
    [
        (f"{HEAD}\r\n\r\n", HEAD, "200"),
        (f"{HEAD}\r\n\r\nbody\r\n\r\nHTTP/1.1 500 No\r\n\r\n", HEAD, "200"),
        (f"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nB: 1\r\n\r\n{HEAD}\r\n\r\n", HEAD, "200"),
        ("HTTP/2 404\r\n\r\n", "HTTP/2 404", "404"),
        (HEAD, "", "000"),
        (f"{HEAD}\r\n", "", "000"),
        ("HTTP/1.1 100 Continue\r\n\r\n", "", "000"),
        ("curl: (52) Empty reply from server\n", "", "000"),
        ("HTTP/1.1 2\r\n\r\n", "HTTP/1.1 2", "000"),
    ],
)
def test_head_counts_only_when_it_is_whole_and_final(text: str, head: str, status: str) -> None:
    done = bash('h="$(head_of "$1")"; status_of "$h"; printf " %q" "$h"', text)
    status_found, _, head_found = done.stdout.partition(" ")
    assert status_found == status
    assert head_found == bash('printf %q "$1"', head).stdout


@pytest.mark.parametrize(
    "name, value", [("A", "2"), ("osgprod-STATUS", "done"), ("B", ""), ("HTTP/1.1 200 OK", "")]
)
def test_header_is_found_in_any_case_and_the_last_one_counts(name: str, value: str) -> None:
    assert bash('header_of "$1" "$2"', name, HEAD).stdout == value


def test_status_of_an_error_is_known_where_curl_gives_no_head_of_it(folder: Path) -> None:
    """Curl 7.29 ends at the status line of an error; these are its words."""
    curl = folder / "curl"
    curl.write_text(
        "#!/bin/bash\necho 'curl: (22) The requested URL returned error: 403 Forbidden' >&2\nexit 22\n"
    )
    curl.chmod(0o755)
    done = bash('http_transfer http://h/p || echo "$? $http_status"', PATH=f"{folder}:/usr/bin:/bin")
    assert done.stdout == "22 403\n", done.stderr
