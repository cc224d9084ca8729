"""Dumps of a container with a user's domain: exported and imported like those of the package."""

from pathlib import Path

import pytest

from backtest_persist import Container, InvalidPayloadError, Registry, Settings, export_dump, import_dump
from tests.support.dumps import files_of, write_dump
from tests.support.quotes import QUOTE, PersistQuoteInstance, QuoteDbService


async def test_rows_of_a_user_s_domain_leave_mongodb_and_come_back(settings: Settings, tmp_path: Path) -> None:
    """Fields, names with ``_`` and the `when` of each row survive, and the JSON backend reads the same files."""
    async with Container(settings, domains=[QUOTE]) as container:
        for venue, symbol in (("x", "A"), ("x_y", "A_B")):
            adapter = PersistQuoteInstance(venue, True, ioc=container)
            await adapter.write_quote_data(symbol, "bid", 1.5, [1, 2], -7)
        report = await export_dump(container, tmp_path / "dump")
        assert (report.domains["quote"], report.skipped) == (2, [])
        assert files_of(tmp_path / "dump") == {
            "data/quote/x_backtest/A_bid.json": '{"bestPrice":1.5,"sizes":[1,2]}',
            "data/quote/x_y_backtest/A%255FB_bid.json": '{"bestPrice":1.5,"sizes":[1,2]}',
        }
        db = container.db_service(QuoteDbService)
        before = [(row.symbol, row.when, row.sizes) for row in await db.find_all()]
        await db.mongo_store.delete_many({})
        again = await import_dump(container, tmp_path / "dump")
        assert (again.domains["quote"].new, again.skipped) == (2, [])
        assert [(row.symbol, row.when, row.sizes) for row in await db.find_all()] == before
        persist = Registry(container)
        persist.use_json(tmp_path / "dump")
        in_files = (await persist.entry(QUOTE)("x_y", True)).db
        assert [(row.symbol, row.when) for row in await in_files.list_by_venue("x_y", True)] == [("A_B", -7)]


async def test_a_file_without_all_fields_of_a_row_is_not_imported(settings: Settings, tmp_path: Path) -> None:
    """The report says what is missing; nothing that could not be read again is stored."""
    write_dump(tmp_path, {"data/quote/x_live/A_bid.json": '{"bestPrice":1.5}', "data/quote/x_live/A.json": "{}"})
    async with Container(settings, domains=[QUOTE]) as container:
        report = await import_dump(container, tmp_path)
        assert report.domains["quote"].new == 0
        reasons = {skipped.path: skipped.reason for skipped in report.skipped}
        assert "sizes" in reasons["data/quote/x_live/A_bid.json"]
        assert "no value at such a path" in reasons["data/quote/x_live/A.json"]
        assert await container.db_service(QuoteDbService).count() == 0


async def test_a_write_without_all_fields_of_a_row_is_refused_before_anything_is_stored(
    settings: Settings, tmp_path: Path
) -> None:
    """On every backend it is an InvalidPayloadError that names the field: what is written can be read."""
    async with Container(settings, domains=[QUOTE]) as container:
        persist = Registry(container)
        for use in (persist.use_mongo, lambda: persist.use_json(tmp_path), persist.use_dummy):
            use()
            db = (await persist.entry(QUOTE)("x", True)).db
            context = db.context_type(venue="x", symbol="A", side="bid", backtest=True)
            fields = {"bestPrice": 1.5, "sizes": [1]}
            for write in (
                db.store.upsert(context, fields),
                db.store.claim(context, fields),
                db.store.upsert_many([(context, fields)], replace=True),
            ):
                with pytest.raises(InvalidPayloadError, match=r"QuoteRow .*give when as well"):
                    await write
        assert await container.db_service(QuoteDbService).count() == 0
    assert files_of(tmp_path) == {}
