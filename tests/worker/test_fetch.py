"""The work script gets exactly its slice from a storage that misbehaves, or says that it can't."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from shim.evio.writer import write_file
from tests.support import CHECKOUT, wait_until
from tests.worker.conftest import slow
from tests.worker.fetching import ENVIRONMENT, NODE_FAULT, NOT_FETCHED, SCRIPT, Slice, call, trusting
from tests.worker.site import Site

MISCONFIGURED = 40


def test_slice_comes_in_two_requests_and_not_a_byte_too_much(slice_: Slice, site: Site) -> None:
    assert slice_.run() == (0, "", slice_.expected)
    assert len(site.seen) == 2
    assert site.sent() == slice_.ranges


def test_brackets_in_a_folders_name_are_no_pattern(
    slice_: Slice, assigned: dict[str, bytes], folder: Path, site: Site
) -> None:
    site.files["/a[1-2]{x,y}/hd_rawdata_000001_001.evio"] = assigned["rawdata"]
    assert Slice(assigned, folder, f"{site.url}/a[1-2]{{x,y}}").run() == (0, "", slice_.expected)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_slice_comes_from_a_file_system(
    slice_: Slice, assigned: dict[str, bytes], folder: Path, scheme: str
) -> None:
    (folder / "hd_rawdata_000001_001.evio").write_bytes(assigned["rawdata"])
    assert Slice(assigned, folder, f"{scheme}{folder}").run() == (0, "", slice_.expected)


def test_sleep_that_knows_whole_seconds_only_ends_no_fetch(slice_: Slice, site: Site, tmp_path: Path) -> None:
    sleep = tmp_path / "sleep"
    sleep.write_text('#!/bin/bash\n[[ $1 =~ ^[0-9]+$ ]] && exec /bin/sleep "$1"\nexit 1\n')
    sleep.chmod(0o755)
    site.faults = [503]
    code, log, got = slice_.run(PATH=f"{tmp_path}:/usr/bin:/bin")
    assert (code, got) == (0, slice_.expected), log


def test_fetch_goes_on_where_the_server_broke_off(slice_: Slice, site: Site) -> None:
    site.faults = [None, "close", "short", 500, 503, "short", "close"]
    code, log, seen = slice_.run(OSGPROD_TRIES="8")
    assert (code, seen) == (0, slice_.expected), log
    assert site.sent() == slice_.ranges, "what had come was not fetched again"


def test_server_that_is_away_for_a_while_is_waited_for(slice_: Slice, site: Site) -> None:
    port, reserved = site.port, socket.socket()
    site.__exit__()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", port))  # nobody listens: connections are refused
    later = Site(site.files, port=port)

    bin_ = slice_.folder / "bin"  # a curl that tells when the first attempt has failed
    bin_.mkdir()
    (bin_ / "curl").write_text(f'#!/bin/bash\n/usr/bin/curl "$@"; code=$?; touch {bin_}/failed; exit $code\n')
    (bin_ / "curl").chmod(0o755)

    def come_back() -> None:
        wait_until((bin_ / "failed").exists, "the first attempt")
        reserved.close()
        later.__enter__()

    returning = threading.Thread(target=come_back)
    returning.start()
    try:
        code, log, seen = slice_.run(
            OSGPROD_TRIES="12", OSGPROD_BACKOFF_MS="50", PATH=f"{bin_}:/usr/bin:/bin"
        )
    finally:
        returning.join()
        later.__exit__()
    assert (code, seen) == (0, slice_.expected), log
    assert "curl: (7) " in log  # could not connect
    site.__enter__()  # the fixture ends it once more


def test_server_that_is_gone_is_given_up_on(slice_: Slice, site: Site) -> None:
    site.faults = [503] * 4
    code, log, seen = slice_.run()
    assert (code, seen) == (NOT_FETCHED, None)
    assert f"status 503 (4 attempts, 0 of {slice_.pieces[0][2]} bytes" in log.splitlines()[-1]


@pytest.mark.parametrize("status", [401, *slow(410, 416)])
def test_answer_that_can_not_change_is_believed_at_once(slice_: Slice, site: Site, status: int) -> None:
    site.faults = [status]
    code, log, seen = slice_.run()
    assert (code, seen, len(site.seen)) == (NOT_FETCHED, None, 1)
    assert f"status {status}" in log


@pytest.mark.parametrize("status", [403, *slow(404)])
def test_refusal_of_an_overloaded_cache_is_not_believed_at_once(
    slice_: Slice, site: Site, status: int
) -> None:
    site.faults = [status, status, status, None, status, status]
    code, log, seen = slice_.run(OSGPROD_TRIES="8")
    assert (code, seen) == (0, slice_.expected), log
    assert f"fetch failed (attempt 3, 0 of {slice_.pieces[0][2]} bytes): status {status}" in log


@pytest.mark.parametrize("status", [404, *slow(403)])
def test_file_that_is_refused_again_and_again_is_given_up_on_long_before_a_server_that_is_away(
    slice_: Slice, site: Site, status: int
) -> None:
    site.faults = [status] * 100
    code, log, seen = slice_.run(OSGPROD_TRIES="100")
    assert (code, seen, len(site.seen)) == (NOT_FETCHED, None, 4)
    assert f"not fetched: status {status} (4 attempts" in log.splitlines()[-1]


def test_pause_that_the_server_wants_is_kept(slice_: Slice, site: Site) -> None:
    site.faults, site.headers = [503], {"Retry-After": "1"}
    started = time.monotonic()
    assert slice_.run()[0] == 0
    assert time.monotonic() - started > 1


@pytest.mark.parametrize("fault", [503, "zeros", *slow(404, "ignore-range", "wrong-range")])
def test_last_line_of_the_log_is_the_reason_without_secrets(
    assigned: dict[str, bytes], slice_: Slice, folder: Path, site: Site, fault: str | int
) -> None:
    secret = "/hd_rawdata_000001_001.evio?authz=secret"
    site.files[secret] = assigned["rawdata"]
    script = Slice(assigned, folder, site.url)
    script.script = script.script.replace(b"_001.evio'\n", b"_001.evio?authz=secret'\n")
    assert b"authz" in script.script
    site.faults = [fault] * 9
    code, log, _ = script.run()
    assert code == NOT_FETCHED
    reason = log.splitlines()[-1]
    assert " osgprod_work: not fetched: " in reason
    assert reason.endswith(f"{site.url}/hd_rawdata_000001_001.evio")
    assert "secret" not in log


def test_server_that_ignores_ranges_is_found_out_before_the_disk_fills(slice_: Slice, site: Site) -> None:
    site.files["/hd_rawdata_000001_001.evio"] += bytes(64 << 20)
    site.faults = ["ignore-range"]
    code, log, seen = slice_.run()
    assert (code, seen, len(site.seen)) == (NOT_FETCHED, None, 1)
    assert "ignores byte ranges" in log
    assert site.sent() < 16 << 20, "nobody reads on"  # what fits into the buffers on the way


def test_server_that_sends_another_range_is_not_believed(slice_: Slice, site: Site) -> None:
    site.faults = [None, "wrong-range"]
    code, log, seen = slice_.run()
    assert (code, seen) == (NOT_FETCHED, None)
    assert "another range" in log


def test_cut_off_raw_data_file_is_no_slice(slice_: Slice, site: Site) -> None:
    site.files["/hd_rawdata_000001_001.evio"] = site.files["/hd_rawdata_000001_001.evio"][:-5000]
    code, log, seen = slice_.run()
    assert (code, seen) == (NOT_FETCHED, None), log


def test_proxy_of_the_site_is_not_asked_and_curlrc_of_the_node_is_not_read(
    slice_: Slice, folder: Path
) -> None:
    (folder / ".curlrc").write_text('proxy = "http://127.0.0.1:9"\n')
    names = ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    code, log, seen = slice_.run(HOME=str(folder), **dict.fromkeys(names, "http://127.0.0.1:9"))
    assert (code, seen) == (0, slice_.expected), log


def test_token_does_not_travel_in_the_clear(slice_: Slice, site: Site) -> None:
    assert slice_.run(BEARER_TOKEN="secret")[0] == 0
    assert not any("authorization" in seen.headers for seen in site.seen)


def test_full_disk_is_the_sites_fault_and_told_at_once(slice_: Slice) -> None:
    # A limit on the size of files behaves like a full disk, for users other than root too.
    code, log, seen = slice_.run("/bin/bash", "-c", 'ulimit -f 1; exec "$@"', "-")
    assert (code, seen) == (NOT_FETCHED, None)
    assert "is the disk full?" in log
    assert "try" not in log


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_disk_that_is_full_in_mid_fetch_is_told_at_once(slice_: Slice, folder: Path) -> None:
    (folder / "work").mkdir()
    mount = f'mount -t tmpfs -o size=4k none {folder}/work && cd {folder}/work && exec "$@"'
    code, log, seen = slice_.run("unshare", "-m", "/bin/bash", "-c", mount, "-")
    assert (code, seen) == (NOT_FETCHED, None)
    assert "is the disk full?" in log


def test_by_hand_it_processes_a_whole_file(folder: Path) -> None:
    rawdata = folder / "hd_rawdata_000001_001.evio"
    rawdata.write_bytes(b"whole")
    done = subprocess.run(
        ["/bin/bash", str(SCRIPT), str(rawdata)],
        cwd=folder,
        env={**ENVIRONMENT, "OSGPROD_RECON": "cksum"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[1:] == [str(rawdata.stat().st_size), str(rawdata)]
    assert rawdata.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="hiding the XRootD bindings takes root")
def test_without_xrootd_bindings_the_reconstruction_gets_names_of_blocks(
    assigned: dict[str, bytes], slice_: Slice, folder: Path
) -> None:
    """As with the original, for sites whose client cuts slices itself."""
    recon = folder / "recon"
    recon.write_text('#!/bin/bash\nprintf "%s\\n" "$@" >../kept/names\n')
    recon.chmod(0o755)
    hide = 'mount -t tmpfs none /usr/lib/python3/dist-packages; exec "$@"'
    code, log, seen = Slice(assigned, folder, "root://host/").run(
        "unshare", "-m", "/bin/bash", "-c", hide, "-", OSGPROD_RECON=str(recon)
    )
    assert code == 0, log
    assert seen is not None
    first, *_, last = seen.decode().splitlines()
    assert (first, last) == tuple(f"root://host//hd_rawdata_000001_001.evio+{n},{n + 1}" for n in (4, 6))


@pytest.mark.parametrize("code", [3, 137, *slow(0)])
def test_exit_code_is_that_of_the_reconstruction(slice_: Slice, folder: Path, code: int) -> None:
    program: Any = folder / "recon"
    program.write_text(f"#!/bin/bash\nexit {code}\n")
    program.chmod(0o755)
    assert slice_.run(OSGPROD_RECON=str(program))[0] == code


# --- from standard input ------------------------------------------------------------------------------------------


def test_script_that_is_read_from_standard_input_does_all_its_work(slice_: Slice, folder: Path) -> None:
    recon = executable(folder / "recon", 'echo "$NTHREADS" >../threads; cat; cp -t ../kept "$1"')
    code, log, seen = slice_.run(standard_input=True, OSGPROD_RECON=recon)
    assert (code, log, seen) == (0, "", slice_.expected)
    assert (folder / "threads").read_text() == "3\n"


def test_threads_are_as_many_as_the_servers_comment_says_in_a_script_without_the_newer_line(
    slice_: Slice, folder: Path
) -> None:
    slice_.script = slice_.script.replace(b"osgprod_ncpus=3\n", b"")
    recon = executable(folder / "recon", 'echo "$NTHREADS" >../threads')
    assert slice_.run(OSGPROD_RECON=recon)[0] == 0
    assert (folder / "threads").read_text() == "3\n"


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, value",
    [
        *[("OSGPROD_TRIES", value) for value in ("three", "0", "-1", "1001", "1e3", "08x", "9" * 30, " 3")],
        *[("OSGPROD_BACKOFF_MS", value) for value in ("1s", "0", "600001", "0x10", "a[$(touch pwned)]")],
    ],
)
def test_setting_that_is_no_number_in_its_range_is_named_before_anything_is_fetched(
    slice_: Slice, site: Site, folder: Path, name: str, value: str
) -> None:
    report = folder / "report"
    code, log, seen = slice_.run(OSGPROD_REPORT=str(report), **{name: value})
    assert (code, seen, site.seen) == (MISCONFIGURED, None, [])
    assert name in log.splitlines()[-1]
    assert "it must be a whole number from 1 to" in log.splitlines()[-1]
    assert report.read_text().startswith(f"misconfigured={name}")


def test_leading_zeros_of_a_setting_are_no_octal_number(slice_: Slice) -> None:
    assert slice_.run(OSGPROD_TRIES="08", OSGPROD_BACKOFF_MS="0010")[0] == 0


# --- sources ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["HTTP", "dav", *slow("http")])
def test_schemes_of_http_are_fetched_by_curl(
    assigned: dict[str, bytes], slice_: Slice, folder: Path, site: Site, scheme: str
) -> None:
    url = site.url.replace("http://", f"{scheme}://")
    assert Slice(assigned, folder, url).run() == (0, "", slice_.expected)


@pytest.mark.parametrize(
    "prefix",
    ["s3://bucket", "gsiftp://host", "stash:///gluex", "no/scheme", "htp:/"],
)
def test_source_that_can_not_be_read_is_an_error_of_the_configuration_and_not_of_the_node(
    assigned: dict[str, bytes], slice_: Slice, folder: Path, prefix: str
) -> None:
    code, log, seen = Slice(assigned, folder, prefix).run(OSGPROD_REPORT=str(folder / "report"))
    assert (code, seen) == (MISCONFIGURED, None)
    assert f"the source {prefix}/hd_rawdata_000001_001.evio" in log.splitlines()[-1]
    assert (folder / "report").read_text().startswith("misconfigured=the source ")


def test_file_that_is_shorter_than_registered_is_told_without_waiting(
    assigned: dict[str, bytes], slice_: Slice, folder: Path
) -> None:
    (folder / "hd_rawdata_000001_001.evio").write_bytes(assigned["rawdata"][:-5000])
    code, log, _ = Slice(assigned, folder, str(folder)).run(OSGPROD_TRIES="1000", OSGPROD_BACKOFF_MS="600000")
    assert code == NOT_FETCHED
    assert (
        f"shorter than when it was registered: {len(assigned['rawdata']) - 5000} bytes"
        in log.splitlines()[-1]
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="making a node read-only takes root")
def test_node_where_only_the_current_folder_can_be_written_is_enough(slice_: Slice, folder: Path) -> None:
    """As in a container that shows nothing else."""
    for name in ("work", "kept"):
        (folder / name).mkdir()
    script = f"""mount --bind / / && mount -o remount,bind,ro / || exit 9
        for place in /dev/shm /var/tmp; do mount -t tmpfs -o ro none $place || exit 9; done
        cd {folder} || exit 9
        for place in work kept; do mount --bind $place $place && mount -o remount,bind,rw $place || exit 9; done
        ! touch /tmp/x 2>/dev/null && cd {folder}/work && exec "$@\""""
    code, log, seen = slice_.run("unshare", "-m", "/bin/bash", "-c", script, "-", HOME="/nonexistent")
    assert (code, log, seen) == (0, "", slice_.expected)


