"""The bash answer: a work script template in, a filled script out.

A template is a plain bash script that also runs by hand. Filled are, and every other byte passes as it is:

- ``# ncpus:`` ``# cluster:`` ``# process:`` ``# nstarts:`` ``# project:`` ``# source:`` ``# started:``
  with nothing or one value behind them get their value;
- behind the comments ``#input_eviofile_list=...``, ``#output_filename=...`` and ``#osgprod_NAME=...``
  comes the assignment itself.

Values are quoted: no value can end a comment or leave its quotes.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import re
import shlex
import stat
import time
from collections.abc import Callable, Iterable, Mapping
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
# A merge script without this would succeed without merging anything.
_PLACE_OF_MERGE = "osgprod_inputs"
TASKS = ("slice", "merge")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x80-\x9f\u2028\u2029]")

MAX_TEMPLATE_BYTES = 4 << 20
MAX_LINKS = 8
RETRY_S = 10.0  # how long a merge script that can't be used is not read again

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
        self.digest = hashlib.sha256(text).hexdigest()
        # Of each: the text before it, what begins the value's line, its name, and what ends the line.
        self._places: list[tuple[bytes, str, str, str]] = []
        end, before = 0, b""
        for match in _PLACE.finditer(text):
            comment, variable = match.group("comment"), match.group("variable")
            # A comment is replaced, a variable's comment stays and the assignment follows it.
            before += text[end : match.start() if comment else match.end()]
            if variable and not match.group().endswith(b"\n"):
                before += b"\n"
            end = match.end()
            name = (comment or variable).decode()
            if name in _OF_SLICE or name in _OF_MERGE:
                begin, line_end = (f"# {name}: ", "") if comment else (f"{name}=", "\n")
                self._places.append((before, begin, name, line_end))
                before = b""
        self._rest = before + text[end:]

    def names_a_slice(self) -> bool:
        """Does a script that is made of it say which slice it is for?"""
        return any(name in _PLACES_OF_SLICE for _, _, name, _ in self._places)

    def names_its(self, task: str) -> bool:
        """Does a script that is made of it say which slice it is for, or what it merges?

        Parameters
        ----------
        task : str
            slice or merge.
        """
        return (
            self.names_a_slice()
            if task == "slice"
            else any(name == _PLACE_OF_MERGE for _, _, name, _ in self._places)
        )

    def fill(self, slice_: Mapping[str, Any], job: Mapping[str, Any]) -> bytes:
        """Returns the script for one slice or one merge.

        Parameters
        ----------
        slice_ : Mapping[str, Any]
            A row of osgprod.checkout_slice with status assigned.
        job : Mapping[str, Any]
            Project, cluster, process, cpus as the job asked.
        """
        values = _OF_MERGE if slice_["merge"] else _OF_SLICE
        parts = []
        for before, begin, name, line_end in self._places:
            parts.append(before)
            if value := values.get(name):
                parts.append(f"{begin}{value(slice_, job)}{line_end}".encode())
        parts.append(self._rest)
        return b"".join(parts)


def task_name(slice_: Mapping[str, Any]) -> str:
    """Return what a job works on: the URL of a file with the blocks of the slice, or ``merge RRRRRR_SSS``.

    Parameters
    ----------
    slice_ : mapping
        A row of osgprod.checkout_slice with status assigned.
    """
    if slice_["merge"]:
        return f"merge {slice_['filename']}"
    return f"{slice_['url']}+{slice_['block1']},{slice_['block2']}"


def _blocks(slice_: Mapping[str, Any]) -> str:
    """The blocks of a slice as the original listed them, a URL each."""
    url = _double_quoted(slice_["url"])
    blocks = [f"{url}+{block},{block + 1} \\\n" for block in range(slice_["block1"], slice_["block2"])]
    return f'"\\\n{"".join(blocks)}"'


def _output(slice_: Mapping[str, Any]) -> str:
    name, _, suffix = _double_quoted(slice_["filename"]).rpartition(".")
    return f'"{name}+{slice_["block1"]},{slice_["block2"]}.{suffix}"'


def _list(words: Iterable[str]) -> str:
    """A list of bash, a word a line."""
    lines = "".join([f" {_quoted(word)}\n" for word in words])
    return f"(\n{lines})"


@functools.lru_cache(maxsize=4096)  # many slices are of one file
def _url_list(urls: tuple[str, ...]) -> str:
    return _list(urls)


def _known(value: object) -> object:
    return "" if value is None else value


def _word(value: object) -> object:
    """What a comment shows of a value: one line of printable characters."""
    return value if type(value) is int else _plain(str(value))


def _quoted(value: object) -> str:
    """A shell word that is this text and nothing else; control characters become '?'."""
    if type(value) is int:
        return str(value)
    return shlex.quote(_plain(str(value)))


@functools.lru_cache(maxsize=4096)
def _quoted_text(text: str) -> str:
    return _quoted(text)


@functools.lru_cache(maxsize=4096)  # many slices are of one file
def _double_quoted(text: str) -> str:
    """The inside of a double-quoted shell string; control characters become '?'."""
    return re.sub(r'([\\"$`])', r"\\\1", _plain(text))


def _plain(text: str) -> str:
    # What is printable holds no control characters, and is seen to be so in a tenth of the time.
    return text if text.isprintable() else _CONTROL.sub("?", text)


# Each value is computed only for a template that has its place: a function of the row of checkout_slice and of the job.
_Value = Callable[[Mapping[str, Any], Mapping[str, Any]], object]

_OF_BOTH: dict[str, _Value] = {
    "ncpus": lambda slice_, job: _word(job["cpus"]),
    "cluster": lambda slice_, job: _word(job["cluster"]),
    "process": lambda slice_, job: _word(job["process"]),
    "nstarts": lambda slice_, job: _word(slice_["nstarts"]),
    "project": lambda slice_, job: _word(job["project"]),
    "source": lambda slice_, job: _word(task_name(slice_)),
    "started": lambda slice_, job: slice_["started_at"].replace(tzinfo=None).isoformat(" ", "microseconds"),
    "osgprod_task": lambda slice_, job: slice_["task"],
    "osgprod_ncpus": lambda slice_, job: _quoted(job["cpus"]),
    "osgprod_token": lambda slice_, job: _quoted(slice_["token"]),
    "osgprod_lease_s": lambda slice_, job: _quoted(slice_["lease_s"]),
    "osgprod_heartbeat_s": lambda slice_, job: _quoted(slice_["heartbeat_s"]),
    "osgprod_size_bytes": lambda slice_, job: _quoted(_known(slice_["size_bytes"])),
    "osgprod_events": lambda slice_, job: _quoted(_known(slice_["events"])),
}
_OF_SLICE: dict[str, _Value] = {
    **_OF_BOTH,
    "input_eviofile_list": lambda slice_, job: _blocks(slice_),
    "output_filename": lambda slice_, job: _output(slice_),
    "osgprod_source_url": lambda slice_, job: _quoted_text(slice_["url"]),
    "osgprod_source_urls": lambda slice_, job: _url_list(tuple(slice_.get("urls") or [slice_["url"]])),
    "osgprod_block1": lambda slice_, job: _quoted(slice_["block1"]),
    "osgprod_block2": lambda slice_, job: _quoted(slice_["block2"]),
    "osgprod_pieces": lambda slice_, job: _list(slice_["pieces"].split("\n")),
}
# What a merge script is filled with (docs/outputs.md).
_OF_MERGE: dict[str, _Value] = {
    **_OF_BOTH,
    "osgprod_inputs": lambda slice_, job: _list(slice_["merge"]["inputs"]),
    "osgprod_run": lambda slice_, job: _quoted(slice_["merge"]["run"]),
    "osgprod_seqno": lambda slice_, job: _quoted(_known(slice_["merge"]["seqno"])),
    "osgprod_merge_output_url": lambda slice_, job: _quoted(slice_["merge"]["output_url"]),
    "osgprod_token_hosts": lambda slice_, job: _quoted(slice_["merge"].get("token_hosts") or ""),
    "osgprod_merge_cleanup": lambda slice_, job: _quoted(slice_["merge"]["cleanup"]),
    "output_filename": lambda slice_, job: _quoted(f"merge_{slice_['filename']}"),
}


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
    """The templates below a document root, at ROOT/PROJECT/NAME, read again when they change.

    A project has a work script, and a merge script where it merges. Which they are is the database's to say; this only
    remembers what it said last.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._known: dict[tuple[str, str], tuple[str, str, Stamp, Template]] = {}
        self._faults: dict[str, tuple[float, str, str]] = {}  # of merge scripts: when, name, why

    def at_hand(self, project: str, task: str = "slice") -> tuple[str, Template | None]:
        """Returns name and template of a project if it was loaded and has not changed, else ('', None).

        Parameters
        ----------
        project : str
            Its name.
        task : str
            slice: the work script; merge: the merge script.
        """
        known = self._known.get((project, task))
        if known is None:
            return "", None
        name, path, stamp, template = known
        try:
            if _stamp(os.stat(path)) == stamp:  # noqa: PTH116  # Path.stat takes twice as long
                return name, template
        except OSError:
            pass
        del self._known[project, task]
        return "", None

    def fault(self, project: str) -> dict[str, str]:
        """Returns why a project's merge script can't be used, by its name; empty: no fault was found of late."""
        at, name, why = self._faults.get(project, (0.0, "", ""))
        return {name: why} if name and time.monotonic() - at < RETRY_S else {}

    def load(self, project: str, name: str, task: str = "slice") -> tuple[str, Template]:
        """Reads a project's template.

        Parameters
        ----------
        project, name
            Names as the database gave them.
        task
            slice: the work script; merge: the merge script.

        Raises
        ------
        TemplateError
            Missing, unreadable, outside of the project's folder, or without a place for a slice or for inputs. fault()
            repeats that of a merge script for a while.
        """
        path = self._root / project / name
        what, needed = ("work script", "a slice") if task == "slice" else ("merge script", "#osgprod_inputs=")
        try:
            stamp, text = _read(path.parent, name)
            template = Template(text)
            problem = (
                ""
                if template.names_its(task)
                else (f"has no place for {needed}, docs/workscripts.md says what it needs")
            )
        except OSError as error:
            problem = str(error.strerror)
        if problem:
            if task == "merge":  # (the folder is this server's own: the database need not know it)
                self._faults[project] = time.monotonic(), name, f"{what} {name}: {problem}"
            raise TemplateError(f"{what} {path}: {problem}")
        self._known[project, task] = (name, str(path), stamp, template)
        return name, template


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
        raise OSError(errno.ELOOP, f"leads over more than {MAX_LINKS} links")
    finally:
        os.close(place)


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev
