"""``agegen split``."""

from __future__ import annotations

from agegen.cli.app import DATA, add_command, make_notice_console, make_output_console, show_work
from agegen.datatools.config import SplitConfig
from agegen.options import with_options


@add_command("split", "agegen split data/utkface -o split.csv", DATA)
@with_options(SplitConfig)
def split(config: SplitConfig) -> None:
    """Write a leak-free split of a dataset, for --split-file."""
    notices = make_notice_console()
    with show_work(notices):
        from agegen.datatools.split import write_data_split
        from agegen.render.progress import ProgressDisplay, show_exclusions, show_notices

    with ProgressDisplay(notices) as progress:
        result = write_data_split(config, progress)
    show_notices(notices, result.notices)
    show_exclusions(notices, list(result.excluded))
    counts = ", ".join(f"{count:,} {name}" for name, count in result.counts.items())
    output = make_output_console()
    output.print(
        f"{counts}; faces that share a group: {result.doubles:,}, groups that span several splits: {result.leaks:,}"
    )
    output.print(f"fingerprint {result.fingerprint}", soft_wrap=True)
    output.print(str(config.out), soft_wrap=True)
