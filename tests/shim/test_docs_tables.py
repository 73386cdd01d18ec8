"""Tables in documents that are made from the code can't go stale, nor leave a module or a setting out."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from types import ModuleType
from typing import Any

import psycopg
import pytest

from shim.cli import settings
from tests.support import CHECKOUT

SCRIPT = (
    "import sys; sys.path.insert(0, 'docs'); import generate_tables as g;"
    "[sys.exit(f'docs/{d}: run make docs') for d, _ in g.TABLES"
    " if (g.CHECKOUT / 'docs' / d).read_text() != g.with_tables(d)]"
)


def test_tables_of_all_documents_are_current() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], cwd=CHECKOUT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_tables", CHECKOUT / "docs" / "generate_tables.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_help_of_project_set_lists_every_setting_as_the_database_has_it(
    generator: ModuleType, db: psycopg.Connection[dict[str, Any]]
) -> None:
    listed = json.loads(settings.FILE.read_text())
    assert listed == generator.project_settings(db), "run: make docs"
    text = settings.help_text()
    assert len(listed) > 25 and all(f"\n  {setting['name']}  " in text for setting in listed)


def test_table_of_modules_has_each_of_them() -> None:
    text = (CHECKOUT / "docs" / "design.md").read_text()
    for path in (CHECKOUT / "shim").rglob("*.py"):
        assert path.name == "__init__.py" or f"`{path.relative_to(CHECKOUT)}`" in text, path
