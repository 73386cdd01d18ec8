"""The bash answer: a work script template in, a filled script out.

A template is a plain bash script that also runs by hand. Filled are, and every other byte passes as it is:

- ``# ncpus:`` ``# cluster:`` ``# process:`` ``# nstarts:`` ``# project:`` ``# source:`` ``# started:``
  with nothing or one word behind them get their value;
- behind the comments ``#input_eviofile_list=...``, ``#output_filename=...`` and ``#osgprod_NAME=...``
  comes the assignment itself.

Values are quoted: no value can end a comment or leave its quotes.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PLACE = re.compile(
    rb"^(?:# (?P<comment>ncpus|cluster|process|nstarts|project|source|started):[ \t]*\S*[ \t]*(?=\r?$)"
    rb"|#(?P<variable>input_eviofile_list|output_filename|osgprod_[a-z0-9_]+)=[^\n]*$\n?)",
    re.MULTILINE,
)
# A script without any of these is the same for all jobs. It would succeed without processing its slice.
_PLACES_OF_SLICE = frozenset(
    {"source", "input_eviofile_list", "output_filename", "osgprod_pieces", "osgprod_block1"}
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x80-\x9f\u2028\u2029]")

MAX_TEMPLATE_BYTES = 4 << 20
MAX_LINKS = 8

Stamp = tuple[int, int, int, int]


class TemplateError(Exception):
    """A template that can't be used; one line that names it and says why."""


class Template:
    """One work script template, taken apart once and filled many times.

    Parameters
    ----------
    text : bytes
        The template's bytes, in any encoding that has ASCII's characters as they are.
    """

    def __init__(self, text: bytes) -> None:
        self._literals: list[bytes] = []
        self._places: list[tuple[str, str]] = []
        end = 0
        for match in _PLACE.finditer(text):
            comment, variable = match.group("comment"), match.group("variable")
            # A comment is replaced, a variable's comment stays and the assignment follows it.
            self._literals.append(text[end : match.start() if comment else match.end()])
            if variable and not match.group().endswith(b"\n"):
                self._literals[-1] += b"\n"
            kind, name = ("comment", comment) if comment else ("variable", variable)
            self._places.append((kind, name.decode()))
            end = match.end()
        self._literals.append(text[end:])

    def names_a_slice(self) -> bool:
        """Does a script that is made of it say which slice it is for?"""
        return any(name in _PLACES_OF_SLICE for _, name in self._places)

    def fill(self, slice_: Mapping[str, Any], job: Mapping[str, Any]) -> bytes:
        """Returns the script for one slice.

        Parameters
        ----------
        slice_ : Mapping[str, Any]
            A row of osgprod.checkout_slice with status assigned.
        job : Mapping[str, Any]
            Project, cluster, process, cpus as the job asked.
        """
        comments, variables = _comments(slice_, job), _variables(slice_, job)
        parts = [self._literals[0]]
        for (kind, name), literal in zip(self._places, self._literals[1:], strict=True):
            if kind == "comment":
                parts.append(f"# {name}: {_plain(str(comments[name]))}".encode())
            elif name in variables:
                parts.append(f"{name}={variables[name]}\n".encode())
            parts.append(literal)
        return b"".join(parts)


def _comments(slice_: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, object]:
    return {
        "ncpus": job["cpus"],
        "cluster": job["cluster"],
        "process": job["process"],
        "nstarts": slice_["nstarts"],
        "project": job["project"],
        "source": f"{slice_['url']}+{slice_['block1']},{slice_['block2']}",
        "started": slice_["started_at"].replace(tzinfo=None).isoformat(" ", "microseconds"),
    }


def _variables(slice_: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, str]:
    url = _double_quoted(slice_["url"])
    block1, block2 = slice_["block1"], slice_["block2"]
    blocks = "".join([f"{url}+{block},{block + 1} \\\n" for block in range(block1, block2)])
    name, _, suffix = _double_quoted(slice_["filename"]).rpartition(".")
    pieces = "".join([f" {_quoted(piece)}\n" for piece in slice_["pieces"].split("\n")])
    return {
        "osgprod_ncpus": _quoted(job["cpus"]),
        "input_eviofile_list": f'"\\\n{blocks}"',
        "output_filename": f'"{name}+{block1},{block2}.{suffix}"',
        "osgprod_token": _quoted(slice_["token"]),
        "osgprod_lease_s": _quoted(slice_["lease_s"]),
        "osgprod_heartbeat_s": _quoted(slice_["heartbeat_s"]),
        "osgprod_source_url": _quoted(slice_["url"]),
        "osgprod_size_bytes": _quoted(slice_["size_bytes"]),
        "osgprod_events": _quoted(slice_["events"]),
        "osgprod_block1": _quoted(block1),
        "osgprod_block2": _quoted(block2),
        "osgprod_pieces": f"(\n{pieces})",
    }


