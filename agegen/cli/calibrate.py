"""``agegen calibrate``."""

from __future__ import annotations

from dataclasses import replace

from agegen.cli.app import TRAIN, add_command, make_notice_console, make_output_console, show_work
from agegen.errors import format_count
from agegen.evaluate.config import CalibrateConfig
from agegen.options import with_options


@add_command("calibrate", "agegen calibrate --data my-faces.csv --out mine.safetensors", TRAIN)
@with_options(CalibrateConfig)
def calibrate(config: CalibrateConfig) -> None:
    """Recalibrate intervals and gender threshold on your own faces.

    The weights do not change; `agegen predict --run FILE.safetensors` uses the calibrated copy.
    """
    notices = make_notice_console()
    with show_work(notices):
        from agegen.evaluate.calibrate import calibrate_model
        from agegen.model.weights import DEFAULT_MODEL
        from agegen.render.progress import ProgressDisplay, show_notices

    if config.run is None and config.model is None:
        config = replace(config, model=DEFAULT_MODEL)
    with ProgressDisplay(notices) as progress:
        result = calibrate_model(config, progress)
    show_notices(notices, result.notices)
    output = make_output_console()
    before = (
        "" if result.before != result.before else f"; before, they covered {100 * result.before:.1f} % of these faces"
    )
    low, high = result.sure
    output.print(
        f"90 % intervals fitted to {format_count(result.faces, 'face')} ({result.calibration.basis}){before}. "
        f"They will cover {100 * low:.0f} % to {100 * high:.0f} % of further faces like these (95 % confidence).",
        soft_wrap=True,
    )
    output.print(f"gender threshold: {result.calibration.min_confidence:.2f}", soft_wrap=True)
    for path in result.written:
        output.print(str(path), soft_wrap=True)
