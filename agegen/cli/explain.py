"""``agegen explain``."""

from __future__ import annotations

from agegen.cli.app import USE, add_command, make_notice_console, make_output_console, show_work, write_output
from agegen.options import JsonOption, with_options
from agegen.predict.config import ExplainConfig


@add_command("explain", "agegen explain face.jpg -o map.png", USE)
@with_options(ExplainConfig)
def explain(config: ExplainConfig, *, json_out: JsonOption = None) -> None:
    """Show which image regions drive the age and gender estimates."""
    notices = make_notice_console()
    with show_work(notices):
        from agegen.files import format_json
        from agegen.predict.explain import explain_face

    with show_work(notices, "computing the maps"):
        explanation = explain_face(config)
    if json_out:
        write_output(json_out, format_json({**explanation.to_json(), "figure": str(config.out)}))
    if json_out == "-":
        return
    found = explanation.face
    ages = "no age: the model was trained without ages"
    if found.age is not None:
        ages = f"{found.age:.1f} years, {found.age_low:.0f}–{found.age_high:.0f}"
    output = make_output_console()
    output.print(f"{ages}; {found.gender}, P(female) {found.p_female:.2f}")
    for remark in explanation.remarks:
        output.print(remark, soft_wrap=True)
    output.print(str(config.out), soft_wrap=True)
