"""Errors of the JSON backend: damaged files, full disks and directories of others, each a typed error."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from backtest_persist import InvalidPayloadError, StoreUnavailableError, WriteOutcomeUnknownError, WriteRejectedError
from tests.support.dumps import write_dump
from tests.support.json_backend import CANDLE, LATE, open_dump, temporary_files
from tests.support.processes import run_program


async def test_a_full_disk_is_a_typed_error_and_the_old_value_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error before the first rename says that nothing was stored, one after it that a read will tell."""
    state = await open_dump(tmp_path).state("s", "b")
    await state.write_state_data({"n": 1}, 0)

    def refuse(*args: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        with pytest.raises(WriteRejectedError, match="No space left"):
            await state.write_state_data({"n": 2}, 0)
        assert await state.read_state_data() == {"n": 1}
    assert temporary_files(tmp_path) == []
    storage, real, written = await open_dump(tmp_path).storage(True), os.rename, 0

    def refuse_later(*args: Any) -> None:
        nonlocal written
        written += 1
        if written > 2:
            refuse()
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse_later)
        with pytest.raises(WriteOutcomeUnknownError, match="read to see"):
            await storage.write_storage_data([{"id": str(n)} for n in range(5)])
    assert [entry["id"] for entry in await storage.read_storage_data()] == ["0", "1"]


async def test_a_file_in_the_place_of_a_directory_is_a_typed_error(tmp_path: Path) -> None:
    """Reads and writes raise errors of this package, which have the context and are not retryable."""
    (tmp_path / "state").write_text("")
    state = await open_dump(tmp_path).state("s", "b")
    with pytest.raises(StoreUnavailableError) as read_error:
        await state.read_state_data()
    with pytest.raises(WriteRejectedError) as write_error:
        await state.write_state_data({}, 0)
    for error in (read_error.value, write_error.value):
        assert error.context == {"signal_id": "s", "bucket_name": "b"}
        assert not error.retryable


async def test_a_directory_of_another_user_is_a_typed_error(tmp_path: Path) -> None:
    """Every call on such a directory raises an error of this package that names the directory."""
    code = """
import asyncio, os, sys
from pathlib import Path
from backtest_persist import Registry, StoreUnavailableError, WriteRejectedError
async def main(root):
    persist = Registry(); persist.use_json(root)
    memory = await persist.memory("s", "b")
    await memory.write_memory_data({}, "m", 0)
    (root / "memory").chmod(0)
    if os.geteuid() == 0:
        os.setuid(65534)
    again = Registry(); again.use_json(root)
    for call, error in (
        ((await again.memory("s", "b")).write_memory_data({}, "m", 0), WriteRejectedError),
        (memory.remove_memory_data("m"), WriteRejectedError),
        (memory.write_memory_data({}, "m", 0), WriteRejectedError),
        (memory.read_memory_data("m"), StoreUnavailableError),
    ):
        try:
            await call
        except error as refused:
            assert f"{root}/memory/s/b" in str(refused), refused
            assert "access" in str(refused), refused
        else:
            raise AssertionError(error)
asyncio.run(main(Path(sys.argv[1])))
"""
    await run_program(code, tmp_path)
    (tmp_path / "memory").chmod(0o700)