# --- https -----------------------------------------------------------------------------------------------------


@pytest.fixture
def secure(slice_: Slice, site: Site, certificate: Path) -> Iterator[Site]:
    with Site(files=site.files, certificate=certificate) as secure:
        yield secure


def test_authority_that_only_the_grid_knows_is_trusted(
    assigned: dict[str, bytes], slice_: Slice, folder: Path, secure: Site, certificate: Path
) -> None:
    script = Slice(assigned, folder, secure.url.replace("https://", "davs://"))
    assert script.run(X509_CERT_DIR=str(certificate)) == (0, "", slice_.expected)
    code, log, _ = script.run(X509_CERT_DIR=str(folder), OSGPROD_TRIES="1")
    assert code == NOT_FETCHED
    assert "certificate" in log.splitlines()[-1]


@pytest.mark.parametrize("name", ["CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_bundle_of_the_environment_is_trusted_beside_the_grids_authorities(
    assigned: dict[str, bytes], slice_: Slice, folder: Path, secure: Site, certificate: Path, name: str
) -> None:
    environment = {"X509_CERT_DIR": str(folder), name: str(certificate / "cert.pem")}
    assert Slice(assigned, folder, secure.url).run(**environment) == (0, "", slice_.expected)


@pytest.mark.parametrize(
    "hosts, gets_token", [("other.org", False), ("other.org, localhost", True), *slow((None, False))]
)
def test_token_follows_a_redirect_only_to_a_host_that_is_listed(
    assigned: dict[str, bytes],
    slice_: Slice,
    folder: Path,
    secure: Site,
    certificate: Path,
    hosts: str | None,
    gets_token: bool,
) -> None:
    with Site(files=secure.files, certificate=certificate) as cache:
        secure.faults = [f"redirect {cache.url}"] * 9
        environment = {**trusting(certificate), "BEARER_TOKEN": "secret"}
        if hosts:
            environment["OSGPROD_TOKEN_HOSTS"] = hosts
        code, log, seen = Slice(assigned, folder, secure.url).run(**environment)
    assert (code, seen) == (0, slice_.expected), log
    assert len(secure.seen) == len(cache.seen) == 2
    assert all(request.headers["authorization"] == "Bearer secret" for request in secure.seen)
    assert [request.headers.get("authorization") for request in cache.seen] == (
        ["Bearer secret" if gets_token else None] * 2
    )


def test_redirect_from_https_to_plain_http_is_not_followed(
    assigned: dict[str, bytes], slice_: Slice, folder: Path, site: Site, secure: Site, certificate: Path
) -> None:
    secure.faults = [f"redirect {site.url}"] * 9
    code, log, _ = Slice(assigned, folder, secure.url).run(
        **trusting(certificate), BEARER_TOKEN="secret", OSGPROD_TOKEN_HOSTS="127.0.0.1"
    )
    assert (code, site.seen) == (NOT_FETCHED, [])
    assert "status 302" in log.splitlines()[-1]


def test_secret_in_a_redirect_is_on_no_command_line_and_in_no_log(
    assigned: dict[str, bytes], slice_: Slice, folder: Path, site: Site
) -> None:
    bin_folder, lines = folder / "bin", folder / "lines"
    bin_folder.mkdir()
    executable(bin_folder / "curl", f'printf "%s\\n" "$*" >>{lines}; exec /usr/bin/curl "$@"')
    place = f"{site.url}/signed?authz=secret&x="
    site.files["/signed?authz=secret&x=/hd_rawdata_000001_001.evio"] = assigned["rawdata"]
    site.faults = [f"redirect {place}", 503, f"redirect {place}", None, f"redirect {place}"]
    code, log, seen = Slice(assigned, folder, site.url).run(PATH=f"{bin_folder}:/usr/bin:/bin")
    assert (code, seen) == (0, slice_.expected), log
    assert "secret" not in log
    assert len(lines.read_text().splitlines()) == 6
    assert "secret" not in lines.read_text()


# --- checks of the bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["shifted", *slow("zeros")])
def test_wrong_bytes_of_the_right_length_never_reach_the_reconstruction(
    slice_: Slice, site: Site, fault: str
) -> None:
    site.faults = [None, fault]
    code, log, seen = slice_.run()
    assert (code, seen) == (NOT_FETCHED, None)
    assert "wrong bytes came: no block header at byte" in log.splitlines()[-1]


def test_slice_of_a_file_that_was_replaced_since_it_was_indexed_is_not_processed(
    assigned: dict[str, bytes], slice_: Slice, folder: Path, site: Site
) -> None:
    """Its blocks are as long, but hold other numbers of events."""
    header = assigned["rawdata"].rindex(b"\xc0\xda\x01\x00", 0, -40) - 28
    replaced = bytearray(assigned["rawdata"])
    replaced[header + 12 : header + 16] = (9).to_bytes(4, "big")
    site.files["/hd_rawdata_000001_001.evio"] = bytes(replaced)
    code, log, seen = slice_.run()
    assert (code, seen) == (NOT_FETCHED, None)
    assert "count 30 events instead of 31" in log.splitlines()[-1]


@pytest.mark.parametrize(
    "byte_order, dictionary", [("big", True), ("little", False), *slow(("big", False), ("little", True))]
)
def test_whole_slices_pass_the_check_and_each_damaged_header_is_found(
    folder: Path, byte_order: Literal["big", "little"], dictionary: bool
) -> None:
    write_file(folder / "slice", 3, 4, byte_order=byte_order, dictionary=dictionary)
    whole = (folder / "slice").read_bytes()
    magic = (0xC0DA0100).to_bytes(4, byte_order)
    headers = [n - 28 for n in range(len(whole)) if whole.startswith(magic, n)]
    assert len(headers) == 5
    damaged = {
        f"{start}.{word}.{damage.hex()}": whole[:at] + damage + whole[at + 4 :]
        for start in headers
        for word in (0, 2, 3, 5, 7)  # length, length of the header, events, version, magic
        for damage in (bytes(4), b"\xff" * 4)
        if whole[(at := start + 4 * word) : at + 4] != damage  # the trailer has no events
    }
    assert len(damaged) == 49
    variants = {"whole": whole, "short": whole[:-4], "long": whole + bytes(4), **damaged}
    for name, data in variants.items():
        (folder / name).write_bytes(data)
    check = """for name; do
        damage=none code=0
        check_slice "$name" "$(wc -c <"$name")" 13 || code=$?
        printf '%s %s %s\\n' "$name" "$code" "$damage"
    done"""
    code, output, log = call(check, *variants, cwd=folder)
    assert (code, log) == (0, "")
    found = {line.split()[0]: line.split(maxsplit=1)[1] for line in output.splitlines()}
    assert found.pop("whole") == "0 none"
    assert "no block header at byte" in found["short"] and "no block header at byte" in found["long"]
    assert found.keys() == variants.keys() - {"whole"}
    for name, result in found.items():
        assert result.startswith("1 wrong bytes came"), name


@pytest.mark.parametrize(
    "expected, good", [("13", True), ("", True), ("None", True), ("12", False), ("0", False)]
)
def test_number_of_events_is_compared_when_the_server_tells_one(
    folder: Path, expected: str, good: bool
) -> None:
    write_file(folder / "slice", 3, 4)
    commands = (
        'osgprod_source_url=u; size_of slice; check_slice slice "$size_of" "$1" || not_fetched "$damage"'
    )
    code, _, log = call(commands, expected, cwd=folder)
    assert (code, bool(log)) == ((0, False) if good else (NODE_FAULT, True))


# --- small functions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url, shown",
    [
        ("https://h/p?authz=secret", "https://h/p"),
        ("https://user:secret@h:1/p@q", "https://h:1/p@q"),
        ("root://secret@h//p?x=y", "root://h//p"),
        ("/a/b@c", "/a/b@c"),
        ("file:///a b", "file:///a b"),
        ("http://h", "http://h"),
    ],
)
def test_url_in_a_log_has_no_secret(url: str, shown: str) -> None:
    assert call('shown_url "$1"', url) == (0, shown, "")


