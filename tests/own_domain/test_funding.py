"""A domain of one's own, declared outside the package: it is treated as one of the package's everywhere."""

import ast
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from backtest_persist import (
    Container,
    DummyBackend,
    InvalidKeyError,
    JsonBackend,
    Registry,
    Settings,
    SettingsError,
    export_dump,
    import_dump,
)
from backtest_persist.contracts import Backend
from backtest_persist.extend import DOMAINS, DbService, Domain, FileLayout, PersistInstance, Services
from backtest_persist.operations import examine, rebuild, verify
from backtest_persist.testing import Conformance
from tests.own_domain import funding
from tests.own_domain.funding import FUNDING, FundingContext, FundingDbService, FundingRow, PersistFundingInstance

CONTEXT = "BTC/USDT:USDT", "binance"
WHEN = 1_700_000_000_000
RATE = {"rate": 0.0001}


class TestJson(Conformance):
    """JSON files keep it as the contract says."""

    domains = (FUNDING,)

    def use(self, persist: Registry, place: Path) -> None:
        persist.use_json(place)


@pytest.fixture
async def container(settings: Settings) -> AsyncIterator[Container]:
    """A container that knows the domain, on a fresh database."""
    container = Container(settings, domains=[FUNDING])
    yield container
    await container.close()


def entry(persist: Registry) -> Any:
    return persist.entry(FUNDING)


