"""Names in JSON files: contexts stay apart, and no name leaves the dump."""

import json
import os
from pathlib import Path

import pytest

from backtest_persist import InvalidKeyError, SettingsError
from tests.support.dumps import files_of
from tests.support.json_backend import LATE, open_dump


async def test_names_that_join_to_the_same_directory_keep_apart(tmp_path: Path) -> None:
    """The first writer gets the directory of the framework, the others a stricter one, also after a restart."""
    contexts = [("A_B", "C", "x"), ("A", "B_C", "x"), ("A", "B", "C_x"), ("A", "B%5FC", "x")]
    for number, context in enumerate(contexts):
        partial = await open_dump(tmp_path).partial(*context)
        assert await partial.read_partial_data("s", LATE) == {}
        await partial.write_partial_data({"n": number}, "s", LATE)
    for number, context in enumerate(contexts):
        assert await (await open_dump(tmp_path).partial(*context)).read_partial_data("s", LATE) == {"n": number}
    assert json.loads((tmp_path / "data/partial/A_B_C_x/s.json").read_text()) == {"n": 0}


async def test_no_name_leaves_the_dump(tmp_path: Path) -> None:
    """Names that look like paths create files only below the dump, in every place of a name, and are read back."""
    dump = tmp_path / "a" / "dump"
    persist = open_dump(dump)
    for name in ("..", "../..", "../../outside", "/etc/passwd", "a/../../b", ".", "...", "~", ".backtest-persist"):
        await (await persist.signal(name, name, name)).write_signal_data({"id": name})
        await (await persist.memory(name, name)).write_memory_data({"id": name}, name, LATE)
        await (await persist.storage(True)).write_storage_data([{"id": name}])
        assert await (await persist.signal(name, name, name)).read_signal_data() == {"id": name}
        assert await (await persist.memory(name, name)).read_memory_data(name) == {"id": name}
    assert len(await (await persist.storage(True)).read_storage_data()) == 9
    assert os.listdir(tmp_path) == ["a"]
    assert os.listdir(tmp_path / "a") == ["dump"]
    for name in ("", "a\0b", "\ud800"):
        with pytest.raises(InvalidKeyError):
            await (await persist.signal(name, "s", "e")).read_signal_data()


@pytest.mark.parametrize("names", [("x", "x.json"), ("x.json", "x")])
async def test_a_name_that_ends_like_a_file_clashes_with_no_other(tmp_path: Path, names: tuple[str, str]) -> None:
    """Neither do long names below it, whose labels are in directories of that name."""
    for name in names:
        partial = await open_dump(tmp_path).partial("S", "s_1", name)
        await partial.write_partial_data({"n": name}, "k" * 201, 0)
    for name in names:
        partial = await open_dump(tmp_path).partial("S", "s_1", name)
        assert await partial.read_partial_data("k" * 201, LATE) == {"n": name}


async def test_a_case_insensitive_file_system_is_refused(tmp_path: Path) -> None:
    """Nothing is stored where BTC and btc would share a file; other directories with such names do not matter."""
    for directory in ("data", "STATE"):
        (tmp_path / directory).mkdir()
    (tmp_path / "DATA").symlink_to("data")  # as such a file system would find it
    (tmp_path / "data/MEASURE").symlink_to("measure")
    persist = open_dump(tmp_path)
    with pytest.raises(SettingsError, match="upper and lower case"):
        await (await persist.measure("a")).write_measure_data({}, "k", 0)
    await (await persist.state("s", "b")).write_state_data({"n": 1}, 0)
    assert files_of(tmp_path) == {"state/s/b/b.json": '{"n":1}'}
