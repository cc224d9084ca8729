"""The JSON store: a user's domain in files, and what files cannot answer."""

from pathlib import Path
from typing import Any

import pytest

from backtest_persist import Container, InvalidPayloadError, Registry, SettingsError
from backtest_persist.backends.json import folder
from tests.support.dumps import files_of
from tests.support.json_backend import open_dump
from tests.support.quotes import QUOTE, QuoteContext


def open_quotes(directory: Path) -> Registry:
    registry = Registry(Container(domains=[QUOTE]))
    registry.use_json(directory)
    return registry


async def quotes(persist: Registry, venue: str, backtest: bool) -> Any:
    return await persist.entry(QUOTE)(venue, backtest)


async def test_a_domain_of_a_user_is_kept_in_files(tmp_path: Path) -> None:
    """A file contains all fields of a row, and a later process reads the rows with their contexts and times."""
    adapter = await quotes(open_quotes(tmp_path), "x_y", True)
    written = await adapter.write_quote_data("A_B", "bid", 1.5, [1], -7)
    await adapter.write_quote_data("A", "B_bid", 2.5, [], -6)
    assert files_of(tmp_path) == {
        "data/quote/x_y_backtest/A%255FB_bid.json": '{"bestPrice":1.5,"sizes":[1]}',
        "data/quote/x_y_backtest/A_B%255Fbid.json": '{"bestPrice":2.5,"sizes":[]}',
    }
    db = (await quotes(open_quotes(tmp_path), "x_y", True)).db
    rows = await db.list_by_venue("x_y", True)
    assert [(row.symbol, row.side, row.best_price, row.when) for row in rows] == [
        ("A_B", "bid", 1.5, -7),
        ("A", "B_bid", 2.5, -6),
    ]
    assert rows[0] == written
    assert await db.list_by_venue("x_y", True, newest=1) == rows[1:]
    assert await db.list_by_venue("x_y", True, newest=0) == []
    assert await db.list_by_venue("x_y", False) == []


async def test_many_rows_of_several_directories_are_stored_by_one_call(tmp_path: Path) -> None:
    """Those that are stored already are replaced or kept, and only new ones are counted."""
    store = (await quotes(open_quotes(tmp_path), "x", True)).db.store

    def writes(price: float, sides: str) -> list[tuple[QuoteContext, dict[str, Any]]]:
        return [
            (
                QuoteContext(venue=venue, backtest=True, symbol="S", side=side),
                {"bestPrice": price, "sizes": [], "when": 0},
            )
            for side in sides
            for venue in ("x", "y")
        ]

    assert await store.upsert_many(writes(1.0, "ab"), replace=True) == 4
    assert await store.upsert_many(writes(2.0, "bc"), replace=False) == 2
    for venue in ("x", "y"):
        found = await store.select({"venue": venue, "backtest": True})
        assert [(row.side, row.best_price) for row in found] == [("a", 1.0), ("b", 1.0), ("c", 2.0)]
    assert await store.upsert_many(writes(3.0, "a"), replace=True) == 0
    assert [row.best_price for row in await store.select({"venue": "x", "backtest": True})] == [3.0, 1.0, 2.0]


async def test_removing_says_whether_there_was_a_row(tmp_path: Path) -> None:
    """A tombstone counts, as it does in MongoDB, and is found but not listed."""
    adapter: Any = await open_dump(tmp_path).measure("b")
    db = adapter.db
    assert await db.soft_remove("b", "k") is False
    await db.upsert("b", "k", {"n": 1})
    assert await db.soft_remove("b", "k") is True
    assert await db.soft_remove("b", "k") is True
    row = await db.find_by_context("b", "k")
    assert (row.removed, row.payload) == (True, {"n": 1, "removed": True})
    assert await db.list_keys("b") == []


async def test_what_files_cannot_answer_is_refused(tmp_path: Path) -> None:
    """A list over several directories, a part of a row, and queries by a filter say so."""
    adapter = await quotes(open_quotes(tmp_path), "x", True)
    with pytest.raises(SettingsError, match="listed by venue, backtest; select backtest as well"):
        await adapter.db.store.select({"venue": "x"})
    context = QuoteContext(venue="x", backtest=True, symbol="S", side="bid")
    with pytest.raises(InvalidPayloadError, match="give sizes as well"):
        await adapter.db.store.upsert(context, {"bestPrice": 1.0, "when": 0})
    with pytest.raises(SettingsError, match="MongoDB does"):
        await adapter.db.count()
    assert files_of(tmp_path) == {}


async def test_one_folder_serves_all_that_use_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same while anybody holds it, also when more directories are used than are remembered."""
    monkeypatch.setattr(folder, "_REMEMBERED_FOLDERS", 2)
    dump = folder.DumpFiles(tmp_path)
    first = dump.folder("measure", bucket="0")
    for n in range(5):
        dump.folder("measure", bucket=f"{n}")
    assert dump.folder("measure", bucket="0", entry_key="k") is first
    assert len(dump._folders) <= 3
