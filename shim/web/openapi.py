"""What the shim serves, as an OpenAPI document: for tools that read one, and for the fuzz test, which tries it all.

Written by hand, since the protocol is older than the shim; a test asserts that each route of the protocol is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, NamedTuple


class Parameter(NamedTuple):
    """A parameter of the protocol.

    Parameters
    ----------
    kind : str
        ``string`` or ``integer``.
    meaning : str
        What it is. The database decides which values are allowed (docs/protocol.md).
    is_core : bool
        A request is rejected when this parameter can't be read. Of all others what can be kept is kept, and the answer
        names the parameters that were ignored or changed.
    most : int or None
        Characters that are passed on at most; None = no text, or checked by the database.
    """

    kind: str
    meaning: str
    is_core: bool = False
    most: int | None = None


PARAMETERS = {
    "project": Parameter("string", "project name", is_core=True),
    "cluster": Parameter("integer", "HTCondor's $(Cluster) [0 .. 2147483647]", is_core=True),
    "process": Parameter("integer", "HTCondor's $(Process) [0 .. 2147483647]", is_core=True),
    "magic": Parameter("string", "the project's secret; a bearer token may replace it", is_core=True),
    "cpus": Parameter("integer", "cores of the job [1 .. 4096]; 1 when it is not given", is_core=True),
    "exitcode": Parameter(
        "integer", "of the work script [0 .. 255]; 128 + n = killed by signal n", is_core=True
    ),
    "token": Parameter(
        "string", "the attempt's token, from the script or the header Osgprod-Token", is_core=True
    ),
    "job_key": Parameter(
        "string",
        "secret that proves after a restart that this is the same job [at most 256 bytes]",
        is_core=True,
    ),
    "host": Parameter("string", "name of the node", most=128),
    "site": Parameter("string", "name of the site", most=128),
    "reason": Parameter("string", "why it failed, one line", most=1024),
    "events": Parameter("integer", "events that were read from the slice"),
    "outputs": Parameter("integer", "files that the work left"),
    "output_bytes": Parameter("integer", "size of the delivered output [bytes]"),
    "output_adler32": Parameter("string", "its checksum, 8 hexadecimal digits"),
    "output_url": Parameter("string", "where it was sent", most=1024),
    "bytes": Parameter("integer", "fetched so far [bytes]"),
    "cpu": Parameter("integer", "CPU time used so far [s]"),
    "schedd": Parameter("string", "name of the access point that the job was submitted at", most=128),
    "qdate": Parameter("integer", "when it was submitted, as the job ad says [s since 1970]"),
    "time_left_s": Parameter("integer", "until the job must end [s]"),
    "after": Parameter("string", "token of the attempt that this job has just reported", most=64),
    "exec_version": Parameter("string", "version of osgprod_exec.sh", most=32),
    "image": Parameter("string", "container image that the work runs in", most=256),
    "fault": Parameter("string", "what failed: fetch, delivery, program, setting or node", most=32),
    "door": Parameter("string", "scheme and host that the slice was read from", most=256),
    "bad_inputs": Parameter("string", "of a merge, as block1,block2 joined by ':'", most=16384),
    "outputs_list": Parameter(
        "string", "JSON array of delivered files: kind, url, bytes, adler32, events", most=16384
    ),
    "software": Parameter("string", "what the reconstruction calls its version", most=256),
    "memory_bytes": Parameter("integer", "peak memory [bytes]"),
    "wall_s": Parameter("integer", "time that the work took [s]"),
    "cpu_s": Parameter("integer", "CPU time that it took [s]"),
    "fetched_bytes": Parameter("integer", "read from storage [bytes]"),
    "disk_bytes": Parameter("integer", "disk used in the job's folder [bytes]"),
    "log_tail": Parameter("string", "last lines of a failed attempt's log", most=4096),
}
REQUIRED = ("project", "cluster", "process")
PROTOCOL = {
    "workscript.bash": (
        "The script of the slice that this job shall process",
        ("magic", "job_key", "cpus", "host", "site", "schedd", "qdate", "time_left_s", "after", "exec_version",
         "image"),
    ),
    "workscript.exit": (
        "How the job's attempt ended",
        ("exitcode", "magic", "token", "job_key", "events", "outputs", "output_bytes", "output_adler32", "output_url",
         "host", "site", "reason", "fault", "door", "bad_inputs", "outputs_list", "software", "memory_bytes", "wall_s",
         "cpu_s", "fetched_bytes", "disk_bytes", "log_tail"),
    ),
    "workscript.ping": ("The attempt is alive, and how far it is", ("magic", "token", "job_key", "bytes", "cpu")),
}  # fmt: skip
STATUSES = {
    200: "done as asked; Osgprod-Status says what",
    400: "a parameter is missing or wrong; the body names it",
    403: "not allowed: address, magic, bearer token or the attempt's token",
    404: "no such project or job",
    405: "another method than GET and POST",
    409: "too late, or contradicts an earlier report",
    429: "too often: Retry-After says when again",
    500: "a fault of the server",
    503: "paused, busy or away: Retry-After says when again",
}
# Of what needs no rights and no database, or only asks whether there is one.
PLAIN = {
    200: "all is well",
    405: "another method than GET and HEAD",
    429: STATUSES[429],
    503: "the database is away or busy",
}


def document(root: str, others: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the OpenAPI document.

    Parameters
    ----------
    root : str
        Path below which the routes are.
    others : mapping, optional
        Descriptions of routes that are not of the protocol, by their path below root.
    """
    paths = {f"{root}/{route}": _methods(route, *about) for route, about in PROTOCOL.items()}
    paths[f"{root}/healthz"] = {"get": _operation("healthz", "Can the server serve?", (), PLAIN)}
    paths[f"{root}/openapi.json"] = {"get": _operation("openapi", "This document", (), PLAIN)}
    paths |= {f"{root}/{path}": about for path, about in (others or {}).items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "osgprod", "version": version("osgprod"), "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {"securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
    }


def _methods(route: str, summary: str, names: tuple[str, ...]) -> dict[str, Any]:
    """GET with a query, and POST with the same in the body as well."""
    name = route.partition(".")[2]
    post = _operation(f"post_{name}", summary, ()) | {
        "requestBody": {
            "content": {
                "application/x-www-form-urlencoded": {
                    "schema": {"type": "object", "properties": {n: _schema(n) for n in (*REQUIRED, *names)}}
                }
            }
        }
    }
    return {"get": _operation(f"get_{name}", summary, (*REQUIRED, *names)), "post": post}


def _operation(
    name: str, summary: str, names: tuple[str, ...], statuses: Mapping[int, str] = STATUSES
) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "security": [{}, {"bearer": []}] if statuses is STATUSES else [],
        "parameters": [
            {"name": n, "in": "query", "required": n in (*REQUIRED, "exitcode"), "schema": _schema(n)}
            for n in names
        ],
        "responses": {str(status): {"description": text} for status, text in statuses.items()},
    }


def _schema(name: str) -> dict[str, str]:
    parameter = PARAMETERS[name]
    return {"type": parameter.kind, "description": parameter.meaning}
