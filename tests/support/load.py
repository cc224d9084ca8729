"""Work that goes on while a test disturbs the servers, and the checks that hold whatever happens to them."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

from backtest_persist import BacktestPersistError, Container, Settings, StoreUnavailableError
from tests.support.stopwatch import GRACE, HANG, Stopwatch, timed

__all__ = ("Load", "under_load")

TASKS = 8


class Load:
    """Tasks that each count in one row and read it after every write."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._stopping = False
        self.attempted = [0] * TASKS
        self.acknowledged = [0] * TASKS
        """The last number of each task whose write was acknowledged."""
        self.successes = 0
        self.errors: list[BacktestPersistError] = []
        self.wrong: list[str] = []
        """Reads that found neither the acknowledged number nor that of a later attempt."""
        self.longest = 0.0

    async def _operation(self, operation: Awaitable[Any]) -> Any:
        result, seconds = await timed(operation)
        self.longest = max(self.longest, seconds)
        if isinstance(result, BacktestPersistError):
            self.errors.append(result)
            await asyncio.sleep(0.01)  # so that errors that come at once do not keep the loop busy
        else:
            self.successes += 1
        return result

    async def _work(self, task: int) -> None:
        db = self._container.signal_db_service
        while not self._stopping:
            self.attempted[task] += 1
            number = self.attempted[task]
            written = await self._operation(db.upsert("s", "t", f"e{task}", {"n": number}))
            if not isinstance(written, BacktestPersistError):
                self.acknowledged[task] = number
            found = await self._operation(db.find_by_context("s", "t", f"e{task}"))
            if not isinstance(found, BacktestPersistError):
                self._check(task, found)

    def _check(self, task: int, row: Any) -> None:
        number = row.payload["n"] if row is not None else 0
        if not self.acknowledged[task] <= number <= self.attempted[task]:
            self.wrong.append(f"e{task}: {number}, not {self.acknowledged[task]} to {self.attempted[task]}")

    async def wait_for_successes(self, operations: int = 50) -> float:
        """Wait until that many more operations have succeeded, and return how many seconds it took."""
        until = self.successes + operations
        with Stopwatch() as watch:
            async with asyncio.timeout(HANG):
                while self.successes < until:
                    await asyncio.sleep(0.005)
        return watch.seconds

    async def wait_for_an_error(self) -> None:
        """Wait until an operation ends with an error."""
        known = len(self.errors)
        async with asyncio.timeout(HANG):
            while len(self.errors) == known:
                await asyncio.sleep(0.005)

    async def run(self) -> None:
        """Work until `stop`."""
        async with asyncio.TaskGroup() as group:
            for task in range(TASKS):
                group.create_task(self._work(task))

    def stop(self) -> None:
        """Let each task end after its current operation."""
        self._stopping = True

    async def check(self, witness: Container, deadline: float) -> None:
        """Check that another client finds every acknowledged write, each row once, and that nothing took too long."""
        for task in range(TASKS):
            self._check(task, await witness.signal_db_service.find_by_context("s", "t", f"e{task}"))
        assert self.wrong == []
        assert await witness.signal_db_service.count() == TASKS
        assert self.longest < deadline + GRACE


@asynccontextmanager
async def under_load(settings: Settings, container: Container) -> AsyncGenerator[Load]:
    """Work for the length of the block, then check."""
    async with asyncio.timeout(HANG):
        while isinstance((await timed(container.signal_db_service.wait_for_init()))[0], StoreUnavailableError):
            pass  # a short deadline is not for the first connection on a busy machine
    load = Load(container)
    running = asyncio.create_task(load.run())
    try:
        await load.wait_for_successes()
        yield load
    finally:
        load.stop()
        await running
    async with Container(settings.model_copy(update={"mongo_timeout_ms": 30_000})) as witness:
        await load.check(witness, (settings.mongo_timeout_ms + settings.redis_timeout_ms) / 1000)
