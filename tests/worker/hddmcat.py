"""A stand-in for HDDM's hddmcat: prints the first input, and of the others what follows the header, the same in all.

HDDMCAT_FAULT: "drop" loses the last 8 bytes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main(inputs: list[str]) -> int:
    first = b""
    result = b""
    for path in inputs:
        text = Path(path).read_bytes()
        end = text.index(b"</HDDM>\n") + 8
        if first and text[:end] != first:
            print(f"hddmcat: Input stream {path} contains invalid hddm header", file=sys.stderr)
            return 1
        result += text[end:] if first else text
        first = text[:end]
    if os.environ.get("HDDMCAT_FAULT") == "drop":
        result = result[:-8]
    sys.stdout.buffer.write(result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
