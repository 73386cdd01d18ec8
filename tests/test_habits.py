"""Promises of the repository itself: a run of tests leaves nothing behind, the public CI tests what we support."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from shim.migrate import OLDEST_SERVER
from tests.support import CHECKOUT

CI = CHECKOUT / ".github" / "workflows" / "ci.yml"


def versions(name: str) -> list[str]:
    line = re.search(rf"^ +{name}: \[(.*)\]$", CI.read_text(), re.MULTILINE)
    assert line
    return re.findall(r'"([\d.]+)"', line[1])


def test_public_ci_begins_with_the_oldest_python_and_postgresql_that_we_support() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert versions("python")[0] == project["requires-python"].removeprefix(">=")
    assert versions("postgresql")[0] == str(OLDEST_SERVER // 10000)


def listed() -> set[str]:
    """All files of the checkout, ignored ones included, but for caches."""
    caches = {
        "__pycache__",
        ".venv",
        ".git",
        ".pytest_cache",
        ".hypothesis",
        ".mypy_cache",
        ".ruff_cache",
        ".coverage",
    }
    return {
        str(Path(folder) / name)
        for folder, folders, names in os.walk(CHECKOUT)
        if not folders.__setitem__(
            slice(None), [one for one in folders if one not in caches]
        )  # walks on in these
        for name in names
    }


def test_a_run_of_tests_leaves_nothing_outside_of_its_own_temporary_folder(folder: Path) -> None:
    """Tests with a server, a shim of two processes, a demo project, and commands; their home folder stays empty."""
    before = listed()
    (folder / "home").mkdir()
    chosen = [
        "tests/shim/test_metrics.py", "tests/shim/test_serve.py::test_several_processes_serve_one_port_and_all_end",
        "tests/shim/test_commands.py::test_each_option_of_each_command_has_a_help_text",
    ]  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(folder / "pytest"), *chosen],
        cwd=CHECKOUT, capture_output=True, text=True,
        env={**os.environ, "TMPDIR": str(folder), "HOME": str(folder / "home")},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert listed() == before
    left = sorted(path.name for path in folder.iterdir() if path.name != "pytest")
    assert left == ["home"] and list((folder / "home").iterdir()) == []
