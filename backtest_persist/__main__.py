"""``python -m backtest_persist`` is ``backtest-persist``."""

from backtest_persist.cli import main

main()
