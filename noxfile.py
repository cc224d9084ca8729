"""Checks of the project; plain ``nox`` runs what every change has to pass."""

from pathlib import Path

import nox

nox.options.sessions = ["lint", "tests", "docs"]
nox.options.error_on_missing_interpreters = False  # `versions` takes the interpreters that are installed

PROJECT = nox.project.load_toml("pyproject.toml")


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