def _quoted(value: object) -> str:
    """A shell word that is this text and nothing else; control characters become '?'."""
    if type(value) is int:
        return str(value)
    return shlex.quote(_plain(str(value)))


@functools.lru_cache(maxsize=4096)  # many slices are of one file
def _double_quoted(text: str) -> str:
    """The inside of a double-quoted shell string; control characters become '?'."""
    return re.sub(r'([\\"$`])', r"\\\1", _plain(text))


def _plain(text: str) -> str:
    # What is printable holds no control characters, and is seen to be so in a tenth of the time.
    return text if text.isprintable() else _CONTROL.sub("?", text)


def ascii_text(text: str) -> str:
    """Returns the text for an HTTP header, with '?' for each character that a header must not have."""
    return text if text.isascii() and text.isprintable() else re.sub("[^ -~]", "?", text)


def idle_script(message: str) -> bytes:
    """Returns the script for a job that has nothing to do: it says why and succeeds."""
    return f"#!/usr/bin/env bash\nprintf '%s\\n' {_quoted('osgprod: ' + message)}\nexit 0\n".encode()


def error_text(message: str, hint: str | None = None, code: str | None = None) -> bytes:
    """Returns an error body: comment lines only, so that nothing runs should it be taken for a script."""
    head = f"# osgprod error{' ' + code if code else ''}: {_CONTROL.sub(' ', message)}\n"
    return (head + (f"# hint: {_CONTROL.sub(' ', hint)}\n" if hint else "")).encode()


class TemplateFolder:
    """The templates below a document root, at ROOT/PROJECT/WORKSCRIPT, read again when they change.

    Which work script a project has is the database's to say; this only remembers what it said last.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._known: dict[str, tuple[str, Path, Stamp, Template]] = {}

    def at_hand(self, project: str) -> tuple[str, Template | None]:
        """Returns name and template of a project if it was loaded and has not changed, else ('', None)."""
        known = self._known.get(project)
        if known is None:
            return "", None
        name, path, stamp, template = known
        try:
            if _stamp(path.stat()) == stamp:
                return name, template
        except OSError:
            pass
        del self._known[project]
        return "", None

    def load(self, project: str, workscript: str) -> tuple[str, Template]:
        """Reads a project's template.

        Parameters
        ----------
        project, workscript
            Names as the database gave them.

        Raises
        ------
        TemplateError
            Missing, unreadable, outside of the project's folder, or without a place for a slice.
        """
        path = self._root / project / workscript
        try:
            stamp, text = _read(path.parent, workscript)
        except OSError as error:
            raise TemplateError(f"work script {path}: {error.strerror}") from error
        template = Template(text)
        if not template.names_a_slice():
            raise TemplateError(
                f"work script {path}: has no place for a slice, docs/workscripts.md says what it needs"
            )
        self._known[project] = (workscript, path, stamp, template)
        return workscript, template


def _read(folder: Path, name: str) -> tuple[Stamp, bytes]:
    """Reads a file inside a folder only. A writer of the folder must not be able to publish files from elsewhere.

    Each name is opened as it is and looked at when it is open, so nothing can be changed in between; a link is followed
    only to a name in the same folder.

    Returns
    -------
    Stamp and content.

    Raises
    ------
    OSError
        Also for a link that leads out, a folder that is a link, a pipe, a file too long.
    """
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for _ in range(MAX_LINKS):
            if "/" in name or name in ("", ".", ".."):
                raise OSError(errno.EXDEV, "lies outside of the project's folder")
            try:
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                name = os.readlink(name, dir_fd=place)
                continue
            with os.fdopen(descriptor, "rb") as file:
                status = os.fstat(descriptor)
                text = file.read(MAX_TEMPLATE_BYTES + 1) if stat.S_ISREG(status.st_mode) else None
            if text is None or len(text) > MAX_TEMPLATE_BYTES:
                raise OSError(errno.EFBIG, f"is not a plain file of at most {MAX_TEMPLATE_BYTES} bytes")
            return _stamp(status), text
        raise OSError(errno.ELOOP, "is a link that leads to itself")
    finally:
        os.close(place)


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev
