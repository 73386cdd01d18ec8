"""Documents, comments and hints name only what exists: files, functions, commands and options."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from shim.cli import osgprod
from shim.snapshot import function_files
from tests.support import CHECKOUT

PAGES = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
FOLDERS = "sql|shim|worker|condor|deploy|tests|bench|docs"
SOURCES = {path: path.read_text() for path in function_files()}
DEFINED = set(
    re.findall(r"^CREATE (?:FUNCTION|TYPE) osgprod\.(\w+)", "\n".join(SOURCES.values()), re.MULTILINE)
)


def number(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_folders_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    for match in re.finditer(rf"`((?:{FOLDERS})/[\w./-]*)`|\]\(([\w./-]+\.\w+)(?:#[\w-]*)?\)", text):
        path = CHECKOUT / match[1] if match[1] else page.parent / match[2]
        assert "NNNN" in path.name or path.exists(), f"{page.name}:{number(text, match.start())}: {match[0]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_headings_to_which_a_page_links_exist(page: Path) -> None:
    text = page.read_text()
    for match in re.finditer(r"\]\(([\w./-]*)#([\w-]+)\)", text):
        target = (page.parent / match[1] if match[1] else page).read_text()
        headings = re.findall(r"^#+ (.+)$", target, re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert match[2] in anchors, f"{page.name}:{number(text, match.start())}: {match[0]}"


def test_names_that_contributing_places_in_a_file_are_defined_there() -> None:
    """`NAME` in `FILE`: a function of SQL, Python or bash, or a variable."""
    text = (CHECKOUT / "CONTRIBUTING.md").read_text()
    places = re.findall(r"`(\w+)`(?: beside `(\w+)`|, with `(\w+)` and `(\w+)`,)? in `([\w./-]+\.\w+)`", text)
    assert len(places) > 15
    for *names, file in places:
        source = (CHECKOUT / file).read_text()
        for name in filter(None, names):
            if not name.endswith("_KIND"):
                definition = (
                    rf"(?m)^(?:CREATE FUNCTION osgprod\.|def |class |readonly |){name}\b(?: *[(:={{]|$)"
                )
                assert re.search(definition, source), f"{name} is not defined in {file}"


def test_helpers_that_comments_and_pages_name_exist() -> None:
    texts = {path: "\n".join(re.findall(r"--.*", text)) for path, text in SOURCES.items()}
    texts |= {page: "\n".join(re.findall(r"`([^`\n]*)`", page.read_text())) for page in PAGES}
    for path, text in texts.items():
        for name in re.findall(r"(?<![\w.*{])(_[a-z]\w+)\b", text):
            assert name in DEFINED, f"{path.relative_to(CHECKOUT)} names {name}, which does not exist"


def commands(text: str) -> list[list[str]]:
    """Return the words of each command `osgprod ...` of a text."""
    found = re.findall(r"(?<!=)\bosgprod ((?:[a-z][a-z-]+ ?)(?:[\w%=./@<>{}-]+ ?)*)", text)
    return [words.split() for words in found]


def complaint(words: list[str]) -> str:
    """Return what of a command does not exist; empty when all does."""
    command: click.Command = osgprod
    for word in words:
        if isinstance(command, click.Group) and not word.startswith("-"):
            if word not in command.commands:
                # `osgprod jobs PROJECT` and `osgprod workers` name no subcommand
                return "" if command is not osgprod else f"osgprod {word}"
            command = command.commands[word]
        elif word.startswith("--"):
            options = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
            name = word.partition("=")[0].rstrip(".,:;")
            if name not in options | {"--help", "--"}:
                return f"option {name} of {' '.join(words)}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_a_page_names_exist_with_their_options(page: Path) -> None:
    text = page.read_text()
    quoted = re.findall(r"`(osgprod [^`\n]+)`", text) + re.findall(r"^\$ (osgprod .*)$", text, re.MULTILINE)
    for snippet in quoted:
        for words in commands(snippet):
            assert complaint(words) == "", snippet


def test_commands_in_messages_and_hints_exist_with_their_options() -> None:
    texts = [
        (path, literal) for path, text in SOURCES.items() for literal in re.findall(r"'((?:[^']|'')*)'", text)
    ]
    for path in (CHECKOUT / "shim").rglob("*.py"):
        texts += [(path, literal) for literal in re.findall(r"\"([^\"\n]*)\"", path.read_text())]
    checked = 0
    for path, text in texts:
        for words in commands(text):
            checked += words[0] in osgprod.commands
            if words[0] in osgprod.commands or "-" in words[0]:
                assert complaint(words) == "", f"{path.relative_to(CHECKOUT)}: {text}"
    assert checked > 30


def test_sections_that_comments_name_exist() -> None:
    """Like: docs/design.md "The claim"."""
    paths = [*SOURCES, *(CHECKOUT / "worker").rglob("*.bash")]
    paths += [*(CHECKOUT / "condor").iterdir(), *(CHECKOUT / "sql" / "snapshot").iterdir()]
    found = 0
    for path in paths:
        if path.is_file():
            text = re.sub(r"\n\s*(?:--|#) *", " ", path.read_text())
            for page, section in re.findall(r"docs/(\w+\.md)\"?,? \"([^\"\n]{3,60})\"", text):
                found += 1
                headings = re.findall(r"^#+ (.+)$", (CHECKOUT / "docs" / page).read_text(), re.MULTILINE)
                assert section in headings, f"{path.relative_to(CHECKOUT)}: {page} has no section {section}"
    assert found > 10
