"""``backtest-persist migrate``: shows, then drops, the narrow unique indexes of an older release."""

from rich.console import Console
from rich.table import Table

from backtest_persist.container import Container

__all__ = ("migrate",)


async def migrate(*, dry_run: bool = False) -> int:
    """Show and drop the narrow unique indexes of an older release, in the database of the CC_* settings.

    Under them a second exchange (candles) or a second symbol (sessions) could not be stored. No document is touched.
    Make sure that no bot of that release is running on this database: it would recreate them.

    Parameters
    ----------
    dry_run
        Only show what would be dropped.

    """
    console = Console()
    container = Container()
    table = Table("collection", "narrow unique index", title="Indexes of an older release")
    try:
        narrow = [(service, await service.narrow_indexes()) for service in container.db_services]
        for service, names in narrow:
            for name in names:
                table.add_row(service.collection, name)
        if not table.row_count:
            console.print("Nothing to migrate: no narrow unique index is left.")
            return 0
        console.print(table)
        if dry_run:
            console.print("Nothing was dropped (--dry-run).")
            return 0
        dropped = [name for service, names in narrow if names for name in await service.drop_narrow_indexes()]
        await container.wait_for_init()
        console.print(f"Dropped {len(dropped)}; all fifteen unique indexes are in place.")
        return 0
    finally:
        await container.close()
