"""Tables in documents that are made from the code can't go stale, nor leave a module or a setting out."""

from __future__ import annotations

import subprocess
import sys

from tests.support import CHECKOUT

SCRIPT = (
    "import sys; sys.path.insert(0, 'docs'); import generate_tables as g;"
    "[sys.exit(f'docs/{d}: run make docs') for d, _ in g.TABLES"
    " if (g.CHECKOUT / 'docs' / d).read_text() != g.with_tables(d)]"
)


def test_tables_of_all_documents_are_current() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], cwd=CHECKOUT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_table_of_modules_has_each_of_them() -> None:
    text = (CHECKOUT / "docs" / "design.md").read_text()
    for path in (CHECKOUT / "shim").rglob("*.py"):
        assert path.name == "__init__.py" or f"`{path.relative_to(CHECKOUT)}`" in text, path
