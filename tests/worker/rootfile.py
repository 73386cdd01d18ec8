"""Writes and reads ROOT files; warm.py runs it, since uproot takes long to import.

rootfile.py write FILE FIRST COUNT    a tree with the numbers from FIRST on, and a histogram with COUNT entries
rootfile.py read FILE                 prints as JSON the numbers, and how many entries the histogram has
"""

from __future__ import annotations

import json
import sys

import numpy
import uproot


def write(path: str, first: int, count: int) -> None:
    with uproot.recreate(path) as file:
        file.mktree("events", {"number": "int32"})
        file["events"].extend({"number": numpy.arange(first, first + count, dtype="int32")})
        file["folder/h"] = numpy.histogram(numpy.arange(count), bins=4, range=(0, 40))


def read(path: str) -> None:
    with uproot.open(path) as file:
        numbers = file["events"]["number"].array(library="np").tolist()
        print(json.dumps([numbers, int(file["folder/h"].to_numpy()[0].sum())]))


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        read(sys.argv[2])
