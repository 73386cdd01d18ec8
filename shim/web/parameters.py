"""The parameters of a request: taken apart, decoded, bounded in size; what they mean is the database's to decide.

The table ``openapi.PARAMETERS`` says which parameters are the core of a request (the caller, the attempt, how it
ended). A core parameter that can't be read rejects the request. Every other one is decoration: what can be kept of it
is kept, all else is ignored, and a note in the answer says so. A job must never lose its report over a log line.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote_to_bytes

from starlette.requests import Request

from shim.web import openapi

MAX_QUERY_BYTES = 8192
MAX_BODY_BYTES = 65536
MAX_DIGITS = 18
MOST_NUMBER = 2**31 - 1  # that PostgreSQL's integer holds
MAX_PARTS = 100  # between '&': more than twice as many as there are parameters

# Answers repeat only names of the table: an unknown name may be the end of a secret that contains a bare '&'.
UNKNOWN = "a parameter that is not known here"

NO_VALUE, TWICE, NO_NUMBER = "has no value", "is given twice", "must be a number"
BROKEN, NOT_UTF8, NUL, TOO_LONG = (
    "has broken percent-encoding",
    "is not UTF-8",
    "has a NUL byte",
    "is too long",
)
HINTS = {
    NO_VALUE: "write name=value, and %26 for a & in a value",
    TWICE: "give each parameter once",
    NO_NUMBER: "write digits, as in cluster=1",
    BROKEN: "write %25 for a percent sign",
    NOT_UTF8: "percent-encode the UTF-8 bytes",
    NUL: "leave it out",
    TOO_LONG: "send less",
}


# Of each name as it is sent: as text, whether it is a number, whether it is core, and how long its value may be.
_PLAIN = {
    name.encode(): (name, parameter.kind == "integer", parameter.is_core, parameter.most or MAX_QUERY_BYTES)
    for name, parameter in openapi.PARAMETERS.items()
}


def number_of(text: str) -> int | None:
    """Return the whole number that a text is, as long as PostgreSQL's integer holds it; None: it is none.

    Parameters
    ----------
    text : str
        Digits of ASCII.
    """
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(MOST_NUMBER))
    return int(text) if is_number and int(text) <= MOST_NUMBER else None


class BadRequest(Exception):
    """A request that no function can be called with.

    Parameters
    ----------
    message : str
        One line that names the parameter.
    hint : str
        What to send instead.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


async def read(request: Request) -> tuple[dict[str, Any], list[str]]:
    """Return the parameters of a request: those of the query, and with POST those of the body as well.

    Parameters
    ----------
    request : Request
        GET or POST.

    Returns
    -------
    dict
        Known parameters only: texts, and whole numbers for those that are numbers.
    list of str
        A note for each parameter that was ignored or changed.

    Raises
    ------
    BadRequest
        Too long, too many parameters, or a core parameter that is given twice or can't be read.
    """
    query = request.scope["query_string"]
    if len(query) > MAX_QUERY_BYTES:
        raise BadRequest(f"the query is longer than {MAX_QUERY_BYTES} bytes", "send a shorter one")
    if request.method == "POST":
        body = b""
        stated = request.headers.get("content-length", "")
        if stated.isdecimal():
            _require_short(int(stated[:MAX_DIGITS]))  # before a byte of it is awaited
        async for chunk in request.stream():
            body += chunk
            _require_short(len(body))
        query = b"&".join(part.strip() for part in (query, body) if part.strip())
    return parse_query(query)


def _require_short(body_bytes: int) -> None:
    if body_bytes > MAX_BODY_BYTES:
        raise BadRequest(f"the body is longer than {MAX_BODY_BYTES} bytes", "send a shorter one")


def parse_query(query: bytes) -> tuple[dict[str, Any], list[str]]:
    """Take a query string apart.

    Parameters
    ----------
    query : bytes
        Percent-encoded, with ``+`` as a space; one ``;`` at its end is ignored, as the original's clients send it.

    Returns
    -------
    dict
        Names and values of the known parameters; numbers as int. The database decides which range is allowed.
    list of str
        A note for each parameter that was ignored or changed, as ``ignored: events (must be a number)``; no two
        are the same.

    Raises
    ------
    BadRequest
        More than MAX_PARTS parameters, or a core parameter that is given twice, has no value, or can't be read.
    """
    if query.count(b"&") >= MAX_PARTS:  # which would keep the event loop busy, for anybody
        raise BadRequest(
            f"more than {MAX_PARTS} parameters", "send each parameter once, and %26 for a & in a value"
        )
    values: dict[str, Any] = {}
    notes: list[str] = []
    is_core = True  # of the parameter before: a part without '=' is the end of its value, cut by a bare '&'
    for item in query.removesuffix(b";").split(b"&"):
        if not item:
            continue
        name_bytes, equals, value_bytes = item.partition(b"=")
        # Letters, digits and hyphens of ASCII, as nearly all values are, mean themselves.
        if (plain := _PLAIN.get(name_bytes)) and value_bytes.replace(b"-", b"").isalnum():
            name, is_number, is_core, most = plain
            if name not in values and len(value_bytes) <= (MAX_DIGITS if is_number else most):
                if not is_number:
                    values[name] = value_bytes.decode()
                    continue
                if value_bytes.isdigit():
                    values[name] = int(value_bytes)
                    continue
        if b"%" in name_bytes:
            name_bytes = unquote_to_bytes(name_bytes)
        name = name_bytes.decode(errors="replace")
        parameter = openapi.PARAMETERS.get(name)
        if parameter is None:
            if not equals and is_core:
                raise BadRequest(f"{UNKNOWN} {NO_VALUE}", HINTS[NO_VALUE])
            if not equals:
                notes.append(f"ignored: {UNKNOWN} ({NO_VALUE})")
            continue
        is_core = parameter.is_core
        value, fault = _value(value_bytes, parameter) if equals else (None, NO_VALUE)
        if name in values:
            value, fault = None, TWICE
        if fault and is_core:
            what = f", not {value_bytes[:40].decode(errors='replace')!r}" if fault == NO_NUMBER else ""
            raise BadRequest(f"parameter {name} {fault}{what}", HINTS[fault])
        if fault:
            notes.append(f"{'ignored' if value is None else 'changed'}: {name} ({fault})")
        if value is not None:
            values[name] = value
    return values, list(dict.fromkeys(notes))


def _value(text: bytes, parameter: openapi.Parameter) -> tuple[str | int | None, str]:
    """One value as far as it can be kept, and its fault; '' = none."""
    fault = ""
    text = text.replace(b"+", b" ")
    if b"%" in text:
        fault = BROKEN if _has_broken_escape(text) else ""
        text = unquote_to_bytes(text)
    try:
        value = text.decode()
    except UnicodeDecodeError:
        value, fault = text.decode(errors="replace"), NOT_UTF8
    if parameter.kind == "integer":
        digits = value.strip().removeprefix("-")
        is_number = digits.isascii() and digits.isdigit() and len(digits) <= MAX_DIGITS
        return (int(value), "") if is_number else (None, NO_NUMBER)
    if "\0" in value:
        value, fault = value.replace("\0", " "), NUL  # which no text of the database can hold
    if parameter.most is not None and len(value) > parameter.most:
        value, fault = value[: parameter.most], fault or TOO_LONG
    return value, fault


def _has_broken_escape(text: bytes) -> bool:
    hexadecimal = b"0123456789abcdefABCDEF"
    return any(
        len(escape) < 2 or escape[0] not in hexadecimal or escape[1] not in hexadecimal
        for escape in text.split(b"%")[1:]
    )
