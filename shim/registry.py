"""Registers block indexes in the database."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import psycopg

from shim.database import statement
from shim.evio.errors import EvioError
from shim.evio.index import FILE_NAME, BlockIndex, parse_name

Connection = psycopg.Connection[dict[str, Any]]


def register(connection: Connection, index: BlockIndex | EvioError) -> tuple[str, str]:
    """Register one file, see register_all()."""
    return register_all(connection, [index])[0]


def register_all(
    connection: Connection,
    found: Sequence[BlockIndex | EvioError],
    pattern: re.Pattern[str] = FILE_NAME,
    prefix: str | None = None,
) -> list[tuple[str, str]]:
    """Register several files in one go: the server works on one while the next is made ready for it.

    Parameters
    ----------
    found
        As from shim.evio.scan.indexes().
    pattern
        Of the names of files, with groups run and seqno.
    prefix
        Of these files, in the place of the project's; default: as it was.

    Returns
    -------
    list[tuple[str, str]]
        For each, in order: new, same, renewed, differs or bad, and a line for the operator.

    Raises
    ------
    psycopg.Error
        The database refuses one: none of these files is registered then.
    """
    with connection.pipeline():
        asked = [(index, _ask(connection, index, pattern, prefix)) for index in found]
        return [_answer(index, cursor) for index, cursor in asked]


def _ask(
    connection: Connection, index: BlockIndex | EvioError, pattern: re.Pattern[str], prefix: str | None
) -> psycopg.Cursor[dict[str, Any]] | None:
    if isinstance(index, EvioError):
        return None
    run, seqno = parse_name(index.path, pattern)
    arguments = {
        "path": index.path,
        "run": run,
        "seqno": seqno,
        "size_bytes": index.size_bytes,
        "nblocks": index.nblocks,
        "first_block": index.first_block,
        "byte_order": index.byte_order,
        "has_trailer": index.has_trailer,
        "last_has_bit": index.last_has_bit,
        "trailer": index.trailer,
        "preamble": json.dumps(index.preamble),
        "block_index": index.packed(),
        "gaps": _ranges(index.gaps),
        "has_bor": index.has_bor,
        "evio_version": index.version,
        "prefix": prefix,
    }
    return connection.execute(*statement("register_rawdata", arguments))


def _ranges(gaps: Sequence[tuple[int, int]]) -> str | None:
    return "{" + ",".join(f'"[{begin},{end})"' for begin, end in gaps) + "}" if gaps else None


def _answer(index: BlockIndex | EvioError, cursor: psycopg.Cursor[dict[str, Any]] | None) -> tuple[str, str]:
    if cursor is None or isinstance(index, EvioError):
        return "bad", str(index)
    row = cursor.fetchall()[0]
    return row["status"], f"{index.path}: {row['differences']}"
