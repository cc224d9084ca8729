"""Checks of the project; plain ``nox`` runs what every change has to pass."""

import shutil
import tarfile
import tempfile
from pathlib import Path

import nox

nox.options.sessions = ["lint", "tests", "docs"]
nox.options.error_on_missing_interpreters = False  # `versions` takes the interpreters that are installed

PROJECT = nox.project.load_toml("pyproject.toml")

INSTALLED = """
import sys
from importlib.metadata import version
from pathlib import Path

import backtest_persist

package = Path(backtest_persist.__file__).resolve().parent
assert package.is_relative_to(Path(sys.prefix).resolve()), f"imported from {package}"
assert (package / "py.typed").is_file(), "py.typed is missing"
stated, recorded = backtest_persist.__version__, version("backtest-persist")
assert stated == recorded, f"__version__ is {stated}, the metadata say {recorded}"
print(stated)
"""


def install(session: nox.Session, *groups: str) -> None:
    dependencies = [name for group in groups for name in nox.project.dependency_groups(PROJECT, group)]
    session.install("-e", ".[demo]", *dependencies)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types and architecture."""
    install(session, "tests", "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("pyright")
    session.run("lint-imports")


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite on real servers; CC_TEST_BACKEND=embedded|testcontainers|env says which."""
    install(session, "tests")
    session.run("pytest", "-n", "4", "--dist", "worksteal", *session.posargs)


@nox.session(python=nox.project.python_versions(PROJECT))
def versions(session: nox.Session) -> None:
    """The unit and contract tests on each supported Python that is installed; -- PATH runs others."""
    install(session, "tests")
    session.run("pytest", "-n", "4", "--dist", "worksteal", *(session.posargs or ("tests/unit", "tests/contract")))


@nox.session
def soak(session: nox.Session) -> None:
    """The tests that take minutes: long histories under faults, many examples."""
    install(session, "tests")
    session.run("pytest", "-m", "soak", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation; warnings are errors."""
    install(session, "docs")
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")


@nox.session
def containers(session: nox.Session) -> None:
    """The test suite on MongoDB and Redis in Docker; MONGO_IMAGE and REDIS_IMAGE name the images."""
    install(session, "tests")
    session.env["CC_TEST_BACKEND"] = "testcontainers"
    session.run("pytest", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks: a table, and with --plot FILE a picture; -- --help shows the options."""
    install(session, "bench")
    session.run("python", "-m", "tests.bench", *session.posargs)


@nox.session
def audit(session: nox.Session) -> None:
    """Known vulnerabilities of what an installation with all extras brings; asks the advisory service of PyPI."""
    extras = ",".join(PROJECT["project"]["optional-dependencies"])
    session.install(f".[{extras}]")
    installed = session.run("python", "-m", "pip", "freeze", "--exclude", PROJECT["project"]["name"], silent=True)
    requirements = Path(session.create_tmp()) / "installed.txt"
    requirements.write_text(str(installed))
    session.install(*nox.project.dependency_groups(PROJECT, "audit"))
    session.run("pip-audit", "--strict", "--no-deps", "--disable-pip", "--requirement", str(requirements))


@nox.session
def release(session: nox.Session) -> None:
    """The sdist and the wheel, built in dist/, checked, and each installed in a clean environment."""
    session.install(*nox.project.dependency_groups(PROJECT, "release"))
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")  # the wheel is built from the sdist
    [sdist], [wheel] = (list(Path("dist").resolve().glob(pattern)) for pattern in ("*.tar.gz", "*.whl"))
    session.run("twine", "check", "--strict", str(sdist), str(wheel))
    session.run("check-wheel-contents", str(wheel))
    compare_with_git(session, sdist)
    with tempfile.TemporaryDirectory() as directory, session.chdir(directory):
        for archive in (sdist, wheel):
            check_installation(session, archive, Path(directory) / archive.suffix[1:])
        run_tests_of_sdist(session, sdist, Path(directory))


def compare_with_git(session: nox.Session, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        packed = {member.name.partition("/")[2] for member in archive if member.isfile()} - {"PKG-INFO"}
    listed = str(session.run("git", "ls-files", external=True, silent=True)).splitlines()
    tracked = {name for name in listed if not name.startswith(".ci/")}
    if packed != tracked:
        session.error(f"Only git has {sorted(tracked - packed)}, only the sdist has {sorted(packed - tracked)}.")


def check_installation(session: nox.Session, archive: Path, environment: Path) -> None:
    """Import what is installed without extras, then run the command line with the extra cli."""
    session.run("python", "-m", "venv", str(environment))
    python, command = (str(environment / "bin" / name) for name in ("python", "backtest-persist"))
    session.run(python, "-m", "pip", "install", "--quiet", str(archive), external=True)
    version = str(session.run(python, "-I", "-c", INSTALLED, external=True, silent=True)).strip()
    session.run(python, "-m", "pip", "install", "--quiet", f"{archive}[cli]", external=True)
    session.run(python, "-m", "pip", "check", external=True)
    printed = str(session.run(command, "--version", env={"PYTHONPATH": None}, external=True, silent=True)).strip()
    if printed != version:
        session.error(f"{command} --version printed {printed}, not {version}.")
    session.log(f"{archive.name} installs version {version}.")


def run_tests_of_sdist(session: nox.Session, sdist: Path, directory: Path) -> None:
    """Import every test from the unpacked sdist, and run those that need no servers."""
    with tarfile.open(sdist) as archive:
        archive.extractall(directory, filter="data")
    session.install(f"{sdist}[demo]", *nox.project.dependency_groups(PROJECT, "tests"))
    with session.chdir(directory / sdist.name.removesuffix(".tar.gz")):
        session.run("pytest", "--collect-only", "-qq")
        session.run("pytest", "-q", "tests/unit", "tests/security/test_distribution.py")
