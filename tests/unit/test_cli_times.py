"""Times on the command line."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from backtest_persist import InvalidKeyError
from backtest_persist.cli.candles.times import parse_instant, parse_length, parse_period, shown_time


def test_an_instant_is_a_date_in_utc_a_time_with_its_zone_or_ms() -> None:
    """Anything else is refused, a time without a zone with what to write."""
    assert parse_period(None, "2024-05-01") == (None, datetime(2024, 5, 1, tzinfo=UTC))
    assert parse_instant("2024-05-01", "--since") == datetime(2024, 5, 1, tzinfo=UTC)
    assert parse_instant("20240501", "--since") == datetime(2024, 5, 1, tzinfo=UTC)
    assert parse_instant("2024-05-01T12:00Z", "--since") == datetime(2024, 5, 1, 12, tzinfo=UTC)
    offset = timezone(timedelta(hours=2))
    assert parse_instant("2024-05-01 12:00+02:00", "--since") == datetime(2024, 5, 1, 12, tzinfo=offset)
    assert parse_instant("1704067200000", "--since") == 1_704_067_200_000
    assert parse_instant("-1704067200000", "--since") == -1_704_067_200_000
    for text, ago in (("30d", timedelta(days=30)), ("12h", timedelta(hours=12)), ("2w", timedelta(weeks=2))):
        found = parse_instant(text, "--since")
        assert isinstance(found, datetime)
        assert timedelta() <= datetime.now(UTC) - ago - found < timedelta(minutes=5)
    with pytest.raises(InvalidKeyError, match=r"--until is a time without a zone; for UTC write 2024-05-01T12:00Z\."):
        parse_instant("2024-05-01 12:00", "--until")
    for text in ("", "yesterday", "2024-13-01", "1.5", "30", "1.5d"):
        with pytest.raises(InvalidKeyError, match="--until must be a time such as 2024-05-01"):
            parse_instant(text, "--until")


def test_a_length_is_hours_and_minutes() -> None:
    """No other text, and none that no session has."""
    found = [parse_length(text, "--session-length") for text in ("6h30m", "24h", "90m", "168h")]
    assert [length / timedelta(minutes=1) for length in found] == [390, 1440, 90, 10_080]
    for text in ("", "-1h", "1", "1d", "6h30", "6:30", "0h", "0m", "99999999999999h"):
        with pytest.raises(InvalidKeyError, match="--session-length must be hours and minutes, such as 6h30m or 24h"):
            parse_length(text, "--session-length")


def test_a_time_is_shown_in_utc_as_exactly_as_it_has_to_be() -> None:
    """Seconds and ms only where there are some; what no calendar has in ms."""
    assert shown_time(1_704_067_200_000) == "2024-01-01 00:00"
    assert shown_time(1_704_067_201_000) == "2024-01-01 00:00:01"
    assert shown_time(1_704_067_200_001) == "2024-01-01 00:00:00.001"
    assert shown_time(-(10**15)) == "-1000000000000000"
