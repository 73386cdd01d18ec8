"""Runs the commands of docs/grid.md in their order, except those that would change this machine."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import psycopg

from shim.evio.writer import write_file
from tests.grid.pool import USER, Pool
from tests.support import CHECKOUT

TEXT = (CHECKOUT / "docs" / "grid.md").read_text()


def commands(prompt: str) -> list[str]:
    """The commands of all console blocks with this prompt."""
    blocks = re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith(f"{prompt} ")]


def test_operators_commands_do_what_the_page_says(dsn: str, folder: Path) -> None:
    """In a folder with raw data, on a database with nothing in it but osgprod's tables."""
    (folder / "rawdata").mkdir()
    write_file(folder / "rawdata" / "hd_rawdata_071728_001.evio", 5, 5)  # the run that the page asks about
    environment = {
        **os.environ,
        "OSGPROD_DSN": dsn,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    ran = 0
    for command in commands("$"):
        words = shlex.split(command)
        if words[0] == "psql":
            with psycopg.connect(dsn, autocommit=True) as connection:
                statement = words[-1]
                if statement.startswith(
                    "CREATE ROLE"
                ):  # roles belong to the whole server, and others run there
                    with connection.transaction(force_rollback=True):
                        connection.execute(statement)
                else:
                    connection.execute(statement)
        elif words[0] in ("osgprod", "openssl", "install"):
            command = command.replace("/srv/osgprod", str(folder / "srv")).replace(
                "/opt/osgprod", str(CHECKOUT)
            )
            done = subprocess.run(
                ["/bin/bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        else:
            known = {"export", "createdb", "mkdir"}
            known |= {"condor_submit", "condor_q", "condor_qedit", "condor_release"}
            assert words[0] in known, f"not tested: {command}"
            continue
        ran += 1
    assert ran >= 12
    assert (folder / "srv" / "spring26" / "osgprod_work.bash").exists()


def test_every_file_that_root_copies_is_there() -> None:
    named = re.findall(r"\b(?:deploy|condor|worker)/[\w.-]+", TEXT)
    assert {"deploy/osgprod.service", "deploy/osgprod.socket", "deploy/apache-proxy.conf"} <= set(named)
    for name in named:
        assert (CHECKOUT / name).exists(), name


def test_condors_commands_are_understood(pool: Pool) -> None:
    """Makes the jobs without submitting them, since the server of the page does not exist."""
    (pool.srv / "home" / "magic").write_text("m")
    (pool.srv / "home" / "condor").symlink_to("../condor")
    submits = [line for line in commands("$") if line.startswith("condor_submit")]
    assert len(submits) == 3
    for command in submits:
        if "-dry-run" not in command:
            command = command.replace("condor_submit", "condor_submit -dry-run /dev/null", 1)
        pool.run("/bin/bash", "-c", command, user=USER, cwd="/srv/home")
    for command in commands("$"):
        if command.startswith(("condor_q ", "condor_qedit", "condor_release")):  # of an empty queue
            done = pool.run("/bin/bash", "-c", command, user=USER, check=False)
            assert "usage" not in (done.stdout + done.stderr).lower(), command
