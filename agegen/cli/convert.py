"""``agegen data convert``."""

from __future__ import annotations

from agegen.cli.app import add_command, data_app, make_notice_console, make_output_console, show_work
from agegen.datatools.config import ConvertConfig
from agegen.errors import format_count
from agegen.options import with_options


@add_command("convert", "agegen data convert fairface utkface faces.parquet --embed", group=data_app)
@with_options(ConvertConfig)
def convert(config: ConvertConfig) -> None:
    """Write labelled datasets as one manifest, OUT.csv or OUT.parquet."""
    notices = make_notice_console()
    with show_work(notices):
        from agegen.datatools.convert import convert_data
        from agegen.render.progress import ProgressDisplay, show_exclusions

    with ProgressDisplay(notices) as progress:
        result = convert_data(config, progress)
    show_exclusions(notices, result.excluded)
    make_output_console().print(f"{format_count(result.rows, 'row')}; {config.out}", soft_wrap=True)
