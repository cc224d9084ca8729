"""The conformance kit itself: it catches what is broken, finds nothing where nothing is, and runs anywhere."""

import inspect
import os
import subprocess
import sys
import textwrap
from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import backtest_persist
from backtest_persist import testing
from backtest_persist.domains import DOMAINS
from backtest_persist.domains.log import LOG
from tests.own_domain.funding import FUNDING
from tests.support import broken_backends

ROOT = Path(backtest_persist.__file__).parents[1]

CAUGHT_BY: dict[str, set[str]] = {
    "TestUnbroken": set(),
    "TestKeepsTheFirst": {
        "test_the_last_write_replaces_the_whole_payload",
        "test_none_replaces_a_payload_like_any_other",
    },
    "TestListsTheRemoved": {
        "test_a_removed_value_is_neither_read_nor_listed",
        "test_a_later_write_revives_a_removed_value_in_its_old_position",
    },
    "TestHasACap": {"test_a_list_has_all_entries_in_the_order_of_writing", "test_all_keys_of_a_bucket_are_listed"},
    "TestOrdersByName": {"test_entries_are_in_the_order_of_their_calls", "test_keys_are_listed_oldest_first"},
    "TestReplacesCandles": {"test_the_first_write_of_a_candle_wins"},
    "TestLeavesGaps": {"test_a_window_is_complete_or_none", "test_a_long_window_comes_back_complete"},
    "TestStoresWhatWasOpen": {"test_a_candle_that_was_fetched_open_is_skipped"},
    "TestReadsOpenCandles": {"test_the_last_candles_are_read_over_gaps"},
    "TestStoresOutliers": {"test_a_price_in_another_unit_is_skipped"},
    "TestTakesAnyUnit": {"test_a_when_that_is_no_instant_is_refused"},
    "TestSeesTheFuture": {
        "test_a_value_is_hidden_from_readers_before_its_when",
        "test_lists_leave_out_what_is_later",
    },
    "TestRemembers": {
        "test_a_write_is_seen_by_the_next_read_of_another_instance",
        "test_a_write_of_another_process_is_seen_by_the_next_read",
    },
    "TestJoinsNames": {"test_no_two_contexts_share_a_value"},
    "TestWritesJson": {
        "test_plain_data_comes_back_exactly",
        "test_other_values_come_back_as_plain_data",
    },
    "TestClaimsInTwoSteps": {
        "test_a_key_is_claimed_by_exactly_one_caller",
        "test_whatever_is_stored_is_in_the_way_of_a_claim",
        "test_a_removed_key_can_be_claimed_again",
    },
    "TestWritesBehind": {
        "test_what_was_written_is_there_after_the_writer_was_killed",
        "test_a_kill_between_two_writes_keeps_the_first_and_leaves_the_second",
        "test_a_kill_at_any_moment_loses_no_write_and_tears_no_value",
    },
    "TestWritesInTwoSteps": {
        "test_a_kill_amid_many_entries_leaves_whole_ones_in_order",
        "test_a_kill_as_soon_as_a_write_is_seen_finds_it_whole",
    },
    "TestStoresPartsOfUnits": {
        "test_a_checkpoint_is_stored_as_a_whole",
        "test_a_bar_is_stored_with_its_session",
        "test_a_kill_at_any_moment_leaves_whole_bars",
    },
    "TestFundingKeepsTheFirst": {
        "test_the_last_write_replaces_the_whole_payload",
        "test_none_replaces_a_payload_like_any_other",
        "test_a_write_is_seen_by_the_next_read_of_another_instance",
        "test_a_write_of_another_process_is_seen_by_the_next_read",
    },
    "TestFundingSeesTheFuture": {"test_a_value_is_hidden_from_readers_before_its_when"},
}
"""Broken backend -> tests that have to fail on it."""

Results = dict[str, dict[str, list[str]]]
"""Class -> test -> the message of each variant that failed or was skipped, "" where it has passed."""


def run(*arguments: str, cwd: Path, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run pytest in another process, with this package and `path` importable, but not the working directory."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV_"))}
    return subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**environment, "PYTHONPATH": f"{ROOT}{os.pathsep}{path}"},
        timeout=400,
        check=False,
    )


def results_of_the_broken(directory: Path) -> Results:
    """Run the kit on the broken backends, and return the results of its tests."""
    report, base = directory / "report.xml", directory / "temp"
    ran = run("tests/support/broken_backends.py", "--tb=line", f"--junitxml={report}", f"--basetemp={base}", cwd=ROOT)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    found: Results = defaultdict(lambda: defaultdict(list))
    for case in ElementTree.parse(report).iter("testcase"):
        problems = [problem.get("message", "") for problem in case if problem.tag != "properties"]
        name = case.get("name", "").partition("[")[0]
        found[case.get("classname", "").rpartition(".")[2]][name].append(problems[0] if problems else "")
    return found


def test_every_capability_has_a_broken_backend_that_fails_it() -> None:
    """The broken ones are those of the table, and together they have every capability of the kit."""
    classes: dict[str, Any] = {
        name: value for name, value in inspect.getmembers(broken_backends, inspect.isclass) if name.startswith("Test")
    }
    assert classes.keys() == CAUGHT_BY.keys()
    capabilities = {base for base in testing.Conformance.__bases__ if base is not testing.Suite}
    assert len(capabilities) == 11
    failing = [value for name, value in classes.items() if CAUGHT_BY[name]]
    assert capabilities == {base for value in failing for base in value.__mro__ if base in capabilities}


