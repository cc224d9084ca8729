"""The state of the two servers and of what lies on them, as findings with advice; nothing is written."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from importlib.metadata import version
from typing import Any

from pymongo import ReadPreference

from backtest_persist.connections import Collection, MongoState, aggregate, is_forbidden
from backtest_persist.container import Container
from backtest_persist.core.db_service import DbService
from backtest_persist.core.indexes import missing_indexes
from backtest_persist.domains.interval import IntervalDbService
from backtest_persist.errors import BacktestPersistError, IndexConflictError
from backtest_persist.operations.cache import sample
from backtest_persist.operations.ids import SECONDS, Ids

__all__ = ("Diagnosis", "Finding", "Level", "examine")

PINGS = 7
SAMPLE = 20
"""Ids that are looked at in each domain."""
OLDEST_MONGODB = (5, 0)
"""Gap search needs ``$setWindowFields``."""
CLOCKS_MS = 1000.0
"""By how much two clocks may differ."""
_NEEDED = ("find", "insert", "listIndexes", "update")
REDIS_SECONDS = 2 * SECONDS
"""The time for all that is asked of Redis, and once more for the sample."""
_TOO_SLOW = f"not examined to the end within {REDIS_SECONDS:g} s"
_START = "Start it, or correct the CC_* settings."
_VERIFY = "Reads repair what they meet; `backtest-persist verify --fix` puts all right."


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    """It works, but look at it."""
    PROBLEM = "problem"
    """It does not work, or cannot be relied on."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    level: Level
    text: str
    advice: str = ""
    """What to do."""
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What was measured, for programs; times in ms."""


@dataclass
class Diagnosis:
    """The report of `examine`."""

    findings: list[Finding] = field(default_factory=list[Finding])

    @property
    def level(self) -> Level:
        """That of the worst finding."""
        return max((finding.level for finding in self.findings), key=list(Level).index, default=Level.OK)

    def ok(self, check: str, text: str, **values: Any) -> None:
        """Add what is as it should be."""
        self.findings.append(Finding(check, Level.OK, text, values=values))

    def warning(self, check: str, text: str, advice: str, **values: Any) -> None:
        """Add what a person should look at."""
        self.findings.append(Finding(check, Level.WARNING, text, advice, values))

    def problem(self, check: str, text: str, advice: str = "", **values: Any) -> None:
        """Add what has to be put right."""
        self.findings.append(Finding(check, Level.PROBLEM, text, advice, values))


async def examine(container: Container) -> Diagnosis:
    """Look at settings, servers, indexes, rights, clocks, latencies and a sample of the cache; raises nothing of ours.

    Ends within some deadlines of MongoDB (``CC_MONGO_TIMEOUT_MS``) and of Redis, whatever the servers do. What a
    server that is away would tell is left out.
    """
    diagnosis = Diagnosis()
    try:
        settings = container.settings
    except BacktestPersistError as error:
        diagnosis.problem("settings", str(error), "Correct the setting; docs/settings.md has all of them.")
        return diagnosis
    driver = settings.mongo_driver
    versions = {package: version(package) for package in dict.fromkeys((driver, "pymongo", "redis"))}
    shown = ", ".join(f"{name} {number}" for name, number in versions.items())
    diagnosis.ok("driver", f"{driver} ({shown})", driver=driver, versions=versions)
    mongo_is_up = await _Mongo(container, diagnosis).examine()
    redis_is_up = await _Redis(container, diagnosis).examine()
    if mongo_is_up and redis_is_up:
        await _examine_sample(container, diagnosis)
    return diagnosis


class _Mongo:
    def __init__(self, container: Container, diagnosis: Diagnosis) -> None:
        self.mongo = container.mongo_service
        self.services = container.db_services
        self.diagnosis = diagnosis
        self.cannot_create: Sequence[str] = ()

    async def examine(self) -> bool:
        """Whether all of the examination could be made."""
        try:
            with self.mongo.accept() as state:
                async with state.deadline("The examination of MongoDB", 3 * state.seconds):
                    return await self._examine(state)
        except BacktestPersistError as error:
            self.diagnosis.problem("mongodb", str(error), _START)
            return False

    async def _examine(self, state: MongoState) -> bool:
        hello = await self.command("hello")
        name = state.database.name
        self.diagnosis.ok("mongodb", f"reachable; the database is {name}", database=name)
        await self.version()
        if not self.topology(hello):
            return False
        self.write_concern(state)
        self.read_preference(state)
        await self.rights(state)
        await self.indexes(state)
        await self.clock()
        await self.latency(state)
        return True

    async def command(self, name: str, **arguments: Any) -> dict[str, Any]:
        async with self.mongo.operation(f"{name} of MongoDB"):
            return await self.mongo.database.command({name: 1, **arguments})

    async def version(self) -> None:
        info = await self.command("buildInfo")
        text = str(info["version"])
        if tuple(info["versionArray"][:2]) >= OLDEST_MONGODB:
            self.diagnosis.ok("mongodb.version", text, version=text)
        else:
            advice = "Upgrade to 5.0 or later: find_gaps needs it."
            self.diagnosis.warning("mongodb.version", text, advice, version=text)

    def topology(self, hello: Mapping[str, Any]) -> bool:
        """Whether this server takes reads and writes."""
        at = "mongodb.topology"
        if hello.get("msg") == "isdbgrid":
            self.diagnosis.ok(at, "sharded cluster", kind="sharded")
        elif hello.get("isreplicaset"):
            self.diagnosis.problem(
                at, "a replica set that is not initiated yet", "Run `backtest-persist initiate`.", kind="uninitiated"
            )
        elif "setName" not in hello:
            self.diagnosis.warning(
                at,
                "standalone: acknowledged writes may be lost when the server is killed, and no write is retried",
                "Start mongod with --replSet rs0 and run `backtest-persist initiate`; one member is enough.",
                kind="standalone",
            )
        elif not hello["isWritablePrimary"]:
            self.diagnosis.problem(
                at,
                f"a member of the replica set {hello['setName']} that is not its primary",
                "Name all members in CC_MONGO_CONNECTION_STRING, with replicaSet and without directConnection.",
                kind="secondary",
            )
        else:
            members = len(hello.get("hosts", ()))
            self.diagnosis.ok(
                at, f"replica set {hello['setName']}, members: {members}", kind="replica set", members=members
            )
        return bool(hello["isWritablePrimary"])

    def write_concern(self, state: MongoState) -> None:
        concern: dict[str, Any] = state.database.write_concern.document
        shown = ", ".join(f"{name}={value}" for name, value in concern.items())
        if concern["w"] == "majority":
            self.diagnosis.ok("mongodb.write_concern", shown, **concern)
        else:
            self.diagnosis.warning(
                "mongodb.write_concern",
                f"{shown}: acknowledged writes may be lost when the primary is",
                "Take w out of CC_MONGO_CONNECTION_STRING; majority is the default here.",
                **concern,
            )

    def read_preference(self, state: MongoState) -> None:
        asked = state.client.read_preference
        if asked == ReadPreference.PRIMARY:
            self.diagnosis.ok("mongodb.read_preference", "primary")
        else:
            self.diagnosis.warning(
                "mongodb.read_preference",
                f"primary; that of the connection string, {asked.mongos_mode}, is ignored",
                "Take it out: only the primary shows every acknowledged write.",
                asked=asked.mongos_mode,
            )

    async def rights(self, state: MongoState) -> None:
        at = "mongodb.rights"
        info = (await self.command("connectionStatus", showPrivileges=True))["authInfo"]
        if not info["authenticatedUsers"]:
            try:
                async with self.mongo.operation("A first read"):
                    await state.collection(self.services[0].collection).find_one({}, projection={"_id": 1})
            except BacktestPersistError as error:
                self.diagnosis.problem(at, str(error), "Put user and password into CC_MONGO_CONNECTION_STRING.")
            else:
                self.diagnosis.ok(at, "nobody logged in, and the server lets everybody in")
            return
        granted = {
            service.collection: _granted(info["authenticatedUserPrivileges"], state.database.name, service.collection)
            for service in self.services
        }
        cleared = [service.collection for service in self.services if isinstance(service, IntervalDbService)]
        wanted = {**dict.fromkeys((*_NEEDED, "createIndex"), granted), "remove": cleared}
        lacking = {action: [name for name in names if action not in granted[name]] for action, names in wanted.items()}
        lacking = {action: names for action, names in lacking.items() if names}
        shown = "; ".join(f"{action} on {', '.join(names)}" for action, names in lacking.items())
        advice = f"Grant the user readWrite on the database {state.database.name}."
        if any(action in lacking for action in _NEEDED):
            self.diagnosis.problem(at, f"the user may not {shown}", advice, lacking=lacking)
            return
        self.cannot_create = lacking.get("createIndex", ())  # a problem where an index is missing
        if "remove" in lacking:
            shown = f"the user may not {shown}; only clear_bucket needs remove"
            self.diagnosis.warning(at, shown, advice, lacking=lacking)
        else:
            needed = "the user may do all that is needed" + (" once the indexes are there" if lacking else "")
            self.diagnosis.ok(at, needed, lacking=lacking)

    async def indexes(self, state: MongoState) -> None:
        async with self.mongo.operation("The list of collections"):
            existing = set(await state.database.list_collection_names(authorizedCollections=True))
        for finding in await asyncio.gather(
            *(self.index(state, service, exists=service.collection in existing) for service in self.services)
        ):
            self.diagnosis.findings.append(finding)

    async def index(self, state: MongoState, service: DbService[Any, Any], *, exists: bool) -> Finding:
        name = service.collection
        check = f"mongodb.indexes.{name.removesuffix('-items')}"
        collection, fields = state.collection(name), service.context_type.wire_names()
        try:
            async with self.mongo.operation(f"Reading the indexes of {name}"):
                missing = await missing_indexes(collection, fields, service.secondary_indexes)
        except IndexConflictError as error:
            state_word = "narrow" if "narrow" in str(error) else "conflicting"
            return Finding(check, Level.PROBLEM, str(error), values={"state": state_word})
        except BacktestPersistError as error:
            return Finding(check, Level.PROBLEM, str(error), values={"state": "unknown"})
        if not missing:
            return Finding(check, Level.OK, "there", values={"state": "there"})
        lacking = [index.document["name"] for index in missing]
        values = {"state": "missing" if exists else "new", "missing": lacking}
        shown = f"{name} lacks {', '.join(lacking)}"
        if name in self.cannot_create:
            advice = "Grant createIndex on the collection, or start once with a user who has readWrite on the database."
            return Finding(check, Level.PROBLEM, f"{shown}, and this user may not create them", advice, values)
        if not exists:
            return Finding(check, Level.OK, "the first operation creates the collection", values=values)
        if any(index.document.get("unique") for index in missing):
            try:
                if await self.holds_duplicates(collection, fields):
                    advice = f"Group by {', '.join(fields)} to find them, and keep one document of each context."
                    problem = f"{shown}, and cannot get it: several of its documents are of one context"
                    return Finding(check, Level.PROBLEM, problem, advice, {**values, "state": "duplicates"})
            except BacktestPersistError as error:
                shown += f"; whether its documents allow it is unknown ({error})"
        return Finding(check, Level.WARNING, shown, "The next process that uses it creates them.", values)

    async def holds_duplicates(self, collection: Collection, fields: Sequence[str]) -> bool:
        """Whether two documents are of one context."""
        context = {name: {"$ifNull": [f"${name}", None]} for name in fields}  # as to the index, to which they are one
        pipeline = [
            {"$group": {"_id": context, "documents": {"$sum": 1}}},
            {"$match": {"documents": {"$gt": 1}}},
            {"$limit": 1},
        ]
        async with self.mongo.operation(f"The search for duplicates in {collection.name}"):
            return [document async for document in aggregate(collection, pipeline)] != []

    async def clock(self) -> None:
        before, started = datetime.now(UTC), time.perf_counter()
        there: datetime = (await self.command("hello"))["localTime"].replace(tzinfo=UTC)
        took = timedelta(seconds=time.perf_counter() - started)
        difference = round((there - before - took / 2) / timedelta(milliseconds=1), 1) + 0.0  # no -0.0
        shown = f"mongod is {abs(difference):,} ms {'ahead of' if difference > 0 else 'behind'} this machine"
        if abs(difference) - took / timedelta(milliseconds=2) <= CLOCKS_MS:
            self.diagnosis.ok("mongodb.clock", shown, difference_ms=difference)
        else:
            self.diagnosis.warning(
                "mongodb.clock",
                shown,
                "Set the clocks (NTP): this machine's decides which candles have closed and how lists are ordered.",
                difference_ms=difference,
            )

    async def latency(self, state: MongoState) -> None:
        median = await _median_ms(lambda: self.command("ping"))
        shown = f"{median:,} ms per ping (the median of {PINGS})"
        if median <= state.seconds * 100:
            self.diagnosis.ok("mongodb.latency", shown, median_ms=median)
        else:
            self.diagnosis.warning(
                "mongodb.latency",
                f"{shown}, more than a tenth of the deadline of an operation, {state.seconds:g} s",
                "Run nearer to the server, or raise CC_MONGO_TIMEOUT_MS.",
                median_ms=median,
            )


class _Redis:
    def __init__(self, container: Container, diagnosis: Diagnosis) -> None:
        self.ids = Ids(container.redis_service)
        self.settings = container.settings
        self.diagnosis = diagnosis

    async def examine(self) -> bool:
        """Whether all of the examination could be made."""
        try:
            async with asyncio.timeout(REDIS_SECONDS):
                await self.ids.ping()
                self.diagnosis.ok("redis", "reachable")
                await self.info()
                await self.latency()
        except (BacktestPersistError, TimeoutError) as error:
            shown = str(error) or _TOO_SLOW
            self.diagnosis.problem("redis", shown, f"{_START} Until then MongoDB alone carries on, more slowly.")
            return False
        prefix = self.settings.redis_key_prefix
        self.diagnosis.ok("redis.key_prefix", repr(prefix) if prefix else "none", prefix=prefix)
        return True

    async def info(self) -> None:
        try:
            info: dict[str, Any] = await self.ids.ask("INFO", lambda client: client.info())
        except BacktestPersistError as error:
            self.diagnosis.ok("redis.version", f"unknown, as are memory and persistence: {error}")
            return
        self.diagnosis.ok("redis.version", str(info["redis_version"]), version=info["redis_version"])
        self.role(info)
        self.memory(info)
        kept = bool(info.get("aof_enabled"))
        self.diagnosis.ok(
            "redis.persistence",
            "append-only file: a restart begins with the ids of before"
            if kept
            else "no append-only file: after a restart ids may be gone; reads, or `rebuild-cache`, bring them back",
            aof=kept,
        )

    def role(self, info: Mapping[str, Any]) -> None:
        role = info.get("role")
        if role == "slave":
            self.diagnosis.problem(
                "redis.role", "a replica, which refuses writes", "Point CC_REDIS_URL to its master.", role="replica"
            )
        else:
            self.diagnosis.ok("redis.role", "master", role="master")

    def memory(self, info: Mapping[str, Any]) -> None:
        limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
        policy = str(info.get("maxmemory_policy", "noeviction"))
        values = {"maxmemory": limit, "used": used, "policy": policy}
        if not limit:
            self.diagnosis.ok("redis.memory", f"no limit, {policy}", **values)
            return
        shown = f"{used:,} of {limit:,} bytes are used, {policy}"
        if policy.startswith("allkeys"):
            self.diagnosis.ok("redis.memory", f"{shown}: the next read fills in an evicted id", **values)
        elif used < 0.9 * limit:
            self.diagnosis.ok("redis.memory", f"{shown}: once it is full, new ids are not cached", **values)
        else:
            self.diagnosis.warning(
                "redis.memory",
                f"{shown}: once it is full, new ids are not cached",
                "Raise maxmemory, or set maxmemory-policy to allkeys-lru: the next read fills in an evicted id.",
                **values,
            )

    async def latency(self) -> None:
        median = await _median_ms(self.ids.ping)
        deadline = self.settings.redis_timeout_ms
        shown = f"{median:,} ms per ping (the median of {PINGS})"
        if median <= deadline / 2:
            self.diagnosis.ok("redis.latency", shown, median_ms=median)
        else:
            self.diagnosis.warning(
                "redis.latency",
                f"{shown}, more than half of the deadline of a command, {deadline} ms: reads go without the cache",
                "Run nearer to the server, or raise CC_REDIS_TIMEOUT_MS.",
                median_ms=median,
            )


async def _examine_sample(container: Container, diagnosis: Diagnosis) -> None:
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            sampled = await sample(container, SAMPLE)
    except TimeoutError:
        diagnosis.warning("cache", _TOO_SLOW, "Run nearer to the servers.")
        return
    except BacktestPersistError as error:
        if is_forbidden(error):  # a runner needs GET and SET alone
            diagnosis.ok("cache", f"not looked at: {error}")
        else:
            diagnosis.problem("cache", str(error), _START)
        return
    count = sampled.count
    values = {"right": count.right, "stale": count.stale, "foreign": count.foreign, "missing": count.missing}
    shown = "of a sample: " + ", ".join(f"{number:,} {name}" for name, number in values.items())
    if not count.wrong:
        diagnosis.ok("cache", shown, **values)
    else:
        shared = count.stale + count.foreign
        hint = " If other databases use this Redis, set CC_REDIS_KEY_PREFIX." if shared else ""
        diagnosis.warning("cache", shown, _VERIFY + hint, **values)
    if sampled.expiring:
        diagnosis.warning(
            "cache.expiry",
            f"{sampled.expiring:,} of the sampled ids expire",
            "Another program sets an expiry; ids need none, and one only adds misses. `rebuild-cache` takes it off.",
            expiring=sampled.expiring,
        )
    elif sampled.expiring == 0:
        diagnosis.ok("cache.expiry", "ids do not expire", expiring=0)


async def _median_ms(ping: Callable[[], Awaitable[Any]]) -> float:
    taken: list[float] = []
    for _ in range(PINGS):
        started = time.perf_counter()
        await ping()
        taken.append(time.perf_counter() - started)
    return round(statistics.median(taken) * 1000, 2)


def _granted(privileges: list[dict[str, Any]], database: str, collection: str) -> set[str]:
    """What the privileges of a user allow with a collection."""
    actions: set[str] = set()
    for privilege in privileges:
        resource = privilege["resource"]
        fits = resource.get("db") in ("", database) and resource.get("collection") in ("", collection)
        if fits or resource.get("anyResource"):
            actions.update(privilege["actions"])
    return actions
