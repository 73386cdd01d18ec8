#!/usr/bin/env python3
"""Write the tables that documents have from the code, each between two markers.

``make docs`` runs it; tests/shim/test_docs_tables.py fails when a table is not current.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))  # run as a file

from shim import config  # noqa: E402


def modules() -> list[str]:
    """Return the modules of the shim, each with the first sentence of its docstring, as a Markdown table."""
    lines = ["| module | what it does |", "|---|---|"]
    for path in sorted((CHECKOUT / "shim").rglob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        if path.name != "__init__.py":
            sentence = " ".join(text.partition("\n\n")[0].split()).replace("``", "`").replace("|", r"\|")
            lines.append(f"| `{path.relative_to(CHECKOUT)}` | {sentence} |")
    return lines


# Document and name of the markers, and what makes the lines between them.
TABLES: dict[tuple[str, str], Callable[[], list[str]]] = {
    ("operations.md", "settings"): config.table,
    ("design.md", "modules"): modules,
}


def with_tables(document: str) -> str:
    """Return the text of a document with its tables as they should be.

    Parameters
    ----------
    document : str
        File name in docs/.

    Raises
    ------
    SystemExit
        A marker is missing.
    """
    text = (CHECKOUT / "docs" / document).read_text()
    for (name, marker), make in TABLES.items():
        if name == document:
            before, begin, rest = text.partition(f"<!-- {marker} -->\n")
            _, end, after = rest.partition(f"<!-- end of {marker} -->\n")
            if not (begin and end):
                raise SystemExit(f"docs/{document}: the markers of {marker} are missing")
            text = before + begin + "".join(f"{line}\n" for line in make()) + end + after
    return text


def main() -> None:
    """Write all tables."""
    for document in {name for name, _ in TABLES}:
        text = with_tables(document)
        (CHECKOUT / "docs" / document).write_text(text)
        print(f"{document}: tables are current")


if __name__ == "__main__":
    main()
