"""The doctor: examines settings, both servers and what they hold, and reports findings with advice; writes nothing."""

from importlib.metadata import version

from backtest_persist.container import Container
from backtest_persist.errors import BacktestPersistError
from backtest_persist.operations.doctor.cache import examine_cache
from backtest_persist.operations.doctor.diagnosis import Diagnosis
from backtest_persist.operations.doctor.mongo import MongoExamination
from backtest_persist.operations.doctor.redis import RedisExamination

__all__ = ("examine",)


async def examine(container: Container) -> Diagnosis:
    """Examine settings, servers, indexes, rights, clocks, latencies and a sample of the ids in Redis.

    A server that does not answer is a finding and no error. Takes a few deadlines of MongoDB
    (``CC_MONGO_TIMEOUT_MS``) and of Redis at most.
    """
    diagnosis = Diagnosis()
    try:
        settings = container.settings
    except BacktestPersistError as error:
        diagnosis.problem("settings", str(error), "Correct the setting; docs/settings.md describes all of them.")
        return diagnosis
    driver = settings.mongo_driver
    versions = {package: version(package) for package in dict.fromkeys((driver, "pymongo", "redis"))}
    shown = ", ".join(f"{name} {number}" for name, number in versions.items())
    diagnosis.ok("driver", f"{driver} ({shown})", driver=driver, versions=versions)
    mongo_answers = await MongoExamination(container, diagnosis).run()
    redis_answers = await RedisExamination(container, diagnosis).run()
    if mongo_answers and redis_answers:
        await examine_cache(container, diagnosis)
    return diagnosis
