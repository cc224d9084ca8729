"""The documentation: its code runs, and its tables and lists are complete."""

import ast
import importlib
import inspect
import linecache
import re
import sys
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from pydantic import SecretStr

import backtest_persist
from backtest_persist import Container, Registry, Settings, ioc, setup
from backtest_persist.domains import DOMAINS
from tests.support.pages import DOCS, expanded

ROOT = DOCS.parent
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> Iterator[str]:
    """The Python blocks of a page, each moved to its own line number."""
    text = page.read_text()
    for match in FENCE.finditer(text):
        yield "\n" * text.count("\n", 0, match.start(1)) + match[1]


PAGES = [page for page in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))) if page.exists() and any(blocks(page))]


@pytest.mark.parametrize("driver", ["motor"], indirect=True)
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
        shown = (
            "none" if default in (None, "") else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        )
        assert rows.pop(f"CC_{name.upper()}") == shown
    assert not rows


def test_the_reference_is_complete() -> None:
    """Every public name has its entry in the reference."""
    text = "\n".join(expanded(f"reference/{page.name}") for page in (DOCS / "reference").glob("*.md"))
    entries = set(re.findall(r"^\.\. (?:auto\w+|py:\w+):: (?:backtest_persist\.)?(\w+)$", text, re.MULTILINE))
    assert set(backtest_persist.__all__) - entries == {"__version__"}


def test_tables_of_domains_have_a_row_for_each() -> None:
    """Every table that is generated on a page lists every domain once, in the order of `DOMAINS`."""
    names = [domain.name for domain in DOMAINS]
    for page in ("domains.md", "backends.md"):
        generated = re.findall(r"^```\{domains\} \S+$", (DOCS / page).read_text(), re.MULTILINE)
        first_cells = re.findall(r"^\| (\w+) \|", expanded(page), re.MULTILINE)
        assert [cell for cell in first_cells if cell in names] == names * len(generated)
    assert "{domains}" not in "".join(expanded(page.name) for page in DOCS.glob("*.md") if page.stem != "contributing")


def test_the_readme_and_the_page_of_domains_count_them() -> None:
    """These alone tell the fifteen from those that the framework has gained since; other pages count no domains."""
    counting = {
        page.name for page in (ROOT / "README.md", *DOCS.glob("**/*.md")) if "fifteen" in page.read_text().lower()
    }
    assert counting == {"README.md", "domains.md", "changelog.md"}


def hops(title: str) -> tuple[list[tuple[str, str]], set[tuple[str, str]]]:
    """The functions that begin the items of a list in contributing.md, and all functions that its section names."""
    section = expanded("contributing.md").partition(f"## {title}\n")[2].partition("\n## ")[0]
    pattern = r"`([\w/]+\.py): ([\w.]+)`"
    steps = re.findall(rf"^\d\. {pattern}", section, re.MULTILINE)
    return steps, set(re.findall(pattern, section))


@pytest.mark.parametrize(
    ("title", "method", "arguments"),
    [("The way of a write", "write_signal_data", ({"id": "s-1"},)), ("The way of a read", "read_signal_data", ())],
)
async def test_a_call_goes_the_way_that_contributing_lists(
    container: Container, title: str, method: str, arguments: tuple[Any, ...]
) -> None:
    """The steps are taken in their order, and nothing that is on the stack at the driver's call is left out."""
    steps, named = hops(title)
    for path, name in named:
        module = importlib.import_module("backtest_persist." + path.removesuffix(".py").replace("/", "."))
        assert callable(reduce(getattr, name.split("."), module))

    package = str(Path(backtest_persist.__file__).parent) + "/"
    called: list[tuple[str, str]] = []
    stack: list[tuple[str, str]] = []

    def step(frame: FrameType) -> tuple[str, str] | None:
        name = frame.f_code.co_qualname.partition(".<locals>")[0]
        path = frame.f_code.co_filename
        return (path.removeprefix(package), name) if path.startswith(package) else None

    def profile(frame: FrameType | None, event: str, argument: Any) -> None:
        assert frame is not None
        if event != "call" or stack:
            return
        if found := step(frame):
            called.append(found)
        caller = frame.f_back and step(frame.f_back)
        in_driver = {"motor", "pymongo"} & {*Path(frame.f_code.co_filename).parts}
        if in_driver and caller and caller[0] in {"core/listing.py", "core/write_queue.py"}:
            while frame := frame.f_back:
                if found := step(frame):
                    stack.append(found)

    signal = await Registry(container).signal("BTCUSDT", "trend", "binance")
    await signal.write_signal_data({"id": "s-0"})  # so that clients and indexes are there
    sys.setprofile(profile)
    try:
        await getattr(signal, method)(*arguments)
    finally:
        sys.setprofile(None)
    rest = iter(called)
    assert [each for each in steps if each not in rest] == []
    assert stack
    assert set(stack) <= named


def test_the_tests_that_the_page_of_promises_names_exist() -> None:
    """Every module in its tables is below tests/, tests/faults/ or the conformance kit."""
    roots = (ROOT / "tests", ROOT / "tests" / "faults", ROOT / "backtest_persist")
    named = set(re.findall(r"`([\w/]+\.py)`", (DOCS / "reliability.md").read_text()))
    assert len(named) > 20
    assert {name for name in named if not any((root / name).is_file() for root in roots)} == set()


def test_llms_txt_lists_every_page() -> None:
    """llms.txt links every page, and nothing that is not there."""
    linked = set(re.findall(r"\]\((?:_sources/)?([\w/-]+)\.(?:md\.txt|html)\)", (DOCS / "llms.txt").read_text()))
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.glob("**/*.md")}
    assert linked == pages - {"index", "reference/index"}