@pytest.mark.parametrize("data", [b"", b"\0", bytes(range(256)) * 8, b"%d\\n\n"])
def test_bytes_that_the_server_spelled_out_are_appended_as_they_are(folder: Path, data: bytes) -> None:
    (folder / "file").write_bytes(b"before")
    assert call('append_hex "$1" file', data.hex(), cwd=folder) == (0, "", "")
    assert (folder / "file").read_bytes() == b"before" + data


def test_bytes_that_can_not_be_appended_are_noticed(folder: Path) -> None:
    assert call('append_hex 00 /dev/full || echo "failed"', cwd=folder) == (0, "failed\n", "")


@pytest.mark.parametrize("offset, length", [(0, 10), (3, 4), (9, 1)])
def test_range_of_a_file_on_disk(folder: Path, offset: int, length: int) -> None:
    (folder / "f").write_bytes(b"0123456789")
    code, output, _ = call('read_file "$@" 5>/dev/null', f"{folder}/f", str(offset), str(length))
    assert (code, output) == (0, "0123456789"[offset : offset + length])


def test_range_beyond_the_end_of_a_file_on_disk_is_never_asked_for_again(folder: Path) -> None:
    (folder / "f").write_bytes(b"0123456789")
    _, output, _ = call('read_file "$@" 5>&1', f"{folder}/f", "5", "6")
    assert output == "never 0 0 is shorter than when it was registered: 10 bytes\n"


