"""What the pages say is what the code does: generated parts are fresh, links and names exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from shmlog.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_generated_parts_of_the_pages_are_fresh() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for file in generate.PAGES:
        page = file.read_text()
        assert generate.render(page) == page, "run: python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_on_a_page_exists(page: Path) -> None:
    # Where a reader would type it: behind a prompt, a pipe, a path, or as code of its own.
    typed = r"(?:\$ |\| |bin/|`|\()shmlog (?:-d \S+ )?([a-z]+)\b"
    for command in re.findall(typed, page.read_text()):
        assert command in COMMANDS, command


# Rules, invariants and known bugs; not the record layouts of tests, whose struct formats look the same.
_RULE = re.compile(r"(?<![\w<])[BEHIJLPRT]\d{1,2}(?![\w.])")
_SOURCES = [
    file
    for folder in ("node", "shmlog", "tests")
    for file in sorted((ROOT / folder).rglob("*"))
    if file.suffix in (".py", ".txt") and not file.name.startswith("test_records")
]


def test_every_rule_that_is_named_is_stated_once() -> None:
    stated = re.findall(
        r"^\| ([A-Z]\d+) \|", (ROOT / "docs" / "rules.md").read_text(), re.MULTILINE
    )
    assert len(stated) == len(set(stated))
    named = {(rule, file.name) for file in _SOURCES for rule in _RULE.findall(file.read_text())}
    assert {(rule, file) for rule, file in named if rule not in stated} == set()
    assert set(stated) <= {rule for rule, _ in named}
