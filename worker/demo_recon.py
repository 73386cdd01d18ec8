#!/usr/bin/env python3
"""A stand-in for hd_root: reads the EVIO slices that it is given, and writes the numbers of the events in them.

    demo_recon.py SLICE...

Leaves two files in the current folder: events.txt, with a line "begin-of-run" for each begin-of-run record and a line
with the number of each physics event, in order; and events_read, with the number of events of any kind, for the exit
report. Exits with 1 and a message when a slice is not a whole EVIO file, or has a physics event before the begin-of-run
record.

OSGPROD_DEMO_PAUSE_S: how long to wait after events.txt is opened [s; default: 0], for tests that kill it at work.

Needs Python 3.6 or later and nothing else. It shares no code with the server, so that its results prove something.
Source of the format: docs/evio.md.
"""

import os
import struct
import sys
import time

MAGIC = 0xC0DA0100
HEADER_WORDS = 8
DICTIONARY_BIT, LAST_BLOCK_BIT = 1 << 8, 1 << 9
# Tags of the two data acquisition systems: CODA, CDAQ.
BEGIN_OF_RUN = (0x70, 0xFF32)
PHYSICS = (0xFF50, 0xFF58, 0xFF70, 0xFF78, 0xFF33)


def events(data):
    """Yields tag and payload words of each event, block by block, as a reader of a stream sees them.

    Behind a block that says it is the last one only an empty block may follow, a trailer.
    """
    order = ">" if data[28:32] == struct.pack(">I", MAGIC) else "<"
    offset, is_last = 0, False
    while offset < len(data):
        if len(data) - offset < 4 * HEADER_WORDS:
            sys.exit("demo_recon: no whole block at byte %d" % offset)
        length, _, header, count, _, info, _, magic = struct.unpack_from(order + "8I", data, offset)
        end = offset + 4 * length
        if magic != MAGIC or header != HEADER_WORDS or length < HEADER_WORDS or end > len(data):
            sys.exit("demo_recon: no whole block at byte %d" % offset)
        if is_last and length > HEADER_WORDS:
            sys.exit("demo_recon: more data behind the last block, at byte %d" % offset)
        is_last = bool(info & LAST_BLOCK_BIT)
        position = offset + 4 * HEADER_WORDS
        if info & DICTIONARY_BIT:
            position += 4 * (struct.unpack_from(order + "I", data, position)[0] + 1)
        wrong_count = "demo_recon: the block at byte %d does not hold %d events" % (offset, count)
        for _ in range(count):
            if position + 8 > end:
                sys.exit(wrong_count)
            words, head = struct.unpack_from(order + "2I", data, position)
            next_position = position + 4 * (words + 1)
            if words < 1 or next_position > end:
                sys.exit("demo_recon: no whole event at byte %d" % position)
            yield head >> 16, struct.unpack_from(order + "%dI" % (words - 1), data, position + 8)
            position = next_position
        if position != end:
            sys.exit(wrong_count)
        offset = end
    if not is_last:
        sys.exit("demo_recon: the file has no last block")


def main(paths):
    """Reads the slices at these paths, and writes events.txt and events_read."""
    count = 0
    with open("events.txt", "w") as output:
        time.sleep(float(os.environ.get("OSGPROD_DEMO_PAUSE_S", "0")))
        for path in paths:
            with open(path, "rb") as file:
                data = file.read()
            has_begun = False
            for tag, payload in events(data):
                count += 1
                if tag in BEGIN_OF_RUN:
                    has_begun = True
                    output.write("begin-of-run\n")
                elif tag in PHYSICS:
                    if not has_begun:
                        sys.exit("demo_recon: %s: a physics event before the begin-of-run record" % path)
                    output.write("%d\n" % payload[0])
            if not has_begun:
                sys.exit("demo_recon: %s: no begin-of-run record" % path)
    with open("events_read", "w") as output:
        output.write("%d\n" % count)


if __name__ == "__main__":
    main(sys.argv[1:])
