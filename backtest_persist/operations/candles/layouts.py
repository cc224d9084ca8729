"""The layouts of files of candles: one table of those that are known, and which column is what."""

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass

from backtest_persist.core.candles.ohlcv import NUMBERS
from backtest_persist.operations.candles.tables import plain
from backtest_persist.operations.candles.times import DateOrder

__all__ = ("ASSETS", "KLINE", "LAYOUTS", "UTC_TIMES", "Layout", "Places", "UnusableError", "find_places", "fits_symbol")

KLINE = (
    *("open_time", *NUMBERS, "close_time", "quote_volume", "count", "taker_buy_volume", "taker_buy_quote_volume"),
    "ignore",
)


@dataclass(frozen=True)
class Layout:
    """One layout: how it is recognised, and what it leaves unsaid."""

    name: str
    header: frozenset[str] = frozenset()
    """The names that its header has, among others, in the form of `plain`."""
    fields: tuple[str, ...] = ()
    """The fields of a layout without header."""
    first: str = "unix"
    """Of a layout without header, the form of the first field: unix or date."""
    zone: str | None = None
    """The time zone in which its times without one are, if that is certain."""
    order: DateOrder | None = None
    """The order of day and month: dmy, mdy; None if the file has to show it."""
    hint: str = ""
    """What is known of the zone, for the question about it."""
    preamble: str = ""
    """What stands before its header, among others, in lower case."""
    has_local_numbers: bool = False
    """Whether its times as numbers count local time."""

    def has_header(self, names: Set[str], preamble: str) -> bool:
        """Whether it is the layout of a file with these names, in the form of `plain`, and this text before them."""
        return bool(self.header) and self.header <= names and self.preamble in preamble.lower()


_BROKER = " MetaTrader writes the time of the broker's server, often UTC+2 in winter and UTC+3 in summer."

LAYOUTS = (
    Layout("Binance futures klines", frozenset({"open_time", "close_time", "quote_volume", "count"})),
    Layout("Binance klines", frozenset({"open_time", "close_time"})),
    Layout("MetaTrader 5", frozenset({"date", "tickvol", "spread"}), hint=_BROKER),
    Layout("Stooq", frozenset({"ticker", "per", "date"}), hint=" Stooq writes the time of the exchange, or of Warsaw."),
    Layout("Yahoo Finance", frozenset({"date", "adj_close"})),
    Layout("yfinance", frozenset({"price"})),
    Layout("CryptoDataDownload", frozenset({"date", "symbol"}), zone="UTC", preamble="cryptodatadownload"),
    Layout("Dukascopy", frozenset({"gmt_time"}), order="dmy"),
    Layout(
        "MetaTrader 5 rates",
        frozenset({"time", "open", "high", "low", "close", "tick_volume"}),
        hint=_BROKER,
        has_local_numbers=True,
    ),
    Layout("TradingView", frozenset({"time", "open", "high", "low", "close"})),
    Layout("Binance spot klines", fields=KLINE),
    Layout("Kraken OHLCVT", fields=("timestamp", *NUMBERS, "trades")),
    Layout("MetaTrader 4", fields=("date", "time", *NUMBERS), first="date", hint=_BROKER),
)
"""The first one that fits counts. A header without any of these names is read by the names of its columns."""

_TIMES = ("timestamp", "open_time", "opentime", "unix", "unix_time", "unix_timestamp", "epoch", "ts", "t", "start_time")
"""The names of an opening time that need no second column; the first that is there counts."""
UTC_TIMES = frozenset({"gmt_time", "utc_time", "time_utc", "date_utc", "dateutc", "datetime_utc", "utc"})
"""The names of times that are in UTC if they have no zone."""
_OTHER_TIMES = (
    *("datetime", "date_time", *sorted(UTC_TIMES), "date", "time"),
    *("__index_level_0__", "index", "", "unnamed:_0", "price"),
)
"""The names of what is an opening time if none of the others is there.

An index of pandas may have no name, and yfinance calls it Price.
"""
_SYMBOLS = ("symbol", "ticker", "pair", "trading_pair", "currency_pair", "instrument")
"""The names of a column of symbols."""
ASSETS = ("name", "coin", "asset")
"""The names of what may be a symbol, or the name of what is traded."""
_MARKETS = (
    *("market", "exchange", "venue", "timeframe", "interval", "currency", "base", "quote", "base_asset", "quote_asset"),
    *("base_currency", "quote_currency", "stock", "company", "security", "product", "product_id", "instrument_id"),
    *("symbol_id", "asset_id", "coin_id", "isin", "code", "ts_code"),
)
"""The names of other columns that have one value in a series."""
_QUOTES = frozenset(
    {"", "usd", "usdt", "usdc", "busd", "fdusd", "tusd", "dai", "eur", "gbp", "jpy", "chf", "aud", "cad", "krw"}
    | {"try", "brl", "btc", "xbt", "eth", "bnb", "usdtusdt", "usdcusdc", "usdtperp", "usdperp", "perp"}
)
"""What is behind the name of what is traded in a symbol, without marks."""
_MIN_SYMBOL = 3
"""Letters by which the beginning of a symbol is known."""
_CLOSING_TIMES = ("close_time", "closetime")
_SHORT = {"o": "open", "h": "high", "l": "low", "c": "close", "v": "volume"}
_BASE_VOLUMES = ("volume", "base_volume", "basevolume", "volume_base", "vol", "v", "tickvol", "tick_volume")
_QUOTE_VOLUMES = frozenset({"volume_currency", "quote_volume", "volume_quote"})


