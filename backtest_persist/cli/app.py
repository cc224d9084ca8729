"""The application: its commands, each of which is in the module of its group."""

from cyclopts import App

from backtest_persist import __version__
from backtest_persist.cli.cache import rebuild_cache, verify
from backtest_persist.cli.candles import candles
from backtest_persist.cli.demo import demo
from backtest_persist.cli.dumps import export_dump, import_dump
from backtest_persist.cli.servers import doctor, initiate, migrate

__all__ = ("app",)

app = App(
    name="backtest-persist",
    help="Persistence for trading-strategy runners: MongoDB as the source of truth, Redis in front.",
    version=__version__,
    suppress_keyboard_interrupt=False,
)
for command in (demo, doctor, export_dump, import_dump, initiate, migrate, rebuild_cache, verify):
    app.command(command)
app.command(candles)
