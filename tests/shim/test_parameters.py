"""Parameters mean the same however their values are written."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from shim.web import openapi
from shim.web.parameters import BadRequest, parse_query
from tests.examples import example, given

NAMES = st.sampled_from(sorted(openapi.PARAMETERS))
VALUES = st.text("019a-zZ-", max_size=140)


def parsed(query: str) -> Any:
    try:
        return parse_query(query.encode())
    except BadRequest as error:
        return str(error).partition(", not ")[0]


def escaped(value: str) -> str:
    return "".join(f"%{ord(character):02x}" for character in value)


@given(parameters=st.lists(st.tuples(NAMES, VALUES), max_size=4))
@example(parameters=[("cluster", "1" * 18)])
@example(parameters=[("cluster", "1" * 19)])
@example(parameters=[("cluster", "-1")])
@example(parameters=[("cluster", "1-1")])
@example(parameters=[("cpus", "1"), ("cpus", "1")])
@example(parameters=[("host", "h"), ("host", "h")])
@example(parameters=[("host", "h" * 129)])
def test_plain_value_means_what_its_percent_encoding_means(parameters: list[tuple[str, str]]) -> None:
    plain = "&".join(f"{name}={value}" for name, value in parameters)
    assert parsed(plain) == parsed("&".join(f"{name}={escaped(value)}" for name, value in parameters))
