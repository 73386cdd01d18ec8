"""A production moves over from the original: its tables are made as it made them, and what it knew is taken over."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from shim.database import call
from shim.evio.writer import write_file
from tests.support import Run, World, run_osgprod

Connection = psycopg.Connection[dict[str, Any]]

# The columns of the original's tables, of November 2020.
TABLES = """
CREATE TABLE projects (id serial PRIMARY KEY, projectname text NOT NULL, workersubnet text NOT NULL,
    workscript text NOT NULL, xrootdprefix text NOT NULL, maxblockspercore int NOT NULL);
CREATE TABLE rawdata (id serial PRIMARY KEY, run int NOT NULL, seqno int NOT NULL, path text NOT NULL UNIQUE,
    nbytes bigint NOT NULL, nblocks int NOT NULL, UNIQUE (run, seqno));
CREATE TABLE jobs (id serial PRIMARY KEY, project int REFERENCES projects (id), script text, worker text, cluster int,
    process int, ncpus int, nstarts int, starttime timestamptz, endtime timestamptz, exitcode int,
    UNIQUE (project, cluster, process));
CREATE TABLE slices (id serial PRIMARY KEY, ijob int REFERENCES jobs (id), iraw int REFERENCES rawdata (id),
    block1 int NOT NULL, block2 int NOT NULL);
INSERT INTO projects (projectname, workersubnet, workscript, xrootdprefix, maxblockspercore) VALUES
    ('spring', '127.0.%', 'osgprod_work.bash', 'root://server/', 5), ('other', '127.0.%', 'w.bash', '', 5);
"""


class Original:
    """The original's database, driven as the original did it."""

    def __init__(self, connection: Connection, folder: Path) -> None:
        self.db, self.folder, self._process = connection, folder, 0
        self.ends: dict[str, int] = {}  # of each file: the number of its last block that is work, plus 1

    def add_file(self, seqno: int, nblocks: int = 20, trailer: bool = True, load: int = 1) -> str:
        path = self.folder / f"hd_rawdata_000777_{seqno:03d}.evio"
        write_file(path, nblocks, 2, trailer=trailer, trailer_bit=False)
        self.ends[str(path)] = nblocks + 1
        # it counted every block, the trailer as well, and began its work at block 1
        counted = nblocks + 1 + trailer
        self.db.execute(
            "INSERT INTO rawdata (run, seqno, path, nbytes, nblocks) VALUES (777, %s, %s, %s, %s)",
            [seqno, str(path), path.stat().st_size, counted],
        )
        for _ in range(load):
            self.db.execute(
                "INSERT INTO slices (iraw, block1, block2) SELECT id, 1, nblocks FROM rawdata WHERE seqno = %s",
                [seqno],
            )
        return str(path)

    def work(self, exitcode: int | None, blocks: int = 5, project: str = "spring", slices: int = 1) -> None:
        """One job takes a slice (or several, as happened), and reports, or does not."""
        self._process += 1
        ended = "timezone('GMT', now())" if exitcode is not None else "NULL"
        job = self.db.execute(
            "INSERT INTO jobs (project, script, worker, cluster, process, ncpus, nstarts, starttime, endtime,"
            " exitcode) SELECT id, 'w', '127.0.0.9', 812, %s, 1, 2, timezone('GMT', now() - interval '100 s'),"
            f" {ended}, %s FROM projects WHERE projectname = %s RETURNING id",
            [self._process, exitcode, project],
        ).fetchone()
        assert job
        for _ in range(slices):
            row = self.db.execute("SELECT * FROM slices WHERE ijob IS NULL ORDER BY id LIMIT 1").fetchone()
            if row is None:
                return
            last = min(row["block1"] + blocks, row["block2"])
            self.db.execute(
                "UPDATE slices SET ijob = %s, block2 = %s WHERE id = %s", [job["id"], last, row["id"]]
            )
            if last < row["block2"]:
                self.db.execute(
                    "INSERT INTO slices (iraw, block1, block2) VALUES (%s, %s, %s)",
                    [row["iraw"], last, row["block2"]],
                )

    def done(self, project: str = "spring") -> dict[str, set[int]]:
        """What is proven: a model of the promise, in other words than the function's."""
        found: dict[str, set[int]] = defaultdict(set)
        rows = self.db.execute(
            "SELECT r.path, s.block1, s.block2, j.exitcode, j.endtime, p.projectname, s.ijob FROM slices s"
            " JOIN rawdata r ON r.id = s.iraw JOIN jobs j ON j.id = s.ijob JOIN projects p ON p.id = j.project"
            " ORDER BY j.endtime"
        ).fetchall()
        for row in rows:
            held = sum(other["ijob"] == row["ijob"] for other in rows)
            if row["exitcode"] == 0 and row["endtime"] and held == 1 and row["projectname"] == project:
                blocks = set(range(row["block1"], min(row["block2"], self.ends[row["path"]])))
                if blocks.isdisjoint(found[row["path"]]):  # the output of a slice counts as a whole, or not
                    found[row["path"]] |= blocks
        return found


