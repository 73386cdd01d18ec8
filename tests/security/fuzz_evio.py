"""python -m tests.security.fuzz_evio SECONDS SEED: reads mutated EVIO files until the time is over.

The process has an end to its memory (512 MiB) and to the time of each file (5 s). A file that breaks something is kept,
and its path printed. Exit codes: 0 all is well, 1 something broke.
"""

from __future__ import annotations

import itertools
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from pathlib import Path

from shim.evio.errors import EvioError
from shim.evio.index import BlockIndex, read_index
from shim.evio.writer import write_file
from tests.support import real_files

MEMORY_BYTES = 512 << 20
FILE_S = 60
REAL_FILES = real_files()
WORDS = [
    0,
    1,
    2,
    7,
    8,
    9,
    0x0E,
    0x70,
    0x204,
    0x304,
    0x60004,
    0xFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFE,
    0xFFFFFFFF,
]
WORDS += [0xC0DA0100, 0x0001DAC0, 0x00700100, 0xFF500100, 0xFFD10100, 0x4556494F]


def originals(folder: Path) -> list[bytes]:
    """Files of every kind that the writer makes, and real ones."""
    kinds = [
        {
            "byte_order": order,
            "first_file": first,
            "trailer": trailer,
            "trailer_bit": bit,
            "dictionary": dictionary,
        }
        for order in ("big", "little")
        for first in (False, True)
        for trailer in (False, True)
        for bit in (False, True)
        for dictionary in (False, True)
    ]
    for number, kind in enumerate(kinds):
        write_file(folder / f"hd_rawdata_000001_{number:03d}.evio", 3, 2, filler_words=3, **kind)  # type: ignore[arg-type]
    made = [path.read_bytes() for path in sorted(folder.iterdir())]
    return made + [path.read_bytes() for path in sorted(REAL_FILES.glob("*.evio"))]


def mutated(chance: random.Random, files: list[bytes]) -> bytes:
    data = bytearray(chance.choice(files))
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        if len(data) < 8:
            break
        # Where headers are: mostly the first bytes, else any word.
        at = chance.randrange(min(len(data), 400)) if chance.random() < 0.5 else chance.randrange(len(data))
        word = at & ~3
        kind = chance.randrange(9)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at] = chance.randrange(256)
        elif kind in (2, 3):
            value = (
                chance.choice(WORDS)
                if kind == 2
                else (int.from_bytes(data[word : word + 4], "big") + chance.choice((-2, -1, 1, 2)))
            )
            data[word : word + 4] = struct.pack(chance.choice(("<I", ">I")), value & 0xFFFFFFFF)
        elif kind == 4:
            del data[at:]
        elif kind == 5:
            del data[word : word + 4 * chance.randrange(1, 9)]
        elif kind == 6:
            data[word:word] = chance.randbytes(4 * chance.randrange(1, 9))
        elif kind == 7:
            data[word:word] = data[word : word + chance.choice((32, 64, 256))]
        else:
            other = chance.choice(files)
            data[word:] = other[chance.randrange(len(other)) & ~3 :]
    return bytes(data)


def check(index: BlockIndex) -> None:
    """What the database and the slices rely on."""
    offsets, events = index.offsets, index.events_before
    assert len(offsets) == len(events) == index.nblocks + 1 >= 2
    assert offsets[0] == 0 and offsets[-1] <= index.size_bytes
    assert all(b - a >= 32 for a, b in itertools.pairwise(offsets))
    assert all(b >= a for a, b in itertools.pairwise(events)) and events[-1] > 0
    assert 0 <= index.first_block < index.nblocks  # run control fills any number of blocks before
    assert len(index.trailer) == 32
    for piece in index.preamble:
        assert piece["from_block"] in (index.first_block, index.first_block + 1)
        if "hex" in piece:
            assert len(bytes.fromhex(str(piece["hex"]))) == 32
        else:
            start, length = int(piece["offset"]), int(piece["bytes"])
            assert start >= 0 and length > 0 and start + length <= index.size_bytes
    assert len(index.packed()) == 12 * (index.nblocks + 1)


def main() -> int:
    seconds, number = float(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    chance, counts, slowest = random.Random(number), {"indexed": 0, "refused": 0}, 0.0
    with tempfile.TemporaryDirectory(prefix="osgprod-fuzz-") as folder:
        files, path = originals(Path(folder)), Path(folder) / "hd_rawdata_000002_000.evio"
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            path.write_bytes(mutated(chance, files))
            start = time.monotonic()
            signal.alarm(FILE_S)
            try:
                check(read_index(path))
                counts["indexed"] += 1
            except EvioError as error:
                counts["refused"] += 1
                if len(str(error).splitlines()) != 1 or str(path) not in str(error):
                    print("not one line that names the file:", error)
                    return 1
            except BaseException:  # each of them is a find
                kept = Path(tempfile.gettempdir()) / f"osgprod-fuzz-{number}.evio"
                kept.write_bytes(path.read_bytes())
                traceback.print_exc(file=sys.stdout)
                print(f"seed {number}: the file is kept as {kept}")
                return 1
            finally:
                signal.alarm(0)
            slowest = max(slowest, time.monotonic() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"EVIO: {sum(counts.values())} files, seed {number}: {counts}; slowest {slowest * 1000:.0f} ms, peak {peak} MiB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
