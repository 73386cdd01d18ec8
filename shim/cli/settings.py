"""The settings of a project, for ``osgprod project set --help``, which needs no database.

``make docs`` writes the table from the comments, defaults and checks of osgprod_data.projects.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path

FILE = Path(__file__).resolve().parent / "project_settings.json"
WIDTH, INDENT = 78, "      "


def meant(names: Iterable[str]) -> str | None:
    """Return the setting that somebody meant who mistyped the name of one; None: no name is like a setting's.

    Parameters
    ----------
    names : iterable of str
        As they were typed; those of settings are passed over.
    """
    from difflib import get_close_matches

    known = [setting["name"] for setting in json.loads(FILE.read_text())]
    near = (get_close_matches(name, known, n=1) for name in names if name not in known)
    return next((match[0] for match in near if match), None)


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
