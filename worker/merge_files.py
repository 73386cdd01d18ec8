#!/usr/bin/env python3
"""What osgprod_merge.bash needs a program for: joins EVIO files, and counts events before and after a merge.

    merge_files.py evio OUTPUT INPUT...    joins EVIO files in this order, and reads OUTPUT again
    merge_files.py hddm OUTPUT INPUT...    joins packed HDDM files, compares what hddmcat wrote of others
    merge_files.py root OUTPUT INPUT...    compares what hadd wrote with its inputs, entries of each tree

Prints the number of events in OUTPUT, or "-" if they can't be counted. Exit codes:
0   done
1   the result is bad, or the inputs don't match
65  one input is bad, and the last line of the log begins with "bad input PATH: "
75  a file can't be read or written

osgprod_merge.bash contains this program. It needs Python 3.6 or later; "root" also needs uproot or ROOT's own bindings.
Source of the formats: docs/evio.md; HDDM: a header of XML, then records, each behind its length (32 bits, big-endian).
"""

import os
import shutil
import struct
import sys
import zlib

try:
    import bz2
except ImportError:  # some builds of Python lack it
    bz2 = None

BAD_RESULT, BAD_INPUT, CANT_READ = 1, 65, 75

MAGIC = 0xC0DA0100
EVIO6 = 0x4556494F
DICTIONARY_BIT, LAST_BIT, FIRST_EVENT_BIT = 1 << 8, 1 << 9, 1 << 14
TRAILER_BIT = 1 << 10  # of a file header of version 6
TRAILER_TYPE = 3
# What precedes the physics of each slice, and so is in each of its outputs: run control, EPICS, begin-of-run record.
REPEATED = set([0x60, 0x70, 0xFF32]) | set(range(0xFFD0, 0xFFD5))


def counted(number, thing):
    """Returns a number with its noun: "1 event", "2 events"."""
    return "%d %s%s" % (number, thing, "" if number == 1 else "s")


class BadInput(Exception):
    """An input isn't whole. Arguments: path, reason."""


class BadResult(Exception):
    """The inputs can't be joined, or the result is not what it must be. Argument: reason."""


class Evio:
    """An EVIO file that is read from its beginning to its end; each structure is checked.

    Attributes: order  "<" or ">";  version  4 or 6;  head  the user header of version 6, else empty
    """

    def __init__(self, path):
        self.path = path
        self.size = os.path.getsize(path)
        self.head = b""
        with open(path, "rb") as file:
            start = file.read(56)
        if len(start) < 32:
            raise BadInput(path, "has %s, and no block header" % counted(len(start), "byte"))
        for self.order in (">", "<"):
            if struct.unpack_from(self.order + "I", start, 28)[0] == MAGIC:
                break
        else:
            raise BadInput(path, "is no EVIO file: no magic word")
        words = struct.unpack_from(self.order + "8I", start)
        self.version = words[5] & 255
        if self.version not in (4, 6):
            raise BadResult("%s has EVIO version %d; 4 and 6 can be joined" % (path, self.version))
        if self.version == 6:
            if len(start) < 56 or words[0] != EVIO6 or words[2] != 14:
                raise BadInput(path, "has no whole file header")
            self.file_header = start
            # Between the two the file may have an index of its records.
            self.user_begin = 56 + words[4]
            self.begin = self.user_begin + (words[6] + 3) // 4 * 4
            if self.begin > self.size:
                raise BadInput(path, "ends in its file header")
            with open(path, "rb") as file:
                file.seek(self.user_begin)
                self.head = file.read(self.begin - self.user_begin)
        else:
            self.begin = 0

    def blocks(self):
        """Yields header words and body of each block or record, those without events and trailers left out."""
        header_words = 8 if self.version == 4 else 14
        offset, is_last = self.begin, False
        with open(self.path, "rb") as file:
            file.seek(offset)
            while offset < self.size:
                header = file.read(4 * header_words)
                if len(header) < 4 * header_words:
                    raise BadInput(self.path, "ends inside the header at byte %d" % offset)
                words = struct.unpack("%s%dI" % (self.order, header_words), header)
                if words[7] != MAGIC or words[2] != header_words or words[5] & 255 != self.version:
                    raise BadInput(self.path, "has no block header at byte %d" % offset)
                if words[0] < header_words or offset + 4 * words[0] > self.size:
                    raise BadInput(self.path, "ends inside the block at byte %d" % offset)
                if is_last and words[3]:
                    raise BadInput(self.path, "has events behind its last block, at byte %d" % offset)
                is_last = self.version == 4 and bool(words[5] & LAST_BIT)
                body = file.read(4 * (words[0] - header_words))
                if len(body) != 4 * (words[0] - header_words):
                    raise BadInput(self.path, "ends inside the block at byte %d" % offset)
                if self.version == 6 and words[5] >> 28 == TRAILER_TYPE:
                    return
                if words[3]:
                    yield offset, words, body
                offset += 4 * words[0]

    def events(self, offset, words, body):
        """Returns the dictionary and the events of a block of version 4."""
        begin, dictionary = 0, b""
        if words[5] & DICTIONARY_BIT:
            begin = self._end_of_bank(offset, body, 0)
            dictionary = body[:begin]
        events = []
        for _ in range(words[3]):
            end = self._end_of_bank(offset, body, begin)
            events.append(body[begin:end])
            begin = end
        if begin != len(body):
            raise BadInput(self.path, "has more events in the block at byte %d than it counts" % offset)
        return dictionary, events

    def _end_of_bank(self, offset, body, begin):
        if begin + 8 > len(body):
            raise BadInput(self.path, "has fewer events in the block at byte %d than it counts" % offset)
        end = begin + 4 * (struct.unpack_from(self.order + "I", body, begin)[0] + 1)
        if end < begin + 8 or end > len(body):
            raise BadInput(self.path, "has no whole event in the block at byte %d" % offset)
        return end

    def tag(self, event):
        """Returns the tag of an event of version 4."""
        return struct.unpack_from(self.order + "I", event, 4)[0] >> 16


