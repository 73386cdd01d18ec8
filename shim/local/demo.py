"""``make demo``: a complete production with real parts, in less than a minute.

Three EVIO files are written, registered and loaded; the real shim serves them; eight condor/osgprod_exec.sh at a
time fetch the real work script with curl; one of them is killed and restarted as HTCondor would; jobs merge the
outputs of each file's slices; and at the end the merged files are counted, event by event.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg

from shim.config import child_environment
from shim.database import call, connect
from shim.errors import OperatorError
from shim.evio import scan
from shim.evio.writer import write_file
from shim.local.embedded import temporary_server
from shim.migrate import migrate
from shim.registry import register
from shim.words import counted

CHECKOUT = Path(__file__).resolve().parents[2]
PROJECT, MAGIC = "demo", "my magic"
AT_A_TIME = 8
CLUSTER = 1000
VICTIM = 5  # the process that is killed
TIME_LIMIT_S = 150.0  # in which nothing is done; the whole takes minutes on a busy machine
EVENTS_PER_BLOCK = 6
# name, blocks with events, and the special property of the file
FILES: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("hd_rawdata_090001_000.evio", 80, {"first_file": True, "trailer_bit": False}),
    ("hd_rawdata_090001_001.evio", 70, {"trailer": False, "trailer_bit": False}),
    ("hd_rawdata_090001_002.evio", 70, {"byte_order": "little"}),
)


class DemoFailed(Exception):
    """The demo's promise was not kept; one line."""


def write_files(folder: Path) -> list[range]:
    """Writes the demo's three files and returns the numbers of the physics events of each."""
    events, first = [], 1
    for name, nblocks, special in FILES:
        count = write_file(folder / name, nblocks, EVENTS_PER_BLOCK, first_event=first, **special)
        events.append(range(first, first + count))
        first += count
    return events


def load(connection: psycopg.Connection[dict[str, Any]], project: str, magic: str, folder: Path) -> None:
    """Makes a project for anybody who knows the magic, with the files of a folder as its work.

    Parameters
    ----------
    connection : psycopg.Connection[dict[str, Any]]
        As an operator.
    project, magic
        Its name and secret.
    folder : Path
        With raw data files.
    """
    call(
        connection,
        "add_project",
        project=project,
        subnet_pattern="0.0.0.0/0, ::/0",
        workscript="osgprod_work.bash",
        xrootd_prefix="",
        maxblockspercore=3,
        magic=magic,
    )
    # So that the original's examples, which know no token, can be tried by hand.
    call(connection, "set_project", project=project, settings='{"token_required": false, "probe_jobs": 0}')
    for index in scan.indexes(scan.find(folder)):
        register(connection, index)
    call(connection, "load_slices", project=project)


