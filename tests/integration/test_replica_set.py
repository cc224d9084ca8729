"""`initiate`: a fresh mongod becomes a replica set of one member, and one that is in a replica set stays as it is."""

from pathlib import Path
from urllib.parse import unquote

from backtest_persist import Settings
from backtest_persist.operations import ReplicaSet, initiate
from tests.support.containers import open_container, with_uri
from tests.support.servers import PrivateMongo, private_mongod


async def test_a_replica_set_is_initiated_and_has_a_primary(settings: Settings, tmp_path: Path) -> None:
    """When it returns, writes are accepted; a second time it names the member that is there."""
    async with private_mongod(tmp_path, "--replSet", "rs0") as uri:
        member = unquote(uri.removeprefix("mongodb://").rstrip("/"))
        expected = ReplicaSet("rs0", (member,))
        async with open_container(with_uri(settings, f"{uri}db?directConnection=true")) as container:
            assert await initiate(container, member) == expected
            await container.signal_db_service.upsert("s", "t", "e", {"n": 1})
            assert await initiate(container, "another:27017") == expected


async def test_the_only_member_is_renamed_if_that_is_asked_for(settings: Settings, tmp_path: Path) -> None:
    """As when a server got another port: under its old name nobody finds it, so that it has no primary."""
    mongo = PrivateMongo(tmp_path)
    try:
        await mongo.start()
        moved = f"{tmp_path}/./mongod.sock"
        async with open_container(with_uri(settings, f"{mongo.base_uri}db?directConnection=true")) as container:
            assert (await initiate(container, moved)).members == (str(tmp_path / "mongod.sock"),)
            assert (await initiate(container, moved, rename=True)).members == (moved,)
            assert (await initiate(container, moved, rename=True)).members == (moved,)
            await container.signal_db_service.upsert("s", "t", "e", {"n": 1})
    finally:
        await mongo.kill()
