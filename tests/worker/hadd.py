"""A stand-in for ROOT's hadd: hadd [-f] [-v N] OUTPUT INPUT... It reads every input and writes their sum.

Trees are joined, histograms are added. HADD_FAULT: "drop" loses the last input, "fail" ends with an error that names
the second one, "cut" cuts the output short, "nothing" writes none.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy
import uproot


def main(arguments: list[str]) -> int:
    while arguments[0].startswith("-"):
        arguments = arguments[2:] if arguments[0] == "-v" else arguments[1:]
    output, inputs = arguments[0], arguments[1:]
    fault = os.environ.get("HADD_FAULT", "")
    for n, path in enumerate(inputs):
        print(f"hadd Source file {n + 1}: {path}")
    if fault == "fail":
        print(
            f"Error in <TFile::ReadBuffer>: error reading all requested bytes from file {inputs[1]}",
            file=sys.stderr,
        )
        return 1
    if fault == "nothing":
        return 0
    trees: dict[str, list[dict[str, numpy.ndarray]]] = {}
    sums: dict[str, tuple[numpy.ndarray, numpy.ndarray]] = {}
    for path in inputs[: len(inputs) - (fault == "drop")]:
        with uproot.open(path) as file:
            for name, kind in file.classnames(cycle=False).items():
                if kind == "TTree":
                    trees.setdefault(name, []).append(file[name].arrays(library="np"))
                elif kind.startswith("TH"):
                    counts, edges = file[name].to_numpy()
                    sums[name] = (sums[name][0] + counts if name in sums else counts, edges)
    with uproot.recreate(output) as file:
        for name, parts in trees.items():
            file.mktree(name, {key: values.dtype for key, values in parts[0].items()})
            for part in parts:
                file[name].extend(part)
        for name, histogram in sums.items():
            file[name] = histogram
    if fault == "cut":
        os.truncate(output, Path(output).stat().st_size - 100)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