@pytest.mark.parametrize("text", ["", "{", '{"id": "bro', '{"$date": "x"}'])
async def test_a_damaged_file_is_a_typed_error_that_names_it(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged file is neither guessed at nor removed; a list names it and goes on; a later write repairs it."""
    write_dump(tmp_path, {"data/signal/A_B_C/A.json": text, "data/storage/live/x.json": text})
    signal, storage = await open_dump(tmp_path).signal("A", "B", "C"), await open_dump(tmp_path).storage(False)
    with pytest.raises(InvalidPayloadError, match=r"A\.json"):
        await signal.read_signal_data()
    await storage.write_storage_data([{"id": "w"}, {"id": "y"}])
    assert await storage.read_storage_data() == [{"id": "w"}, {"id": "y"}]
    (line,) = [record.getMessage() for record in caplog.records]
    assert re.search(
        r"^list\.unreadable place=storage \(backtest=False\) left_out=1 ids=x why=.*x\.json is damaged", line
    )
    await storage.write_storage_data([{"id": "x"}])
    assert len(await storage.read_storage_data()) == 3
    await signal.write_signal_data({"n": 1})
    assert await signal.read_signal_data() == {"n": 1}


DAMAGED: dict[str, tuple[str, str, str]] = {
    "nested too deep": ("memory/s/b/m.json", f'{{"a":{"[" * 600}1{"]" * 600}}}', "nested too deep"),
    "array for an object": ("memory/s/b/m.json", "[1]", "no object"),
    "object for an array": ("data/risk/r_x/positions.json", '{"a":1}', "no array"),
}


@pytest.mark.parametrize("kind", DAMAGED)
async def test_a_file_that_holds_no_value_is_a_typed_error(tmp_path: Path, kind: str) -> None:
    """The error names the file and the problem, whatever the problem is."""
    path, text, problem = DAMAGED[kind]
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    persist = open_dump(tmp_path)
    memory, risk = await persist.memory("s", "b"), await persist.risk("r", "x")
    reading = memory.read_memory_data("m") if path.startswith("memory") else risk.read_position_data(LATE)
    with pytest.raises(InvalidPayloadError, match=f"{path} is damaged: .*{problem}"):
        await reading


async def test_a_damaged_candle_is_a_typed_error(tmp_path: Path) -> None:
    """A file with something else than a candle, or with one of another time, is not returned as prices."""
    path = "data/candle/b/BTC/1m/1600000020000.json"
    for text in ("null", "[]", '{"timestamp":1600000020000}', json.dumps({**CANDLE, "timestamp": 1_600_000_080_000})):
        write_dump(tmp_path, {path: text})
        adapter: Any = await open_dump(tmp_path).candle("BTC", "1m", "b")
        for reading in (
            adapter.read_candles_data(1, 1_600_000_020_000),
            adapter.db.find_by_context("BTC", "1m", "b", 1_600_000_020_000),
            adapter.db.find_range("BTC", "1m", "b", 1_600_000_020_000, 1),
        ):
            with pytest.raises(InvalidPayloadError, match=r"damaged|another candle"):
                await reading


@pytest.mark.parametrize("text", ["", "{", "\x00", "null", "[]", "5", '{"x":1}', '["A",1]'])
async def test_a_damaged_file_of_the_hidden_tree_is_a_typed_error_that_names_it(tmp_path: Path, text: str) -> None:
    """Neither the parts of a name nor the time of a value are guessed; without the file everything works again."""
    signal, state = await open_dump(tmp_path).signal("A", "B_C", "x"), await open_dump(tmp_path).state("s", "b")
    await signal.write_signal_data({"n": 1})
    await state.write_state_data({"n": 1}, LATE)
    hidden = tmp_path / ".backtest-persist"
    label, record = hidden / "labels/data/signal/A_B_C_x%~.json", hidden / "records/state/s/b/b.json"
    for file in (label, record):
        assert file.is_file()
        file.write_text(text)
    with pytest.raises(InvalidPayloadError, match=rf"{label} is damaged.* Remove it"):
        await (await open_dump(tmp_path).signal("A", "B_C", "x")).read_signal_data()
    with pytest.raises(
        InvalidPayloadError, match=rf"{record} is damaged.* Remove it together with .*state/s/b/b\.json"
    ):
        await state.read_state_data()
    with pytest.raises(InvalidPayloadError, match=rf"{record} is damaged"):
        await state.write_state_data({"n": 2}, LATE)
    for file in (label, record, tmp_path / "state/s/b/b.json"):  # as the messages say
        file.unlink()
    assert await (await open_dump(tmp_path).signal("A", "B_C", "x")).read_signal_data() == {"n": 1}
    await state.write_state_data({"n": 2}, LATE)
    assert await state.read_state_data(when=LATE - 1) is None
    assert await state.read_state_data(when=LATE) == {"n": 2}


async def test_a_damaged_record_of_a_place_in_a_list_costs_only_the_place(tmp_path: Path) -> None:
    """Where nothing has a `when`, the message says that a value without its record is listed by its last write."""
    storage = await open_dump(tmp_path).storage(True)
    await storage.write_storage_data([{"id": "a"}, {"id": "b"}])
    await storage.write_storage_data([{"id": "a", "n": 2}])
    record = tmp_path / ".backtest-persist/records/data/storage/backtest/a.json"
    record.write_text("{")
    with pytest.raises(InvalidPayloadError, match=rf"{record} is damaged. Remove it; .* place of its last write"):
        await storage.write_storage_data([{"id": "a", "n": 3}])
    record.unlink()
    assert await storage.read_storage_data() == [{"id": "b"}, {"id": "a", "n": 2}]