def main() -> int:
    """Runs the demo and returns its exit code."""
    folder = Path(tempfile.mkdtemp(prefix="osgprod-demo-"))
    folder.chmod(0o755)
    try:
        with temporary_server() as dsn:
            return _Demo(folder, dsn).run()
    except OperatorError as error:
        print(f"demo failed: {error}\nhint: {error.hint}", file=sys.stderr)
        return 1
    except DemoFailed as error:
        print(f"demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo stopped, nothing is left of it", file=sys.stderr)
        return 128 + signal.SIGINT
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Stall:
    """Tells when nothing has changed for a while.

    Parameters
    ----------
    limit_s : float
        How long that is [s].
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._seen: object = None
        self._since = 0.0

    def is_over(self, seen: object, now: float) -> bool:
        """Return whether the same has been seen for longer than the limit.

        Parameters
        ----------
        seen : object
            What is to change.
        now : float
            time.monotonic().
        """
        if seen != self._seen:
            self._seen, self._since = seen, now
        return now - self._since > self._limit_s


class _Demo:
    def __init__(self, folder: Path, dsn: str) -> None:
        self._folder = folder
        self._dsn = dsn
        self._outputs = folder / "outputs"
        self._merged = folder / "merged"
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._starts: Counter[int] = Counter()
        self._tenth = -1
        self._shown = ""
        self._merged_files = -1
        self._is_stopped = False

    def run(self) -> int:
        started = time.monotonic()
        rawdata = self._folder / "rawdata"
        for path in (rawdata, self._outputs, self._folder / "www" / PROJECT):
            path.mkdir(parents=True)
        events = write_files(rawdata)
        self._say(f"wrote {len(events)} EVIO files below {rawdata}")
        done = migrate(self._dsn, say=lambda line: None)
        self._say(f"made the tables and functions ({counted(len(done), 'step')})")
        for script in ("osgprod_work.bash", "osgprod_merge.bash"):
            shutil.copy(CHECKOUT / "worker" / script, self._folder / "www" / PROJECT)
        (self._folder / "magic").write_text(MAGIC + "\n")
        with connect(self._dsn) as self._connection:
            load(self._connection, PROJECT, MAGIC, rawdata)
            merges = {"merge_by": "file", "merge_output_url": f"file://{self._merged}/{{kind}}"}
            call(self._connection, "set_project", project=PROJECT, settings=json.dumps(merges))
            with self._shim() as url:
                self._say(f"the shim serves {url}")
                before = signal.signal(signal.SIGINT, self._stop)
                try:
                    self._work(url)
                finally:
                    for job in self._running.values():  # there are none but when something went wrong
                        _kill(job)
                    signal.signal(signal.SIGINT, before)
            self._check(events, time.monotonic() - started)
        return 0

    def _say(self, line: str) -> None:
        over = "\r\033[K" if sys.stdout.isatty() else ""  # redraws the bar
        print(f"{over}  {line}", flush=True)

    @contextlib.contextmanager
    def _shim(self) -> Iterator[str]:
        environment = {
            **child_environment(),
            "OSGPROD_DSN": f"{self._dsn} options='-c role=osgprod_worker'",
            "OSGPROD_DOCUMENT_ROOT": str(self._folder / "www"),
            "OSGPROD_ROOT_PATH": "/osgprod",
        }
        with (self._folder / "shim.log").open("wb") as log:
            shim = subprocess.Popen(
                [sys.executable, "-m", "shim", "serve", "--port", "0"],
                cwd=CHECKOUT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        try:
            assert shim.stdout is not None
            line = shim.stdout.readline().decode()
            if not line.startswith("serving http"):
                raise DemoFailed(f"the shim does not start: {(self._folder / 'shim.log').read_text()[-500:]}")
            yield line.split()[1].rstrip(",")
        finally:
            shim.terminate()
            shim.wait()

    def _work(self, url: str) -> None:
        stall = Stall(TIME_LIMIT_S)
        process, killed = 0, False
        while True:
            progress, merges = self._progress(), self._merge_states()
            self._bar(progress)
            if progress["blocks_done"] == progress["blocks"]:
                self._tell_merges(merges)
                if merges["done"] == len(FILES):
                    break
            self._reap()
            if stall.is_over((progress["blocks_done"], merges["done"]), time.monotonic()):
                names = ("done", "leased", "ready", "quarantined", "unallocated")
                blocks = ", ".join(f"{progress[f'blocks_{name}']} {name}" for name in names)
                states = ", ".join(f"{count} {state}" for state, count in merges.items()) or "none"
                raise DemoFailed(
                    f"nothing was done for {TIME_LIMIT_S:.0f} s; blocks: {blocks}; merges: {states}"
                )
            if not killed and self._kill_victim():
                killed = True
                self._start(url, VICTIM)
            waiting = progress["blocks_unallocated"] + progress["blocks_ready"] + merges["ready"]
            # A tick makes the last merges ready: until then one job at a time asks.
            if (waiting or not self._running) and len(self._running) < AT_A_TIME:
                process += 1
                self._start(url, process)
            else:
                time.sleep(0.02)
        while self._running:
            self._reap()
            time.sleep(0.02)
        self._bar(progress)
        if not killed:
            raise DemoFailed("no job was killed on the way")
        self._start(url, process + 1)  # one more, which gets the answer that no work is left
        if self._running.pop(process + 1).wait() != 0 or self._starts[VICTIM] != 2:
            raise DemoFailed("the last job, or the restarted one, did not end as it should")

    def _start(self, url: str, process: int) -> None:
        self._starts[process] += 1
        sandbox = self._folder / f"sandbox-{process}-{self._starts[process]}"
        sandbox.mkdir()
        environment = {
            "PATH": child_environment().get("PATH", "/usr/bin:/bin"),
            "_CONDOR_SCRATCH_DIR": str(sandbox),
            "OSGPROD_URL": url,
            "OSGPROD_PROJECT": PROJECT,
            "OSGPROD_MAGIC_FILE": str(self._folder / "magic"),
            "OSGPROD_OUTPUT_URL": f"file://{self._outputs}",
            "OSGPROD_MAX_WAIT_S": "0",
            "OSGPROD_RECON": f"{sys.executable} {CHECKOUT / 'worker' / 'demo_recon.py'}",
        }
        if process == VICTIM and self._starts[process] == 1:
            environment["OSGPROD_DEMO_PAUSE_S"] = "60"  # long enough to be found running
        with (sandbox / "log").open("wb") as log:
            self._running[process] = subprocess.Popen(
                [str(CHECKOUT / "condor" / "osgprod_exec.sh"), str(CLUSTER), str(process)],
                cwd=sandbox,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._is_stopped = True  # an exception while a job is started would leave it unknown to us

    def _reap(self) -> None:
        if self._is_stopped:
            raise KeyboardInterrupt
        for process, job in list(self._running.items()):
            if job.poll() is None:
                continue
            del self._running[process]
            if job.returncode != 0:
                log = (self._folder / f"sandbox-{process}-{self._starts[process]}" / "log").read_text()
                raise DemoFailed(f"job {CLUSTER}.{process} ended with {job.returncode}: {log[-800:]}")

    def _kill_victim(self) -> bool:
        """Kills the victim and all that it started, once it is seen running; like a node that loses power."""
        job = self._running.get(VICTIM)
        at_work = self._folder.glob(f"sandbox-{VICTIM}-1/osgprod.*/work/events.txt")
        if job is None or not any(at_work):
            return False
        _kill(job)
        del self._running[VICTIM]
        self._say(f"job {CLUSTER}.{VICTIM} was killed with SIGKILL while it ran, and is started again")
        return True

    def _progress(self) -> dict[str, Any]:
        return call(self._connection, "progress", project=PROJECT)[0]

    def _merge_states(self) -> Counter[str]:
        return Counter(merge["state"] for merge in call(self._connection, "list_merges", project=PROJECT))

    def _bar(self, progress: dict[str, Any]) -> None:
        done, blocks = int(progress["blocks_done"]), int(progress["blocks"])
        text = f"  [{'#' * (40 * done // blocks):40}] {done} of {counted(blocks, 'block')} done"
        if text == self._shown:
            return
        self._shown = text
        if sys.stdout.isatty():
            print(f"\r{text}", end="\n" if done == blocks else "", flush=True)
        elif 10 * done // blocks != self._tenth:  # a log gets ten lines
            print(text, flush=True)
        self._tenth = 10 * done // blocks

    def _tell_merges(self, merges: Counter[str]) -> None:
        """Says how many files are merged, when that changes, and first what the demo waits for."""
        if merges["done"] != self._merged_files:
            wait = "; the server looks for merges every ten seconds" * (self._merged_files < 0)
            self._merged_files = merges["done"]
            self._say(f"{merges['done']} of {counted(len(FILES), 'file')} merged{wait}")

    def _check(self, events: list[range], took_s: float) -> None:
        """Counts what the jobs left: the proof does not come from the database."""
        seen: Counter[int] = Counter()
        merged = sorted(path for path in self._merged.rglob("*") if path.is_file())
        for path in merged:
            for name, lines in _events_in(path):
                if lines[:1] != ["begin-of-run"]:
                    raise DemoFailed(f"{path.name}: {name} did not begin with the begin-of-run record")
                seen.update(int(line) for line in lines if line != "begin-of-run")
        expected = [number for numbers in events for number in numbers]
        once = sum(1 for number in expected if seen[number] == 1)
        progress = self._progress()
        faults = call(self._connection, "verify", project=PROJECT)
        print()
        for (name, nblocks, _), numbers in zip(FILES, events, strict=True):
            seen_once = sum(1 for number in numbers if seen[number] == 1)
            amounts = f"{counted(nblocks, 'block')}, {counted(len(numbers), 'event')}"
            self._say(f"{name}: {amounts}, {seen_once} of them seen once")
        starts = counted(sum(self._starts.values()), "job start")
        self._say(f"{starts} in {took_s:.0f} s, verify found {counted(len(faults), 'fault')}")
        if len(merged) != len(FILES):
            raise DemoFailed(f"{len(merged)} merged files of {len(FILES)}: {[path.name for path in merged]}")
        if faults or once != len(expected) or seen.total() != once:
            raise DemoFailed(
                f"{once} of {counted(len(expected), 'event')} seen once, {seen.total()} in all; {faults}"
            )
        print(
            f"demo: {counted(progress['files_finished'], 'file')},"
            f" {progress['blocks_done']} of {counted(progress['blocks'], 'block')}"
            f" done exactly once, {once} of {counted(len(expected), 'event')},"
            f" {counted(len(merged), 'merged file')} delivered"
        )


def _events_in(merged: Path) -> Iterator[tuple[str, list[str]]]:
    """Give the name of each slice's events in a merged file, and their lines."""
    with tarfile.open(merged) as archive:
        for member in archive:
            if member.name.endswith("/events.txt"):
                file = archive.extractfile(member)
                yield member.name, file.read().decode().split() if file else []


def _kill(job: subprocess.Popen[bytes]) -> None:
    """Kills a job and all that it started, also what that started while we looked."""
    killed: set[int] = set()
    while found := set(_session(job.pid)) - killed:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= found
    job.wait()


def _session(leader: int) -> list[int]:
    """All processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(int(entry.name)) == leader:
                    found.append(int(entry.name))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