@pytest.fixture
def original(world: World, folder: Path) -> Iterator[Original]:
    world.db.execute(
        "CREATE DATABASE original TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    dsn = world.dsn.replace(f"dbname={world.db.info.dbname}", "dbname=original")
    with psycopg.connect(
        dsn,
        autocommit=True,
        row_factory=dict_row,
        client_encoding="UTF8",
        options="-c TimeZone=America/New_York",
    ) as db:
        db.execute(TABLES)
        # as the server of the original was configured: its clock, not that of Greenwich
        db.execute("ALTER DATABASE original SET TimeZone = 'America/New_York'")
        yield Original(db, folder)
    world.db.execute("DROP DATABASE original WITH (FORCE)")


@pytest.fixture
def take_over(operator: World, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv(
        "OSGPROD_ORIGINAL_DSN", operator.dsn.replace(f"dbname={operator.db.info.dbname}", "dbname=original")
    )
    monkeypatch.setenv("OSGPROD_MAGIC", "m")
    return partial(run_osgprod, "import-original")


def done_here(world: World, project: str = "spring") -> dict[str, set[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for row in call(world.db, "list_slices", project=project, state="done", limit=10000):
        found[row["path"]] |= set(range(row["block1"], row["block2"]))
    return found


def without_trailers(world: World, found: dict[str, set[int]]) -> dict[str, set[int]]:
    blocks = {row["path"]: row["blocks"] for row in call(world.db, "list_rawdata", limit=1000)}
    kept = {path: {b for b in numbers if b < blocks[path]} for path, numbers in found.items()}
    return {path: numbers for path, numbers in kept.items() if numbers}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_exactly_what_is_proven_counts_as_done_and_all_else_is_done_once(
    world: World, original: Original, take_over: Any, seed: int
) -> None:
    rng = random.Random(seed)
    for seqno in range(5):
        # some loaded twice: then everything was handed out twice
        original.add_file(seqno, rng.randrange(3, 30), trailer=rng.random() < 0.7, load=1 + (seqno == 2))
    for _ in range(rng.randrange(10, 30)):
        original.work(rng.choice([0, 0, 0, 1, 137, None]), rng.randrange(1, 8), rng.choice(["spring"] * 5 + ["other"]),
                      slices=rng.choice([1] * 9 + [3]))  # fmt: skip
    foretold = take_over("spring", "--dry-run", "--json")
    assert foretold.exit_code == 0, foretold.output
    assert [row["project"] for row in call(world.db, "progress")] == ["p"], "a dry run changes nothing"
    result = take_over("spring", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout) == json.loads(foretold.stdout)
    assert done_here(world) == without_trailers(world, original.done())
    assert call(world.db, "verify", project="spring", deep=True) == []
    row = json.loads(result.stdout)[0]
    assert row["status"] == "imported" and row["files"] == 5
    assert row["blocks_done"] == world.progress("spring")["blocks_done"]

    again = json.loads(take_over("spring", "--json").stdout)
    assert {r["status"] for r in again} <= {"already", "imported"}
    assert world.progress("spring")["blocks_done"] == row["blocks_done"]
    before, seen = done_here(world), defaultdict(set)
    for process in range(1000, 1400):
        answer = world.checkout(process, project="spring")
        if answer["status"] != "assigned":
            break
        blocks = set(range(answer["block1"], answer["block2"]))
        name = next(path for path in before | {answer["url"]: 0} if path.endswith(answer["filename"]))
        assert not blocks & seen[answer["filename"]] and not blocks & before.get(name, set())
        seen[answer["filename"]] |= blocks
        world.report(process, project="spring", token=str(answer["token"]))
    assert answer["status"] == "no-work"
    progress = world.progress("spring")
    assert progress["blocks_done"] == progress["blocks"]
    assert call(world.db, "verify", project="spring", deep=True) == []


def test_jobs_and_settings_come_along_with_their_true_times(
    world: World, original: Original, take_over: Any
) -> None:
    original.add_file(0)
    for code in (0, 9, None):
        original.work(code)
    call(world.db, "tick")
    assert take_over("spring").exit_code == 0
    settings = {
        r["setting"]: r["value"] for r in call(world.db, "set_project", project="spring", settings="{}")
    }
    assert settings["subnet_pattern"] == "127.0.%" and settings["xrootd_prefix"] == "root://server/"
    assert settings["maxblockspercore"] == "5"
    for process, outcome in ((1, "done"), (2, "failed"), (3, "lost")):
        history = call(world.db, "job_history", project="spring", cluster=812, process=process)
        assert [(h["outcome"], h["nstart"], h["client"]) for h in history] == [(outcome, 2, "127.0.0.9")]
        now = world.db.execute("SELECT now() AS now").fetchone()
        assert now and 95 < (now["now"] - history[0]["started_at"]).total_seconds() < 1700, (
            "not off by a time zone"
        )
    call(world.db, "tick")
    totals = {r["outcome"]: r["reports"] for r in call(world.db, "totals", project="spring")}
    assert (totals["done"], totals["failed"], totals["lost"]) == (1, 1, 1)
    assert world.checkout(1, cluster=812, project="spring")["status"] == "completed", "it knows what it did"


def test_file_that_is_gone_or_another_one_is_named_and_nothing_of_it_is_taken(
    world: World, original: Original, take_over: Any
) -> None:
    gone, other, good = (original.add_file(seqno) for seqno in range(3))
    original.work(0)
    Path(gone).unlink()
    write_file(Path(other), 33, 2)
    result = take_over("spring", "--json")
    assert result.exit_code == 1
    assert (
        f"{gone}: not registered, and" in result.stderr
        and f"{other}: not what the original knew" in result.stderr
    )
    assert {row["status"]: row["files"] for row in json.loads(result.stdout)} == {
        "unknown": 1, "differs": 1, "imported": 1}  # fmt: skip
    assert [row["path"] for row in call(world.db, "list_files", project="spring")] == [good]


def test_what_is_not_the_original_is_refused_with_a_hint(
    world: World, original: Original, take_over: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = take_over("nope")
    assert result.exit_code == 1 and "hint: it has spring, other" in result.stderr
    monkeypatch.setenv("OSGPROD_ORIGINAL_DSN", world.dsn)
    result = take_over("spring")
    assert result.exit_code == 1 and "not the original's tables" in result.stderr and "hint:" in result.stderr


def test_original_that_cannot_be_reached_is_told_from_our_database(world: World, take_over: Any) -> None:
    for source, code, message in (
        (f"{world.dsn} dbname=nonesuch", 3, 'database "nonesuch" does not exist'),
        ("host=/nonexistent", 3, "No such file or directory"),
        ("nonesuch", 2, 'missing "=" after "nonesuch"'),
    ):
        result = take_over("spring", "--from", source)
        said, hint = result.stderr.splitlines()
        assert (result.exit_code, "osgprod: the original's database: " in said, message in said) == (
            code,
            True,
            True,
        )
        assert hint.startswith("hint: --from or OSGPROD_ORIGINAL_DSN") and "OSGPROD_DSN" not in hint


def test_job_that_is_named_again_is_counted_once(world: World) -> None:
    """A job that held slices of two files, and a file of which nothing was done that is taken over again."""
    job = {"cluster": 5, "process": 1, "ended_at": "2020-01-01", "exit_code": 3, "slices_of_job": 2}
    call(world.db, "tick")  # that time is tallied
    for seqno in (1, 1, 2):
        path = world.add_file(5, seqno=seqno, project=None)
        call(
            world.db, "import_file", project="p", path=path, size_bytes=6032, nblocks=6,
            slices=json.dumps([{"block1": 1, "block2": 3, **job}]),
        )  # fmt: skip
    assert {row["outcome"]: row["reports"] for row in call(world.db, "totals")}["failed"] == 1


def test_senseless_slices_change_nothing(world: World) -> None:
    path = world.add_file(5, project=None)
    arguments = {"project": "p", "path": path, "size_bytes": 6032, "nblocks": 6}
    for slices in ('{"a": 1}', '[{"block1": "x"}]', '[{"block1": 1, "block2": 99999999999}]'):
        with pytest.raises(psycopg.errors.DatabaseError) as caught:
            call(world.db, "import_file", **arguments, slices=slices)
        assert caught.value.sqlstate == "OG108"
    assert call(world.db, "list_files", project="p") == []
    assert call(world.db, "import_file", **arguments, slices="[]")[0]["blocks_left"] == 5


def test_merges_of_the_original_are_taken_over_and_bad_inputs_are_done_again(
    world: World, original: Original, take_over: Any
) -> None:
    paths = [original.add_file(seqno, nblocks=9) for seqno in (1, 2)]
    for _ in range(4):
        original.work(0)
    original.db.execute(
        "CREATE TABLE bindings (iraw int UNIQUE, starttime timestamptz, endtime timestamptz, exitcode int,"
        " details text)"
    )
    original.db.execute(
        "INSERT INTO bindings SELECT id, timezone('GMT', now()), timezone('GMT', now()),"
        " CASE seqno WHEN 1 THEN 0 ELSE -1 END, CASE seqno WHEN 2 THEN 'bad slices 1,6' END FROM rawdata"
    )
    for _ in range(2):  # again = the same
        result = take_over("spring")
        assert result.exit_code == 0, result.output
    merges = call(world.db, "list_merges", project="spring")
    assert [(row["seqno"], row["state"], row["inputs"]) for row in merges] == [(1, "done", 2)]
    slices = {
        (row["path"], row["block1"]): row["state"]
        for row in call(world.db, "list_slices", project="spring", limit=100)
    }
    assert slices[paths[1], 1] == "ready"
    assert slices[paths[0], 1] == "done"


def cpu_ticks(connection: Connection) -> int:
    """CPU time that the server has used for this connection, which does not depend on how busy the machine is."""
    fields = Path(f"/proc/{connection.info.backend_pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_cost_of_taking_a_file_over_grows_as_its_slices_and_not_as_their_square(world: World) -> None:
    def cost(seqno: int, count: int) -> int:
        path = world.add_file(count, seqno=seqno, project=None)
        jobs = [
            {"block1": n, "block2": n + 1, "cluster": seqno, "process": n, "ended_at": "2020-01-01"}
            | {"exit_code": 0, "slices_of_job": 1}
            for n in range(1, count + 1)
        ]
        size = {name: world.registered[name] for name in ("size_bytes", "nblocks")}
        before = cpu_ticks(world.db)
        (row,) = call(world.db, "import_file", project="p", path=path, slices=json.dumps(jobs), **size)
        assert (row["blocks_done"], row["attempts"]) == (count, count)
        return cpu_ticks(world.db) - before

    cost(1, 10)
    few, many = cost(2, 1000), cost(3, 4000)
    assert many < 9 * max(few, 1), "four times as many: 4 in theory; it was 16"


def import_slices(world: World, path: str, *slices: tuple[int, int, str, int]) -> dict[str, Any]:
    """Takes a file of 20 blocks over, with slices that are done: block1, block2, when their jobs ended, process."""
    rows = [
        {"block1": block1, "block2": block2, "cluster": 5, "process": process, "ended_at": ended_at}
        | {"exit_code": 0, "slices_of_job": 1}
        for block1, block2, ended_at, process in slices
    ]
    arguments = {"project": "p", "path": path, "size_bytes": 21032, "nblocks": 21, "slices": json.dumps(rows)}
    return call(world.db, "import_file", **arguments)[0]


def test_of_slices_that_overlap_only_the_one_that_ended_first_is_done_with_the_blocks_of_its_output(
    world: World,
) -> None:
    """An output has the events of a whole slice: if two that overlap counted, a merge would have events twice."""
    path = world.add_file(20, project=None)
    answer = import_slices(
        world, path, (1, 10, "2020-01-03", 1), (5, 15, "2020-01-02", 2), (14, 18, "2020-01-01", 3),
        (2, 6, "2020-01-04", 4), (8, 12, "2020-01-05", 5),
    )  # fmt: skip
    assert (answer["status"], answer["blocks_done"], answer["blocks_left"], answer["attempts"]) == (
        "imported", 13, 7, 5)  # fmt: skip
    slices = {
        (row["block1"], row["block2"]): row["state"]
        for row in call(world.db, "list_slices", project="p", limit=100)
    }
    assert slices == {(1, 10): "done", (10, 14): "ready", (14, 18): "done"}
    outcomes = {
        n: call(world.db, "job_history", project="p", cluster=5, process=n)[0]["outcome"] for n in range(1, 6)
    }
    assert outcomes == {1: "done", 2: "superseded", 3: "done", 4: "superseded", 5: "superseded"}
    assert call(world.db, "verify", project="p", deep=True) == []


def test_a_file_that_is_loaded_from_another_path_is_not_taken_over(world: World) -> None:
    def register_copy(seqno: int) -> str:
        world.add_file(20, seqno=seqno, project=None)
        copy = f"/mss/hd_rawdata_000001_{seqno:03d}.evio"
        call(world.db, "register_rawdata", **{**world.registered, "path": copy})
        return copy

    copy = register_copy(1)
    call(world.db, "load_slices", project="p")
    answer = import_slices(world, copy, (1, 10, "2020-01-03", 1))
    assert (answer["status"], answer["attempts"]) == ("double", None)

    paths = (register_copy(2), world.registered["path"])
    assert [import_slices(world, path, (1, 10, "2020-01-03", 1))["status"] for path in paths] == [
        "imported", "double"]  # fmt: skip
    assert import_slices(world, paths[0])["status"] == "already"

    copy = register_copy(3)

    def load(n: int, connection: Connection) -> Any:
        if n:
            return call(connection, "load_slices", project="p")
        return call(
            connection, "import_file", project="p", path=copy, size_bytes=21032, nblocks=21, slices="[]"
        )

    world.at_once(2, load)
    loaded = [(row["run"], row["seqno"]) for row in call(world.db, "list_files", project="p")]
    assert sorted(loaded) == [(1, 1), (1, 2), (1, 3)]
