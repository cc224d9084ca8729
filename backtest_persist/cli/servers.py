"""``initiate``, ``migrate`` and ``doctor``: the commands on the servers themselves."""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from textwrap import TextWrapper
from typing import Literal
from urllib.parse import quote

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from backtest_persist import operations
from backtest_persist.cli.command import INCOMPLETE, Flag, open_container, print_json
from backtest_persist.operations import (
    Diagnosis,
    Duplicates,
    Level,
    Migrated,
    examine,
    find_duplicates,
    find_narrow_indexes,
)

__all__ = ("doctor", "initiate", "migrate")

SHOWN = 20
"""The number of contexts that are shown of a collection."""
_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}


async def initiate(*, member: str = "localhost:27017", rename: Flag = False) -> int:
    """Make the mongod of the CC_* settings a replica set of one member, if it is not in a replica set yet.

    Majority writes that survive a crash, sessions and retryable writes need a replica set. Start mongod with
    --replSet rs0 and let the connection string say directConnection=true. Prints a connection string for its clients.

    Parameters
    ----------
    member
        The host and port under which clients find this server.
    rename
        If it is the only member of a replica set already, give it this host and port.

    """
    async with open_container() as container:
        replica_set = await operations.initiate(container, member, rename=rename)
        database = container.mongo_service.database.name
    text = f"The replica set {replica_set.name} is ready; its member is {', '.join(replica_set.members)}."
    if member not in replica_set.members:
        text += f" It was initiated before; {member} is not in it."
    console = Console(highlight=False)
    console.print(text)
    options = "directConnection=true" if len(replica_set.members) == 1 else f"replicaSet={replica_set.name}"
    hosts = ",".join(quote(host, safe=":[]") for host in replica_set.members)
    print(f"CC_MONGO_CONNECTION_STRING=mongodb://{hosts}/{database}?{options}")
    return 0


async def migrate(*, dry_run: bool = False, keep: Literal["newest"] | None = None, dump: Path | None = None) -> int:
    """Show and drop the narrow unique indexes of an older release, and show several documents of one context.

    Under a narrow index a second exchange (candles) or a second symbol (sessions) could not be stored. Make sure that
    no bot of that release is running on the database of the CC_* settings: it would create the indexes again.

    Without its unique index a collection may hold several documents of one context; it cannot be used until they are
    resolved, with --keep newest. Exits with 3 when some are left.

    Parameters
    ----------
    dry_run
        Only show what would be done.
    keep
        Of several documents of one context keep the newest. The others are moved to a file.
    dump
        The file for them, to which they are added; the default is a new one in this directory.

    """
    console = Console(highlight=False)
    dump = dump or Path(f"removed-duplicates-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.jsonl")
    async with open_container() as container:
        narrow, duplicates = await find_narrow_indexes(container), await find_duplicates(container)
        _show_narrow(console, narrow)
        _show_duplicates(console, duplicates)
        if not narrow and not duplicates:
            console.print("Nothing to migrate: no narrow unique index is left, and every context has one document.")
            return 0
        if dry_run:
            console.print("Nothing was changed (--dry-run).")
            return 0
        report = await operations.migrate(container, keep=keep, dump=dump)
    _show_migrated(console, report, dump)
    return INCOMPLETE if report.duplicates else 0


def _show_narrow(console: Console, narrow: Mapping[str, Sequence[str]]) -> None:
    if narrow:
        table = Table("collection", "narrow unique index", title="Indexes of an older release")
        for collection, names in narrow.items():
            for name in names:
                table.add_row(collection, name)
        console.print(table)


def _show_duplicates(console: Console, duplicates: Mapping[str, Sequence[Duplicates]]) -> None:
    for collection, contexts in duplicates.items():
        console.print(f"\n{collection} has several documents of one context; contexts: {len(contexts):,}.")
        for several in contexts[:SHOWN]:
            context = ", ".join(f"{name}={value!r:.80}" for name, value in several.context.items())
            console.print(f"  {escape(context)}", soft_wrap=True)
            for n, document in enumerate(several.documents):
                console.print(f"    {escape(str(document.id))}{'' if n else '  newest'}", soft_wrap=True)
                console.print(f"      created {_date(document.created)}, updated {_date(document.updated)}")
        if len(contexts) > SHOWN:
            console.print(f"  {len(contexts) - SHOWN:,} more")


def _date(date: datetime | None) -> str:
    return "unknown" if date is None else date.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "milliseconds")


def _show_migrated(console: Console, report: Migrated, dump: Path) -> None:
    dropped, removed = sum(map(len, report.dropped.values())), sum(report.removed.values())
    if report.removed:
        console.print(f"\nOlder documents moved to {escape(str(dump))}: {removed:,}.", soft_wrap=True)
    if report.dropped:
        console.print(f"Narrow unique indexes dropped: {dropped}.")
    if report.duplicates:
        names = ", ".join(report.duplicates)
        console.print(f"\nWithout a unique index, because of these documents: {names}.", soft_wrap=True)
        console.print("`backtest-persist migrate --keep newest` keeps the newest of each context.")
    else:
        console.print("The unique indexes of all domains are in place.")


async def doctor(*, json: Flag = False) -> int:
    """Examine the servers of the CC_* settings: one line for each check, with what to do; writes nothing.

    Reachability, versions, replica set, write concern, rights, indexes, clocks, latencies, and a sample of the ids in
    Redis. Exits with 1 when there is a problem, and with 0 when there are warnings at most.

    Parameters
    ----------
    json
        Print the findings as JSON on standard output.

    """
    async with open_container() as container:
        diagnosis = await examine(container)
    if json:
        print_json({"level": diagnosis.level, **dataclasses.asdict(diagnosis)})
    else:
        _show_diagnosis(diagnosis)
    return 1 if diagnosis.level is Level.PROBLEM else 0


def _show_diagnosis(diagnosis: Diagnosis) -> None:
    console = Console(highlight=False)
    width = max(len(finding.check) for finding in diagnosis.findings)
    for finding in diagnosis.findings:
        level = f"[{_COLOURS[finding.level]}]{finding.level:8}[/]"
        head = f"{level} {finding.check:{width}}  {escape(finding.text)}"
        if Text.from_markup(head).cell_len <= console.width:
            console.print(head)
        else:
            console.print(f"{level} {finding.check}")
            _print_indented(console, finding.text)
        if finding.advice:
            _print_indented(console, f"-> {finding.advice}")
    levels = Counter(finding.level for finding in diagnosis.findings)
    console.print(", ".join(f"{level}: {levels[level]}" for level in Level))


def _print_indented(console: Console, text: str) -> None:
    """Print a text below the checks, wrapped between words; an address stays whole, and so does a `command`."""
    indent = " " * 9
    whole = re.sub("`[^`]+`", lambda command: command[0].replace(" ", "\0"), text)
    lines = TextWrapper(console.width, indent, indent, break_long_words=False, break_on_hyphens=False).wrap(whole)
    console.print(escape("\n".join(lines).replace("\0", " ")), soft_wrap=True)