# --- the disk is full ------------------------------------------------------------------------------------------


def small_disk(folder: Path, size: str, as_root: bool) -> tuple[str, ...]:
    """A command that runs another one in the folder "work" on a separate disk, as root or as somebody else."""
    become = "" if as_root else "setpriv --reuid=65534 --regid=65534 --clear-groups "
    mount = (
        f'mount -t tmpfs -o size={size},mode=0777 none {folder}/work && cd {folder}/work && exec {become}"$@"'
    )
    return ("unshare", "-m", "/bin/bash", "-c", mount, "-")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
@pytest.mark.parametrize(
    "end, as_root",
    [
        *(("exit 0", True), ("exit 1", False), ("exec cat /dev/zero >more", False)),
        *slow(("exit 0", False), ("exit 1", True), ("exec cat /dev/zero >more", True)),
    ],
)
def test_disk_that_the_reconstruction_filled_is_the_nodes_fault_and_no_output_counts(
    slice_: Slice, folder: Path, as_root: bool, end: str
) -> None:
    (folder / "work").mkdir()
    folder.chmod(0o755)
    recon = executable(folder / "recon", f"echo 32 >events_read; cat /dev/zero >big 2>/dev/null; {end}")
    code, log, _ = slice_.run(*small_disk(folder, "3m", as_root), OSGPROD_RECON=recon)
    assert code == NODE_FAULT, log
    assert "the disk is full: outputs may be cut short" in log.splitlines()[-1]
    assert "No space left on device" in log.splitlines()[-1]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_full_disk_of_temporary_files_explains_a_failure_but_does_not_undo_a_success(
    slice_: Slice, folder: Path
) -> None:
    (folder / "work").mkdir()
    recon = executable(folder / "recon", 'cat /dev/zero >"$TMPDIR/big" 2>/dev/null; exit "$STATUS"')
    for status, expected in ("1", NODE_FAULT), ("0", 0):
        (folder / "small").mkdir(exist_ok=True)
        disk = f'mount -t tmpfs -o size=2m none {folder}/small; exec "$@"'
        code, log, _ = slice_.run(
            *("unshare", "-m", "/bin/bash", "-c", disk, "-"),
            OSGPROD_RECON=recon,
            TMPDIR=str(folder / "small"),
            STATUS=status,
        )
        assert code == expected, log
        assert ("is full" in log) is bool(expected)


