"""The doctor's examination of a sample of the ids in Redis."""

import asyncio

from backtest_persist.container import Container
from backtest_persist.errors import BacktestPersistError, ErrorReason
from backtest_persist.operations.cache.sampling import sample
from backtest_persist.operations.doctor.diagnosis import Diagnosis, server_advice
from backtest_persist.operations.doctor.redis import REDIS_SECONDS, TOO_SLOW

__all__ = ("SAMPLE", "examine_cache")

SAMPLE = 20
"""The number of ids, and of documents, that are compared in each domain."""


async def examine_cache(container: Container, diagnosis: Diagnosis) -> None:
    """Add the findings on a sample of the ids in Redis to a diagnosis."""
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            sampled = await sample(container, SAMPLE)
    except TimeoutError:
        diagnosis.warning("cache", TOO_SLOW, "Run closer to the servers.")
        return
    except BacktestPersistError as error:
        if error.server == "Redis" and error.reason is ErrorReason.NOT_PERMITTED:
            diagnosis.ok("cache", f"not compared: {error}")  # a strategy runner needs GET and SET alone
        else:
            diagnosis.problem("cache", str(error), server_advice(error))
        return
    counts = sampled.counts
    values = {"right": counts.right, "stale": counts.stale, "foreign": counts.foreign, "missing": counts.missing}
    shown = "of a sample: " + ", ".join(f"{number:,} {name}" for name, number in values.items())
    if not counts.wrong:
        diagnosis.ok("cache", shown, **values)
    else:
        advice = "Reads correct the wrong ids that they meet; `backtest-persist verify --fix` corrects all of them."
        if counts.stale + counts.foreign:
            advice += " If other databases use this Redis, set CC_REDIS_KEY_PREFIX."
        diagnosis.warning("cache", shown, advice, **values)
    if sampled.expiring:
        diagnosis.warning(
            "cache.expiry",
            f"{sampled.expiring:,} of the sampled ids expire",
            "Another program sets an expiry, which only adds cache misses; `rebuild-cache` removes it.",
            expiring=sampled.expiring,
        )
    elif sampled.expiring == 0:
        diagnosis.ok("cache.expiry", "ids do not expire", expiring=0)
    if sampled.ignored:
        names = sorted(sampled.ignored)
        diagnosis.ok("cache.ignored", f"namespaces of no domain, which are left alone: {', '.join(names)}", names=names)
