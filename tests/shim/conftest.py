"""Databases and SQL folders to migrate."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shim.version import SQL_FOLDER


@pytest.fixture
def sql(folder: Path) -> Path:
    """A copy of the SQL folder, to be changed."""
    shutil.copytree(SQL_FOLDER, folder / "sql", copy_function=shutil.copyfile)
    return folder / "sql"
