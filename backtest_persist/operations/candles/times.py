"""Opening times in files of candles: numbers since the epoch in any unit, dates, and local times of a zone."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

from backtest_persist.core.instants import MAX_SECONDS, MIN_MICROSECONDS, MIN_NANOSECONDS
from backtest_persist.errors import InvalidKeyError

__all__ = ("EPOCH", "MS", "UNIT_NAMES", "DateOrder", "Form", "Times", "Unit", "elapsed_ms", "find_form", "parse_zone")

Number = int | float | Decimal
Unit = Literal["s", "ms", "us", "ns"]
DateOrder = Literal["dmy", "mdy"]

EPOCH = datetime.fromtimestamp(0, UTC)
MS = timedelta(milliseconds=1)
UNIT_NAMES: dict[Unit, str] = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_PER_UNIT: dict[Unit, tuple[int, int]] = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000), "ns": (1, 1_000_000)}
"""What a number is multiplied and divided by to be in ms."""
_BOUNDS: tuple[tuple[int, Unit], ...] = (
    (MAX_SECONDS, "s"),
    (MIN_MICROSECONDS, "ms"),
    (MIN_NANOSECONDS, "us"),
    (1000 * MIN_NANOSECONDS, "ns"),
)
"""The units of numbers below these: each means 1973 to 5138 in its unit."""
_MAX_NUMBER = 100
"""Characters of a number."""

_NUMBER = re.compile(r"-?\d+(?:\.\d*)?(?:[eE]\+?\d+)?", re.ASCII)
_COMPACT = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:\d{6})?", re.ASCII)
_TEXT = re.compile(
    r"(?:(?P<year>\d{4})(?P<mark>[-./])(?P<month>\d{1,2})(?P=mark)(?P<day>\d{1,2})"
    r"|(?P<year2>\d{4})(?P<month2>\d\d)(?P<day2>\d\d)"
    r"|(?P<one>\d{1,2})[-./](?P<two>\d{1,2})[-./](?P<year3>\d{4}))"
    r"(?:[T ,;]*(?P<hour>\d{1,2})(?::?(?P<minute>\d\d)(?::?(?P<second>\d\d)(?:[.,](?P<part>\d{1,9}))?)?)?"
    r"[ -]?(?P<half>[AaPp][Mm])?)?"
    r" ?(?P<zone>Z|z|UTC|GMT|[+-]\d\d(?::?\d\d)?)?",
    re.ASCII,
)
_FINE = re.compile(r"(?::\d\d|\d{6})[.,]\d{3}\d*[1-9]\d*(?:$| ?[A-Za-z+-])", re.ASCII)
"""The end of a time with part of a ms."""
_OFFSET = re.compile(r"(?:UTC|GMT)?([+-])(\d{1,2})(?::?(\d\d))?", re.ASCII)
_NULLS = frozenset({"", "null", "nan", "none", "n/a", "na", "nat"})


class _Parsed(NamedTuple):
    """A time that was given as text."""

    year: int
    numbers: tuple[int, int]
    """Month and day, unless `is_ordered` says that this is not known."""
    is_ordered: bool
    at: time | None
    zone: str | None


@dataclass
class Form:
    """The form of the times of a file, as a sample of them shows."""

    unit: Unit | None = None
    """That of most numbers since the epoch."""
    number: Number | None = None
    """One of them."""
    naive: str | None = None
    """A time of day without a zone."""
    zoned: str | None = None
    """A time with its zone."""
    is_unordered: bool = False
    """Whether there are dates that do not begin with the year."""
    undecided: str | None = None
    """One of them whose day and month can be exchanged."""
    orders: set[DateOrder] = field(default_factory=set[DateOrder])
    """The orders of day and month in those that cannot be read otherwise."""
    day: str | None = None
    """A day without a time of day."""


def parse_zone(name: str) -> tzinfo:
    """Return the zone of that name, such as America/New_York, or of an offset such as +02:00."""
    found = _OFFSET.fullmatch(name)
    if found is not None:
        offset = timedelta(hours=int(found[2]), minutes=int(found[3] or 0))
        if offset < timedelta(days=1):
            return timezone(-offset if found[1] == "-" else offset)
    if name.upper() in ("UTC", "GMT", "Z"):
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        raise InvalidKeyError(
            "tz must be the name of a time zone, such as UTC or America/New_York, or an offset such as +02:00, not "
            f"{name!r:.40}."
        ) from None


def find_form(values: Iterable[Any]) -> Form:
    """Tell the form of times by those of a sample, each of one column or joined of two."""
    form = Form()
    units: dict[Unit, int] = {}
    for given in values:
        value = _as_text(given) if type(given) is int else given
        number = _to_number(value)
        if number is not None:
            form.number = number
            unit = _likely_unit(number)
            if unit is not None:
                units[unit] = units.get(unit, 0) + 1
        elif isinstance(value, datetime):
            if value.utcoffset() is not None:
                form.zoned = form.zoned or str(value)
            elif value.time() == time():
                form.day = form.day or str(value)
            else:
                form.naive = form.naive or str(value)
        elif isinstance(value, date):
            form.day = form.day or str(value)
        elif isinstance(value, str) and (parsed := _parse(value)) is not None:
            _add(form, value, parsed)
    if units:
        form.unit = max(units, key=units.__getitem__)
    return form


def _add(form: Form, value: str, parsed: _Parsed) -> None:
    if not parsed.is_ordered:
        form.is_unordered = True
        one, two = parsed.numbers
        if one > 12 >= two:
            form.orders.add("dmy")
        elif two > 12 >= one:
            form.orders.add("mdy")
        elif one != two:
            form.undecided = form.undecided or value
    if parsed.zone is not None:
        form.zoned = form.zoned or value
    elif parsed.at is None or parsed.at == time():
        form.day = form.day or value
    else:
        form.naive = form.naive or value


class Times:
    """Reads the opening times of rows.

    `places` are the positions of the time in a row, or of date and time of day. `daily` says that a day without a time
    of day is that UTC day, in any zone. With `sessions`, a session that is named by the midnight of its zone, as by
    yfinance, opens no earlier than 00:00 UTC of that date: in the east that midnight is on the day before.
    `column_zone` is the zone of ints in ms. With `has_local_numbers`, numbers count local time.
    """

    def __init__(
        self,
        places: Sequence[int],
        *,
        unit: Unit | None,
        is_certain: bool = False,
        zone: tzinfo | None = None,
        order: DateOrder | None = None,
        daily: bool = False,
        in_ms: bool = False,
        sessions: bool = False,
        column_zone: tzinfo | None = None,
        has_local_numbers: bool = False,
    ) -> None:
        self._place, *others = places
        self._second = others[0] if others else None
        self._unit: Unit | None = unit
        self._is_certain, self._in_ms = is_certain, in_ms
        self._zone, self._order, self._daily = zone, order, daily
        self._sessions, self._column_zone = sessions, column_zone
        self._has_local_numbers = has_local_numbers
        self._offsets: dict[date, timedelta | None] = {}
        self.units: dict[Unit, int] = {}
        """The line from which on there are numbers of a unit."""

    def joined(self, row: Sequence[Any]) -> Any:
        """Return the time as it is given, joined if it is in two columns."""
        value = row[self._place]
        if self._has_local_numbers:
            return _local_time(value)
        return value if self._second is None else f"{value} {_time_of_day(row[self._second])}"

    def read(self, row: Sequence[Any], line: int) -> int | datetime:
        """Return an opening time in ms, or as a datetime where an int could be misread; `ValueError` says why not."""
        value = self.joined(row)
        if type(value) is int:
            if self._in_ms:
                if self._sessions and self._column_zone is not None:
                    return self._of_datetime((EPOCH + value * MS).astimezone(self._column_zone))
                return _certain(value)
            value = _as_text(value)
        number = _to_number(value)
        if number is not None:
            return self._of_number(number, line)
        if isinstance(value, str):
            return self._of_text(value)
        if isinstance(value, datetime):
            return self._of_datetime(value)
        if isinstance(value, date):
            return self._of_datetime(datetime.combine(value, time()))
        raise ValueError("it has no time" if value is None else f"its time is of type {type(value).__name__}")

    def _of_number(self, number: Number, line: int) -> int | datetime:
        unit = self._unit if self._is_certain and self._unit else self._unit_of(number)
        self.units.setdefault(unit, line)
        factor, divisor = _PER_UNIT[unit]
        millis, rest = divmod(number * factor, divisor)
        if rest:
            raise _part_of_ms(number)
        return _certain(int(millis))

    def _unit_of(self, number: Number) -> Unit:
        """Return the unit of a number: a finer one than that of the sample, where a file changes it, is certain."""
        usual, found = self._unit, _likely_unit(number)
        if usual == "s" and found is None:
            return usual  # before March 1973
        if found is None or usual is None or (found == "s" and usual != "s"):
            problem = "near 1970" if usual is None else f"not in {UNIT_NAMES[usual]}, as those of the other rows are"
            raise ValueError(f"its time {number} is {problem}")
        return found

    def _of_text(self, value: str) -> int | datetime:
        if _FINE.search(value):
            raise _part_of_ms(value)
        if value[4:5] == "-":
            try:
                return self._of_datetime(datetime.fromisoformat(value))
            except ValueError:  # among others, of a time without a zone
                pass
        parsed = _parse(value)
        if parsed is None:
            null = value.strip().lower() in _NULLS
            raise ValueError("it has no time" if null else f"its time {value!r:.40} is in no known form")
        month, day = parsed.numbers
        if not parsed.is_ordered and self._order == "dmy":
            month, day = day, month
        try:
            moment = datetime.combine(date(parsed.year, month, day), parsed.at or time())
        except ValueError as error:
            raise ValueError(f"its time {value!r:.40} does not exist: {error}") from None
        if parsed.zone is not None:
            moment = moment.replace(tzinfo=parse_zone(parsed.zone))
        return self._of_datetime(moment)

    def _of_datetime(self, moment: datetime) -> int | datetime:
        if moment != moment:
            raise ValueError("it has no time")
        given = moment.utcoffset()
        if given is not None:
            return self._of_local(moment.replace(tzinfo=UTC), given)
        if self._daily and moment.time() == time():
            return _to_ms(moment.replace(tzinfo=UTC))
        if self._zone is None:
            raise ValueError(f"its time {moment} has no zone")
        day = moment.date()
        if day not in self._offsets:
            self._offsets[day] = _offset_of_day(day, self._zone)
        offset = self._offsets[day]
        if offset is None:
            offset = _offset_at(moment, self._zone)
        return self._of_local(moment.replace(tzinfo=UTC), offset)

    def _of_local(self, local: datetime, offset: timedelta) -> int | datetime:
        """Return the opening time, of a session that is named by its midnight none on an earlier UTC day."""
        opening = local - offset
        return _to_ms(max(opening, local) if self._sessions and local.time() == time() else opening)


def elapsed_ms(opening: Any, closing: Any) -> float | None:
    """Return the ms between two times of a row; None if that is not certain."""
    numbers = _to_number(opening), _to_number(closing)
    if numbers != (None, None):
        one, other = (None if number is None else _approximate_ms(number) for number in numbers)
        return None if one is None or other is None else other - one
    moments = _to_moment(opening), _to_moment(closing)
    if moments[0] is None or moments[1] is None:
        return None
    return (moments[1] - moments[0]) / MS


def _approximate_ms(number: Number) -> float | None:
    unit = _likely_unit(number)
    if unit is None:
        return None
    factor, divisor = _PER_UNIT[unit]
    return float(number) * factor / divisor


def _to_moment(value: Any) -> datetime | None:
    """Return a time as it is shown, without its zone; None if it is in no form that is certain."""
    if isinstance(value, datetime):
        return None if value != value else value.replace(tzinfo=None)
    parsed = _parse(value) if isinstance(value, str) else None
    if parsed is None or not parsed.is_ordered:
        return None
    try:
        return datetime.combine(date(parsed.year, *parsed.numbers), parsed.at or time())
    except ValueError:
        return None


def _local_time(value: Any) -> Any:
    """Return a number as the local time that it counts, and others as they are."""
    number = _to_number(value)
    ms = None if number is None else _approximate_ms(number)
    try:
        return value if ms is None else datetime(1970, 1, 1) + ms * MS
    except OverflowError:
        return value


def _as_text(number: int) -> int | str:
    """Return the digits of a date, such as 20240102, which is no number since the epoch."""
    return str(number) if 19_000_000 < number < 21_000_000 and _COMPACT.fullmatch(str(number)) else number


def _to_number(value: Any) -> Number | None:
    if isinstance(value, str):
        if len(value) > _MAX_NUMBER or _NUMBER.fullmatch(value := value.strip()) is None or _COMPACT.fullmatch(value):
            return None
        return int(value) if "." not in value and "e" not in value.lower() else float(value)
    return value if isinstance(value, Number) and not isinstance(value, bool) and value == value else None


def _likely_unit(number: Number) -> Unit | None:
    """Return the unit in which a number means 1973 to 5138, or the same before 1970; None for one near the epoch."""
    size = abs(number)
    return None if size < 10**8 else next((unit for bound, unit in _BOUNDS if size < bound), None)


def _certain(timestamp: int) -> int | datetime:
    return EPOCH + timestamp * MS if 0 < timestamp < MAX_SECONDS else timestamp


def _to_ms(moment: datetime) -> int | datetime:
    millis, rest = divmod(moment - EPOCH, MS)
    if rest:
        raise _part_of_ms(moment)
    return _certain(millis)


def _part_of_ms(given: Any) -> ValueError:
    return ValueError(f"its time {given!s:.40} is no whole ms")


def _parse(text: str) -> _Parsed | None:
    found = _TEXT.fullmatch(text.strip())
    if found is None:
        return None
    part = found.groupdict()
    at = None
    if part["hour"] is not None:
        hour = int(part["hour"])
        if part["half"] is not None:
            if not 1 <= hour <= 12:
                return None
            hour = hour % 12 + (12 if part["half"].lower() == "pm" else 0)
        fraction = int((part["part"] or "").ljust(6, "0")[:6])
        try:
            at = time(hour, int(part["minute"] or 0), int(part["second"] or 0), fraction)
        except ValueError:
            return None
    if part["one"] is not None:
        return _Parsed(int(part["year3"]), (int(part["one"]), int(part["two"])), False, at, part["zone"])
    year, month, day = (part[name] or part[f"{name}2"] for name in ("year", "month", "day"))
    return _Parsed(int(year), (int(month), int(day)), True, at, part["zone"])


def _time_of_day(value: Any) -> Any:
    """Return a time of day with the zeros at its beginning that a spreadsheet takes away."""
    return value.zfill(6) if isinstance(value, str) and value.isdigit() else value


def _offset_of_day(day: date, zone: tzinfo) -> timedelta | None:
    """Return the offset of a whole day; None if it changes in it."""
    ends = [datetime.combine(day + timedelta(days=days), time(), zone) for days in (0, 1)]
    offsets = {end.replace(fold=fold).utcoffset() for end in ends for fold in (0, 1)}
    return offsets.pop() if len(offsets) == 1 else None


def _offset_at(moment: datetime, zone: tzinfo) -> timedelta:
    """Return the offset of a local time; `ValueError` for one that does not exist, or exists twice."""
    first, second = (moment.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1))
    assert first is not None
    assert second is not None
    if first > second:
        raise ValueError(f"its time {moment} is twice in {zone}: the clock was set back; write it with its offset")
    if first < second:
        raise ValueError(f"its time {moment} does not exist in {zone}: the clock was set forward")
    return first
