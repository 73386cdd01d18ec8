"""The settings of a project, for ``osgprod project set --help``, which needs no database.

``make docs`` writes the table from the comments, defaults and checks of osgprod_data.projects.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

FILE = Path(__file__).resolve().parent / "project_settings.json"
WIDTH, INDENT = 78, "      "


def help_text() -> str:
    """Return all settings with default, range, unit and meaning, as the end of a help page."""
    lines = ["\b", "Settings: name, default, (range), meaning [unit]"]
    for setting in json.loads(FILE.read_text()):
        limits = f" ({setting['range']})" if setting["range"] else ""
        head = f"  {setting['name']}  {setting['default'] or '-'}{limits}"
        lines += [
            head,
            *textwrap.wrap(setting["meaning"], WIDTH, initial_indent=INDENT, subsequent_indent=INDENT),
        ]
    return "\n".join(lines)
