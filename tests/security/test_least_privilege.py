"""The roles and the rules of the page on security are enough, and not more."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pymongo.errors import OperationFailure
from redis.exceptions import NoPermissionError

from backtest_persist import (
    BacktestPersistError,
    Container,
    IndexConflictError,
    LeaseLostError,
    Settings,
    StoreUnavailableError,
    WriteRejectedError,
)
from backtest_persist.operations import Level, examine
from backtest_persist.operations.transfer.exporting import export_dump
from backtest_persist.operations.transfer.importing import import_dump
from tests.support.cases import CASES, PAYLOAD, Case
from tests.support.containers import open_container
from tests.support.dumps import ORIGINAL, write_dump
from tests.support.leases import commit, lease_of, silence
from tests.support.locked_servers import ADMIN, replace_in_mongo_uri, replace_in_redis_url
from tests.support.pages import expanded
from tests.support.public_calls import PublicCall, adapter_calls, cache_calls, db_calls, run_to_end

PAGE = expanded("security.md")
PASSWORD = "s3cret"
BY_ONE_DRIVER = pytest.mark.parametrize("driver", ["pymongo"], indirect=True)
"""For what the servers decide, and many tests of it."""


def roles(database: str) -> list[dict[str, Any]]:
    """The roles of the page, as the commands that create them in another database."""
    found = re.findall(r"^```js\ndb\.createRole\((.*?)\)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    roles = [json.loads(text.replace('"backtest-kit"', json.dumps(database))) for text in found]
    return [{"createRole": role.pop("role"), **role} for role in roles]


def rules() -> list[str]:
    """The ACL rules of the page, the smaller one first."""
    return re.findall(r"^(ACL SETUSER .*)$", PAGE, re.MULTILINE)


class Users:
    """A user on both servers, who may do nothing yet."""

    def __init__(self, settings: Settings, database: Any, redis: Any) -> None:
        self.database, self.redis = database, redis
        self.prefix = settings.redis_key_prefix
        self.name = self.prefix.rstrip(":")
        authority = f"{self.name}:{PASSWORD}"
        mine = replace_in_redis_url(
            replace_in_mongo_uri(settings, ":".join(ADMIN), authority), ":".join(ADMIN), authority
        )
        self.settings = replace_in_mongo_uri(mine, "authSource=admin", f"authSource={database.name}")

    async def has_role(self, role: str) -> None:
        await self.database.command("updateUser", self.name, roles=[role])

    async def lacks(self, action: str) -> None:
        """Remove an action from both roles, and privileges that have no action left."""
        for role in roles(self.database.name):
            wanted = [
                {**privilege, "actions": [name for name in privilege["actions"] if name != action]}
                for privilege in role["privileges"]
            ]
            privileges = [privilege for privilege in wanted if privilege["actions"]]
            await self.database.command("updateRole", role["createRole"], privileges=privileges)

    async def has_rule(self, rule: str) -> None:
        text = rule.replace("runner", self.name).replace("PASSWORD", PASSWORD).replace("research:", self.prefix)
        await self.redis.execute_command(*text.split())


@pytest.fixture
async def users(settings: Settings, container: Container) -> AsyncIterator[Users]:
    """A user for this test, who has every right of the page on MongoDB and Redis at first."""
    users = Users(settings, container.mongo_service.database, container.redis_service.client)
    for role in roles(users.database.name):
        await users.database.command(role)
    await users.database.command("createUser", users.name, pwd=PASSWORD, roles=["backtestPersistOwner"])
    await users.has_rule(rules()[-1])
    yield users
    await users.redis.execute_command("ACL", "DELUSER", users.name)
    await users.database.command("dropUser", users.name)
    await users.database.command("dropAllRolesFromDatabase")


async def failures(calls: list[PublicCall]) -> list[str]:
    """Do all of these and name what did not work."""
    failed: list[str] = []
    for call in calls:
        try:
            await run_to_end(call.make(**call.arguments))
        except BacktestPersistError as error:
            failed.append(f"{call}: {error}")
    return failed


def everything(container: Container, case: Case) -> list[PublicCall]:
    """Return the calls of a db service and its adapter, and those of the db service again, which then find it."""
    return [*db_calls(container, case), *adapter_calls(container, case), *db_calls(container, case)]


@pytest.mark.parametrize("pattern", ["~research:*", "~*_cache:*"])
async def test_every_domain_works_with_the_role_and_the_rule(
    users: Users, warned: Callable[[], list[str]], pattern: str
) -> None:
    """Every call of every domain and of every map succeeds, and Redis refuses none of its commands."""
    assert f"`{pattern}`" in PAGE
    await users.has_rule(rules()[-1].replace("~research:*", pattern))
    async with open_container(users.settings) as container:
        for case in CASES:
            assert await failures(everything(container, case)) == []
            db: Any = getattr(container, f"{case.domain}_db_service")
            write = db.create if case.domain == "candle" else db.upsert
            row = await write(*(case.args[:-1] if case.domain == "candle" else case.args), *case.written)
            assert await failures(cache_calls(container, case, row)) == []
        assert await container.signal_db_service.narrow_indexes() == []
        await container.mongo_service.ping()
        await container.redis_service.ping()
    assert warned() == []


async def test_import_and_export_work_with_the_role(users: Users, tmp_path: Path) -> None:
    """A dump goes in and comes out again."""
    write_dump(tmp_path / "in", ORIGINAL)
    async with open_container(users.settings) as container:
        imported = await import_dump(container, tmp_path / "in")
        assert (imported.skipped, sum(count.new for count in imported.domains.values())) == ([], len(ORIGINAL))
        exported = await export_dump(container, tmp_path / "out")
        assert sum(exported.domains.values()) == len(ORIGINAL)


ACTIONS = sorted({action for role in roles("x") for each in role["privileges"] for action in each["actions"]})


@BY_ONE_DRIVER
@pytest.mark.parametrize("action", ACTIONS)
async def test_no_action_of_the_roles_can_be_left_out(users: Users, action: str) -> None:
    """Without any one of them, something does not work in each domain whose collection has it on the page."""
    await users.lacks(action)
    having = {
        privilege["resource"]["collection"]
        for role in roles("x")
        for privilege in role["privileges"]
        if action in privilege["actions"]
    }
    async with open_container(users.settings) as container:
        broken = {case.collection for case in CASES if await failures(everything(container, case))}
        try:
            async with lease_of(container):
                pass
        except BacktestPersistError:
            broken.add("lease-items")
    assert broken == having


async def test_a_lease_is_taken_held_and_succeeded_with_the_role(users: Users, container: Container) -> None:
    """Users may end their own sessions: what a predecessor has locked is free at once, without any further right."""
    await container.wait_for_init()
    await users.has_role("backtestPersist")
    async with open_container(users.settings) as first, open_container(users.settings) as second:
        await first.signal_db_service.upsert("s", "t", "e", {"n": 0})
        async with lease_of(first, duration=0.3) as lease:
            silence(lease)
            session = await lease.session()
            await lease.state.start_transaction(session)
            await lease.fence(session)
            signals = first.mongo_service.database["signal-items"]
            await signals.update_one({}, {"$set": {"payload": {"n": "lost"}}}, session=session)
            async with asyncio.timeout(5), lease_of(second, wait=3):
                await second.signal_db_service.upsert("s", "t", "e", {"n": 1})
                await lease.abandon_session()
                with pytest.raises(LeaseLostError):
                    await commit(lease, lambda session: signals.find_one({}, session=session))
        row = await first.signal_db_service.find_by_context("s", "t", "e")
        assert row is not None
        assert row.payload == {"n": 1}


async def test_a_role_of_an_older_release_is_enough_for_all_but_leases(users: Users, container: Container) -> None:
    """The doctor warns of it, and a container that verifies all indexes starts with it."""
    await container.wait_for_init()
    (small, _) = roles(users.database.name)
    privileges = [each for each in small["privileges"] if each["resource"]["collection"] != "lease-items"]
    await users.database.command("updateRole", small["createRole"], privileges=privileges)
    await users.has_role("backtestPersist")
    await users.has_rule(rules()[0])
    async with open_container(users.settings) as runner:
        await runner.wait_for_init()
        warnings = [finding for finding in (await examine(runner)).findings if finding.level is not Level.OK]
        assert [(finding.check, finding.level) for finding in warnings] == [("mongodb.rights", Level.WARNING)]
        assert "only runs, which take a lease, need lease-items" in warnings[0].text
        with pytest.raises(StoreUnavailableError, match="code 13; grant"):
            await lease_of(runner).__aenter__()


async def test_the_smaller_role_is_enough_when_the_indexes_exist(users: Users, container: Container) -> None:
    """Before that the first operation says what is missing; afterwards every domain works."""
    await users.has_role("backtestPersist")
    async with open_container(users.settings) as runner:
        with pytest.raises(IndexConflictError, match="createIndex"):
            await runner.signal_db_service.count()
        await container.wait_for_init()
        for case in CASES:
            assert await failures(everything(runner, case)) == []


async def test_the_doctor_asks_for_no_more(users: Users, container: Container) -> None:
    """With a role and the smaller rule all is well; that the smaller role cannot store anything yet is a problem."""
    await users.has_rule(rules()[0])
    async with open_container(users.settings) as runner:
        assert (await examine(runner)).level is Level.OK
        await users.has_role("backtestPersist")
        lacking = {*(f"mongodb.indexes.{case.domain}" for case in CASES), "mongodb.indexes.lease"}
        found = (await examine(runner)).findings
        assert {finding.check for finding in found if finding.level is Level.PROBLEM} == lacking
        assert {finding.check for finding in found if "may not create them" in finding.text} == lacking
        await container.wait_for_init()
        assert (await examine(runner)).level is Level.OK


async def test_the_roles_reach_no_other_collection(users: Users) -> None:
    """Other collections and other users of the database are out of reach."""
    await users.database["others"].insert_one({"secret": 1})
    async with open_container(users.settings) as container:
        database = container.mongo_service.database
        for attempt in (
            database["others"].find_one(),
            database["signal-items"].drop(),
            database.command("usersInfo", 1),
            database.list_collection_names(),
        ):
            with pytest.raises(OperationFailure, match="not authorized"):
                await attempt


@BY_ONE_DRIVER
@pytest.mark.parametrize("rule", rules(), ids=["smaller", "whole"])
async def test_no_command_of_the_rules_can_be_left_out(
    users: Users, rule: str, warned: Callable[[], list[str]]
) -> None:
    """With the smaller one the db services have their whole cache; each command less is noticed."""
    case = next(case for case in CASES if case.domain == "storage")

    async def fails() -> bool:
        before = len(warned())
        settings = users.settings.model_copy(update={"id_memory": 0})  # every id is asked for
        async with open_container(settings) as container:
            db = container.storage_db_service
            failed = await failures(everything(container, case))
            await asyncio.gather(*(db.find_by_context(True, f"s-{n}") for n in range(20)))
            row = await db.upsert(True, f"s-{uuid4()}", PAYLOAD)
            await db.upsert_many(True, [{"id": str(uuid4())} for _ in range(2)])
            if rule == rules()[-1]:
                failed += await failures(cache_calls(container, case, row))
            try:
                await container.redis_service.ping()
            except StoreUnavailableError as error:
                failed.append(str(error))
        return bool(failed) or len(warned()) > before

    await users.has_rule(rule)
    assert not await fails()
    for command in re.findall(r" [+](\w+)", rule):
        await users.has_rule(rule.replace(f" +{command}", ""))
        assert await fails(), command


async def test_the_rule_reaches_no_other_key(users: Users, container: Container) -> None:
    """A key without the prefix is neither read nor written, and no user can be changed."""
    async with open_container(users.settings) as runner:
        redis: Any = runner.redis_service.client
        for command in (("GET", "other"), ("SET", "other", "x"), ("FLUSHALL",), ("KEYS", "*"), ("CONFIG", "GET", "*")):
            with pytest.raises(NoPermissionError):
                await redis.execute_command(*command)


async def test_a_numbered_database_of_redis_needs_select(users: Users, warned: Callable[[], list[str]]) -> None:
    """As the page says, no more and no less."""
    assert "`+select`" in PAGE
    settings = replace_in_redis_url(users.settings, "?ssl_ca_certs", "/1?ssl_ca_certs")
    for extra, expected in (("", ["redis.refuses"]), (" +select", [])):
        before = len(warned())
        await users.has_rule(rules()[0] + extra)
        async with open_container(settings) as container:
            await container.signal_db_service.upsert("s", "t", "e", PAYLOAD)
        assert warned()[before:] == expected


async def test_migrate_needs_the_right_to_drop(users: Users) -> None:
    """As the page says; without it nothing is dropped, and the error says so."""
    assert "`dropIndex`" in PAGE
    fields = ["exchangeName", "frameName", "strategyName"]
    await users.database["session-items"].create_index([(field, 1) for field in fields], unique=True)
    async with open_container(users.settings) as container:
        with pytest.raises(WriteRejectedError, match="grant"):
            await container.session_db_service.drop_narrow_indexes()
        (_, owner) = roles(users.database.name)
        for privilege in owner["privileges"]:
            if privilege["resource"]["collection"] == "session-items":
                privilege["actions"].append("dropIndex")
        await users.database.command("updateRole", owner["createRole"], privileges=owner["privileges"])
        assert len(await container.session_db_service.drop_narrow_indexes()) == 1
        await container.session_db_service.wait_for_init()


async def test_new_settings_in_place_of_a_user_who_has_lost_its_rights(users: Users, settings: Settings) -> None:
    """Commands that it sent are refused, and those that it may have sent as well; no call waits for that."""
    container = Container(users.settings)
    try:
        await container.signal_db_service.upsert("s", "t", "e", {"n": 0})
        await users.database.command("updateUser", users.name, roles=[])
        with pytest.raises(WriteRejectedError):
            await container.signal_db_service.upsert("s", "t", "e", {"n": 1})
        container.configure(settings)
        assert (await container.signal_db_service.upsert("s", "t", "e", {"n": 2})).payload == {"n": 2}
    finally:
        await container.close()
