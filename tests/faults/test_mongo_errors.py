"""What mongod answers when something is wrong with it: retried by the driver, or one of our errors."""

from typing import Any

import pytest

from backtest_persist import Container, WriteOutcomeUnknownError
from tests.faults.conftest import Failing

RETRYABLE = [91, 189, 262, 10107, 11600, 11602]


@pytest.mark.parametrize("code", RETRYABLE)
async def test_a_retryable_write_concern_error_is_retried(container: Container, failing: Failing, code: int) -> None:
    """A write that was applied, but whose acknowledgement failed for a passing reason, is repeated: applied once."""
    db = container.signal_db_service
    await db.upsert("s", "t", "e", {"n": 1})
    async with failing("findAndModify", writeConcernError={"code": code, "errmsg": "passing"}):
        row = await db.upsert("s", "t", "e", {"n": 2})
    assert row.payload == {"n": 2}
    assert await db.find_by_context("s", "t", "e") == row


@pytest.mark.parametrize("code", RETRYABLE)
async def test_a_retryable_error_is_retried(container: Container, failing: Failing, code: int) -> None:
    """A write that was not applied is repeated."""
    db = container.signal_db_service
    await db.upsert("s", "t", "e", {"n": 1})
    async with failing("findAndModify", errorCode=code, errorLabels=["RetryableWriteError"]):
        assert (await db.upsert("s", "t", "e", {"n": 2})).payload == {"n": 2}
    async with failing("find", errorCode=code):
        row = await db.find_by_context("s", "t", "e")
    assert row is not None
    assert row.payload == {"n": 2}


async def test_a_write_that_may_have_been_applied_says_so(container: Container, failing: Failing) -> None:
    """A write concern that was not met is an outcome unknown; the next read tells the truth."""
    db = container.signal_db_service
    await db.upsert("s", "t", "e", {"n": 1})
    async with failing("findAndModify", writeConcernError={"code": 64, "errmsg": "waiting timed out"}):
        with pytest.raises(WriteOutcomeUnknownError):
            await db.upsert("s", "t", "e", {"n": 2})
    row = await db.find_by_context("s", "t", "e")
    assert row is not None
    assert row.payload == {"n": 2}


async def test_what_the_driver_does_not_expect_is_a_typed_error(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error from inside the driver that is not one of its own says that a write may have been applied."""
    db = container.signal_db_service
    await db.upsert("s", "t", "e", {"n": 1})

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise AttributeError("hunter2")

    monkeypatch.setattr(container.mongo_service.collection("signal-items"), "find_one_and_update", broken)
    with pytest.raises(WriteOutcomeUnknownError, match="AttributeError") as caught:
        await db.upsert("s", "t", "e", {"n": 2})
    assert "hunter2" not in str(caught.value)