def join_evio(output, inputs):
    """Joins EVIO files, and returns the number of events in the result.

    Version 4: empty blocks and trailers are left out. From the second file on, run control and begin-of-run records
    before the first other event are left out, if an earlier file has the same there. Blocks are numbered from 1, and
    a trailer follows. Version 6: the first file's headers, then the records of all files, numbered from 1.
    """
    files = [Evio(path) for path in inputs]
    first = files[0]
    for file in files[1:]:
        for what, one, other in (
            ("version", first.version, file.version),
            ("byte order", first.order, file.order),
            ("user header", first.head, file.head),
        ):
            if one != other:
                raise BadResult("%s and %s have not the same %s" % (first.path, file.path, what))
    with open(output, "wb") as target:
        written = _write_evio6(target, files) if first.version == 6 else _write_evio4(target, files)
        target.flush()
        os.fsync(target.fileno())
    read = _contents(output)
    if read != written:
        raise BadResult(
            "%s: read %s with checksum %08x, wrote %d with %08x"
            % (output, counted(read[0], "event"), read[1], *written)
        )
    return written[0]


def _contents(path):
    """Number and checksum of the events of an EVIO file; of version 6, of its records as they are."""
    count, checksum = 0, 0
    try:
        file = Evio(path)
        for offset, words, body in file.blocks():
            if file.version == 4:
                body = b"".join(file.events(offset, words, body)[1])
            count += words[3]
            checksum = zlib.crc32(body, checksum)
    except BadInput as error:
        raise BadResult("%s %s" % error.args) from error
    return count, checksum


def _write_evio4(target, files):
    number, count_in, count, repeated, checksum = 0, 0, 0, 0, 0
    dictionary, known = b"", set()
    for n, file in enumerate(files):
        is_head = True
        for offset, words, body in file.blocks():
            own_dictionary, events = file.events(offset, words, body)
            count_in += len(events)
            info = words[5] & ~(LAST_BIT | DICTIONARY_BIT)
            if own_dictionary and not dictionary and not number:
                dictionary = own_dictionary
                info |= DICTIONARY_BIT
            elif own_dictionary and own_dictionary != dictionary:
                raise BadResult("%s has another dictionary than %s" % (file.path, files[0].path))
            else:
                own_dictionary = b""
            kept = []
            for event in events:
                is_head = is_head and file.tag(event) in REPEATED
                if is_head and n and event in known:
                    repeated += 1
                    continue
                if is_head:
                    known.add(event)
                kept.append(event)
            if not kept:
                continue
            number += 1
            body = b"".join(kept)
            if number > 1:
                info &= ~FIRST_EVENT_BIT
            length = 8 + (len(own_dictionary) + len(body)) // 4
            target.write(struct.pack(file.order + "8I", length, number, 8, len(kept), 0, info, 0, MAGIC))
            target.write(own_dictionary + body)
            count += len(kept)
            checksum = zlib.crc32(body, checksum)
    target.write(struct.pack(files[0].order + "8I", 8, number + 1, 8, 0, 0, LAST_BIT | 4, 0, MAGIC))
    if count + repeated != count_in:
        raise BadResult(
            "%s came in, %d went out, %d repeated ones were left out"
            % (counted(count_in, "event"), count, repeated)
        )
    if repeated:
        sys.stderr.write("left out: %s of run control\n" % counted(repeated, "repeated event"))
    return count, checksum


