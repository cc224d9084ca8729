"""The conformance kit: run the contract of `backtest_persist.contracts` against adapters of your own.

In a test module, with pytest and pytest-asyncio installed (``pip install "backtest-persist[testing]"``)::

    import my_backend
    from backtest_persist.testing import Conformance

    class TestMyBackend(Conformance):
        def use(self, persist, place):
            persist.use(my_backend.open(place))

`place` is an empty directory that names the store: the same place is the same store, also in another process. A backend
that has to be set up and closed overrides `open` instead; see `Suite`. ``domains = [FUNDING]`` in the class tests
domains of your own that keep a payload. Each capability is a class by itself, so a backend can begin with a few.
"""
# ruff: noqa: E402  # pytest can only rewrite the asserts of modules that are not imported yet

import pytest

pytest.register_assert_rewrite(
    *(
        f"{__name__}.{module}"
        for module in (
            *("candles", "claims", "crash", "fidelity", "isolation", "latest_value", "lists", "look_ahead"),
            *("read_after_write", "refusals", "subjects", "tombstones", "units_of_work", "writer"),
        )
    )
)

from backtest_persist.testing.candles import Candles
from backtest_persist.testing.claims import Claims
from backtest_persist.testing.crash import Crash
from backtest_persist.testing.fidelity import Fidelity
from backtest_persist.testing.isolation import Isolation
from backtest_persist.testing.latest_value import LatestValue
from backtest_persist.testing.lists import Lists
from backtest_persist.testing.look_ahead import LookAhead
from backtest_persist.testing.read_after_write import ReadAfterWrite
from backtest_persist.testing.refusals import Refusals
from backtest_persist.testing.suite import Suite
from backtest_persist.testing.tombstones import Tombstones
from backtest_persist.testing.units_of_work import UnitsOfWork

__all__ = (
    "Candles",
    "Claims",
    "Conformance",
    "Crash",
    "Fidelity",
    "Isolation",
    "LatestValue",
    "Lists",
    "LookAhead",
    "ReadAfterWrite",
    "Refusals",
    "Suite",
    "Tombstones",
    "UnitsOfWork",
)


class Conformance(
    LatestValue,
    Tombstones,
    Claims,
    Lists,
    Candles,
    LookAhead,
    ReadAfterWrite,
    Isolation,
    Fidelity,
    Crash,
    UnitsOfWork,
):
    """All capabilities: what the contract asks of a backend. `Refusals` is what they contain about bad input.

    `UnitsOfWork` is optional: of a backend that stores none pytest reports those tests as skipped.
    """