def test_the_module_imports_one_module_of_the_package() -> None:
    """A domain needs `backtest_persist.extend` and nothing else, and about forty lines that are no imports."""
    source = Path(funding.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [getattr(node, "module", None) for node in imports] == ["backtest_persist.extend"]
    lines = [line for line in source[source.index("class FundingContext") :].splitlines() if line.strip()]
    assert len(lines) <= 45


async def test_every_backend_takes_it(container: Container, tmp_path: Path) -> None:
    """The adapter reads what it wrote, not before its `when`; the dummy forgets it."""
    persist = Registry(container)
    for use, expected in (
        (persist.use_mongo, RATE),
        (lambda: persist.use_json(tmp_path), RATE),
        (persist.use_dummy, None),
    ):
        use()
        adapter = await entry(persist)(*CONTEXT)
        await adapter.write_funding_data(RATE, WHEN)
        assert await adapter.read_funding_data() == expected
        assert await adapter.read_funding_data(when=WHEN - 1) is None
    assert (tmp_path / "data/funding/binance/BTC%2FUSDT:USDT.json").read_text() == '{"rate":0.0001}'


async def test_its_services_are_found_by_class_and_by_name(container: Container) -> None:
    """The document is as the wire format has it, and its id is in Redis under the namespace of the domain."""
    db = container.db_service(FundingDbService)
    row = await db.upsert(*CONTEXT, RATE, WHEN)
    assert isinstance(row, FundingRow)
    assert await db.find_by_context(*CONTEXT) == row
    services: Any = container
    assert services.funding_db_service is db
    assert services.funding_cache_service is container.cache_service(FUNDING.cache_service)
    assert (
        await container.cache_service(FUNDING.cache_service).get(
            FundingContext(symbol=CONTEXT[0], exchange_name=CONTEXT[1]).cache_key
        )
        == row.id
    )
    document = await container.mongo_service.collection("funding-items").find_one()
    assert document is not None
    assert {name: document[name] for name in ("symbol", "exchangeName", "payload", "when", "__v")} == {
        "symbol": CONTEXT[0],
        "exchangeName": CONTEXT[1],
        "payload": RATE,
        "when": WHEN,
        "__v": 0,
    }
    indexes = await container.mongo_service.collection("funding-items").index_information()
    assert indexes["symbol_1_exchangeName_1"]["unique"] is True


async def test_the_operations_take_it(container: Container) -> None:
    """The doctor examines its indexes and a sample of its ids, `verify` and `rebuild` go through it."""
    db = container.db_service(FundingDbService)
    await container.wait_for_init()
    row = await db.upsert(*CONTEXT, RATE, WHEN)
    diagnosis = await examine(container)
    assert [finding for finding in diagnosis.findings if finding.level == "problem"] == []
    assert (await verify(container)).domains["funding"].right == 1
    cache = container.cache_service(FUNDING.cache_service)
    await cache.clear()
    assert (await rebuild(container, domains=["funding"])).domains == {"funding": 1}
    assert [value async for value in cache.values()] == [row.id]
    await container.mongo_service.collection("funding-items").drop_indexes()
    texts = [finding.text for finding in (await examine(container)).findings if finding.level != "ok"]
    assert any("funding-items" in text for text in texts)


async def test_export_and_import_take_it(container: Container, tmp_path: Path) -> None:
    """Exported, deleted and imported, it is the same payload with the same `when`; again, nothing is new."""
    db = container.db_service(FundingDbService)
    await db.upsert(*CONTEXT, RATE, WHEN)
    assert (await export_dump(container, tmp_path / "dump")).domains["funding"] == 1
    await container.mongo_service.collection("funding-items").delete_many({})
    report = await import_dump(container, tmp_path / "dump")
    assert dataclasses.asdict(report.domains["funding"]) == {"files": 1, "new": 1, "same": 0, "skipped": 0}
    row = await db.find_by_context(*CONTEXT)
    assert row is not None
    assert (row.payload, row.when) == (RATE, WHEN)
    assert (await import_dump(container, tmp_path / "dump")).domains["funding"].same == 1


async def test_who_does_not_know_it_says_so_by_name(settings: Settings, tmp_path: Path) -> None:
    """A container, a registry and a backend without the domain are a SettingsError that names it."""
    stranger, knowing = Container(settings), Registry(Container(settings, domains=[FUNDING]))
    with pytest.raises(SettingsError, match="FundingDbService"):
        stranger.db_service(FundingDbService)
    with pytest.raises(SettingsError, match="funding"):
        entry(Registry(stranger))
    backends: list[Backend] = [JsonBackend(tmp_path), DummyBackend(), {}]
    for backend in backends:
        knowing.use(backend)
        with pytest.raises(SettingsError, match="funding"):
            await entry(knowing)(*CONTEXT)
    with pytest.raises(SettingsError, match="FundingDbService"):
        await PersistFundingInstance(*CONTEXT, ioc=stranger).read_funding_data()


def domain(**changes: Any) -> Domain:
    return dataclasses.replace(FUNDING, **changes)


class NoCollection(DbService[FundingContext, FundingRow]):
    """Says nothing of where its documents are."""


class OtherDbService(FundingDbService):
    """Is not the db service of the adapter."""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Funding rates"}, "lower case"),
        ({"db_service": NoCollection}, "collection"),
        ({"db_service": OtherDbService}, r"PersistInstance\[OtherDbService\]"),
        ({"files": FileLayout("data/funding", (), ("symbol",))}, "exchange_name"),
        ({"files": FileLayout("data/funding", (("symbol",),), ("exchange",))}, "exchange"),
        ({"files": FileLayout("data/funding", (("symbol", "exchange_name"),))}, "fixed name"),
    ],
    ids=["name", "no collection", "another adapter", "no directory", "unknown field", "no file"],
)
def test_parts_that_do_not_fit_together_are_refused_when_they_are_declared(
    changes: dict[str, Any], message: str
) -> None:
    """A SettingsError says what is missing, before anything is opened."""
    with pytest.raises(SettingsError, match=message):
        domain(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "name"),
        ({"name": "rates"}, "collection"),
        ({"name": "signal"}, "name"),
    ],
    ids=str,
)
def test_domains_that_would_share_what_they_store_are_refused(changes: dict[str, Any], message: str) -> None:
    """By a name, a collection, a namespace or a directory."""
    with pytest.raises(SettingsError, match=message):
        Container(domains=[FUNDING, domain(**changes)])


class OfLeases(FundingDbService):
    """Takes the collection of the leases."""

    collection = "lease-items"


class PersistOfLeases(PersistInstance[OfLeases]):
    """Its adapter."""

    def __init__(self, symbol: str, exchange_name: str, *, ioc: Services | None = None) -> None:
        super().__init__(ioc)


def test_the_collection_of_leases_belongs_to_the_package() -> None:
    """A domain that takes it is refused, though no domain of the package has it."""
    with pytest.raises(SettingsError, match="lease-items"):
        Container(domains=[domain(db_service=OfLeases, adapter=PersistOfLeases)])


async def test_a_bad_part_of_a_context_is_refused_by_name() -> None:
    """Before an adapter is built; a part that is missing is a TypeError, as of any function."""
    persist = Registry(Container(domains=[FUNDING]))
    persist.use_dummy()
    with pytest.raises(InvalidKeyError, match="exchange_name"):
        await entry(persist)("BTCUSDT", "")
    with pytest.raises(TypeError, match="exchange_name"):
        await entry(persist)("BTCUSDT")


def test_the_domains_of_the_package_come_first() -> None:
    """A container has its own domains behind those of the package."""
    assert Container(domains=[FUNDING]).domains == (*DOMAINS, FUNDING)
