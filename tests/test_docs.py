"""The page of what works with what: every line has its tests, every test of a guest its line."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "works-with.md"
ID = re.compile(r"`(tests/[\w/]+\.py)?::(test_\w+)`")


def defined_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def named(line: str) -> list[tuple[str, str]]:
    """(file, test) of a line; ``::test`` alone is of the file before."""
    found, file = [], ""
    for given, test in ID.findall(line):
        file = given or file
        found.append((file, test))
    return found


def lines_of_tables() -> list[str]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    return [line for line in lines if not line.startswith(("| What people do", "| ---"))]


def test_every_line_names_tests_that_exist():
    for line in lines_of_tables():
        assert named(line), line
        for file, test in named(line):
            assert file and test in defined_in(ROOT / file), (file, test)


def test_every_test_of_a_guest_has_a_line():
    told = {pair for line in lines_of_tables() for pair in named(line)}
    for path in (ROOT / "tests" / "guest").glob("test_*.py"):
        file = path.relative_to(ROOT).as_posix()
        assert {(file, test) for test in defined_in(path)} <= told
