"""The measures of the scan: whole loads of folders against bare reads of the same headers."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from bench.ground import Ground
from bench.rounds import Figure, in_turn
from shim.admin import load_rawdata_files
from shim.database import connect
from shim.evio.index import MAGIC, VERSION, read_index
from shim.evio.writer import write_file

BLOCK_BYTES = 4_000_000
SLOW_READ_S = 0.002
HEADER = struct.Struct(">8I")


def scan(ground: Ground) -> Iterator[Figure]:
    """A whole load against a bare loop of pread of the same headers."""
    folder, blocks = ground.folder / "scan", ground.size.scan_blocks
    paths = _write(folder, ground.size.scan_files, blocks)
    begin = paths[0].stat().st_size - blocks * BLOCK_BYTES
    headers = [begin + number * BLOCK_BYTES for number in range(blocks)]

    def read() -> float:
        started = time.perf_counter()
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            for offset in headers:
                os.pread(descriptor, 32, offset)
            os.close(descriptor)
        return len(paths) / (time.perf_counter() - started)

    read()
    measured, bound, ratio = in_turn(ground.size.rounds, lambda: _load(ground, folder), read)
    yield Figure("scan_ratio", ratio, (">=", 0.60), measured, bound, "files/s")


def scan_slow(ground: Ground) -> Iterator[Figure]:
    """A whole load where every read takes 2 ms, against one file after the other."""
    folder, blocks = ground.folder / "slow", ground.size.slow_blocks
    paths = _write(folder, max(32, ground.size.scan_files) if blocks > 20 else 16, blocks)

    def one_by_one() -> float:
        started = time.perf_counter()
        for path in paths[:4]:
            read_index(path)
        return 4 / (time.perf_counter() - started)

    with mock.patch("shim.evio.index.os.pread", _slow(os.pread)):
        measured, bound, ratio = in_turn(
            min(3, ground.size.rounds), lambda: _load(ground, folder), one_by_one
        )
    yield Figure("scan_slow_ratio", ratio, (">=", 6), measured, bound, "files/s")


def _slow(pread: Callable[[int, int, int], bytes]) -> Callable[[int, int, int], bytes]:
    def slow_pread(descriptor: int, length: int, offset: int) -> bytes:
        time.sleep(SLOW_READ_S)
        return pread(descriptor, length, offset)

    return slow_pread


def _load(ground: Ground, folder: Path) -> float:
    """Loads a folder that the database knows nothing of; files a second."""
    with connect(ground.few()) as database:
        database.execute("DELETE FROM osgprod_data.rawdata WHERE path LIKE %s", [f"{folder}/%"])
    with mock.patch.dict(os.environ, {"OSGPROD_DSN": ground.few()}):
        started = time.perf_counter()
        counts = load_rawdata_files(folder)
        took = time.perf_counter() - started
    assert counts["new"] == len(list(folder.iterdir()))
    return counts["new"] / took


def _write(folder: Path, files: int, blocks: int) -> list[Path]:
    """Makes files of so many blocks beside the first two: with headers, and holes in place of the data."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"hd_rawdata_900001_{number:03d}.evio" for number in range(files)]
    for path in paths:
        write_file(path, 1, 1, trailer=False, trailer_bit=False)
        begin = path.stat().st_size
        with path.open("r+b") as file:
            for number in range(blocks):
                file.seek(begin + number * BLOCK_BYTES)
                file.write(HEADER.pack(BLOCK_BYTES // 4, number + 3, 8, 100, 0, VERSION, 0, MAGIC))
            file.truncate(begin + blocks * BLOCK_BYTES)
    return paths
