"""Detection of the layout of a file of candles, by a sample of its rows; what they leave open is asked for."""

import itertools
import re
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, timedelta, tzinfo
from typing import Any, Literal

from backtest_persist.core.candles.ohlcv import COLUMNS, NUMBERS, Series
from backtest_persist.errors import InvalidKeyError
from backtest_persist.operations.candles.files import CandleFile, Kind
from backtest_persist.operations.candles.layouts import (
    ASSETS,
    KLINE,
    LAYOUTS,
    UTC_TIMES,
    Layout,
    Places,
    UnusableError,
    find_places,
    fits_symbol,
)
from backtest_persist.operations.candles.reading import NULLS, Reading, in_ms, interval_of, other_interval
from backtest_persist.operations.candles.tables import Row, Table, open_table, plain
from backtest_persist.operations.candles.times import (
    EPOCH,
    MS,
    DateOrder,
    Form,
    Times,
    Unit,
    elapsed_ms,
    find_form,
    parse_zone,
)

__all__ = ("Options", "open_reading")

SAMPLE = 1000
"""Rows by which the layout is detected."""
_MINUTE, _DAY = 60_000, 86_400_000
_WITH_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}", re.ASCII)
_ORDERS: dict[DateOrder, str] = {"dmy": "day, month, year", "mdy": "month, day, year"}


@dataclass(frozen=True)
class Options:
    """The answers to what a file leaves open."""

    unit: Unit | None = None
    columns: Sequence[str] | None = None
    tz: str | None = None
    date_order: DateOrder | None = None
    decimal: Literal[".", ","] | None = None
    no_volume: bool = False
    session: timedelta | int | None = None


@contextmanager
def open_reading(file: CandleFile, series: Series, options: Options) -> Generator[Reading]:
    """Open the candles of a file.

    `InvalidPayloadError` for a file that can be read in two ways, which names the option that decides, and for one
    that holds candles of another interval.
    """
    with open_table(file) as table:
        with file.errors():
            sample = list(itertools.islice(table.rows, SAMPLE))
        if not sample:
            raise file.error("it has a header, but no rows" if table.names else "it has no rows")
        width = len(table.names or ()) or Counter(len(row) for _, row in sample).most_common(1)[0][0]
        rows = [row for _, row in sample if len(row) >= width]
        if not rows:
            raise file.error(f"its header names {width} columns, and its rows have {len(sample[0][1])}")
        yield _Detection(file, series, options, table, sample, width, rows).reading()


