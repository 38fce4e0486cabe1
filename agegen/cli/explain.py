"""``agegen explain``."""

from __future__ import annotations

from agegen.cli.app import USE, add_command, make_notice_console, make_output_console, show_work
from agegen.options import with_options
from agegen.predict.config import ExplainConfig


@add_command("explain", "agegen explain face.jpg -o map.png", USE)
@with_options(ExplainConfig)
def explain(config: ExplainConfig) -> None:
    """Show which image regions drive the age and gender estimates."""
    notices = make_notice_console()
    with show_work(notices):
        from agegen.predict.explain import explain_face

    with show_work(notices, "computing the maps"):
        found = explain_face(config).face
    ages = "no age: the model was trained without ages"
    if found.age is not None:
        ages = f"{found.age:.1f} years, {found.age_low:.0f}–{found.age_high:.0f}"
    output = make_output_console()
    output.print(f"{ages}; {found.gender}, P(female) {found.p_female:.2f}")
    output.print(str(config.out), soft_wrap=True)