@pytest.mark.timeout(450)
def test_the_kit_fails_on_what_is_broken_and_on_nothing_else(tmp_path: Path) -> None:
    """The tests that state what is broken fail by an assertion; the others pass, and none is skipped."""
    results = results_of_the_broken(tmp_path)
    for name, caught in CAUGHT_BY.items():
        said = [message for variants in results[name].values() for message in variants]
        failed = {test for test, variants in results[name].items() if any(variants)}
        assert failed >= caught, name
        assert bool(failed) == bool(caught), name
        assert "" in said, f"{name}: all fail: the backend could not be used at all"
        for message in filter(None, said):
            assert message.startswith(("assert ", "AssertionError: ", "Failed: DID NOT RAISE")), f"{name}: {message}"


def test_each_test_of_the_kit_is_a_sentence_that_only_one_capability_says() -> None:
    """Names are sentences, docstrings are there, and no capability hides a test of another by its name."""
    seen: dict[str, str] = {}
    for capability in testing.Conformance.__bases__:
        tests = {name: value for name, value in vars(capability).items() if name.startswith("test_")}
        assert len(tests) >= 5
        for name, value in tests.items():
            assert len(name.split("_")) >= 5, name
            assert inspect.getdoc(value), name
            assert inspect.iscoroutinefunction(value), name
            assert seen.setdefault(name, capability.__name__) == capability.__name__


def collected_from(suite: type[testing.Suite]) -> set[str]:
    """Return the names of the tests that pytest collects from a suite."""
    return {name for name in dir(suite) if name.startswith("test_") and callable(getattr(suite, name))}


def test_a_suite_has_the_tests_that_are_about_its_domains() -> None:
    """A test about none of them is not collected; a subclass with more domains has it again."""

    class OfFunding(testing.Conformance):
        domains = (FUNDING,)

    class OfLog(OfFunding):
        domains = (LOG,)

    class OfAll(OfLog):
        domains = (*DOMAINS, FUNDING)

    assert [subject.name for subject in OfFunding.subjects] == ["funding"]
    assert collected_from(OfAll) == collected_from(testing.Conformance)
    assert collected_from(OfFunding) < collected_from(OfAll)
    for name, of_log, of_funding in (
        ("test_the_log_is_append_only", True, False),
        ("test_a_list_has_all_entries_in_the_order_of_writing", True, False),
        ("test_a_value_is_hidden_from_readers_before_its_when", False, True),
        ("test_a_window_is_complete_or_none", False, False),
        ("test_no_two_contexts_share_a_value", True, True),
    ):
        assert (name in collected_from(OfLog), name in collected_from(OfFunding)) == (of_log, of_funding), name
    assert testing.Suite.domains is testing.Conformance.domains is DOMAINS


def test_a_test_that_a_suite_switches_off_stays_off() -> None:
    """An attribute of the class that is no test hides an inherited one, whatever the domains are."""
    without_modes: type[testing.Lists] = type(
        "WithoutModes", (testing.Lists,), {"test_each_mode_has_a_separate_list": None}
    )

    class OfLog(without_modes):
        domains = (LOG,)

    class OfAll(OfLog):
        domains = DOMAINS

    assert collected_from(testing.Lists) - collected_from(OfAll) == {"test_each_mode_has_a_separate_list"}


@pytest.mark.parametrize(
    "options", [[], ["--strict-markers"], ["-o", "asyncio_mode=auto"], ["--import-mode=importlib"]], ids=str
)
def test_the_five_lines_of_the_documentation_run_in_a_project_of_its_own(tmp_path: Path, options: list[str]) -> None:
    """They need no configuration, pass in both modes of pytest-asyncio, and reach the process that is to be killed."""
    text = inspect.cleandoc(testing.__doc__ or "")
    example = textwrap.dedent(text.partition("::\n\n")[2].partition("\n\n`place`")[0])
    assert len(example.splitlines()) <= 7
    for directory, name, source in (
        ("library", "my_backend.py", "from backtest_persist.backends.json.backend import JsonBackend as open\n"),
        ("tests", "test_mine.py", example),
    ):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / name).write_text(source)
    chosen = [
        "-k",
        f"test_a_kill_between or test_a_write_of_another_process or {'test_the_last_write' if options else 'signal'}",
    ]
    place = [f"--basetemp={tmp_path / 'temp'}", "--rootdir=.", "tests"]
    ran = run(*options, *chosen, *place, cwd=tmp_path, path=tmp_path / "library")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout


def test_a_class_that_names_no_backend_is_told_how(tmp_path: Path) -> None:
    """Without `use` every test fails with the line that is missing."""
    (tmp_path / "test_mine.py").write_text(
        "from backtest_persist.testing import LatestValue\n\nclass TestMine(LatestValue): pass\n"
    )
    ran = run("-k", "positions", f"--basetemp={tmp_path / 'temp'}", "--rootdir=.", cwd=tmp_path)
    assert ran.returncode == 1
    assert "def use(self, persist, place): persist.use(my_backend.open(place))" in ran.stdout
