"""The bash answer: its placeholders get values, all else stays as it is, and no value is ever executed."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from shim.workscript import Template, TemplateError, TemplateFolder, error_text, idle_script
from tests.examples import example, given, settings
from tests.support import CHECKOUT

SHIPPED = (CHECKOUT / "worker" / "osgprod_work.bash").read_bytes()
# What the original's users have: its placeholders, tabs, Windows line ends, bytes that are no UTF-8.
ORIGINALS = (
    b"#!/bin/bash\n#\n# ncpus:\n# cluster:\n# process:\n# nstarts:\n# project:\n# source:\n# started:\n\n"
    b'#input_eviofile_list="root://xrootd.server.dns/path/to/file.evio ..."\n'
    b'#output_filename="file.evio"\n'
    b"#ncpus: not a placeholder\n  # cluster: indented\necho '# ncpus:' # process: here\r\n\tprintf '\xe9\xff\\n'\n"
)
# Everything that a shell could take for more than text.
CHARACTERS = [*"ab/. \t\n\r\v\f\0\x1b'\"`$(){}[]<>|&;*?!#~\\=+-%,", "\u2028", "\x85", "é"]
NASTY = st.lists(st.sampled_from([*CHARACTERS, "touch pwned"]), max_size=30).map("".join)


def a_slice(**more: Any) -> dict[str, Any]:
    started = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
    return {
        "task": "slice", "merge": None,
        "url": "root://x//f.evio", "filename": "f.evio", "block1": 3, "block2": 5, "nstarts": 1, "token": "t",
        "lease_s": 9, "heartbeat_s": 8, "size_bytes": 70, "events": 6, "pieces": "range 0 7\nhex 00ff",
        "started_at": started, **more,
    }  # fmt: skip


def a_job(**more: Any) -> dict[str, Any]:
    return {"project": "p", "cluster": 1, "process": 2, "cpus": 4, **more}


def bash(script: bytes, folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["bash", *arguments], input=script, cwd=folder, capture_output=True)


def test_originals_template_is_filled_as_the_original_did_and_odd_bytes_pass_unharmed() -> None:
    filled = Template(ORIGINALS).fill(a_slice(), a_job())
    assert filled == (
        b"#!/bin/bash\n#\n# ncpus: 4\n# cluster: 1\n# process: 2\n# nstarts: 1\n# project: p\n"
        b"# source: root://x//f.evio+3,5\n# started: 2026-01-02 03:04:05.678901\n\n"
        b'#input_eviofile_list="root://xrootd.server.dns/path/to/file.evio ..."\n'
        b'input_eviofile_list="\\\nroot://x//f.evio+3,4 \\\nroot://x//f.evio+4,5 \\\n"\n'
        b'#output_filename="file.evio"\noutput_filename="f+3,5.evio"\n'
        b"#ncpus: not a placeholder\n  # cluster: indented\necho '# ncpus:' # process: here\r\n\tprintf '\xe9\xff\\n'\n"
    )


@pytest.mark.parametrize(
    "text", [b"", b"\n", b"echo hello", b"\xff\xfe\x00\x01", b"# ncpuss:\n#osgprod_=1\n"]
)
def test_template_without_placeholders_passes_byte_by_byte(text: bytes) -> None:
    assert Template(text).fill(a_slice(), a_job()) == text


def test_unknown_new_placeholders_stay_comments() -> None:
    assert (
        Template(b"#osgprod_from_the_future=x\n").fill(a_slice(), a_job()) == b"#osgprod_from_the_future=x\n"
    )


def test_last_line_without_an_end_is_a_placeholder_too() -> None:
    assert (
        Template(b"#output_filename=x").fill(a_slice(), a_job())
        == b'#output_filename=x\noutput_filename="f+3,5.evio"\n'
    )
    assert Template(b"# ncpus:").fill(a_slice(), a_job()) == b"# ncpus: 4"


@pytest.mark.parametrize("template", [SHIPPED, ORIGINALS], ids=["shipped", "original's"])
@settings(max_examples=20)
@given(url=NASTY, filename=NASTY, project=NASTY)
@example(url="/a'\n$(touch pwned)", filename='"; touch pwned; "', project="p\ntouch pwned")
@example(url='x"$(touch pwned)"', filename="`touch pwned`.evio", project="\r\ntouch pwned\r\n")
@example(url="\u2028touch pwned", filename="${IFS}\\", project="\\")
def test_whatever_the_texts_are_the_script_parses_and_runs_nothing_of_them(
    tmp_path_factory: pytest.TempPathFactory, template: bytes, url: str, filename: str, project: str
) -> None:
    folder = tmp_path_factory.mktemp("run")
    script = Template(template).fill(a_slice(url=url, filename=filename), a_job(project=project))
    assert script.count(b"\n") == Template(template).fill(a_slice(), a_job()).count(b"\n"), "no line is added"
    syntax = bash(script, folder, "-n")
    assert (syntax.returncode, syntax.stderr) == (0, b"")
    # Run only the assignments: this test does not cover the commands of the shipped script.
    head = script.partition(b"set -euo pipefail")[0]
    run = bash(head + b'\nprintf "%s" "${input_eviofile_list-}"\n', folder)
    assert (run.returncode, run.stderr) == (0, b"")
    assert list(folder.iterdir()) == []


@settings(max_examples=30)
@given(text=NASTY)
def test_variables_hold_the_text_itself_when_it_is_printable(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    printable = "".join(c if c.isprintable() else "?" for c in text).replace("\u2028", "?")
    script = Template(b"#osgprod_source_url=\n").fill(a_slice(url=text), a_job())
    run = bash(script + b'printf "%s" "$osgprod_source_url"', tmp_path_factory.mktemp("run"))
    assert run.stdout.decode() == printable


@settings(max_examples=20)
@given(text=NASTY)
def test_messages_run_nothing(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("run")
    assert bash(error_text(text, text), folder).stdout == b""
    run = bash(idle_script(text), folder)
    assert (run.returncode, run.stderr, run.stdout.count(b"\n")) == (0, b"", 1)
    assert list(folder.iterdir()) == []


def test_template_is_read_again_only_when_it_changed(folder: Path) -> None:
    (folder / "p").mkdir()
    path = folder / "p" / "w.bash"
    path.write_text("# source:\none\n")
    templates = TemplateFolder(folder)
    assert templates.at_hand("p") == ("", None)
    _, first = templates.load("p", "w.bash")
    assert templates.at_hand("p") == ("w.bash", first)
    path.write_text("# source:\nlonger\n")
    assert templates.at_hand("p") == ("", None)
    path.unlink()
    with pytest.raises(TemplateError, match=r"w\.bash: No such file"):
        templates.load("p", "w.bash")


def test_template_outside_of_its_folder_is_refused(folder: Path) -> None:
    (folder / "p").mkdir()
    (folder / "secret").write_text("x\n")
    (folder / "p" / "link.bash").symlink_to(folder / "secret")
    templates = TemplateFolder(folder)
    for name in ("../secret", str(folder / "secret"), "link.bash"):
        with pytest.raises(TemplateError, match="lies outside of"):
            templates.load("p", name)
