"""The doctor's examination of MongoDB."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo import ReadPreference

from backtest_persist.connections import Collection, MongoState, Operation, aggregate
from backtest_persist.container import Container
from backtest_persist.core.indexes import missing_indexes
from backtest_persist.core.lease_document import LEASE_ACTIONS, LEASES
from backtest_persist.core.schema import Schema
from backtest_persist.errors import BacktestPersistError, IndexConflictError
from backtest_persist.operations.doctor.diagnosis import PINGS, Diagnosis, Finding, Level, median_ms, server_advice
from backtest_persist.operations.domains import domain_services
from backtest_persist.operations.unknown import unknown_collections

__all__ = ("MongoExamination",)

OLDEST_MONGODB = (5, 0)
"""Gap search needs ``$setWindowFields``."""
CLOCKS_MS = 1000.0
"""The largest difference between two clocks that is not worth a warning."""
_DISPENSABLE = {"createIndex", "remove"}
"""The actions without which reads and writes work, once the indexes exist."""


class MongoExamination:
    """Adds the findings on MongoDB to a diagnosis."""

    def __init__(self, container: Container, diagnosis: Diagnosis) -> None:
        self.container = container
        self.mongo = container.mongo_service
        self.domains = domain_services(container)
        self.diagnosis = diagnosis
        self.cannot_create: Sequence[str] = ()
        self.may_lease = True

    async def run(self) -> bool:
        """Make all checks; returns False when the server does not answer or takes no writes."""
        try:
            with self.mongo.accept() as state:
                async with state.deadline(Operation("The examination of MongoDB"), 3 * state.seconds):
                    return await self.check_all(state)
        except BacktestPersistError as error:
            self.diagnosis.problem("mongodb", str(error), server_advice(error))
            return False

    async def check_all(self, state: MongoState) -> bool:
        """Make all checks within the deadline of the caller; returns False for a server that takes no writes."""
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
        await self.collections()
        await self.clock()
        await self.latency(state)
        return True

    async def command(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Send a command to the database as an operation."""
        async with self.mongo.operation(Operation(f"{name} of MongoDB")):
            return await self.mongo.database.command({name: 1, **arguments})

    async def version(self) -> None:
        """Compare the version of the server with `OLDEST_MONGODB`."""
        info = await self.command("buildInfo")
        text = str(info["version"])
        if tuple(info["versionArray"][:2]) >= OLDEST_MONGODB:
            self.diagnosis.ok("mongodb.version", text, version=text)
        else:
            advice = "Upgrade to 5.0 or later: find_gaps needs it."
            self.diagnosis.warning("mongodb.version", text, advice, version=text)

    def topology(self, hello: Mapping[str, Any]) -> bool:
        """Report the kind of deployment; returns whether this server takes writes."""
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
        """Report whether writes are acknowledged by a majority."""
        concern: dict[str, Any] = state.database.write_concern.document
        shown = ", ".join(f"{name}={value}" for name, value in concern.items())
        if concern["w"] == "majority":
            self.diagnosis.ok("mongodb.write_concern", shown, **concern)
        else:
            self.diagnosis.warning(
                "mongodb.write_concern",
                f"{shown}: acknowledged writes may be lost together with the primary",
                "Remove w from CC_MONGO_CONNECTION_STRING; the default of this package is majority.",
                **concern,
            )

    def read_preference(self, state: MongoState) -> None:
        """Report a read preference of the connection string, which has no effect."""
        asked = state.client.read_preference
        if asked == ReadPreference.PRIMARY:
            self.diagnosis.ok("mongodb.read_preference", "primary")
        else:
            self.diagnosis.warning(
                "mongodb.read_preference",
                f"primary; the one in the connection string, {asked.mongos_mode}, is ignored",
                "Remove it: only the primary shows every acknowledged write.",
                asked=asked.mongos_mode,
            )

    async def rights(self, state: MongoState) -> None:
        """Compare the privileges of the user with the actions that the domains need."""
        at = "mongodb.rights"
        info = (await self.command("connectionStatus", showPrivileges=True))["authInfo"]
        if not info["authenticatedUsers"]:
            try:
                async with self.mongo.operation(Operation("A first read")):
                    await state.collection(self.domains[0].collection).find_one({}, projection={"_id": 1})
            except BacktestPersistError as error:
                self.diagnosis.problem(at, str(error), "Put user and password into CC_MONGO_CONNECTION_STRING.")
            else:
                self.diagnosis.ok(at, "no user is logged in, and the server does not ask for one")
            return
        lacking: dict[str, list[str]] = {}
        needed = {domain.collection: domain.actions for domain in self.domains}
        needed[LEASES.collection] = (*LEASE_ACTIONS, "createIndex")
        for collection, actions in needed.items():
            granted = _granted(info["authenticatedUserPrivileges"], state.database.name, collection)
            for action in actions:
                if action not in granted:
                    lacking.setdefault(action, []).append(collection)
        self.may_lease = not any(LEASES.collection in lacking.get(action, ()) for action in LEASE_ACTIONS)
        shown = "; ".join(f"{action} on {', '.join(names)}" for action, names in lacking.items())
        advice = f"Grant the user readWrite on the database {state.database.name}."
        of_domains = {action for action, names in lacking.items() if names != [LEASES.collection]}
        if of_domains - _DISPENSABLE:
            self.diagnosis.problem(at, f"the user may not {shown}", advice, lacking=lacking)
            return
        self.cannot_create = lacking.get("createIndex", ())  # a problem where an index is missing
        if not self.may_lease:
            shown = f"the user may not {shown}; only runs, which take a lease, need {LEASES.collection}"
            self.diagnosis.warning(at, shown, advice, lacking=lacking)
        elif "remove" in lacking:
            shown = f"the user may not {shown}; only methods that delete documents need remove"
            self.diagnosis.warning(at, shown, advice, lacking=lacking)
        else:
            shown = "the user has all rights that are needed" + (" once the indexes exist" if lacking else "")
            self.diagnosis.ok(at, shown, lacking=lacking)

    async def indexes(self, state: MongoState) -> None:
        """Report the state of the indexes of each domain."""
        async with self.mongo.operation(Operation("The list of collections")):
            existing = set(await state.database.list_collection_names(authorizedCollections=True))
        schemas: dict[str, Schema[Any, Any]] = {domain.name: domain.db.schema() for domain in self.domains}
        if self.may_lease:
            schemas["lease"] = LEASES
        self.diagnosis.findings += await asyncio.gather(
            *(self.index(state, name, schema, exists=schema.collection in existing) for name, schema in schemas.items())
        )

    async def index(self, state: MongoState, domain: str, schema: Schema[Any, Any], *, exists: bool) -> Finding:
        """Return the finding on the indexes of one domain, or of the leases."""
        name, fields = schema.collection, schema.fields
        check = f"mongodb.indexes.{domain}"
        collection = schema.of(state)
        try:
            async with self.mongo.operation(Operation("reading the indexes", name)):
                missing = await missing_indexes(collection, fields, schema.secondary_indexes)
        except IndexConflictError as error:
            return Finding(
                check, Level.PROBLEM, str(error), values={"state": "narrow" if error.narrow else "conflicting"}
            )
        except BacktestPersistError as error:
            return Finding(check, Level.PROBLEM, str(error), values={"state": "unknown"})
        if not missing:
            return Finding(check, Level.OK, "there", values={"state": "there"})
        lacking = [index.document["name"] for index in missing]
        values = {"state": "missing" if exists else "new", "missing": lacking}
        shown = f"{name} lacks {', '.join(lacking)}"
        if name in self.cannot_create:
            advice = "Grant createIndex on the collection, or start once as a user who has readWrite on the database."
            return Finding(check, Level.PROBLEM, f"{shown}, and this user may not create them", advice, values)
        if not exists:
            return Finding(check, Level.OK, "the first operation creates the collection", values=values)
        if any(index.document.get("unique") for index in missing):
            try:
                if await self.holds_duplicates(collection, fields):
                    advice = "Run `backtest-persist migrate` to see them; --keep newest resolves them."
                    problem = f"{shown}, which cannot be created: several documents have the same context"
                    return Finding(check, Level.PROBLEM, problem, advice, {**values, "state": "duplicates"})
            except BacktestPersistError as error:
                shown += f"; whether its documents allow the unique index is unknown ({error})"
        return Finding(check, Level.WARNING, shown, "The next process that uses the collection creates them.", values)

    async def holds_duplicates(self, collection: Collection, fields: Sequence[str]) -> bool:
        """Return whether several documents have the same context."""
        context = {name: {"$ifNull": [f"${name}", None]} for name in fields}  # an index takes a missing field for null
        pipeline = [
            {"$group": {"_id": context, "documents": {"$sum": 1}}},
            {"$match": {"documents": {"$gt": 1}}},
            {"$limit": 1},
        ]
        async with self.mongo.operation(Operation("the search for duplicates", collection.name)):
            return [document async for document in aggregate(collection, pipeline)] != []

    async def collections(self) -> None:
        """Report collections that belong to no domain; one named as domains name theirs may be of a newer release."""
        counts = await unknown_collections(self.container)
        if not counts:
            return
        shown = "in no domain of this version: " + ", ".join(f"{name} ({count:,})" for name, count in counts.items())
        if not any(name.endswith("-items") for name in counts):
            self.diagnosis.ok("mongodb.collections", shown, documents=counts)
            return
        self.diagnosis.warning(
            "mongodb.collections",
            shown,
            "`export-dump` leaves them behind. Update this package if a newer release of the framework wrote them; a "
            "domain of your own is exported from Python, by a container that knows it.",
            documents=counts,
        )

    async def clock(self) -> None:
        """Compare the clock of the server with that of this machine."""
        before, started = datetime.now(UTC), time.perf_counter()
        server_time: datetime = (await self.command("hello"))["localTime"].replace(tzinfo=UTC)
        duration = timedelta(seconds=time.perf_counter() - started)
        difference = round((server_time - before - duration / 2) / timedelta(milliseconds=1), 1) + 0.0  # no -0.0
        shown = f"mongod is {abs(difference):,} ms {'ahead of' if difference > 0 else 'behind'} this machine"
        if abs(difference) - duration / timedelta(milliseconds=2) <= CLOCKS_MS:
            self.diagnosis.ok("mongodb.clock", shown, difference_ms=difference)
        else:
            self.diagnosis.warning(
                "mongodb.clock",
                shown,
                "Synchronise the clocks: this machine's decides which candles have closed and how lists are ordered.",
                difference_ms=difference,
            )

    async def latency(self, state: MongoState) -> None:
        """Compare the latency with the deadline of an operation."""
        median = await median_ms(lambda: self.command("ping"))
        shown = f"{median:,} ms per ping (the median of {PINGS})"
        if median <= state.seconds * 100:
            self.diagnosis.ok("mongodb.latency", shown, median_ms=median)
        else:
            self.diagnosis.warning(
                "mongodb.latency",
                f"{shown}, more than a tenth of the deadline of an operation, {state.seconds:g} s",
                "Run closer to the server, or raise CC_MONGO_TIMEOUT_MS.",
                median_ms=median,
            )


def _granted(privileges: list[dict[str, Any]], database: str, collection: str) -> set[str]:
    """Return the actions that the privileges of a user allow on a collection."""
    actions: set[str] = set()
    for privilege in privileges:
        resource = privilege["resource"]
        matches = resource.get("db") in ("", database) and resource.get("collection") in ("", collection)
        if matches or resource.get("anyResource"):
            actions.update(privilege["actions"])
    return actions
