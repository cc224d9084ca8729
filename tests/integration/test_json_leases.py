"""The lease of a run on JSON files: taken, refused, waited for, renewed, given up, succeeded and lost."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from backtest_persist import JsonBackend, LeaseHeldError, LeaseLostError, Mode, SettingsError, StoreUnavailableError
from backtest_persist.backends.json.lease import JsonLease
from backtest_persist.backends.json.locks import directory_lock
from backtest_persist.core.lease_document import LeaseContext
from backtest_persist.core.owner import Owner
from backtest_persist.core.row import utc_now
from backtest_persist.domains.log import PersistLogInstance
from tests.support.json_backend import open_dump, temporary_files
from tests.support.json_units import unit_of
from tests.support.processes import start_program

CONTEXT = LeaseContext(
    strategy_name="trend_1", exchange_name="binance", symbol="BTC/USDT", frame_name="", mode=Mode.PAPER
)
PROGRAM = """
import asyncio, sys
from backtest_persist import JsonBackend, LeaseLostError, Mode
from backtest_persist.core.lease_document import LeaseContext
from backtest_persist.domains.log import PersistLogInstance
from tests.support.json_units import unit_of
async def main():
    backend = JsonBackend(sys.argv[1])
    context = LeaseContext.model_validate_json(sys.argv[2])
    async with backend.lease(context, duration=float(sys.argv[3])) as lease:
        committer = backend.committer(lease)
        while name := await asyncio.to_thread(sys.stdin.readline):
            unit = unit_of(backend)
            await PersistLogInstance(ioc=unit).write_log_data([{"id": name.strip()}])
            try:
                await committer.commit(unit.layers[-1].parts())
            except LeaseLostError as error:
                print("lost", error.pid, flush=True)
            else:
                print("stored", flush=True)
asyncio.run(main())
"""
"""Takes the lease, and commits a line of the log for each line of its input."""


async def start_holder(directory: Path, *, duration: float = 15) -> asyncio.subprocess.Process:
    """Start a process that holds the lease."""
    process = await start_program(
        PROGRAM, directory, CONTEXT.model_dump_json(), duration, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert await tell(process, "first") == "stored"
    return process


async def tell(process: asyncio.subprocess.Process, name: str) -> str:
    """Let a holder commit an entry; returns what became of it."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{name}\n".encode())
    await process.stdin.drain()
    return (await process.stdout.readline()).decode().strip()


async def pause(process: asyncio.subprocess.Process, directory: Path) -> None:
    """Stop a process while it has its lease not locked, as it has for a moment when it renews that."""
    while True:
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(0.05)
        with suppress(TimeoutError), directory_lock(lease_file(directory).parent, wait=False):
            return
        process.send_signal(signal.SIGCONT)


async def store(backend: JsonBackend, lease: JsonLease, name: str) -> None:
    """Commit an entry of the log."""
    unit = unit_of(backend)
    await PersistLogInstance(ioc=unit).write_log_data([{"id": name}])
    await backend.committer(lease).commit(unit.layers[-1].parts())


async def entries(directory: Path) -> list[str]:
    """Read the ids of the entries of the log."""
    return [entry["id"] for entry in await (await open_dump(directory).log()).read_log_data()]


def content(directory: Path) -> dict[str, Any]:
    """Read the file of the one lease."""
    return json.loads(lease_file(directory).read_text())


def lease_file(directory: Path) -> Path:
    """Return the file of the one lease."""
    (file,) = (directory / ".backtest-persist/leases").rglob("*.json")
    return file


async def test_a_lease_is_held_by_one_until_it_is_given_up(tmp_path: Path) -> None:
    """The second one is refused with the process that holds it; afterwards it is free at once, at the next epoch."""
    backend, other = JsonBackend(tmp_path), JsonBackend(tmp_path)
    lease = backend.lease(CONTEXT)
    assert (lease.epoch, lease.lost()) == (0, None)
    with pytest.raises(LeaseLostError, match="was not taken"):
        await store(backend, lease, "before")
    async with lease:
        assert (lease.epoch, lease.lost()) == (1, None)
        found = content(tmp_path)
        with pytest.raises(LeaseHeldError, match=r"held by this process.*Leave that run first") as refused:
            await other.lease(CONTEXT).__aenter__()
        assert (refused.value.host, refused.value.pid) == (Owner.here().host, os.getpid())
        assert refused.value.since == datetime.fromisoformat(found["since"])
        assert refused.value.context == CONTEXT.parts()
        with pytest.raises(LeaseHeldError):
            await lease.__aenter__()
        await store(backend, lease, "held")
        for different in ({"mode": Mode.LIVE}, {"strategy_name": "trend"}, {"symbol": "BTC_USDT"}, {"frame_name": "_"}):
            async with other.lease(CONTEXT.model_copy(update=different)) as free:
                assert free.epoch == 1
    lost = lease.lost()
    assert lost is not None
    assert "given up" in str(lost)
    with pytest.raises(LeaseLostError, match="given up"):
        await store(backend, lease, "after")
    for holder, epoch in ((other.lease(CONTEXT), 2), (lease, 3)):
        async with holder:
            assert (holder.epoch, holder.lost()) == (epoch, None)
    assert await entries(tmp_path) == ["held"]
    for wrong in ({"wait": -1}, {"wait": float("nan")}, {"duration": 0}, {"duration": float("inf")}):
        with pytest.raises(SettingsError, match="number of seconds"):
            backend.lease(CONTEXT, **wrong)