@dataclass(frozen=True)
class Places:
    """The positions of a candle's values in a row."""

    time: tuple[int, ...]
    """One, or those of date and time of day."""
    prices: tuple[int, int, int, int]
    volume: int | None
    """None where there is none, and 0 is stored."""
    symbol: int | None = None
    """A column of symbols."""
    assets: tuple[int, ...] = ()
    """Columns that may be of symbols, or name what is traded."""
    markets: tuple[int, ...] = ()
    """Other columns that have one value in a series."""
    closing_time: int | None = None

    @property
    def same(self) -> tuple[int, ...]:
        """All columns that have one value in a series."""
        return (*(() if self.symbol is None else (self.symbol,)), *self.assets, *self.markets)


class UnusableError(ValueError):
    """What no names of columns mend."""


def find_places(names: Sequence[str], symbols: Sequence[str], *, no_volume: bool) -> Places:
    """Find a candle's values among named columns; `ValueError` says which are missing or ambiguous.

    `symbols` are the names of what is traded, by which the volume in it is told from that in the quote currency.
    """
    known: dict[str, list[int]] = {}
    for place, name in enumerate(map(plain, names)):
        known.setdefault(name, []).append(place)
    for short, name in _SHORT.items():
        if name not in known and short in known:
            known[name] = known[short]
    prices = [name for name in NUMBERS[:4] if name not in known]
    if prices:
        raise ValueError(f"there is no column {', '.join(prices)}")
    open, high, low, close = (_only(known, name) for name in NUMBERS[:4])
    symbol, *others = [*(known[name][0] for name in _SYMBOLS if name in known), None]
    return Places(
        _time(known, names),
        (open, high, low, close),
        None if no_volume else _volume(known, names, symbols),
        symbol,
        tuple(known[name][0] for name in ASSETS if name in known),
        tuple(place for name in _MARKETS for place in known.get(name, ())) + tuple(each for each in others if each),
        next((known[name][0] for name in _CLOSING_TIMES if name in known), None),
    )


def _only(known: dict[str, list[int]], name: str) -> int:
    if len(known[name]) > 1:
        raise ValueError(f"several columns are called {name}")
    return known[name][0]


def _time(known: dict[str, list[int]], names: Sequence[str]) -> tuple[int, ...]:
    for name in _TIMES:
        if name in known:
            return (_only(known, name),)
    if "date" in known and "time" in known:
        return (_only(known, "date"), _only(known, "time"))
    for name in _OTHER_TIMES:
        if name in known:
            return (_only(known, name),)
    for name in _CLOSING_TIMES:
        if name in known:
            raise UnusableError(
                f"its only times, {names[known[name][0]]!r}, are those of the close; write the times of the opening, "
                "which candles are stored under"
            )
    raise ValueError("there is no column of times")


def _volume(known: dict[str, list[int]], names: Sequence[str], symbols: Sequence[str]) -> int:
    by_asset = {
        name.removeprefix("volume_"): places[0]
        for name, places in known.items()
        if name.startswith("volume_") and name not in _QUOTE_VOLUMES | set(_BASE_VOLUMES)
    }
    of_base = [place for asset, place in by_asset.items() if any(_is_base(asset, each) for each in symbols)]
    if len(of_base) == 1:
        return of_base[0]
    for name in _BASE_VOLUMES:
        if name in known:
            return _only(known, name)
    if by_asset:
        shown = " and ".join(repr(names[place]) for place in by_asset.values())
        raise ValueError(f"the volume may be {shown}; what is stored is the volume in what is traded")
    raise ValueError("there is no column of volume; to store 0, give no_volume (--no-volume)")


def _is_base(asset: str, symbol: str) -> bool:
    """Whether an asset is what is traded under a symbol, rather than only how its name begins."""
    whole = _letters(symbol).lower()
    return whole.startswith(asset) and (
        whole.removeprefix(asset) in _QUOTES or re.split(r"\W|_", symbol)[0].lower() == asset
    )


def fits_symbol(given: str, symbol: str) -> bool | None:
    """Whether the symbol of a file is a spelling of that of a series; None if one is only how the other begins.

    Letters and digits are compared, without what stands before or behind a point, colon or ``=``, such as the name of
    an exchange.
    """
    one, other = _letters(given), _letters(symbol)
    if one in _spellings(symbol) or other in _spellings(given):
        return True
    shorter, longer = sorted((one, other), key=len)
    return None if len(shorter) >= _MIN_SYMBOL and longer.startswith(shorter) else False


def _spellings(symbol: str) -> set[str]:
    return {_letters(symbol), *filter(None, map(_letters, re.split("[.:=]", symbol)))}


def _letters(symbol: str) -> str:
    """Return the letters and digits of a symbol."""
    return re.sub("^XBT", "BTC", "".join(filter(str.isalnum, symbol.upper())))
