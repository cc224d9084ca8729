"""``python -m backtest_persist.cli`` is ``backtest-persist``."""

from backtest_persist.cli import main

if __name__ == "__main__":
    main()
