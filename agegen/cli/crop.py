"""``agegen data crop``."""

from __future__ import annotations

from agegen.cli.app import add_command, data_app, make_notice_console, make_output_console, show_work
from agegen.datatools.config import CropConfig
from agegen.errors import format_count
from agegen.options import with_options


@add_command("crop", "agegen data crop photos.csv crops/", group=data_app)
@with_options(CropConfig)
def crop(config: CropConfig) -> None:
    """Cut the labelled faces out of photos, aligned.

    Of each photo this is the largest face, or those in the table's bounding boxes.
    """
    notices = make_notice_console()
    with show_work(notices):
        from agegen.datatools.crop import crop_data
        from agegen.render.progress import ProgressDisplay, show_exclusions, show_notices

    try:
        with ProgressDisplay(notices) as progress:
            result = crop_data(config, progress)
    except KeyboardInterrupt:
        notices.print("to continue, repeat the command")
        raise
    if result.resumed:
        show_notices(notices, (f"finished by an earlier call: {format_count(result.resumed, 'face')}",))
    show_exclusions(notices, result.excluded)
    make_output_console().print(f"{format_count(result.crops, 'crop')}; {result.manifest}", soft_wrap=True)
