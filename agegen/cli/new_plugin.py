"""Write the package of a new backbone: a few files that install, train and pass the contract test."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from agegen.cli.app import app, make_output_console
from agegen.errors import AgegenError
from agegen.files import write_text
from agegen.plugins import list_plugins

# What entry points, distributions and modules all take.
_NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")


@dataclass(frozen=True)
class NewPluginConfig:
    """Options of ``agegen new-plugin``; no ``out`` stands for ``agegen-NAME`` in the current folder."""

    name: str
    out: Path | None = None


def write_plugin(config: NewPluginConfig) -> list[Path]:
    """Write the package and return its files.

    Raises:
        AgegenError: the name is none or taken, or the folder isn't empty.
    """
    name = config.name
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise AgegenError(f"'{name}' is no name for a plugin: letters a–z, digits and hyphens, a letter first")
    if owner := next((plugin for plugin in list_plugins() if plugin.name == name), None):
        raise AgegenError(f"the name '{name}' is taken by {owner.source}; choose another")
    module = f"agegen_{name.replace('-', '_')}"
    folder = config.out or Path(f"agegen-{name}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AgegenError(f"{folder} is not empty; choose another --out")
    files = {
        "pyproject.toml": "pyproject.toml.j2",
        "README.md": "README.md.j2",
        f"{module}/__init__.py": "init.py.j2",
        "tests/test_contract.py": "test_contract.py.j2",
    }
    written = []
    for target, template in files.items():
        path = folder / target
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AgegenError(f"can't make the folder {path.parent}: {error.strerror}") from error
        write_text(path, _render(template, name, module))
        written.append(path)
    return written


def _render(template: str, name: str, module: str) -> str:
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("agegen.cli", "plugin_templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(
        name=name,
        module=module,
        distribution=f"agegen-{name}",
        cls="".join(part.capitalize() for part in re.split("[_-]", name)) + "Backbone",
        agegen=version("agegen"),
    )


@app.command(name="new-plugin")
def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What `agegen train --model NAME` will call it.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder. Default: agegen-NAME.")] = None,
) -> None:
    """Write the package of a backbone of your own: it installs, trains and passes its contract test.

    Example: agegen new-plugin mine
    """

    written = write_plugin(NewPluginConfig(name, out))
    output = make_output_console()
    for path in written:
        output.print(str(path), soft_wrap=True)
    output.print(f'next: pip install -e "{written[0].parent}[test]", pytest {written[0].parent}', soft_wrap=True)
