"""Imports between the modules of the tests."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = {path.relative_to(ROOT).with_suffix(""): path for path in sorted((ROOT / "tests").rglob("*.py"))}
COLLECTED = {
    ".".join(module.parts) for module in MODULES if module.name.startswith("test_") or module.name == "conftest"
}
"""Modules that pytest imports by itself."""


def imported(module: Path, source: str) -> Iterator[str]:
    """Name every module that a module may import, by any form of the import statement, in functions as well."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.parts[: -node.level] if node.level else ()
            origin = ".".join([*package, *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_module_imports_a_module_of_tests(module: Path) -> None:
    """Test modules and conftests are imported by pytest only; helpers that two modules share are in tests/support."""
    assert COLLECTED.intersection(imported(module, MODULES[module].read_text(encoding="utf-8"))) == set()


@pytest.mark.parametrize(
    "statement",
    [
        "import tests.unit.test_keys",
        "from tests.unit.test_keys import UNUSABLE",
        "from tests.unit import test_keys",
        "from . import test_keys",
        "from .test_keys import UNUSABLE",
        "from ..unit.test_keys import UNUSABLE",
        "def late():\n    from tests.unit import test_keys",
    ],
)
def test_every_form_of_an_import_is_found(statement: str) -> None:
    """Absolute and relative imports count, of a module or of names in it, wherever the statement is."""
    assert "tests.unit.test_keys" in set(imported(Path("tests/unit/test_other"), statement))
