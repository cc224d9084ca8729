"""The documentation: its code runs, and its tables and lists are complete."""

import ast
import inspect
import linecache
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

import backtest_persist
from backtest_persist import Settings, ioc, setup

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> Iterator[str]:
    """The Python blocks of a page, each moved to its own line number."""
    text = page.read_text()
    for match in FENCE.finditer(text):
        yield "\n" * text.count("\n", 0, match.start(1)) + match[1]


PAGES = [page for page in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))) if page.exists() and any(blocks(page))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
async def test_every_python_block_of_a_page_runs(
    page: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The blocks of a page, executed in order in one namespace, as in a notebook, raise nothing."""
    for name, value in settings.model_dump(exclude_none=True).items():
        text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        monkeypatch.setenv(f"CC_{name.upper()}", text)
    monkeypatch.chdir(tmp_path)
    linecache.checkcache()
    namespace: dict[str, Any] = {"__name__": page.stem}
    setup(settings)
    try:
        for source in blocks(page):
            code = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            running = eval(code, namespace)
            if inspect.iscoroutine(running):
                await running
    finally:
        await ioc.close()
        monkeypatch.undo()
        setup()


def test_the_pages_have_code() -> None:
    """The extraction of blocks finds the pages that are meant to be run."""
    assert {page.stem for page in PAGES} >= {"architecture", "domains", "embedded", "index", "porting", "quickstart"}


def test_the_settings_page_is_complete() -> None:
    """Every setting is in a table of the page, with its default."""
    rows = dict(re.findall(r"^\| `(CC_\w+)` \| (\S+)", (DOCS / "settings.md").read_text(), re.MULTILINE))
    for name, field in Settings.model_fields.items():
        default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
        shown = "none" if default in (None, "") else f"`{str(default).lower() if default is True else default}`"
        assert rows.pop(f"CC_{name.upper()}") == shown
    assert not rows


def test_the_reference_is_complete() -> None:
    """Every public name has its entry in the reference."""
    text = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    entries = set(re.findall(r"^\.\. (?:auto\w+|py:\w+):: (?:backtest_persist\.)?(\w+)$", text, re.MULTILINE))
    assert set(backtest_persist.__all__) - entries == {"__version__"}


def test_llms_txt_lists_every_page() -> None:
    """llms.txt links every page, and nothing that is not there."""
    linked = set(re.findall(r"\]\((?:_sources/)?([\w/-]+)\.(?:md\.txt|html)\)", (DOCS / "llms.txt").read_text()))
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.glob("**/*.md")}
    assert linked == pages - {"index", "reference/index"}
