"""The progress bar of long commands."""

import pytest

from backtest_persist.cli.progress import Bar, show_byte_progress, show_progress


def test_a_bar_is_shown_from_its_beginning_on_with_the_rate_of_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """An operation that is refused before shows none, and what advances by nothing at the end changes no rate."""
    for show in (show_byte_progress, show_progress):
        with show("Importing") as progress:
            Bar(progress, "bytes")
        assert capsys.readouterr().err.strip() == ""
        with show("Importing") as progress:
            bar = Bar(progress, "bytes")
            bar.begin(1000)
            bar.advance(1000)
            bar.advance(0)
        shown = capsys.readouterr().err
        assert "/s" in shown
        assert " 0 bytes/s" not in shown
