"""Sphinx extension: what the pages list domain by domain is generated from `DOMAINS`.

A fence such as ::

    ```{domains} files
    ```

becomes the table of that name, in the pages and in the copies of their sources that llms.txt links. Tests call `expand`
without Sphinx.
"""

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

import backtest_persist
from backtest_persist import contracts
from backtest_persist.core.domain import Domain, Family
from backtest_persist.core.lease_document import LEASE_ACTIONS, LEASES
from backtest_persist.core.row import Row, to_wire
from backtest_persist.domains import DOMAINS

if TYPE_CHECKING:
    from sphinx.application import Sphinx

FENCE = re.compile(r"^```\{domains\} (\S+)\n```$", re.MULTILINE)

FAMILIES = {
    Family.LATEST_VALUE: "Latest value of a context",
    Family.KEYED: "Keyed entries with tombstones",
    Family.LIST: "Lists",
    Family.SERIES: "Immutable series",
}


def expand(text: str) -> str:
    """Replace each fence of a page by what it names; ValueError for a name that is not in `GENERATED`."""

    def generate(match: re.Match[str]) -> str:
        if match[1] not in GENERATED:
            raise ValueError(f"{match[0]!r} names nothing that can be generated; there is {', '.join(GENERATED)}.")
        return "\n".join(GENERATED[match[1]]())

    return FENCE.sub(generate, text)


def table(*header: str) -> Callable[[Callable[[Domain], Iterable[str]]], Callable[[], Iterator[str]]]:
    """Turn a function that gives the cells of a domain into one that gives the lines of a table of all domains."""

    def decorate(cells: Callable[[Domain], Iterable[str]]) -> Callable[[], Iterator[str]]:
        def lines() -> Iterator[str]:
            yield from rows(header, ([domain.name, *cells(domain)] for domain in DOMAINS))

        return lines

    return decorate


def rows(header: Iterable[str], cells: Iterable[Iterable[str]]) -> Iterator[str]:
    header = list(header)
    yield line(header)
    yield line(["---"] * len(header))
    yield from map(line, cells)


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def contract(domain: Domain) -> type:
    """The protocol of the adapters of a domain."""
    return getattr(contracts, f"{domain.name.title()}Adapter")


def methods(domain: Domain) -> dict[str, inspect.Signature]:
    """The calls of an adapter, without those that every adapter has."""
    public = {name: member for name, member in vars(contract(domain)).items() if not name.startswith("_")}
    return {name: inspect.signature(member) for name, member in public.items() if inspect.isfunction(member)}


def is_read(name: str) -> bool:
    return name.startswith(("read_", "list_", "has_"))


def placeholder(domain: Domain, field: str) -> str:
    return "{mode}" if is_flag(domain, field) else f"{{{field.removesuffix('_name').removesuffix('_id')}}}"


def is_flag(domain: Domain, field: str) -> bool:
    return domain.context_type.model_fields[field].annotation is bool


# --- tables ---


@table("Domain", "Family", "Keeps", "Collection")
def overview(domain: Domain) -> Iterator[str]:
    yield domain.family
    summary = re.split(r"[.;](?:\s|$)", inspect.getdoc(contract(domain)) or "", maxsplit=1)[0]
    yield summary.removeprefix("Keeps ")
    yield f"`{domain.collection}`"


@table("Domain", "Unique index, in index order", "Other fields", "Secondary index")
def documents(domain: Domain) -> Iterator[str]:
    context = domain.context_type.model_fields
    yield codes(map(to_wire, context))
    yield codes(to_wire(name) for name in domain.row_type.model_fields if name not in {*context, *Row.model_fields})
    indexes = domain.db_service.secondary_indexes
    yield ", ".join(
        "(" + ", ".join(f"`{name}`{' descending' if direction < 0 else ''}" for name, direction in index) + ")"
        for index in indexes
    )


@table("Domain", "Key")
def redis_keys(domain: Domain) -> Iterator[str]:
    def key(backtest: bool) -> list[str]:
        fields = {name: placeholder(domain, name) for name in domain.context_type.model_fields}
        flags = {name: backtest for name in fields if is_flag(domain, name)}
        return domain.context_type.model_construct(**fields | flags).cache_key.split(":")

    parts = [part if part == other else "{mode}" for part, other in zip(key(True), key(False), strict=True)]
    yield f"`{domain.cache_service.connection_key}:{':'.join(parts)}`"


@table("Domain", "Arguments of a context", "The adapter is constructed with")
def arguments(domain: Domain) -> Iterator[str]:
    signature = inspect.signature(domain.db_service.find_by_context)
    names = [name for name in signature.parameters if name != "self"]
    yield codes(names)
    yield "all" if set(names) == set(domain.adapter_parameters) else codes(domain.adapter_parameters) or "none"


