"""Cuts registered files into slices as the jobs do: by the pieces that the server names."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

from shim.database import call
from shim.evio.index import parse_name, read_index
from shim.registry import register
from tests.support import World


def with_word(data: bytes, offset: int, value: int) -> bytes:
    """A copy of data with another word at a byte, in big-endian order."""
    return data[:offset] + struct.pack(">I", value) + data[offset + 4 :]


def assemble(data: bytes, pieces: str) -> bytes:
    """Join the pieces of an answer."""
    parts = []
    for piece in pieces.split("\n"):
        kind, first, *more = piece.split()
        if kind == "hex":
            parts.append(bytes.fromhex(first))
        else:
            assert kind == "range"
            part = data[int(first) : int(first) + int(more[0])]
            assert len(part) == int(more[0]) > 0
            parts.append(part)
    return b"".join(parts)


def registered(world: World, path: Path) -> dict[str, Any]:
    """Register a file and return its row."""
    status, why = register(world.db, read_index(path))
    assert status in ("new", "same", "renewed"), why
    row = world.db.execute("SELECT * FROM osgprod_data.rawdata WHERE path = %s", [str(path)]).fetchone()
    assert row is not None
    return row


def slices_by_checkout(world: World, path: Path, blocks: int, project: str = "p") -> list[bytes]:
    """Register a file, load it, check all of it out in slices of so many blocks, and return them."""
    data, slices = path.read_bytes(), []
    registered(world, path)
    call(world.db, "load_slices", project=project, runs=[parse_name(path)[0]])
    while (answer := world.checkout(len(slices), cpus=blocks, project=project))["status"] == "assigned":
        slices.append(assemble(data, answer["pieces"]))
        assert len(slices[-1]) == answer["size_bytes"]
    return slices


def slices_at(world: World, path: Path, cuts: list[int]) -> list[tuple[bytes, int]]:
    """Return the slices between these block numbers, each with the number of events that the server tells."""
    row, data, slices = registered(world, path), path.read_bytes(), []
    edges = sorted(
        {row["first_block"], row["nblocks"]} | {n for n in cuts if row["first_block"] < n < row["nblocks"]}
    )
    for block1, block2 in pairwise(edges):
        answer = world.db.execute(
            "SELECT * FROM osgprod._slice_file(%s, %s, %s, '', '')", [row["rawdata_id"], block1, block2]
        ).fetchone()
        assert answer is not None
        content = assemble(data, answer["pieces"])
        assert len(content) == answer["size_bytes"]
        slices.append((content, answer["events"]))
    return slices
