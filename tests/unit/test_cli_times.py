"""Times on the command line."""

from backtest_persist.cli.candles.times import shown_time


def test_a_time_is_shown_in_utc_as_exactly_as_it_has_to_be() -> None:
    """Seconds and ms only where there are some; what no calendar has in ms."""
    assert shown_time(1_704_067_200_000) == "2024-01-01 00:00"
    assert shown_time(1_704_067_201_000) == "2024-01-01 00:00:01"
    assert shown_time(1_704_067_200_001) == "2024-01-01 00:00:00.001"
    assert shown_time(-(10**15)) == "-1000000000000000"
