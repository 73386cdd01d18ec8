"""The merge script with ROOT's own hadd, and with HDDM files that GlueX's library writes and reads."""

from __future__ import annotations

import shlex
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import uproot

from tests.support import CHECKOUT
from tests.worker.site import Site
from tests.worker.test_merge import BAD_INPUTS, NAMES, SLICES, Merge, contents, tarball

PROGRAMS = CHECKOUT / ".root"  # make test-root installs them
HADD = PROGRAMS / "ROOT" / "bin" / "hadd"
WRITE = """
import sys, gluex.hddm_s
path, first, end, is_packed = sys.argv[1], *map(int, sys.argv[2:])
stream = gluex.hddm_s.ostream(path)
if is_packed:
    stream.compression = gluex.hddm_s.k_z_compression
for number in range(first, end):
    record = gluex.hddm_s.HDDM()
    record.addPhysicsEvents(1)[0].eventNo = number
    stream.write(record)
"""
READ = """
import sys, gluex.hddm_s
print(*[record.getPhysicsEvent().eventNo for record in gluex.hddm_s.istream(sys.argv[1])])
"""

pytestmark = pytest.mark.skipif(not HADD.exists(), reason="there is no .root: make test-root installs ROOT")


def gluex(program: str, *arguments: object) -> str:
    """Runs a Python program that has GlueX's HDDM library."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(
        command, env={"PYTHONPATH": str(PROGRAMS)}, check=True, capture_output=True, text=True
    ).stdout


def real_merge(folder: Path, site: Site, *, is_packed: bool = False, keep: float = 1) -> Merge:
    """keep: so much of the second slice's ROOT file is there."""
    merge = Merge(folder, site)
    merge.program("hadd", f'exec {shlex.quote(str(HADD))} "$@"')
    for first, end in SLICES:
        gluex(WRITE, folder / "t.hddm", 10 * first, 10 * end, int(is_packed))
        files = {**contents((first, end)), "dana_rest.hddm": (folder / "t.hddm").read_bytes()}
        if (first, end) == SLICES[1]:
            whole = files["hd_root.root"]
            files["hd_root.root"] = whole[: int(len(whole) * keep)]
        merge.add((first, end), tarball(files))
    return merge


@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "compressed"])
def test_real_root_and_hddm_files_are_merged_with_every_event_once(
    folder: Path, site: Site, is_packed: bool
) -> None:
    merge = real_merge(folder, site, is_packed=is_packed)
    code, log = merge.run()
    assert code == 0, log
    delivered, outputs = merge.delivered(), merge.outputs()
    for kind in ("hd_root", "dana_rest"):
        content = delivered[f"{kind}/{NAMES[kind]}"]
        assert outputs[kind]["adler32"] == f"{zlib.adler32(content):08x}"
        (folder / NAMES[kind]).write_bytes(content)
    with uproot.open(folder / NAMES["hd_root"]) as file:
        assert file["events"]["number"].array(library="np").tolist() == list(range(80))
        assert file["folder/h"].to_numpy()[0].sum() == 80
    assert list(map(int, gluex(READ, folder / NAMES["dana_rest"]).split())) == list(range(80))
    assert outputs["hd_root"]["events"] == 80
    assert outputs["dana_rest"]["events"] == 80


@pytest.mark.parametrize("keep", [0.3, 0.999])
def test_root_file_that_is_cut_short_is_named_though_hadd_would_repair_it(
    folder: Path, site: Site, keep: float
) -> None:
    merge = real_merge(folder, site, keep=keep)
    code, log = merge.run()
    assert (code, merge.reported("bad_inputs")) == (BAD_INPUTS, "3,6"), log
    assert merge.delivered() == {}