@dataclass(frozen=True)
class _Detection:
    file: CandleFile
    series: Series
    options: Options
    table: Table
    sample: Sequence[Row]
    width: int
    """How many values a row has."""
    rows: Sequence[Sequence[Any]]
    """The rows of the sample that have so many."""

    def reading(self) -> Reading:
        layout, names = self._layout()
        places = self._places(layout, names)
        numbers = [place for place in (*places.prices, places.volume) if place is not None]
        comma = self._is_comma(numbers)
        times, described = self._times(layout, names, places)
        words = [layout.name, *self._subject(names, places)]
        if self.table.kind is Kind.CSV:
            words.append(f"header in line {self.table.header:,}" if self.table.header else "no header")
        if places.volume is not None and plain(names[places.volume]) not in ("volume", "vol", "v"):
            words.append(f"volume from {names[places.volume]}")
        if places.volume is None:
            words.append("0 as volume")
        if comma:
            words.append("decimal commas")
        if self.options.session is not None:
            words.append("sessions under the day in which they close")
        reading = Reading(
            self.file,
            self.table,
            self.sample,
            self.series,
            [*words, *described],
            names,
            places,
            times,
            comma,
            self.options.session,
            [(place, value) for place in places.same if (value := self._first(place))],
        )
        self._check(reading)
        self._check_closing_times(places)
        times.units.clear()
        return reading

    # --- columns ---

    def _layout(self) -> tuple[Layout, Sequence[str]]:
        """Return the layout and the names of the columns."""
        given, width = self.options.columns, self.width
        if given is not None:
            names = [name.strip() for name in given]
            if len(names) != width:
                raise self.file.error(
                    f"it has {width} columns, and columns (--columns) names {len(names)}; name what is not stored -"
                )
            return Layout("Columns as named"), names
        if self.table.names is not None:
            names = self.table.names
            known = set(map(plain, names))
            layouts = [layout for layout in LAYOUTS if layout.has_header(known, self.table.preamble)]
            if "date" in self.table.in_ms and set(names) == {"date", *NUMBERS}:
                return Layout(f"freqtrade {self.table.kind}"), names
            if not layouts or (self.table.kind is not Kind.CSV and not layouts[0].has_local_numbers):
                return Layout(f"{self.table.kind} with names of columns"), names
            return layouts[0], names
        if self.table.kind is Kind.JSON and width in (len(COLUMNS), len(KLINE)):
            name, fields = ("freqtrade JSON", COLUMNS) if width == len(COLUMNS) else ("Binance klines as JSON", KLINE)
            if self._is_consistent(Layout(name, fields=fields)):
                return Layout(name), fields
        for layout in LAYOUTS:
            if len(layout.fields) == width and self._is_consistent(layout):
                return layout, layout.fields
        raise self.file.error(
            f"its {width} columns have no header, and are in no known layout; name them in their order by columns, "
            "such as --columns timestamp,open,high,low,close,volume, and what is not stored -"
        )

    def _is_consistent(self, layout: Layout) -> bool:
        """Whether nearly all rows of the sample are candles in a layout without header."""
        at = layout.fields.index("open")
        fits, count = 0, 0
        for row in self.rows:
            try:
                open, high, low, close = (float(value) for value in row[at : at + 4])
            except (TypeError, ValueError):
                continue
            if open == high == low == close:
                continue
            count += 1
            fits += low <= open <= high and low <= close <= high
        form = find_form(row[0] for row in self.rows)
        if (form.number is None) != (layout.first == "date") or fits < 0.95 * count:
            return False
        if "trades" in layout.fields:
            return all(str(row[-1]).strip().isdigit() for row in self.rows)
        if "close_time" in layout.fields:
            return find_form(row[layout.fields.index("close_time")] for row in self.rows).unit == form.unit
        return True

    def _places(self, layout: Layout, names: Sequence[str]) -> Places:
        symbols = [self.series.symbol]
        known = {plain(name): place for place, name in enumerate(names)}
        if "symbol" in known:
            symbols.append(self._first(known["symbol"]))
        try:
            places = find_places(names, symbols, no_volume=self.options.no_volume)
        except UnusableError as problem:
            raise self.file.error(str(problem)) from None
        except ValueError as problem:
            shown = ",".join(map(str, names))
            raise self.file.error(
                f"{problem}. Its columns are {shown:.300}; name them by columns (--columns), in their order"
            ) from None
        ticks = known.get("tickvol")
        if ticks is not None and places.volume not in (None, ticks) and self._is_zero(places.volume):
            places = replace(places, volume=ticks)
        return places

    def _first(self, place: int) -> str:
        """Return the first value of a column that has one, or ``""``."""
        values = (str(row[place]).strip() for row in self.rows)
        return next((value for value in values if value.lower() not in NULLS), "")

    def _subject(self, names: Sequence[str], places: Places) -> list[str]:
        """Return in words what the file says that its rows are of, unless that is the symbol of the series.

        `InvalidPayloadError` where it cannot be.
        """
        given = [(names[place], self._first(place)) for place in (places.symbol, *places.assets) if place is not None]
        if self.table.symbol and self.options.columns is None:
            given.insert(0, ("Ticker", self.table.symbol))
        words: list[str] = []
        for name, value in given:
            if not any(map(str.isalnum, value)):
                continue
            fits = fits_symbol(value, self.series.symbol)
            if fits is False and plain(name) not in ASSETS:
                raise self.file.error(
                    f"its {name} is {value!r:.40}, and the series is of {self.series.symbol!r:.40}; give the symbol of "
                    "the file, or name its columns (--columns), with - for this one"
                )
            if not fits:
                words.append(f"{plain(name)} {value!r:.40}")
        return words

    def _is_zero(self, place: int | None) -> bool:
        assert place is not None
        return all(str(row[place]).strip() in ("0", "0.0", "") for row in self.rows)

    def _is_comma(self, places: Sequence[int]) -> bool:
        """Whether decimals follow a comma."""
        if self.options.decimal is not None:
            if not any(isinstance(row[place], str) for row in self.rows for place in places):
                raise self.file.error("decimal (--decimal) is for numbers as text, and it has none")
            return self.options.decimal == ","
        texts = [str(row[place]) for row in self.rows for place in places]
        commas = [text for text in texts if "," in text]
        if not commas:
            return False
        simple = all(_WITH_COMMA.fullmatch(text.strip()) for text in commas)
        if not simple or any("." in text for text in texts):
            raise self.file.error(
                f"its numbers have separators of thousands, such as {commas[0]!r:.40}; save it without them"
            )
        if all(_GROUPED.fullmatch(text.strip()) for text in commas):
            raise self.file.error(
                f"its number {commas[0]!r:.40} can be read in two ways; save it without separators of thousands, or "
                "say decimal (--decimal ,) if these are decimals"
            )
        return True

    # --- times ---

    def _times(self, layout: Layout, names: Sequence[str], places: Places) -> tuple[Times, list[str]]:
        """Return what reads the times, and what it reads in words."""
        daily = self.series.step == _DAY and self.options.session is None
        column_zone = self.table.in_ms.get(names[places.time[0]])
        has_local_numbers = layout.has_local_numbers and column_zone is None
        joined = Times(places.time, unit=None, has_local_numbers=has_local_numbers).joined
        form = find_form(joined(row) for row in self.rows)
        if self.options.unit is not None and column_zone is not None:
            raise self.file.error("unit (--unit) is for times as numbers since 1970, and it has others")
        unit = self._unit(form, places)
        words: list[str] = []
        zone = self.options.tz or layout.zone or ("UTC" if plain(names[places.time[0]]) in UTC_TIMES else None)
        local = form.naive or (None if daily else form.day)
        if local and zone is None:
            if form.naive is None and self.options.session is None:
                raise self.file.error(f"its rows are days, and the interval is {self.series.interval}")
            raise self.file.error(
                f"its times, such as {local!r}, have no time zone.{layout.hint} Say it by tz: --tz UTC, "
                "--tz America/New_York, or an offset such as --tz=+02:00"
            )
        self._check_zone(form, column_zone is not None, is_used=bool(local))
        if local:
            words.append(f"times in {zone}")
        elif form.day:
            words.append("days of UTC")
        if form.zoned:
            words.append("times with their zone")
        order: DateOrder | None = self.options.date_order or layout.order
        if self.options.date_order and not form.is_unordered:
            raise self.file.error(
                "date_order (--date-order) is for dates that begin with the day or the month, and it has none"
            )
        if order and form.orders and order not in form.orders:
            wrong = "day, not the month" if order == "mdy" else "month, not the day"
            raise self.file.error(
                f"its dates begin with the {wrong}, as a row shows; leave out date_order (--date-order)"
            )
        if form.is_unordered:
            order = order or self._order(form, joined)
            words.append(f"dates as {_ORDERS[order]}")
        times = Times(
            places.time,
            unit=unit,
            is_certain=self.options.unit is not None,
            zone=None if zone is None else parse_zone(zone),
            has_local_numbers=has_local_numbers,
            order=order,
            daily=daily,
            in_ms=column_zone is not None,
            sessions=self.options.session is not None,
            column_zone=self._column_zone(column_zone),
        )
        return times, words

    def _column_zone(self, name: str | None) -> tzinfo | None:
        """Return the zone of a column of instants, which only sessions need."""
        if name is None or self.options.session is None:
            return None
        try:
            return parse_zone(name)
        except InvalidKeyError:
            raise self.file.error(
                f"its times are in the zone {name!r:.40}, which is unknown; save it with UTC"
            ) from None

    def _check_zone(self, form: Form, has_instants: bool, *, is_used: bool) -> None:
        """Refuse a zone that would not be used; UTC is what is meant without one."""
        if self.options.tz is None or is_used:
            return
        if form.zoned or has_instants:
            found = "have a zone; leave it out"
        elif parse_zone(self.options.tz) is UTC:
            return
        elif form.number is not None:
            found = "are numbers since 1970, which are in UTC; if these count local time, convert them first"
        else:
            found = (
                "are days, each of which is stored as that day of UTC; leave it out, or say how long a session lasts: "
                "session_length (--session-length 24h)"
            )
        raise self.file.error(f"tz (--tz) is for local times, and its times {found}")

    def _unit(self, form: Form, places: Places) -> Unit | None:
        """Return the unit of times that are numbers; None if there are none."""
        given = self.options.unit
        if form.number is None:
            if given is not None:
                raise self.file.error("unit (--unit) is for times as numbers since 1970, and it has others")
            if not (form.naive or form.zoned or form.day or form.is_unordered):
                shown = self.rows[0][places.time[0]]
                raise self.file.error(f"its times, such as {shown!r:.40}, are in no known form")
        elif given is None and form.unit is None:
            raise self.file.error(
                f"its time {form.number} is near 1970 in every unit; say which: --unit s, ms, us or ns, or name the "
                "columns (--columns) if this is no time"
            )
        return given or form.unit

    def _order(self, form: Form, joined: Any) -> DateOrder:
        """Return the order of day and month, by all rows if those of the sample do not show it."""
        orders = form.orders
        if not orders:
            with open_table(self.file) as table, self.file.errors():
                for _, row in table.rows:
                    if len(row) < self.width:
                        continue
                    found = find_form([joined(row)])
                    form.undecided = form.undecided or found.undecided
                    if orders := found.orders:
                        break
        if len(orders) > 1:
            raise self.file.error("some of its dates begin with the day, others with the month; save it as YYYY-MM-DD")
        if not orders and form.undecided:
            raise self.file.error(
                f"its dates, such as {form.undecided!r}, can begin with the day or the month, and no row shows it; say "
                "date_order: --date-order dmy or --date-order mdy"
            )
        return "mdy" if "mdy" in orders else "dmy"

    # --- the fit ---

    def _check_closing_times(self, places: Places) -> None:
        """Refuse a file whose rows last another interval by their own closing times."""
        opening, closing = places.time[0], places.closing_time
        if closing is None or len(places.time) > 1 or self.options.session is not None:
            return
        lengths = (elapsed_ms(row[opening], row[closing]) for row in self.rows)
        found = Counter("" if length is None else interval_of(length) for length in lengths)
        [(interval, count)] = found.most_common(1)
        if interval not in ("", self.series.interval) and count > len(self.rows) / 2:
            raise self.file.error(
                f"its closing times are {interval} after the opening times, and the interval (--interval) is "
                f"{self.series.interval}"
            )

    def _check(self, reading: Reading) -> None:
        """Refuse a file of which hardly a row is a candle of the series."""
        found: list[int] = []
        problem = ""
        for line, row in self.sample:
            try:
                timestamp = reading.read(line, row)["timestamp"]
            except ValueError as error:
                problem = problem or f"{self.table.noun} {line:,}: {error}"
            else:
                found.append(in_ms(timestamp))
        if not found:
            raise self.file.error(
                f"none of its first {len(self.sample):,} rows can be read as {reading.layout}; {problem}"
            )
        if wrong := other_interval(found, self.series.step):
            raise self.file.error(
                f"its rows are {wrong} apart, and the interval (--interval) is {self.series.interval}"
            )
        off = [at for at in found if at % self.series.step]
        if len(off) <= len(found) // 2:
            return
        if self.series.step == _DAY:
            opening = str(timedelta(milliseconds=off[0] % _DAY))
            raise self.file.error(
                f"its days begin at {opening} UTC, and a candle of 1d is that of a UTC day; say how long a session "
                "lasts, and each is stored under the day in which it closes: session_length (--session-length 6h30m)"
            )
        opening = EPOCH + off[0] * MS
        if any(at % _MINUTE for at in off):
            raise self.file.error(
                f"its times, such as {opening:%H:%M:%S} UTC, are not those at which candles of {self.series.interval} "
                "open; name the column of these by columns (--columns)"
            )
        raise self.file.error(
            f"its candles open at {opening:%H:%M:%S} UTC, among others, and those of {self.series.interval} at "
            f"multiples of {self.series.interval} after 1970-01-01 00:00 UTC; import a shorter interval, and resample "
            "it"
        )
