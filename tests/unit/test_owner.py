"""Which process holds a lease, and when it is known to be gone."""

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from backtest_persist.core.lease_document import LeaseContext
from backtest_persist.core.owner import Owner, held_error, lost_error
from backtest_persist.mode import Mode
from tests.support.processes import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are told apart by /proc")

_PRINT_OWNER = """
from backtest_persist.core.owner import Owner
print(Owner.here().model_dump_json(by_alias=True), flush=True)
input()
"""


def start(*prefix: str) -> tuple[subprocess.Popen[str], Owner]:
    """Start another process and return it with itself as an owner."""
    command = [*prefix, sys.executable, "-c", _PRINT_OWNER]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    said = process.stdout.readline()
    if not said:
        _, problem = process.communicate()
        if prefix and "Operation not permitted" in problem:
            pytest.skip(f"{prefix[0]} is not permitted here")
        raise AssertionError(problem)
    return process, Owner.model_validate_json(said)


def end(process: subprocess.Popen[str]) -> None:
    with process:
        process.kill()


def test_a_process_is_gone_once_it_was_killed() -> None:
    """Also before its parent has asked for its status, while its pid is still taken."""
    process, owner = start()
    try:
        assert not owner.is_gone()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert owner.is_gone()
    finally:
        end(process)
    assert owner.is_gone()


def test_a_process_with_the_same_pid_is_another_one() -> None:
    """A pid is used again; when a process was started tells two apart."""
    here = Owner.here()
    assert not here.is_gone()
    assert here.started is not None
    assert here.model_copy(update={"started": here.started - 1}).is_gone()


@pytest.mark.parametrize("other", [{"host": "other"}, {"pid_namespace": "other/1"}, {"pid_namespace": None}])
def test_nothing_is_known_of_a_process_elsewhere(other: dict[str, str | None]) -> None:
    """A pid counts in its namespace on its host alone: a free one there says nothing about that process."""
    process, owner = start()
    end(process)
    assert owner.is_gone()
    assert not owner.model_copy(update=other).is_gone()


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
@pytest.mark.parametrize("mount", [(), ("--mount-proc",)])
def test_two_containers_on_one_host_are_told_apart(mount: tuple[str, ...]) -> None:
    """They may have the same host name; a /proc that shows the pids of another namespace is not believed."""
    process, owner = start("unshare", "--pid", "--fork", "--kill-child", *mount)
    end(process)
    assert owner.host == Owner.here().host
    assert owner.pid_namespace != Owner.here().pid_namespace
    assert (owner.pid_namespace is None) is not bool(mount)
    assert not owner.is_gone()


def test_a_forked_child_is_another_process() -> None:
    """It has the modules of its parent, and what these have made when they were imported."""
    parent = Owner.here()
    child = os.fork()
    if not child:
        os._exit(0 if not parent.is_here and Owner.here().is_here else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert parent.is_here


def test_a_program_that_has_replaced_itself_is_not_the_holder() -> None:
    """By `os.execv`, it has the pid and the start of the process before; nobody knows whether that still runs."""
    code = """
import os, sys
from backtest_persist.core.owner import Owner
if len(sys.argv) == 1:
    os.execv(sys.executable, [sys.executable, "-c", os.environ["CODE"], Owner.here().model_dump_json(by_alias=True)])
owner = Owner.model_validate_json(sys.argv[1])
assert owner.pid == os.getpid() and owner.started == Owner.here().started
sys.exit(owner.is_here or owner.is_gone() or owner.is_visible)
"""
    environment = {**os.environ, "CODE": code}
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=False).returncode == 0


def test_errors_name_host_pid_and_time() -> None:
    """Those who read them can find the other process; a holder that is this process is told so."""
    context = LeaseContext(strategy_name="t", exchange_name="e", symbol="s", frame_name="", mode=Mode.LIVE)
    since = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    other = Owner.here().model_copy(update={"host": "box", "pid": 77, "process": "x"})
    held = held_error(context, other, since, seconds_left=12.34)
    assert str(held) == (
        "The run (strategy_name='t', exchange_name='e', symbol='s', frame_name='', mode='live') is held by pid 77 on "
        "host box, since 2026-01-02 03:04:05 UTC. Unless it renews the lease, that runs out in 12.3 s. End that "
        "process first; if it has ended already, wait for that: pass lease_wait=18 to the run, or wait=18 to its lease."
    )
    assert (held.host, held.pid, held.since) == ("box", 77, since)
    assert held.context == {**context.parts(), "mode": "live"}
    assert "held by this process, pid" in str(held_error(context, Owner.here(), since))
    assert "Leave that run first" in str(held_error(context, Owner.here(), since))
    parent = Owner.here().model_copy(update={"pid": os.getppid(), "started": None, "process": "x"})
    assert "End that process first, or wait longer" in str(held_error(context, parent, since, seconds_left=5))
    replaced = held_error(context, Owner.here().model_copy(update={"process": "x"}), since, seconds_left=5)
    assert "this process" not in str(replaced)
    assert "pass lease_wait=10" in str(replaced)
    lost = lost_error(context, owner=other, since=since)
    assert "pid 77 on host box took its lease at 2026-01-02 03:04:05 UTC" in str(lost)
    assert (lost.host, lost.pid, lost.since) == ("box", 77, since)
    assert (lost_error(context).host, lost_error(context).since) == (None, None)
