"""Promises of the repository itself: a run of tests leaves nothing behind, the public CI tests what we support."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

from shim.local.embedded import memory_or_temporary
from shim.migrate import OLDEST_SERVER
from tests.support import CHECKOUT

# A pytest without the other plugins starts in a third of the time.
ALONE = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
CI = CHECKOUT / ".github" / "workflows" / "ci.yml"


def versions(name: str) -> list[str]:
    line = re.search(rf"^ +{name}: \[(.*)\]$", CI.read_text(), re.MULTILINE)
    assert line
    return re.findall(r'"([\d.]+)"', line[1])


def test_public_ci_begins_with_the_oldest_python_and_postgresql_that_we_support() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert versions("python")[0] == project["requires-python"].removeprefix(">=")
    assert versions("postgresql")[0] == str(OLDEST_SERVER // 10000)


NOUNS = (
    "answer|attempt|ban|block|call|connection|event|failure|fault|file|folder|function|hour|job|line|merge|migration|minute"
    "|name|notification|output|place|process|project|record|request|row|run|setting|site|slice|start|success|time|worker"
)
# A number that can be 1, and a noun in the plural behind it.
UNCOUNTED = {
    "sql/functions/*/*.sql": rf"%s? (?:{NOUNS})(?:s|es)\b(?!:all)",
    "shim/**/*.py": rf"\}} (?:{NOUNS})(?:s|es)\b(?!/h)",
    "shim/dashboard/templates/*.html": rf"\}}\}} (?:{NOUNS})(?:s|es)\b(?!/h)",
}
# What is above 1 where the message is shown, or is no number.
MORE_THAN_ONE = {
    "of %s requests of the last 15 minutes",
    "format('in %s merges', count(*))",
    "format('merge %s has %s files of kind %s'",
    "format('one of %s slices that job",
    "format('%s attempts did it', count(*))",
    "% names the merges of a worker",
    "{MAX_EVENTS}",
    "{MAX_BLOCKS} blocks",
    "{MAX_WAITING} calls",
    "{ASK_ABOVE} files",
    "the first {looked} files",
    "{host} names no director",
    "{LONGEST_BAN_H} hours",
    "{MOST_RUNS} runs",
    "{{ map.files_a_cell }} files a cell",
    "{most} events of run control",
    "port {port} answers",
}


def test_no_message_counts_one_thing_in_the_plural() -> None:
    """Messages count by osgprod._counted, shim.words.counted, and the filter noun of the dashboard's pages."""
    found, used = [], set()
    for pattern, uncounted in UNCOUNTED.items():
        for path in sorted(CHECKOUT.glob(pattern)):
            for number, line in enumerate(path.read_text().split("\n"), 1):
                if re.search(uncounted, line) and not line.lstrip().startswith(("--", "#")):
                    excused = {text for text in MORE_THAN_ONE if text in line}
                    used |= excused
                    found += [] if excused else [f"{path.relative_to(CHECKOUT)}:{number}: {line.strip()}"]
    assert found == []
    assert used == MORE_THAN_ONE, "the others are excused in vain"


LEAVES = """
import pathlib, subprocess, tempfile

def test_that_leaves_things():
    pathlib.Path(tempfile.mkdtemp(prefix="scratch")).touch()
    pathlib.Path.home().joinpath("history").touch()
    pathlib.Path({left!r}).touch()
    process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    pathlib.Path({pid!r}).write_text(str(process.pid))
    process.returncode = 0  # no warning of pytest's
"""


def test_a_run_that_leaves_something_behind_fails_and_names_it(folder: Path) -> None:
    """make test runs with this plugin, so it shows that the whole suite leaves nothing."""
    left, pid = CHECKOUT / "tests" / f"left-{folder.name}", folder / "pid"
    (folder / "test_leaves.py").write_text(LEAVES.format(left=str(left), pid=str(pid)))
    run = [sys.executable, "-m", "pytest", "-q", "-p", "tests.tidy", "-p", "no:cacheprovider", str(folder)]
    try:
        ended = subprocess.run(
            run, cwd=CHECKOUT, capture_output=True, text=True, env={**ALONE, "PYTEST_TIDY_S": "0"}
        )
    finally:
        left.unlink(missing_ok=True)
        os.kill(int(pid.read_text()), signal.SIGKILL)
    assert ended.returncode == 1 and "1 passed" in ended.stdout, ended.stdout + ended.stderr
    for name in ("/tmp/scratch", "/home/history", str(left), ": sleep 1000"):
        assert name in ended.stdout, ended.stdout


def test_run_answers_for_its_own_folders_and_removes_those_of_killed_runs(folder: Path) -> None:
    with subprocess.Popen(["true"]) as killed:
        pass
    abandoned, another = (
        memory_or_temporary() / f"osgprod-{pid}-{folder.name}" for pid in (killed.pid, os.getpid())
    )
    text = f"import pathlib\ndef test_that_leaves_nothing(tmp_path):\n    pathlib.Path({str(another)!r}).mkdir()\n"
    (folder / "test_leaves.py").write_text(text)
    abandoned.mkdir()
    run = [sys.executable, "-m", "pytest", "-q", "-p", "tests.tidy", "-p", "no:cacheprovider", str(folder)]
    try:  # with patience: another test may just have a file in the checkout
        ended = subprocess.run(run, cwd=CHECKOUT, capture_output=True, text=True, env=ALONE)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert (abandoned.exists(), another.exists()) == (False, True)
    finally:
        another.rmdir()


def test_examples_of_hypothesis_are_never_too_slow() -> None:
    """By default a test fails when one of them takes 0.2 s, or when it takes a second to make ten."""
    for path in CHECKOUT.glob("tests/**/*.py"):
        for names in re.findall(r"^from hypothesis import (.*)$", path.read_text(), re.MULTILINE):
            is_free = path.name == "examples.py" or not {"given", "settings"} & set(names.split(", "))
            assert is_free, f"{path}: tests/examples.py has them"
