"""Compares the versions of program and database, by their newest migrations."""

from __future__ import annotations

from pathlib import Path

SQL_FOLDER = Path(__file__).resolve().parent.parent / "sql"


def names(migrations: Path = SQL_FOLDER / "migrations") -> list[str]:
    """Return the names of the migrations of this checkout, oldest first."""
    return [path.stem for path in sorted(migrations.glob("[0-9]*.sql")) if path.suffixes == [".sql"]]


# Of the code that runs: the folder may be a newer one's already, between "git pull" and the restart.
OURS = names()


def which_is_older(version: str | None) -> str:
    """Tell whether the database or this program is older.

    Parameters
    ----------
    version
        The newest migration of the database, as alive() answers it; None: from before alive() answered it.

    Returns
    -------
    str
        One line; empty when both are of the same version.
    """
    if version == OURS[-1]:
        return ""
    if version is None or version in OURS:
        return f"the database ({version or '0.9.0'}) is older than this program ({OURS[-1]}): osgprod migrate"
    return f"this program ({OURS[-1]}) is older than the database ({version}): update it and start it again"