@table("Domain", "Reads", "Writes")
def calls(domain: Domain) -> Iterator[str]:
    def shown(signature: inspect.Signature) -> str:
        parameters = [p.replace(annotation=p.empty) for name, p in signature.parameters.items() if name != "self"]
        return str(signature.replace(parameters=parameters, return_annotation=signature.empty))

    found = methods(domain)
    yield codes(f"{name}{shown(signature)}" for name, signature in found.items() if is_read(name))
    yield codes(f"{name}{shown(signature)}" for name, signature in found.items() if not is_read(name))


@table("Domain", "File below the directory", "`when`")
def files(domain: Domain) -> Iterator[str]:
    layout = domain.files
    parts = ["_".join(placeholder(domain, name) for name in names) for names in (*layout.directories, layout.file)]
    path = "/".join([layout.path, *filter(None, parts), *filter(None, [layout.fixed_file])])
    yield f"`{path}.json`"
    yield f"`{layout.stated_by}`" if layout.stated_by else ""


def look_ahead() -> Iterator[str]:
    def times(domain: Domain) -> str:
        reads = [signature.parameters for name, signature in methods(domain).items() if is_read(name)]
        given = [parameters["when"] for parameters in reads if "when" in parameters]
        if any("until_timestamp" in parameters for parameters in reads):
            return "`until_timestamp`, optional: a candle that closes later counts as missing"
        if not given:
            return "not taken: every value is seen"
        if all(parameter.default is parameter.empty for parameter in given):
            return "required"
        return "optional keyword; without it the latest value is returned"

    found: dict[str, list[str]] = {}
    for domain in DOMAINS:
        found.setdefault(times(domain), []).append(domain.name)
    return rows(("Domains", "`when` in a read"), ([", ".join(names), time] for time, names in found.items()))


# --- roles ---


ACTIONS: dict[str, Iterable[str]] = {
    **{domain.collection: domain.actions for domain in DOMAINS},
    LEASES.collection: LEASE_ACTIONS,
}
"""What a user does in each collection."""


def role(name: str, actions: dict[str, Iterable[str]], *, inherits: tuple[str, ...] = ()) -> Iterator[str]:
    privileges = [
        {"resource": {"db": "backtest-kit", "collection": collection}, "actions": list(actions[collection])}
        for collection in sorted(actions)
    ]
    yield "```js"
    yield "db.createRole({"
    yield f'  "role": {json.dumps(name)},'
    yield '  "privileges": ['
    yield ",\n".join(f"    {json.dumps(privilege)}" for privilege in privileges)
    yield "  ],"
    yield f'  "roles": {json.dumps(inherits)}'
    yield "})"
    yield "```"


# --- reference ---


def members(documented: type) -> str:
    """The option that lists the members: of a model its methods alone, as its fields are listed already."""
    if not issubclass(documented, BaseModel):
        return "   :members:"
    public = [name for name, member in vars(documented).items() if inspect.isfunction(member) and name[0] != "_"]
    return f"   :members: {', '.join(public)}" if public else ""


def classes(choose: Callable[[Domain], type]) -> Callable[[], Iterator[str]]:
    def lines() -> Iterator[str]:
        for family, title in FAMILIES.items():
            yield f"## {title}\n"
            yield "```{eval-rst}"
            for domain in DOMAINS:
                if domain.family is family:
                    found = choose(domain)
                    exported = found.__name__ in backtest_persist.__all__
                    yield f".. autoclass:: {'backtest_persist' if exported else found.__module__}.{found.__name__}"
                    yield f"{members(found)}\n"
            yield "```\n"

    return lines


GENERATED: dict[str, Callable[[], Iterator[str]]] = {
    "overview": overview,
    "documents": documents,
    "redis-keys": redis_keys,
    "arguments": arguments,
    "calls": calls,
    "files": files,
    "look-ahead": look_ahead,
    "role": lambda: role("backtestPersist", ACTIONS),
    "owner-role": lambda: role(
        "backtestPersistOwner", dict.fromkeys(ACTIONS, ("createIndex",)), inherits=("backtestPersist",)
    ),
    "adapters": classes(lambda domain: domain.adapter),
    "cache-services": classes(lambda domain: domain.cache_service),
    "db-services": classes(lambda domain: domain.db_service),
    "rows": classes(lambda domain: domain.row_type),
}


def expand_page(app: "Sphinx", docname: str, source: list[str]) -> None:
    expanded = expand(source[0])
    if expanded != source[0]:
        source[0] = expanded
        for module in {"backtest_persist.contracts", *(domain.adapter.__module__ for domain in DOMAINS)}:
            app.env.note_dependency(str(sys.modules[module].__file__), docname=docname)


def expand_sources(app: "Sphinx", exception: Exception | None) -> None:
    for copied in Path(app.outdir).glob("_sources/**/*.md.txt"):
        text = copied.read_text()
        if FENCE.search(text):
            copied.write_text(expand(text))


def setup(app: "Sphinx") -> dict[str, Any]:
    app.connect("source-read", expand_page)
    app.connect("build-finished", expand_sources)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
