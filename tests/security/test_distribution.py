"""compose.yaml, what is fetched or sent without being asked, and the audit."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from backtest_persist.core.lease import LEASE_SECONDS

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_compose_binds_the_loopback_address_alone(name: str) -> None:
    """Every port is that of 127.0.0.1, whatever the variables say, and nothing goes around that."""
    service = SERVICES[name]
    assert not {"network_mode", "privileged", "cap_add", "pid", "ipc", "devices"} & service.keys()
    for port in service.get("ports", []):
        variable = r"\$\{[A-Z]+_PORT:-\d+\}"
        assert re.fullmatch(rf"127\.0\.0\.1:{variable}:({variable}|\d+)", port), port
    assert all(":" in volume and not volume.startswith((".", "/", "~")) for volume in service.get("volumes", []))


def test_compose_publishes_the_ports_of_the_two_servers() -> None:
    """Nothing else listens for anybody."""
    assert {name for name, service in SERVICES.items() if service.get("ports")} == {"mongo", "redis"}


def test_mongo_has_one_port_inside_and_outside() -> None:
    """By another one clients would go on to the member of that name, which can be a server of another project."""
    services = yaml.safe_dump(SERVICES, width=1000)
    port = "${MONGO_PORT:-27017}"
    assert SERVICES["mongo"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert SERVICES["mongo"]["command"][-2:] == ["--port", port]
    assert f"localhost:{port}" in SERVICES["mongo-init"]["command"]
    assert "27017" not in services.replace(port, "")


def test_mongo_aborts_a_transaction_that_was_left_open_before_its_lease_has_run_out() -> None:
    """The server looks every half of this time, so that it takes one and a half of it at most."""
    assert "transactionLifetimeLimitSeconds=10" in SERVICES["mongo"]["command"]
    assert LEASE_SECONDS >= 1.5 * 10


def test_compose_has_no_default_secret() -> None:
    """It has no password, no token and no user in a URI, and the runner is an unprivileged user."""
    text = (ROOT / "compose.yaml").read_text()
    assert not re.search(r"passw|secret|token|requirepass|://[^/\s]*@", text, re.IGNORECASE)
    assert "USER 65534" in (ROOT / "Dockerfile").read_text()


IMPORT = """
import sys
sys.path.insert(0, {root!r})
def refuse(event, arguments):
    if event.startswith(("socket.", "subprocess.", "os.fork", "os.mkdir", "os.system", "tempfile.", "urllib.")):
        raise RuntimeError(f"{{event}} {{arguments}}")
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        raise RuntimeError(f"{{event}} {{arguments}}")
sys.dont_write_bytecode = True
sys.addaudithook(refuse)
import backtest_persist
print(backtest_persist.__name__, backtest_persist.ioc.signal_db_service.collection)
"""


def imported(*prefix: str) -> subprocess.CompletedProcess[str]:
    """Import the package in an isolated interpreter in which sockets, processes and written files are errors."""
    script = IMPORT.format(root=str(ROOT))
    return subprocess.run(
        [*prefix, sys.executable, "-I", "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        cwd="/",
        timeout=60,
    )


def test_an_import_touches_nothing() -> None:
    """Importing the package opens no socket, starts no process and writes no file, and warns of nothing."""
    result = imported()
    assert (result.stdout, result.stderr) == ("backtest_persist signal-items\n", "")


def test_an_import_needs_no_network() -> None:
    """It works where there is not even a loopback address."""
    unshare = [shutil.which("unshare") or "unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--net"]
    try:
        subprocess.run([*unshare, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine allows no network namespaces")
    result = imported(*unshare)
    assert (result.stdout, result.stderr) == ("backtest_persist signal-items\n", "")


def test_nox_has_an_audit() -> None:
    """A session asks for known vulnerabilities of everything that an installation brings."""
    noxfile = (ROOT / "noxfile.py").read_text()
    assert "def audit(session" in noxfile
    assert '"pip-audit"' in noxfile