def _write_evio6(target, files):
    number, count, checksum = 0, 0, 0
    header = list(struct.unpack(files[0].order + "14I", files[0].file_header))
    # No index, no trailer: readers need neither, and the first file's would be wrong.
    header[3] = header[4] = header[10] = header[11] = 0
    header[5] &= ~TRAILER_BIT
    target.write(struct.pack(files[0].order + "14I", *header) + files[0].head)
    for file in files:
        for _, words, body in file.blocks():
            number += 1
            words = (words[0], number, *words[2:5], words[5] & ~LAST_BIT, *words[6:])
            target.write(struct.pack(file.order + "14I", *words) + body)
            count += words[3]
            checksum = zlib.crc32(body, checksum)
    return count, checksum


HDDM_PACKED = {0x110: zlib.decompressobj}  # by what a file says behind its header
if bz2 is not None:
    HDDM_PACKED[0x120] = bz2.BZ2Decompressor


def hddm_layout(path):
    """Returns header, control record and number of records of an HDDM file.

    A control record says how the records behind it are packed: in blocks of zlib or bzip2, each behind its length. It
    is empty when they are not packed. The number is None when they are packed in another way.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        header = file.readline(1 << 20)
        if not header.startswith(b"<HDDM"):
            raise BadInput(path, "is no HDDM file")
        while not header.endswith(b"</HDDM>\n"):
            line = file.readline(1 << 20)
            if not line:
                raise BadInput(path, "ends in its header")
            header += line
        offset, control = len(header), file.read(16)
        if control[:8] == b"\0\0\0\1\0\0\0\x08" and len(control) == 16:
            unpack = HDDM_PACKED.get(struct.unpack(">Q", control[8:])[0])
            if unpack is None:
                return header, control, None
            blocks = hddm_blocks(file, path, offset + 16, size)
            return header, control, packed_records(blocks, path, unpack)
        return header, b"", sum(1 for _ in hddm_blocks(file, path, offset, size, False))


def hddm_blocks(file, path, offset, size, is_read=True):
    """Yields the data after each length of a file, from an offset on; None each if is_read is false."""
    while offset < size:
        file.seek(offset)
        head = file.read(4)
        length = struct.unpack(">I", head)[0] if len(head) == 4 else 0
        if len(head) < 4 or offset + 4 + length > size:
            raise BadInput(path, "ends inside the record at byte %d" % offset)
        yield file.read(length) if is_read else None
        offset += 4 + length


def packed_records(blocks, path, unpack):
    """Returns the number of records in packed blocks."""
    count, left, head, stream = 0, 0, b"", None
    for block in blocks:
        if stream is None or stream.eof:
            stream = unpack()
        try:
            data = stream.decompress(block)
        except (zlib.error, OSError, EOFError) as error:
            raise BadInput(
                path, "can't be decompressed behind %s: %s" % (counted(count, "record"), error)
            ) from error
        at = 0
        while at < len(data):
            if left > 0:
                step = min(left, len(data) - at)
                left -= step
            else:
                step = 4 - len(head)
                head += data[at : at + step]
                if len(head) == 4:
                    left, head = struct.unpack(">I", head)[0], b""
                    count += 1
            at += step
    if left or head or (stream is not None and not stream.eof):
        raise BadInput(path, "ends inside record %d" % count)
    return count


def merge_hddm(output, inputs):
    """Joins packed HDDM files, or compares what hddmcat wrote of others with its inputs. Returns the number of records.

    hddmcat writes the control record of each file, behind which readers find nothing: here one of them stays.
    """
    layouts = [(path, *hddm_layout(path)) for path in inputs]
    first_header = layouts[0][1]
    # A slice without records may have left a header only, and no control record.
    packing = next((control for _, _, control, _ in layouts if control), b"")
    for path, header, _, _ in layouts:
        if header != first_header:  # it is unclear which of them is wrong
            raise BadResult("%s has another header than %s" % (path, inputs[0]))
    if packing:
        for path, _, control, records in layouts:
            if control != packing and (control or records):
                raise BadResult("%s is packed in another way than the others" % path)
        with open(output, "wb") as joined:
            joined.write(first_header + packing)
            for path, header, control, _ in layouts:
                with open(path, "rb") as file:
                    file.seek(len(header) + len(control))
                    shutil.copyfileobj(file, joined, 1 << 20)
    counts = [records for _, _, _, records in layouts]
    count = None if None in counts else sum(counts)
    try:
        _, _, found = hddm_layout(output)
    except BadInput as error:
        raise BadResult("%s %s" % error.args) from error
    if found != count:
        raise BadResult("%s has %s records, its inputs have %s" % (output, found, count))
    if count is None:
        sys.stderr.write("%s: records not counted, they are packed in an unknown way\n" % output)
    return count


def check_root(output, inputs):
    """Compares a merged ROOT file with its inputs: the entries of each tree, and that no other object is missing.

    Returns the entries of its longest tree; None without a tree, or without a module that reads ROOT files.
    """
    try:
        contents = _contents_by_uproot
        __import__("uproot")
    except ImportError:
        try:
            contents = _contents_by_root
            __import__("ROOT")
        except ImportError:
            sys.stderr.write("%s: entries not counted, Python has neither uproot nor ROOT here\n" % output)
            return None
    expected = {}
    for path in inputs:
        try:
            found = contents(path)
        except MemoryError:
            raise
        except Exception as error:
            raise BadInput(path, "can't be read: %s" % " ".join(str(error).split())[:100]) from error
        for name, entries in found.items():
            expected[name] = None if entries is None else entries + (expected.get(name) or 0)
    try:
        found = contents(output)
    except MemoryError:
        raise
    except Exception as error:
        raise BadResult("%s can't be read: %s" % (output, " ".join(str(error).split())[:100])) from error
    for name in sorted(expected):
        if name not in found:
            raise BadResult("%s lacks %s, which its inputs have" % (output, name))
        if found[name] != expected[name]:
            raise BadResult(
                "%s has %s entries in %s, its inputs have %s" % (output, found[name], name, expected[name])
            )
    return max([entries for entries in found.values() if entries is not None] or [None])


def _contents_by_uproot(path):
    import uproot

    with uproot.open(path) as file:
        contents = {}
        for name, kind in file.classnames(cycle=False).items():
            is_tree = kind in ("TTree", "TNtuple", "TNtupleD", "ROOT::RNTuple")
            contents[name] = file[name].num_entries if is_tree else None
        return contents


def _contents_by_root(path):
    import ROOT

    contents = {}

    def walk(folder, prefix):
        for key in folder.GetListOfKeys():
            name, item = prefix + key.GetName(), key.ReadObj()
            contents[name] = int(item.GetEntries()) if item.InheritsFrom("TTree") else None
            if item.InheritsFrom("TDirectory"):
                walk(item, name + "/")

    file = ROOT.TFile.Open(path)
    if not file or file.IsZombie() or file.TestBit(ROOT.TFile.kRecovered):
        raise IOError("it is not whole")
    walk(file, "")
    file.Close()
    return contents


def main(arguments):
    """Returns the exit code. Arguments: what to do, output, inputs."""
    how, output, inputs = arguments[0], arguments[1], arguments[2:]
    try:
        count = {"evio": join_evio, "hddm": merge_hddm, "root": check_root}[how](output, inputs)
    except BadInput as error:
        sys.stderr.write("bad input %s: %s\n" % error.args)
        return BAD_INPUT
    except BadResult as error:
        sys.stderr.write("%s\n" % error)
        return BAD_RESULT
    except (IOError, OSError) as error:
        sys.stderr.write("%s\n" % error)
        return CANT_READ
    except MemoryError:
        sys.stderr.write("%s: no memory is left\n" % output)
        return CANT_READ
    print("-" if count is None else count)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
