"""``agegen help``: pages for what a command's ``--help`` has no room for, and the reference of all commands."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from agegen.cli.app import EXTEND, add_command, app, make_output_console
from agegen.errors import AgegenError

_FOLDER = Path(__file__).parent / "topics"
# Written by `agegen help commands > agegen/cli/topics/commands.md`, so that it can be read where nothing is installed.
COMMANDS = "commands"
_UNIONS = (UnionType, Union)


@add_command("help", "agegen help run-folder", EXTEND)
def show_topic(
    topic: Annotated[
        str | None,
        typer.Argument(
            metavar="TOPIC",
            help="The page to show. Default: list the topics.",
            autocompletion=lambda: list(find_pages()),
        ),
    ] = None,
) -> None:
    """Show a page on a topic, such as run-folder, json or plugins."""
    pages = find_pages()
    output = make_output_console()
    if topic is None:
        lines = [f"{name:<12} {path.read_text(encoding='utf-8').splitlines()[0][2:]}" for name, path in pages.items()]
        output.print("\n".join(["agegen help TOPIC shows one of these pages:", *lines]))
        return
    if topic not in pages:
        raise AgegenError(f"unknown topic '{topic}'. Choose one of {', '.join(pages)}.")
    text = format_reference() if topic == COMMANDS else pages[topic].read_text(encoding="utf-8")
    if output.is_terminal:
        from rich.markdown import Markdown

        output.print(Markdown(text))
    else:
        typer.echo(text, nl=False)


def find_pages() -> dict[str, Path]:
    """Return the files of all topics by their names."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.md"))}


def format_reference() -> str:
    """Return the reference of all commands and options as Markdown, generated from the command line itself."""
    commands = list(list_commands())
    lines = ["# Commands and options", "", "Generated from the code: `agegen help commands`.", ""]
    lines += [f"- [{name}](#{name.replace(' ', '-')})" for name, _ in commands]
    for name, command in commands:
        lines += ["", f"## {name}", "", *_describe_command(name, command)]
    return "\n".join(lines) + "\n"


def list_commands() -> Iterator[tuple[str, Any]]:
    """Yield each command with its whole name, in the order of ``--help``."""
    yield from _walk("agegen", typer.main.get_command(app))


def _walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
        return
    for child in command.list_commands(typer.Context(command)):
        yield from _walk(f"{name} {child}", command.commands[child])


def _describe_command(name: str, command: Any) -> Iterator[str]:
    kinds = inspect.signature(command.callback, eval_str=True).parameters
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [parameter for parameter in shown if parameter.param_type_name == "argument"]
    values = {parameter.name: _format_value(parameter, kinds[parameter.name].annotation) for parameter in shown}
    yield f"`{' '.join([name, *(values[argument.name] for argument in arguments), '[OPTIONS]'])}`"
    yield from ("", command.help or "")
    if arguments:
        yield ""
        yield from (f"- `{values[argument.name]}`: {argument.help}" for argument in arguments)
    panels: dict[str, list[Any]] = {}
    for parameter in shown:
        if parameter.param_type_name == "option":
            panels.setdefault(parameter.rich_help_panel or "Options", []).append(parameter)
    for panel, options in panels.items():
        yield from ("", f"**{panel}**", "")
        yield from (_describe_option(option, values[option.name]) for option in options)
    if command.epilog:
        yield from ("", "```sh", command.epilog.removeprefix("Example: "), "```")


def _describe_option(option: Any, value: str) -> str:
    flags = "/".join([", ".join(option.opts), *option.secondary_opts])
    text = option.help or ""
    default = option.show_default if isinstance(option.show_default, str) else option.default
    if isinstance(default, str | int | float | Path) and default is not False and "Default:" not in text:
        text += f" Default: {default}."
    return f"- `{flags}{'' if option.is_flag else f' {value}'}`: {text}"


def _format_value(parameter: Any, kind: Any) -> str:
    """Return what stands for a parameter's value: its metavar, its choices, or its type."""
    if parameter.metavar:
        return str(parameter.metavar)
    kind, *_ = get_args(kind)  # of Annotated
    if get_origin(kind) in _UNIONS:
        kind = next(part for part in get_args(kind) if part is not NoneType)
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    return {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(kind, "TEXT")
