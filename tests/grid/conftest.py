"""What the parts of a grid site share."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.evio.index import MAGIC, VERSION
from shim.evio.writer import BEGIN_OF_RUN, PHYSICS, UINT32_BANK, bank, block
from tests.grid.parts import need
from tests.grid.pool import Pool, build
from tests.grid.xrootd import XRootD
from tests.worker.conftest import certificate, node, rawdata, site  # noqa: F401  # its fixtures


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.grid)


@pytest.fixture(scope="session")
def xrootd() -> Iterator[XRootD]:
    need("xrootd")
    with XRootD() as server:
        yield server


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    reason = build()
    if reason:
        pytest.skip(reason)
    with Pool() as pool:
        yield pool


def write_sparse_file(path: Path, nblocks: int, block_bytes: int) -> None:
    """Writes a raw data file of any size that takes no room: each block is one event, numbered, of zeros.

    Parameters
    ----------
    nblocks : int
        With events, behind block 0 with the begin-of-run record.
    block_bytes : int
        Of each [a multiple of 4].
    """
    words = block_bytes // 4
    with path.open("wb") as file:
        file.write(block(1, [bank(BEGIN_OF_RUN, range(1000))]))
        for number in range(1, nblocks + 1):
            start = file.tell()
            file.write(struct.pack(">8I", words, number + 1, 8, 1, 0, VERSION, 0, MAGIC))
            file.write(struct.pack(">3I", words - 9, PHYSICS << 16 | UINT32_BANK << 8, number))
            file.seek(start + block_bytes)
        file.write(block(nblocks + 2, [], info=1 << 9))
