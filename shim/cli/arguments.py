"""What arguments and options can be: numbers within bounds, times, runs, networks, jobs."""

from __future__ import annotations

import ipaddress
import math
import re
from datetime import UTC, datetime

import click

_Parameter = click.Parameter | None
_Context = click.Context | None
NUMBERS = (0, 2**31 - 1)  # of PostgreSQL's integer
EXIT_CODES_OF_JOBS = (0, 255)
DAY_S = 86400.0


class Whole(click.IntRange):
    """A whole number within bounds."""

    def convert(self, value: object, param: _Parameter, ctx: _Context) -> int:
        text = str(value).strip()
        number = int(text) if re.fullmatch(r"[+-]?\d{1,19}", text, re.ASCII) else None
        if number is None or not (self.min or 0) <= number <= (self.max or number):
            self.fail(f"{value!r} is not a whole number from {self.min} to {self.max}", param, ctx)
        return number


class Real(click.FloatRange):
    """A number within bounds, of seconds for example."""

    def convert(self, value: object, param: _Parameter, ctx: _Context) -> float:
        try:
            number = float(str(value).replace("_", "?"))
        except ValueError:
            number = math.nan
        if not (self.min or 0) <= number <= (self.max or number):  # nor is nan
            self.fail(f"{value!r} is not a number from {self.min:g} to {self.max:g}", param, ctx)
        return number


class Time(click.ParamType[datetime]):
    """A time as in ISO 8601, in UTC where it names no other zone."""

    name = "time"

    def convert(self, value: object, param: _Parameter, ctx: _Context) -> datetime:
        try:
            time = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
            return time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a time like 2026-05-01 or '2026-05-01 12:00'", param, ctx)


class Network(click.ParamType[str]):
    """An address, or a network."""

    name = "network"

    def convert(self, value: object, param: _Parameter, ctx: _Context) -> str:
        try:
            return str(ipaddress.ip_network(str(value), strict=False))
        except ValueError:
            self.fail(f"{value!r} is not an address or a network like 10.1.0.0/16", param, ctx)


class Runs(click.ParamType[list[int]]):
    """A list of runs like 1001,1005-1010."""

    name = "runs"

    def convert(self, value: object, param: _Parameter, ctx: _Context) -> list[int]:
        runs: list[int] = []
        for part in str(value).split(","):
            # Six digits, as in the file names: a typing error must not expand to a billion runs.
            match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part, re.ASCII)
            more = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
            if not more:
                self.fail(
                    f"{value!r} is not a run list like 1001,1005-1010; a run has up to six digits", param, ctx
                )
            runs += more
        return runs


class TokenFile(click.ParamType[str]):
    """The bearer token that a file holds."""

    name = "filename"

    def convert(self, value: object, param: _Parameter, ctx: _Context) -> str:
        try:
            with click.open_file(str(value), errors="replace") as file:
                token = str(file.read()).strip()
        except OSError as error:
            self.fail(f"{str(value)!r}: {error.strerror}", param, ctx)
        # A header with anything else is refused where it is sent, by an error that shows it.
        if not re.fullmatch("[!-~]+", token):
            self.fail(f"{value} does not hold a token: one word of ASCII characters", param, ctx)
        return token


def job_of(text: str) -> tuple[int, int] | None:
    """Return cluster and process of a job like 4711.0; None: the text is no job.

    Parameters
    ----------
    text : str
        As HTCondor writes it.
    """
    match = re.fullmatch(r"(\d{1,10})\.(\d{1,10})", text, re.ASCII)
    numbers = (int(match[1]), int(match[2])) if match else None
    return numbers if numbers and max(numbers) <= NUMBERS[1] else None