async def test_one_who_waits_gets_the_lease_when_it_is_free(tmp_path: Path) -> None:
    """Or the error of one who does not wait, once the time is over; of one who is cancelled nothing is left."""
    backend = JsonBackend(tmp_path)
    async with backend.lease(CONTEXT):
        with pytest.raises(LeaseHeldError):
            await backend.lease(CONTEXT, wait=0.15).__aenter__()
        waiting = asyncio.create_task(backend.lease(CONTEXT, wait=30).__aenter__())
        await asyncio.sleep(0.15)
        assert not waiting.done()
    lease = await waiting
    assert lease.epoch == 2
    await lease.__aexit__(None, None, None)
    taking = asyncio.create_task(backend.lease(CONTEXT).__aenter__())
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # its thread is at work
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    async with backend.lease(CONTEXT) as lease:
        assert lease.epoch == 4


async def test_a_holder_that_was_killed_is_succeeded_at_once(tmp_path: Path) -> None:
    """What it has committed is there, and so is all or nothing of what it was about to."""
    holder = await start_holder(tmp_path)
    backend = JsonBackend(tmp_path)
    with pytest.raises(LeaseHeldError, match="End that process first") as refused:
        await backend.lease(CONTEXT).__aenter__()
    assert refused.value.pid == holder.pid
    holder.send_signal(signal.SIGKILL)
    await holder.wait()
    async with backend.lease(CONTEXT) as lease:
        assert lease.epoch == 2
        await store(backend, lease, "second")
    assert await entries(tmp_path) == ["first", "second"]


async def test_a_holder_that_was_paused_for_too_long_cannot_commit(tmp_path: Path) -> None:
    """It is succeeded when its lease has run out; when it goes on, it is told by whom, and stores nothing."""
    holder = await start_holder(tmp_path, duration=1)
    await asyncio.sleep(1.2)
    backend = JsonBackend(tmp_path)
    with pytest.raises(LeaseHeldError):  # it was renewed
        await backend.lease(CONTEXT).__aenter__()
    await pause(holder, tmp_path)
    async with backend.lease(CONTEXT, wait=10) as lease:
        assert lease.epoch == 2
        await store(backend, lease, "second")
        holder.send_signal(signal.SIGCONT)
        assert await tell(holder, "third") == f"lost {os.getpid()}"
        assert await tell(holder, "fourth") == f"lost {os.getpid()}"
        await holder.communicate(b"")  # ends its input
        assert lease.lost() is None
        await store(backend, lease, "fifth")
    assert await entries(tmp_path) == ["first", "second", "fifth"]


async def test_a_lease_is_renewed_and_its_loss_is_known_without_a_commit(tmp_path: Path) -> None:
    """Also when nothing is committed, and in spite of a disk that is full for a while; a lost one is lost for good."""
    backend = JsonBackend(tmp_path)
    async with backend.lease(CONTEXT, duration=0.3) as lease:
        await wait_for_renewal(tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "write", refuse)
            await store_nothing(backend, lease)
            await asyncio.sleep(0.2)
        await wait_for_renewal(tmp_path)
        assert temporary_files(lease_file(tmp_path).parent) == []
        assert lease.lost() is None
        file = lease_file(tmp_path)
        taken = {**content(tmp_path), "epoch": 2, "owner": {**content(tmp_path)["owner"], "token": "x", "pid": 1}}
        file.write_text(json.dumps(taken))
        async with asyncio.timeout(5):
            while lease.lost() is None:
                await asyncio.sleep(0.01)
        file.write_text(json.dumps({**taken, "epoch": 1}))
        with pytest.raises(LeaseLostError, match="pid 1 on host") as lost:
            await store(backend, lease, "lost")
        assert lost.value.pid == 1
    assert content(tmp_path)["owner"]["token"] == "x"  # leaving it gives up nothing of others
    assert await entries(tmp_path) == []


async def wait_for_renewal(directory: Path) -> None:
    """Wait until the one lease lasts longer than it did."""
    expiry = content(directory)["expiry"]
    async with asyncio.timeout(5):
        while content(directory)["expiry"] == expiry:
            await asyncio.sleep(0.01)


