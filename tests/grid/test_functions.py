"""plpgsql_check on an installed PostgreSQL, because the embedded server can't load that extension."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.grid.parts import need
from tests.support import CHECKOUT


def test_plpgsql_check_looks_at_all_functions_and_finds_nothing() -> None:
    need("plpgsql_check")
    programs = [
        path.parents[1] / "bin" for path in Path("/usr/lib/postgresql").glob("*/lib/plpgsql_check.so")
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/test_static.py", "-k", "plpgsql_check"],
        cwd=CHECKOUT, env={**os.environ, "OSGPROD_PG_BINDIR": str(max(programs))}, capture_output=True, text=True,
    )  # fmt: skip
    assert "1 passed" in done.stdout, done.stdout[-3000:]
