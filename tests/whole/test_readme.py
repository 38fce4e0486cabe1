"""The tests in the table of tests/README.md exist."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROWS = [line for line in (TESTS / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
NAMED = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", "\n".join(ROWS))


def test_every_row_names_a_test():
    faults = ROWS[2:]
    assert len(faults) > 20
    assert all(".py" in row.rsplit("|", 2)[1] for row in faults)


@pytest.mark.parametrize(("file", "test"), sorted(set(NAMED)))
def test_the_test_exists(file, test):
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert test in functions if test else any(name.startswith("test_") for name in functions)
