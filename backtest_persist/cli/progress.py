"""The progress bar of long commands, on standard error."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ("Bar", "show_progress")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} {task.fields['unit']}/s" if task.speed else "")


def show_progress(verb: str) -> Progress:
    """A display for one `Bar`."""
    return Progress(
        TextColumn(verb),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(stderr=True),
    )


class Bar:
    """Shows how far something is, in units of a name."""

    def __init__(self, bar: Progress, unit: str) -> None:
        self.bar = bar
        self.task = bar.add_task("", total=None, unit=unit)

    def begin(self, total: int) -> None:
        """The number of units to come."""
        self.bar.update(self.task, total=total)

    def advance(self, done: int) -> None:
        """So many more are done."""
        self.bar.advance(self.task, done)