def test_limit_on_the_size_of_files_is_like_a_full_disk(slice_: Slice) -> None:
    code, log, _ = slice_.run("/bin/bash", "-c", 'ulimit -f 100; exec "$@"', "-")
    assert code == NODE_FAULT
    assert "the disk is full: outputs may be cut short" in log.splitlines()[-1]


def test_report_that_can_not_be_written_is_the_nodes_fault(folder: Path) -> None:
    program = executable(folder / "recon", "echo 32 >events_read")
    code, log = call_main(folder, OSGPROD_RECON=program, OSGPROD_REPORT="/dev/full")
    assert code == NODE_FAULT
    assert "/dev/full can't be written" in log.splitlines()[-1]


@pytest.mark.parametrize("text, line", [("12\n", "events=12\n"), ("7 of 8", ""), ("x1", ""), ("", "")])
def test_number_of_events_goes_into_the_report_when_it_is_one(folder: Path, text: str, line: str) -> None:
    program = executable(folder / "recon", f"printf %b {text!r} >events_read")
    report = folder / "report"
    report.touch()
    assert call_main(folder, OSGPROD_RECON=program, OSGPROD_REPORT=str(report))[0] == 0
    assert report.read_text() == line


def call_main(folder: Path, **environment: str) -> tuple[int, str]:
    """Runs the work script by hand, on a file that the reconstruction does not read; returns exit code and log."""
    work = folder / "by-hand"
    work.mkdir()
    done = subprocess.run(
        ["/bin/bash", str(SCRIPT), "whole.evio"],
        cwd=work,
        env={**ENVIRONMENT, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


def executable(path: Path, text: str) -> str:
    """Writes a bash program; returns its path."""
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return str(path)


# --- what the documentation says -------------------------------------------------------------------------------


def test_settings_and_exit_codes_are_those_of_the_documentation() -> None:
    text = SCRIPT.read_text()
    head, code = text.split("set -euo pipefail", 1)
    document = (CHECKOUT / "docs" / "workscripts.md").read_text()
    rows = [line.split("|")[1:-1] for line in document.splitlines() if line.startswith("| `")]
    settings = {name: row for row in rows for name in re.findall(r"`([A-Z0-9_]+)`", row[0])}
    used = set(
        re.findall(r"\b(OSGPROD_[A-Z_]+|BEARER_TOKEN\w*|X509_\w+|CURL_CA_BUNDLE|SSL_CERT_FILE)\b", code)
    )
    assert used == set(settings) - {"TMPDIR"}
    assert {name for name in used if name.startswith("OSGPROD_")} <= set(re.findall(r"OSGPROD_[A-Z_]+", head))
    numbers = re.findall(r"number_setting (\w+) (\d+) (\d+) (\d+)", code)
    assert numbers
    for name, default, least, greatest in numbers:
        assert settings[name][1].strip() == default
        assert f"{least} to {greatest}" in settings[name][2]
    for value in re.findall(r"\bEXIT_[A-Z_]+=(\d+)", code):
        assert re.search(rf"\| {value} \| `osgprod_work.bash`(,| \|)", document)