def refuse(*args: Any, **options: Any) -> Any:
    """Refuse to write, as a full disk does."""
    raise OSError(28, "No space left on device")


async def store_nothing(backend: JsonBackend, lease: JsonLease) -> None:
    """Fail to commit."""
    with pytest.raises(Exception, match="No space left"):
        await store(backend, lease, "full")


async def test_a_damaged_file_of_a_lease_is_that_of_nobody(tmp_path: Path) -> None:
    """It is what a crash of the machine can leave, which no holder survives; one who may not write is told so."""
    directory = tmp_path / ".backtest-persist/leases"
    backend = JsonBackend(tmp_path)
    async with backend.lease(CONTEXT):
        pass
    file = lease_file(tmp_path)
    for text in ("", "{", "[]", '{"epoch":1}', file.read_text().replace('"paper"', '"demo"')):
        file.write_text(text)
        async with backend.lease(CONTEXT) as lease:
            assert lease.epoch == 1
    shutil.rmtree(directory)
    directory.write_text("")
    with pytest.raises(StoreUnavailableError, match=r"lease of the run .* cannot be taken"):
        await backend.lease(CONTEXT).__aenter__()


async def test_a_lease_that_has_run_out_is_free_whoever_had_it(tmp_path: Path) -> None:
    """That of another host is respected until then, as nobody here knows whether its process lives."""
    backend = JsonBackend(tmp_path)
    async with backend.lease(CONTEXT):
        found = content(tmp_path)
    file = lease_file(tmp_path)
    owner = {**Owner.here().model_dump(by_alias=True), "host": "elsewhere", "pid": 4_000_000}
    file.write_text(json.dumps({**found, "owner": owner, "expiry": "9999-01-01T00:00:00Z"}))
    with pytest.raises(LeaseHeldError, match="pid 4000000 on host elsewhere"):
        await backend.lease(CONTEXT).__aenter__()
    file.write_text(json.dumps({**found, "owner": owner, "expiry": found["since"]}))
    async with backend.lease(CONTEXT) as lease:
        assert lease.epoch == 2


async def test_a_lease_does_not_depend_on_who_has_the_journal(tmp_path: Path) -> None:
    """While another process keeps that, as one that was paused in a commit does, it is renewed, held and given up."""
    backend = JsonBackend(tmp_path)
    async with backend.lease(CONTEXT, duration=1) as lease:
        await store(backend, lease, "first")
        with directory_lock(tmp_path / ".backtest-persist/journal"):
            await asyncio.sleep(1.5)
            assert datetime.fromisoformat(content(tmp_path)["expiry"]) > utc_now()
            async with asyncio.timeout(5):
                with pytest.raises(LeaseHeldError):
                    await backend.lease(CONTEXT).__aenter__()
                await lease.__aexit__(None, None, None)
            assert content(tmp_path)["owner"] is None
    assert await entries(tmp_path) == ["first"]


async def test_a_clock_that_is_set_back_makes_no_lease_last_longer(tmp_path: Path) -> None:
    """One who finds a lease that lasts longer than its duration counts that from now, and so does its holder."""
    backend = JsonBackend(tmp_path)
    later = (utc_now() + timedelta(hours=1)).isoformat()
    async with backend.lease(CONTEXT, duration=0.3) as lease:
        found = content(tmp_path)
        lease_file(tmp_path).write_text(json.dumps({**found, "expiry": later}))
        await wait_for_renewal(tmp_path)
        assert datetime.fromisoformat(content(tmp_path)["expiry"]) < utc_now() + timedelta(minutes=1)
        assert lease.lost() is None
    owner = {**Owner.here().model_dump(by_alias=True), "host": "elsewhere", "pid": 4_000_000}
    lease_file(tmp_path).write_text(json.dumps({**found, "owner": owner, "expiry": later}))
    with pytest.raises(LeaseHeldError, match=r"runs out in 0\.[0-3] s"):
        await backend.lease(CONTEXT).__aenter__()
    async with backend.lease(CONTEXT, wait=10) as lease:
        assert lease.epoch == 2


async def test_a_forked_child_does_not_hold_the_lease_of_its_parent(tmp_path: Path) -> None:
    """It is told so, and its end does not give up what its parent holds."""
    code = """
import asyncio, os, sys
from backtest_persist import JsonBackend
from backtest_persist.core.lease_document import LeaseContext
async def main():
    lease = JsonBackend(sys.argv[1]).lease(LeaseContext.model_validate_json(sys.argv[2]))
    async with lease:
        child = os.fork()
        if not child:
            os._exit(0 if "by which this one was forked" in str(lease.lost()) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert lease.lost() is None
asyncio.run(main())
"""
    process = await start_program(code, tmp_path, CONTEXT.model_dump_json())
    assert await process.wait() == 0
    assert content(tmp_path)["owner"] is None
