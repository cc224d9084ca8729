"""The doctor's examination of Redis."""

import asyncio
from collections.abc import Mapping
from typing import Any

from backtest_persist.container import Container
from backtest_persist.errors import BacktestPersistError, ErrorReason
from backtest_persist.operations.cache.ids import COMMAND_SECONDS, CachedIds
from backtest_persist.operations.doctor.diagnosis import PINGS, Diagnosis, median_ms, server_advice

__all__ = ("REDIS_SECONDS", "TOO_SLOW", "RedisExamination")

REDIS_SECONDS = 2 * COMMAND_SECONDS
"""The deadline of all checks of Redis together, and once more of the sample."""
_UNTIL_THEN = "Until then operations go to MongoDB alone, which is slower."
TOO_SLOW = f"not examined completely within {REDIS_SECONDS:g} s"


class RedisExamination:
    """Adds the findings on Redis to a diagnosis."""

    def __init__(self, container: Container, diagnosis: Diagnosis) -> None:
        self.redis = container.redis_service
        self.ids = CachedIds(container.redis_service)
        self.settings = container.settings
        self.diagnosis = diagnosis

    async def run(self) -> bool:
        """Make all checks; returns False when the server does not answer in time."""
        try:
            async with asyncio.timeout(REDIS_SECONDS):
                await self.ids.ping()
                self.diagnosis.ok("redis", "reachable")
                if not await self.mode():
                    return False
                await self.info()
                await self.latency()
        except BacktestPersistError as error:
            self.diagnosis.problem("redis", str(error), f"{server_advice(error)} {_UNTIL_THEN}".lstrip())
            return False
        except TimeoutError:
            self.diagnosis.problem("redis", TOO_SLOW, f"Run closer to the server. {_UNTIL_THEN}")
            return False
        prefix = self.settings.redis_key_prefix
        self.diagnosis.ok("redis.key_prefix", repr(prefix) if prefix else "none", prefix=prefix)
        return True

    async def mode(self) -> bool:
        """Report a node of a cluster, or a Sentinel, as a problem; returns whether the server can be used."""
        try:
            await self.redis.ping()
        except BacktestPersistError as error:
            if error.reason is ErrorReason.UNSUPPORTED:
                self.diagnosis.problem("redis.mode", str(error), _UNTIL_THEN)
                return False
        return True  # another error is that of a check that follows

    async def info(self) -> None:
        """Report what INFO tells: version, role, memory and persistence."""
        try:
            info: dict[str, Any] = await self.ids.send("INFO", lambda client: client.info())
        except BacktestPersistError as error:
            self.diagnosis.ok("redis.version", f"unknown, as are memory and persistence: {error}")
            return
        self.diagnosis.ok("redis.version", str(info["redis_version"]), version=info["redis_version"])
        self.role(info)
        self.memory(info)
        append_only = bool(info.get("aof_enabled"))
        self.diagnosis.ok(
            "redis.persistence",
            "append-only file: the ids survive a restart"
            if append_only
            else "no append-only file: ids may be lost by a restart; reads, or `rebuild-cache`, set them again",
            aof=append_only,
        )

    def role(self, info: Mapping[str, Any]) -> None:
        """Report a replica as a problem."""
        role = info.get("role")
        if role == "slave":
            self.diagnosis.problem(
                "redis.role", "a replica, which refuses writes", "Point CC_REDIS_URL to its master.", role="replica"
            )
        else:
            self.diagnosis.ok("redis.role", "master", role="master")

    def memory(self, info: Mapping[str, Any]) -> None:
        """Report a memory that is nearly full and evicts nothing."""
        limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
        policy = str(info.get("maxmemory_policy", "noeviction"))
        values = {"maxmemory": limit, "used": used, "policy": policy}
        if not limit:
            self.diagnosis.ok("redis.memory", f"no limit, {policy}", **values)
            return
        shown = f"{used:,} of {limit:,} bytes are used, {policy}"
        if policy.startswith("allkeys"):
            self.diagnosis.ok("redis.memory", f"{shown}: the next read sets an evicted id again", **values)
        elif used < 0.9 * limit:
            self.diagnosis.ok("redis.memory", f"{shown}: once it is full, new ids are not cached", **values)
        else:
            self.diagnosis.warning(
                "redis.memory",
                f"{shown}: once it is full, new ids are not cached",
                "Raise maxmemory, or set maxmemory-policy to allkeys-lru: the next read sets an evicted id again.",
                **values,
            )

    async def latency(self) -> None:
        """Compare the latency with ``CC_REDIS_TIMEOUT_MS``."""
        median = await median_ms(self.ids.ping)
        deadline = self.settings.redis_timeout_ms
        shown = f"{median:,} ms per ping (the median of {PINGS})"
        if median <= deadline / 2:
            self.diagnosis.ok("redis.latency", shown, median_ms=median)
        else:
            self.diagnosis.warning(
                "redis.latency",
                f"{shown}, more than half of the deadline of a command, {deadline} ms: reads do without the cache",
                "Run closer to the server, or raise CC_REDIS_TIMEOUT_MS.",
                median_ms=median,
            )
