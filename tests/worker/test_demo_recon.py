"""The demo's reconstruction reads whole slices, and refuses damaged ones with a message."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shim.evio.writer import bank, block
from tests.support import CHECKOUT

LAST = 1 << 9
BOR = block(1, [bank(0x70, [1, 2])])
TRAILER = block(9, [], info=LAST)


def physics(number: int, event: int, tag: int = 0xFF50, info: int = 0) -> bytes:
    return block(number, [bank(tag, [event, 7, 7])], info=info)


def read(folder: Path, data: bytes) -> tuple[int, str]:
    """Returns the exit code, and what it read or its message."""
    (folder / "slice").write_bytes(data)
    command = [sys.executable, str(CHECKOUT / "worker" / "demo_recon.py"), "slice"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stderr or (folder / "events.txt").read_text()


@pytest.mark.parametrize(
    "data",
    [
        BOR + physics(2, 5) + physics(3, 6) + TRAILER,
        BOR + physics(2, 5) + physics(3, 6, info=LAST),
        BOR + physics(2, 5) + physics(3, 6, info=LAST) + TRAILER,
        block(1, [bank(0xFF32, [1])]) + physics(2, 5, tag=0xFF33) + physics(3, 6, tag=0xFF33) + TRAILER,
    ],
    ids=["trailer", "last block", "last block and trailer", "CDAQ"],
)
def test_events_of_a_whole_slice_are_read_in_order(folder: Path, data: bytes) -> None:
    assert read(folder, data) == (0, "begin-of-run\n5\n6\n")
    assert (folder / "events_read").read_text() == "3\n"


@pytest.mark.parametrize(
    "data, message",
    [
        (BOR + physics(2, 5), "no last block"),
        (BOR + physics(2, 5)[:-4], "no whole block at byte 48"),
        (BOR + bytes(len(TRAILER)), "no whole block at byte 48"),
        (BOR + TRAILER[:20], "no whole block at byte 48"),
        (physics(1, 5) + TRAILER, "a physics event before the begin-of-run record"),
        (TRAILER, "no begin-of-run record"),
        (BOR + physics(2, 5, info=LAST) + physics(3, 6), "more data behind the last block"),
        (
            BOR.replace((1).to_bytes(4, "big") + bytes(4), (2).to_bytes(4, "big") + bytes(4), 1),
            "does not hold 2",
        ),
    ],
)
def test_damaged_slice_is_refused_with_one_line(folder: Path, data: bytes, message: str) -> None:
    code, log = read(folder, data)
    assert (code, len(log.splitlines())) == (1, 1), log
    assert message in log
    assert not (folder / "events_read").exists()
