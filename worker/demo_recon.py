#!/usr/bin/env python3
"""A stand-in for hd_root: really reads the EVIO slice that it is given, and writes the event numbers it saw.

    demo_recon.py SLICE...

Leaves events.txt (a line for the begin-of-run record and one for each physics event: its number) and events_read
(how many events of any kind were read, for the exit report). Exit code 1 when the slice is not a whole EVIO file
or does not begin with the begin-of-run record.
OSGPROD_DEMO_PAUSE_S: seconds to wait with open output, for whoever wants to kill it at work.
Needs Python 3.6 and nothing else; it shares no code with the server, so that it proves something.
"""

import os
import struct
import sys
import time

MAGIC = 0xC0DA0100
BEGIN_OF_RUN = 0x70
DICTIONARY_BIT, LAST_BLOCK_BIT = 1 << 8, 1 << 9
PHYSICS = (0xFF50, 0xFF58, 0xFF70, 0xFF78)


def events(data):
    """Gives tag and payload words of each event, block by block, as a reader of a stream does."""
    order = ">" if data[28:32] == struct.pack(">I", MAGIC) else "<"
    offset, is_last = 0, False
    while offset < len(data):
        if is_last:
            sys.exit("demo_recon: bytes behind the last block, at %d" % offset)
        length, _, header, count, _, info, _, magic = struct.unpack_from(order + "8I", data, offset)
        if magic != MAGIC or header != 8 or offset + 4 * length > len(data):
            sys.exit("demo_recon: no whole block at byte %d" % offset)
        is_last = bool(info & LAST_BLOCK_BIT)
        position, end = offset + 32, offset + 4 * length
        if info & DICTIONARY_BIT:
            position += 4 * (struct.unpack_from(order + "I", data, position)[0] + 1)
        for _ in range(count):
            words, head = struct.unpack_from(order + "2I", data, position)
            payload = struct.unpack_from(order + "%dI" % (words - 1), data, position + 8)
            yield head >> 16, payload
            position += 4 * (words + 1)
        if position != end:
            sys.exit("demo_recon: the event count of the block at byte %d is not true" % offset)
        offset = end
    if not is_last:
        sys.exit("demo_recon: the file has no last block")


def main(paths):
    """Reads the slices; see the module's text for what it leaves."""
    count = 0
    with open("events.txt", "w") as output:
        time.sleep(float(os.environ.get("OSGPROD_DEMO_PAUSE_S", "0")))
        for path in paths:
            with open(path, "rb") as file:
                data = file.read()
            has_begun = False
            for tag, payload in events(data):
                count += 1
                if tag == BEGIN_OF_RUN:
                    has_begun = True
                    output.write("begin-of-run\n")
                if tag in PHYSICS:
                    if not has_begun:
                        sys.exit("demo_recon: %s: a physics event before the begin-of-run record" % path)
                    output.write("%d\n" % payload[0])
            if not has_begun:
                sys.exit("demo_recon: %s: no begin-of-run record" % path)
    with open("events_read", "w") as output:
        output.write("%d\n" % count)


if __name__ == "__main__":
    main(sys.argv[1:])
