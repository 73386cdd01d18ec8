"""Compares the pairs a second of the original osgprod and of this one, both on this machine (bench/original.md).

``python -m bench.original --original URL --ours URL`` drives both in turn, with 16 clients and with 4, and prints the
ratios. Each client keeps its connection. It sends the original's requests to the original, and a token to ours.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from bench.driver import Order, drive
from bench.rounds import Figure, in_turn
from bench.run import table

GOALS = {16: 4.0, 4: 2.5}  # times the original's pairs a second, by clients


class Side:
    """One of the two servers.

    Parameters
    ----------
    url : str
        Its root, like http://127.0.0.1:8080/osgprod.
    order : Order
        What its clients send.
    """

    def __init__(self, url: str, order: Order) -> None:
        place = re.fullmatch(r"http://([\w.-]+):([0-9]{1,5})((?:/[\w.-]+)*)/?", url)
        if place is None:
            raise SystemExit(f"bench: {url} is no URL of a server\nhint: write http://127.0.0.1:8080/osgprod")
        self._url = url
        self._order = replace(order, host=place[1], port=int(place[2]), root=place[3])
        self.pairs = 0

    def measure(self, clients: int, seconds: float, cluster0: int) -> float:
        """Drive it for a while, and return pairs a second."""
        try:
            result = drive(replace(self._order, clients=clients, seconds=seconds, cluster0=cluster0))
        except OSError as error:
            raise SystemExit(f"bench: {self._url}: {error}\nhint: start that server first") from None
        self.pairs += round(result["requests"] / 2)
        return result["per_s"] / 2


def compare(original: Side, ours: Side, rounds: int, seconds: float) -> Iterator[Figure]:
    """Gives the figure of each number of clients.

    Parameters
    ----------
    original, ours : Side
        What is compared.
    rounds, seconds
        Of each side.
    """
    # A job asks once only, so the next run needs other numbers: this one starts a thousand higher each second.
    clusters = itertools.count(int(time.time() * 1000) % 2_000_000_000, max(GOALS))
    for clients, goal in GOALS.items():
        for side in (ours, original):
            side.measure(clients, min(seconds, 1.0), next(clusters))  # connections, plans, the template

        def pairs_per_s(side: Side, clients: int = clients) -> float:
            return side.measure(clients, seconds, next(clusters))

        measured, bound, ratio = in_turn(rounds, partial(pairs_per_s, ours), partial(pairs_per_s, original))
        yield Figure(f"original_{clients}_clients_ratio", ratio, (">=", goal), measured, bound, "pairs/s")


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--original", required=True, metavar="URL", help="root of the original's server")
    parser.add_argument("--ours", required=True, metavar="URL", help="root of this osgprod's server")
    parser.add_argument("--project", default="p", help="whose work, in both (default: p)")
    parser.add_argument("--magic", default="m", help="its secret in both, letters and digits (default: m)")
    parser.add_argument("--rounds", type=int, default=11, help="of each side (default: 11)")
    parser.add_argument("--seconds", type=float, default=2.5, help="of each round (default: 2.5)")
    chosen = parser.parse_args()
    order = Order(0, "pairs", project=chosen.project, magic=chosen.magic)
    original, ours = Side(chosen.original, replace(order, talk="original")), Side(chosen.ours, order)
    for line in table(list(compare(original, ours, chosen.rounds, chosen.seconds))):
        print(line)
    print(f"pairs in all: {ours.pairs:,} ours, {original.pairs:,} the original's")
    return 0


if __name__ == "__main__":
    sys.exit(main())
