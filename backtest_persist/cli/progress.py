"""The progress bar of long commands, on standard error: standard output is the report alone."""

from rich import filesize
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

__all__ = ("Bar", "show_byte_progress", "show_progress")


class _Rate(ProgressColumn):
    """The present rate, and that of the whole when it is complete."""

    def render(self, task: Task) -> Text:
        speed = task.completed / task.finished_time if task.finished_time else task.speed
        return Text(self.text(speed, task.fields["unit"]) if speed else "", style="progress.data.speed")

    def text(self, speed: float, unit: str) -> str:
        """Return a rate per second in words."""
        return f"{speed:,.0f} {unit}/s"


class _ByteRate(_Rate):
    def text(self, speed: float, unit: str) -> str:
        del unit
        return f"{filesize.decimal(int(speed))}/s"


def show_progress(description: str) -> Progress:
    """Return a display for one `Bar`."""
    return _progress(description, MofNCompleteColumn(), _Rate())


def show_byte_progress(description: str) -> Progress:
    """Return a display for one `Bar` that counts bytes."""
    return _progress(description, DownloadColumn(), _ByteRate())


def _progress(description: str, count: ProgressColumn, rate: ProgressColumn) -> Progress:
    return Progress(
        TextColumn(description, markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", max_width=30)),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        count,
        rate,
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(stderr=True),
        expand=True,
    )


class Bar:
    """Shows the progress of an operation, counted in named units, from its beginning on."""

    def __init__(self, progress: Progress, unit: str) -> None:
        self.progress = progress
        self.task = progress.add_task("", total=None, unit=unit, visible=False)

    def begin(self, total: int) -> None:
        """Set the number of units of the whole operation."""
        self.progress.update(self.task, total=total, visible=True)

    def advance(self, done: int) -> None:
        """Add to the number of units that are done."""
        self.progress.advance(self.task, done)

    @property
    def share(self) -> float:
        """The part of the operation that is done, from 0 to 1."""
        return self.progress.tasks[self.task].percentage / 100
