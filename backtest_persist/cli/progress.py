"""The progress bar of long commands, on standard error: standard output is the report alone."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ("Bar", "show_progress")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} {task.fields['unit']}/s" if task.speed else "", style="progress.data.speed")


def show_progress(description: str) -> Progress:
    """Return a display for one `Bar`."""
    return Progress(
        TextColumn(description),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(stderr=True),
    )


class Bar:
    """Shows the progress of an operation, counted in named units."""

    def __init__(self, progress: Progress, unit: str) -> None:
        self.progress = progress
        self.task = progress.add_task("", total=None, unit=unit)

    def begin(self, total: int) -> None:
        """Set the number of units of the whole operation."""
        self.progress.update(self.task, total=total)

    def advance(self, done: int) -> None:
        """Add to the number of units that are done."""
        self.progress.advance(self.task, done)
