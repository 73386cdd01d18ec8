"""The parts of the job scripts: each function that has a rule, by sourcing its part; and the files built from them."""

from __future__ import annotations

import gzip
import io
import random
import re
import shutil
import subprocess
import tarfile
import time
import zlib
from pathlib import Path

import pytest

from tests.support import CHECKOUT, PATIENCE_S
from tests.worker.conftest import EXEC as EXEC_SCRIPT
from tests.worker.conftest import SHIPPED, is_root, reachable_for_all
from tests.worker.test_exec import IDENTITIES, LAST_WORDS, TIMES, write_ads

SHARED = ("shell", "log", "settings", "text", "backoff", "url", "token", "http", "adler32")
EXEC = ("process", "server", "work", "outputs", "storage", "deliver", "finish")


def bash(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script that may call every function of the shared parts, and of those of osgprod_exec.sh."""
    sources = "".join(f"source {CHECKOUT}/worker/lib/{name}.bash\n" for name in SHARED)
    sources += "".join(f"source {CHECKOUT}/condor/lib/{name}.bash\n" for name in EXEC)
    return subprocess.run(
        ["/bin/bash", "-c", sources + script, "parts", *arguments],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
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
    found = bash("number_setting OSGPROD_TRIES 10 1 1000 number; echo $number", OSGPROD_TRIES=text)
    assert found.stdout == f"{number}\n"


@pytest.mark.parametrize(
    "text", ["10m", "three", "1s", "-1", "0", "1001", "1 ", "1e2", "99999999999999999999", "$(id)"]
)
def test_what_is_no_number_is_named_with_its_rule(text: str) -> None:
    done = bash(
        'number_setting OSGPROD_TRIES 10 1 1000 number || echo "$?${number-}: $setting_error"',
        OSGPROD_TRIES=text,
    )
    rule = f"OSGPROD_TRIES is '{text}': it must be a whole number from 1 to 1000, without a unit"
    assert (done.stdout, done.stderr) == (f"1: {rule}\n", "")


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
    assert (
        bash('url_kind "$1"; client_url "$1"; echo "$url_kind"; printf %s "$client_url"', url).stdout
        == f"{kind}\n{client}"
    )


@pytest.mark.parametrize(
    "url", ["gsiftp://h/p", "s3://b/p", "p", "./p", "", "http://", "file://h/p", "/a\nb", "http:/h"]
)
def test_any_other_scheme_is_no_url(url: str) -> None:
    done = bash('url_kind "$1"', url)
    assert (done.returncode, done.stdout) == (1, "")


# --- who gets the bearer token -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url, named, may",
    [
        ("https://a.org/p", {}, False),
        ("https://a.org/p", {"OSGPROD_OUTPUT_URL": "https://a.org/folder"}, True),
        ("https://A.org:443/q", {"OSGPROD_OUTPUT_URL": "davs://a.org/folder"}, True),
        ("https://a.org:8443/p", {"OSGPROD_OUTPUT_URL": "https://a.org/folder"}, False),
        ("https://a.org:1094/p", {"OSGPROD_OUTPUT_URL": "root://a.org//folder"}, True),
        ("https://a.org/p", {"OSGPROD_URL": "https://a.org/osgprod"}, True),
        ("https://b.org:8443/p", {"OSGPROD_TOKEN_HOSTS": "c.org, b.org"}, True),
        ("https://b.org:8443/p", {"OSGPROD_TOKEN_HOSTS": "b.org:443"}, False),
        ("https://[::1]:8443/p", {"OSGPROD_TOKEN_HOSTS": "[::1]"}, True),
        ("https://notb.org/p", {"OSGPROD_TOKEN_HOSTS": "b.org *"}, False),
        ("https://b.org@evil.org/p", {"OSGPROD_TOKEN_HOSTS": "b.org"}, False),
        ("https://evil.org/b.org", {"OSGPROD_TOKEN_HOSTS": "b.org"}, False),
        ("https://evil.org#b.org", {"OSGPROD_TOKEN_HOSTS": "b.org"}, False),
        ("https:///b.org/p", {"OSGPROD_TOKEN_HOSTS": "b.org"}, False),
        ("https://b/p", {"OSGPROD_OUTPUT_URL": "/a b/c"}, False),
        ("https://b.org/p", {"osgprod_token_hosts": "root://a.org https://b.org"}, True),
        ("root://b.org//p", {"osgprod_token_hosts": "xroot://b.org:1094"}, True),
        ("root://b.org//p", {"osgprod_token_hosts": "https://b.org"}, False),
        ("osdf:///p", {"osgprod_token_hosts": "osdf://"}, True),
        ("osdf://folder/p", {"osgprod_token_hosts": "pelican://osg-htc.org"}, True),
        ("pelican://fed.org/p", {"osgprod_token_hosts": "osdf:// pelican://other.org"}, False),
        ("http://a.org/p", {"OSGPROD_OUTPUT_URL": "http://a.org", "OSGPROD_TOKEN_HOSTS": "a.org"}, False),
        ("dav://a.org/p", {"OSGPROD_OUTPUT_URL": "dav://a.org", "OSGPROD_TOKEN_HOSTS": "a.org:80"}, False),
    ],
)
def test_credentials_go_to_named_hosts_only_and_never_in_the_clear(
    url: str, named: dict[str, str], may: bool
) -> None:
    done = bash('trust_only; may_have_credentials "$1"', url, **named)
    assert (done.returncode == 0, done.stderr) == (may, "")


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize(
    "command", ["send_root here {url}", "stored_root {url}", "move_root {url} {url}", "remove_root {url}"]
)
def test_xrootds_clients_find_no_credentials_for_a_host_that_nobody_named(
    tmp_path: Path, command: str, trusted: bool
) -> None:
    for name in ("xrdcp", "xrdfs"):
        (tmp_path / name).write_text(f"#!/bin/bash\nenv >>{tmp_path}/seen\n")
        (tmp_path / name).chmod(0o755)
    done = bash(
        f"PATH={tmp_path}:$PATH; trust_only; " + command.format(url="root://storage.example.org//p"),
        OSGPROD_TOKEN_HOSTS="storage.example.org" if trusted else "other.example.org",
        BEARER_TOKEN="secret",
        BEARER_TOKEN_FILE="/secret",
        X509_USER_PROXY="/secret",
    )
    assert done.stderr == ""
    seen = (tmp_path / "seen").read_text().splitlines()
    # Of its protocols only this one needs no secret. A token may also lie in a file that the client finds by itself.
    assert ("XrdSecPROTOCOL=unix" in seen) is not trusted
    assert any("secret" in line for line in seen) is trusted


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
    done = bash('find_head "$1"; printf "%s %q" "$head_status" "$head_text"', text)
    status_found, _, head_found = done.stdout.partition(" ")
    assert status_found == status
    assert head_found == bash('printf %q "$1"', head).stdout


@pytest.mark.parametrize(
    "name, value", [("A", "2"), ("osgprod-STATUS", "done"), ("B", ""), ("HTTP/1.1 200 OK", "")]
)
def test_header_is_found_in_any_case_and_the_last_one_counts(name: str, value: str) -> None:
    assert bash('find_header "$1" "$2"; printf %s "$header"', name, HEAD).stdout == value


def test_all_headers_of_a_name_are_found() -> None:
    found = bash('find_header a "$1"; echo "$headers"; find_header b "$1"; echo "<$headers>"', HEAD)
    assert found.stdout == "1\n2\n<>\n"


def test_status_of_an_error_is_known_where_curl_gives_no_head_of_it(folder: Path) -> None:
    """Curl 7.29 ends at the status line of an error; these are its words."""
    curl = folder / "curl"
    curl.write_text(
        "#!/bin/bash\necho 'curl: (22) The requested URL returned error: 403 Forbidden' >&2\nexit 22\n"
    )
    curl.chmod(0o755)
    done = bash('http_transfer http://h/p || echo "$? $http_status"', PATH=f"{folder}:/usr/bin:/bin")
    assert done.stdout == "22 403\n", done.stderr


# --- which answers count -------------------------------------------------------------------------------------

ANSWERS = {
    "workscript.bash": {"200 assigned", "200 completed", "200 wait", "200 no-work"},
    "workscript.ping": {"200 alive", "403 refused", "409 superseded", "409 wedged"},
    "workscript.exit": {
        *("200 done", "200 failed", "200 node-fault"),
        *("403 refused", "409 superseded", "409 contradicted"),
    },
}


@pytest.mark.parametrize("route", ANSWERS)
def test_answers_that_count_are_a_closed_list(route: str) -> None:
    words = {answer.split()[1] for answers in ANSWERS.values() for answer in answers}
    words |= {word[:n] for word in words for n in range(len(word))} | {"error", "erro", "Done", "done "}
    statuses = ("000", "100", "200", "204", "302", "400", "403", "404", "409", "429", "500", "503")
    loop = 'while IFS="|" read -r s w; do ! is_answer "$1" "$s" "$w" || echo "$s $w"; done <<<"$2"'
    pairs = "\n".join(f"{status}|{word}" for status in statuses for word in words)
    counted = set(bash(loop, route, pairs).stdout.splitlines())
    assert counted == ANSWERS[route] | {f"{status} error" for status in statuses if status >= "400"}


def test_answers_that_count_are_those_that_the_protocol_lists() -> None:
    text = (CHECKOUT / "docs" / "protocol.md").read_text()
    for route, answers in ANSWERS.items():
        section = text[text.index(f"## `{{root}}/{route}`") :].partition("\n## ")[0]
        for answer in answers:
            assert f"`{answer.split()[1]}`" in section, (route, answer)


@pytest.mark.parametrize(
    "head, whole",
    [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5", True),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, Chunked", True),
        ("HTTP/2 200", True),
        ("HTTP/1.1 200 OK\r\nConnection: close", False),
        ("HTTP/1.0 200 OK\r\nContent-Length: ", False),
    ],
)
def test_body_is_believed_only_when_http_says_where_it_ends(head: str, whole: bool) -> None:
    assert (bash('tells_its_end "$1"', head).returncode == 0) == whole


# --- rules about storage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("00ab12cd", "ab12cd", True),
        ("00AB12CD", "00ab12cd", True),
        ("0", "00000000", True),
        ("ab12cd", "ab12ce", False),
        ("", "", False),
        ("x", "x", False),
        ("100ab12cd", "00ab12cd", False),
    ],
)
def test_checksums_are_numbers(one: str, other: str, same: bool) -> None:
    assert (bash('same_adler32 "$@"', one, other).returncode == 0) == same


@pytest.mark.parametrize("count", [1, 10_000])
@pytest.mark.parametrize(
    "how",
    [
        "adler32",
        pytest.param(
            "adler32_of_xrootd",
            marks=pytest.mark.skipif(not shutil.which("xrdadler32"), reason="no XRootD here"),
        ),
        "adler32_of_python",
        "adler32_of_awk",
    ],
)
def test_checksum_is_that_of_the_present_content(folder: Path, how: str, count: int) -> None:
    """Of a file, xrdadler32 prints what it has noted there, also when the file has changed in the same second."""
    texts = [text * count for text in ("abc", "xyz")]
    for name, text in zip("ab", texts, strict=True):
        (folder / name).write_text(text)
    changed = "".join(f'cp "${n}" "$3"; {how} "$3"; ' for n in (1, 2))
    lines = bash(changed, *[str(folder / name) for name in ("a", "b", "changed")]).stdout.splitlines()
    assert [line.split()[0] for line in lines] == [f"{zlib.adler32(text.encode()):08x}" for text in texts]


@pytest.mark.parametrize(
    "value, found",
    [
        ("adler32=00ab12cd", "00ab12cd"),
        ("ADLER32=AB12CD", "ab12cd"),
        ("md5=Q2hlY2s=,adler32=1", "1"),
        ("md5=Q2hlY2s=, Adler32=1, sha=2", "1"),
        ("md5=Q2hlY2s=\r\ndigest: adler32=00ab12cd\r\nDigest: sha=2", "00ab12cd"),
        ('adler32="00ab12cd"', "00ab12cd"),
        ("adler32=AvZAaw==", ""),
        ("adler32=00ab12cd00", ""),
        ("md5=adler32", ""),
        ("xadler32=5", ""),
    ],
)
def test_adler32_in_a_digest_header(value: str, found: str) -> None:
    assert bash('digest_of "$1"', f"HTTP/1.1 200 OK\r\nDigest: {value}").stdout.strip() == found


@pytest.mark.parametrize(
    "error, is_final",
    [
        ("status 403 curl: (22) The requested URL returned error: 403", True),
        ("status 507 curl: (22) x", True),
        ("[ERROR] Server responded with an error: [3010] not authorized", True),
        ("cp: cannot create regular file '/x': Permission denied", True),
        ("cp: error writing '/x': No space left on device", True),
        ("Disk quota exceeded", True),
        ("status 503 curl: (22) x", False),
        ("status 000 curl: (7) Failed to connect", False),
        ("status 404 curl: (22) x", False),
        ("[FATAL] Connection error", False),
        ("", False),
    ],
)
def test_refusal_is_told_from_an_outage(error: str, is_final: bool) -> None:
    assert (bash('is_refusal "$1"', error).returncode == 0) == is_final


@pytest.mark.parametrize(
    "url, kind",
    [
        ("https://h:1/p", "http"),
        ("/a b/c", "file"),
        ("root://h//p", "root"),
        ("https://h/p?signature=x", ""),
        ("https://h/p#x", ""),
        ("https://me:secret@h/p", ""),
        ("gsiftp://h/p", ""),
    ],
)
def test_folder_for_outputs_has_no_secret_and_no_query(url: str, kind: str) -> None:
    assert bash('! storage_kind "$1" || printf %s "$url_kind"', url).stdout == kind


@pytest.mark.parametrize(
    "slice_, file",
    [("name.evio+1,4", "name+1,4.evio"), ("a+b.c.evio+1,4", "a+b.c+1,4.evio"), ("nodot+1,4", ""), ("", "")],
)
def test_file_of_a_slice(slice_: str, file: str) -> None:
    assert bash('slice_file "$1"; printf %s "$slice_file"', slice_).stdout == file


# --- texts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "escaped, most, text",
    [
        (r"plain", 9, "plain"),
        (r"plain", 3, "pla"),
        (r"\xc2\xb5m", 9, "\u00b5m"),
        (r"a\xb0b\xc2", 9, "ab"),
        (r"\xe2\x82\xac\xf0\x9f\x98\x80\xf4\x90\x80\x80\xed\xa0\x80\xc0\x80.", 9, "\u20ac\U0001f600."),
        (r"a\tb\x01\x7f\xc2\x85c", 9, "abc"),
        (r"\xc3\xa4\xc3\xa4\xc3\xa4", 2, "\u00e4\u00e4"),
        ("", 9, ""),
    ],
)
def test_text_is_valid_and_cut_between_characters(escaped: str, most: int, text: str) -> None:
    assert (
        bash('plain_text "$1" "$(printf \'%b\' "$2")"; printf %s "$plain_text"', str(most), escaped).stdout
        == text
    )


# --- what the server sends to a job, and what a job reports --------------------------------------------------


def job(commands: str, **environment: str) -> str:
    """Calls functions of osgprod_exec.sh, which is sourced; returns their output."""
    done = subprocess.run(
        ["/bin/bash", "-c", f"source {EXEC_SCRIPT}; {commands}"],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("machine, job_ad, setting, at_most", TIMES)
def test_job_must_end_at_the_earliest_time_that_anybody_tells(
    tmp_path: Path, machine: str, job_ad: str, setting: str | None, at_most: int | None
) -> None:
    now = int(time.time())
    left = job(
        f"TIME_LEFT_S={setting or ''}; find_end; time_left; echo $time_left",
        **write_ads(tmp_path, machine, job_ad, now),
    )
    if at_most is None:
        assert left == "\n"
    else:
        assert at_most - (time.time() - now) - 1 <= int(left) <= at_most


@pytest.mark.parametrize("text, identity", IDENTITIES)
def test_job_has_the_identity_that_its_ad_holds(
    tmp_path: Path, text: str, identity: tuple[str | None, int | None]
) -> None:
    (tmp_path / "job.ad").write_text(text)
    found = job('find_identity; echo "$schedd|$qdate"', _CONDOR_JOB_AD=str(tmp_path / "job.ad"))
    assert found == "|".join(str(value or "") for value in identity) + "\n"


@pytest.mark.parametrize("line, reason", LAST_WORDS)
def test_reason_of_a_failure_is_text_that_keeps_both_ends_and_is_cut_between_characters(
    tmp_path: Path, line: str, reason: str
) -> None:
    found = job(
        f"scratch={tmp_path}; printf '{line}\\n' >{tmp_path}/work.log; last_words; echo \"$plain_text\""
    )
    assert found == f"{reason}\n"


@pytest.mark.parametrize("before, after", [(395, 700), (9, 9994), (9, 3994), (9, 20009)])
def test_reason_of_a_failure_and_the_end_of_its_log_have_no_part_of_a_secret_where_they_are_cut(
    tmp_path: Path, before: int, after: int
) -> None:
    """before, after: bytes of the last line."""
    (tmp_path / "work.log").write_text(f"{'x' * before}KLMNOPQRSTUVWXYZ{'x' * after}\n")
    found = job(f'scratch={tmp_path} magic=KLMNOPQRSTUVWXYZ; last_words; echo "$plain_text"; log_tail')
    assert not re.search("[A-Z]", found), found


def test_words_of_a_storage_client_have_no_part_of_a_secret_where_they_are_cut() -> None:
    found = job("complain() { printf 'KLMNOPQRSTUVWXYZ%09994d\\nno file' 0 >&2; }; print_both complain")
    assert found == "\x01\nno file"


def test_report_of_the_work_has_the_last_value_of_a_name_and_all_inputs(tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_bytes(
        b"events=1\nevents=2\nmerged_input=u 1 a\nno value\n=x\nscratch=/etc\nfault=fe\0tch\nmerged_input=v 2 b\n"
        b'outputs_list=[{"kind":"a=b"}]'
    )
    show = 'for name in "${!reported[@]}"; do echo "$name: ${reported["$name"]}"; done | sort; echo "$reported_inputs"'
    found = job(
        f"read_report {tmp_path}/report.txt; {show}; read_report {tmp_path}/none; echo ${{#reported[@]}}"
    )
    assert found == 'events: 2\nfault: fetch\noutputs_list: [{"kind":"a=b"}]\nu 1 a\nv 2 b\n\n0\n'


def test_what_was_written_down_is_read_back_as_it_was(tmp_path: Path) -> None:
    """Also by a release that reads it line by line with sed."""
    lists = """'[{"kind":"x","url":"y=z"}]' 'soft=ware' $'u 1 a\\nv 2 b\\n'"""
    found = job(
        f"unreported={tmp_path}/kept OSGPROD_PROJECT=p token=t osgprod_token_hosts='a.org b.org' slices_done=3\n"
        "resources=(cpu_s 1 wall_s 2)\n"
        f"write_down name 5 2 100 00ab '' 60 {lists}\n"
        'for name in "${!written[@]}"; do echo "$name=${written["$name"]}"; done; printf %s "$written_inputs"'
    )
    file = (tmp_path / "kept.report").read_text()
    names = dict(line.split("=", 1) for line in file.splitlines() if not line.startswith("merged_input="))
    expected = {"project": "p", "token": "t", "name": "name", "events": "5", "outputs": "2", "bytes": "100"}
    expected |= {
        "adler32": "00ab",
        "url": "",
        "heartbeat_s": "60",
        "outputs_list": '[{"kind":"x","url":"y=z"}]',
    }
    expected |= {"token_hosts": "a.org b.org"}
    expected |= {"software": "soft=ware", "slices_done": "3", "cpu_s": "1", "wall_s": "2", "complete": "yes"}
    assert names == expected
    assert file.endswith("merged_input=u 1 a\nmerged_input=v 2 b\ncomplete=yes\n")
    assert sorted(found.splitlines()) == sorted(
        [*(f"{name}={value}" for name, value in expected.items()), "u 1 a", "v 2 b"]
    )


def test_kept_success_is_used_only_when_its_report_is_whole_and_of_this_project(tmp_path: Path) -> None:
    keep = (
        f"cd {tmp_path}; OSGPROD_PROJECT=p cluster=7 process=1 unreported={tmp_path}/unreported_job_7_1.p token=t\n"
        "osgprod_token_hosts= slices_done=0 resources=(); write_down name 5 2 100 00ab http://u 60 '' '' ''\n"
    )
    look = "has_unreported 2>&1 && echo used || echo not used; ls"
    new, old = "unreported_job_7_1.p.report", "unreported_job_7_1.report"  # old: of release 0.11
    assert job(f"{keep} {look}") == f"used\n{new}\n"
    found = job(f'{keep} text="$(head -c 30 {new})"; printf %s "$text" >{new}; {look}')
    assert "can't be used, and is removed" in found and found.endswith("\nnot used\n")
    assert job(f"{keep} mv {new} {old}; {look}") == f"used\n{new}\n"
    of_another = f"sed -i s/project=p/project=q/ {new}; mv {new} {old}"
    assert job(f"{keep} {of_another}; {look}") == f"not used\n{old}\n"


def test_memory_is_first_measured_after_a_second_with_any_interval_of_heartbeats(tmp_path: Path) -> None:
    """Not seconds later where the interval is no multiple of 5: short work would have none on record."""
    found = job(
        "make_scratch; set -m; sleep 1000 & work_group=$!; set +m\n"
        'eval "real_$(declare -f look)"; eval "real_$(declare -f pause)"\n'
        'pause() { echo "$1" >>"$scratch/pauses"; real_pause "$1"; }\n'
        'look() { [[ -e "$scratch/first" ]] || cp "$scratch/pauses" "$scratch/first"; real_look; }\n'
        f"start_heartbeats 8 ''; read -r -t {PATIENCE_S:.0f} -u 8 memory disk && ((memory > 0)) && cat $scratch/first\n"
        "stop_heartbeats; end_group $work_group",
        _CONDOR_SCRATCH_DIR=str(tmp_path),
    )
    assert found == "1\n", "after one pause of a second"


def test_child_that_a_signal_leaves_without_a_name_is_killed_and_the_work_is_not(tmp_path: Path) -> None:
    """Such a child would wait for ever to write into its pipe, and keep the job's output open."""
    found = job(
        "heartbeat_pid='' work_group=''\n"
        f"mkfifo {tmp_path}/pipe; set -m; sleep 1000 & work_group=$!; sleep 1000 >{tmp_path}/pipe & set +m\n"
        "other=$!; end_children; { wait $other; } 2>/dev/null || echo $?; kill $work_group && echo alive"
    )
    assert found == "137\nalive\n"


# --- tarballs of a merge -------------------------------------------------------------------------------------


def is_sound(folder: Path, commands: str) -> int:
    """Exit code of the merge script's is_sound_tarball on t.tar.gz in a folder, after other commands."""
    script = f"source {CHECKOUT}/worker/osgprod_merge.bash; {commands}\nis_sound_tarball t.tar.gz </dev/null || exit"
    done = subprocess.run(["/bin/bash", "-pc", script], cwd=folder, env={"PATH": "/usr/bin:/bin"}, timeout=30)
    return done.returncode


def damaged(content: bytes, how: str) -> bytes:
    return {
        "": content,
        "truncated": content[:-5],
        "another checksum": content[:-8] + bytes([content[-8] ^ 1]) + content[-7:],
        "no tarball": gzip.compress(b"no tarball" * 100),
        "not even gzip": b"no tarball",
    }[how]


@pytest.mark.parametrize(
    ("name", "how", "code", "reads"),
    [
        ("d/a", "", 0, 1),
        ("/d/a", "", 1, 1),
        ("d/../../a", "", 1, 1),
        ("..", "", 1, 1),
        ("d/a", "truncated", 1, 2),
        ("d/a", "another checksum", 1, 2),
        ("d/a", "no tarball", 2, 1),
        ("d/a", "not even gzip", 1, 2),
    ],
)
def test_tarball_is_sound_if_it_is_whole_and_stays_in_its_folder_which_one_reading_shows(
    tmp_path: Path, name: str, how: str, code: int, reads: int
) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for member in ("0", name):
            entry = tarfile.TarInfo(member)
            entry.size = 100_000
            archive.addfile(entry, io.BytesIO(random.Random(1).randbytes(entry.size)))
    (tmp_path / "t.tar.gz").write_bytes(damaged(content.getvalue(), how))
    assert is_sound(tmp_path, 'gzip() { echo >>reads; command gzip "$@"; }') == code
    assert len((tmp_path / "reads").read_text()) == reads


@is_root
def test_files_of_a_tarball_can_be_read_whatever_their_modes_are(folder: Path) -> None:
    """A job that ran as root has packed them so. The merge does not run as root, which may read everything."""
    with tarfile.open(folder / "t.tar.gz", mode="w:gz") as archive:
        for name, kind in (("d", tarfile.DIRTYPE), ("d/e", tarfile.DIRTYPE), ("d/e/f", tarfile.REGTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = kind, 0
            archive.addfile(entry)
    reachable_for_all(folder)
    script = f"source {shutil.copy(CHECKOUT / 'worker/osgprod_merge.bash', folder)}; mkdir s\n"
    script += "unpack_input t.tar.gz s log && cat s/d/e/f"
    as_nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    command = [*as_nobody, "/bin/bash", "-pc", script]
    done = subprocess.run(command, cwd=folder, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["gzip", "tar", "grep"])
def test_killed_program_makes_no_tarball_unsound(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "t.tar.gz", mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    assert is_sound(tmp_path, f"{name}() (cat >/dev/null; kill -KILL $BASHPID)") > 125, "the node's fault"
