"""Plugins: the entry points of installed packages, listed without importing them; backbones are built here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from agegen.errors import AgegenError, PluginError, shorten

if TYPE_CHECKING:
    from agegen.backbone import Backbone

BACKBONE_GROUP = "agegen.backbones"
# The built-in plugins belong to this distribution; it owns their names.
OWN_DISTRIBUTION = "agegen"
# Arguments also come from checkpoints of others, whom they would let choose what is downloaded or read.
_PLAIN_ARGUMENT = re.compile(r"[^\s:/\\]{0,100}")


@dataclass(frozen=True)
class Plugin:
    """An entry point of an installed package: a backbone, a detector, or a dataset layout.

    Attributes:
        name: of the entry point; for a backbone with an argument, both: ``timm:resnet18``.
        distribution: the package that registers it, and ``version`` of that package.
        entry_point: the reference to the object, which is not imported yet.
        taken_by: if the name belongs to another distribution, that distribution and its version.
        argument: the part of a backbone's name after the colon.
    """

    name: str
    distribution: str
    version: str
    entry_point: EntryPoint
    taken_by: str | None = None
    argument: str = ""

    @property
    def source(self) -> str:
        """The distribution and its version, for error messages."""
        return f"{self.distribution} {self.version}"


def list_entry_points(group: str) -> list[Plugin]:
    """Return the plugins of an entry point group, sorted by name; agegen's own precede others of the same name."""
    found = [_read_entry_point(point) for point in entry_points(group=group)]
    return sorted(found, key=lambda plugin: (plugin.name, plugin.distribution != OWN_DISTRIBUTION, plugin.distribution))


def _read_entry_point(point: EntryPoint) -> Plugin:
    # Read the metadata once: every access to a distribution's name or version parses all of it.
    metadata = point.dist.metadata if point.dist else {"Name": "unknown", "Version": "?"}
    return Plugin(point.name, metadata["Name"], metadata["Version"], point)


def load_entry_point(kind: str, plugin: Plugin) -> Any:
    """Import the object that an entry point names; ``kind`` is the word for it in errors, e.g. ``detector``.

    Raises:
        PluginError: the import fails, with any exception; the error names the plugin, its distribution and version.
    """
    try:
        return plugin.entry_point.load()
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{kind} '{plugin.name}' of {plugin.source} cannot be loaded: {format_cause(error)}"
        ) from error


def format_cause(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def list_plugins() -> list[Plugin]:
    """Return every registered backbone, sorted by name, without importing any.

    agegen owns the names of its own backbones. Any other name belongs to the alphabetically first distribution that
    registers it. Later claims are also listed, with ``taken_by`` set.
    """
    owners: dict[str, Plugin] = {}
    plugins = []
    for plugin in list_entry_points(BACKBONE_GROUP):
        owner = owners.setdefault(plugin.name, plugin)
        plugins.append(plugin if owner is plugin else replace(plugin, taken_by=owner.source))
    return plugins


def find_plugin(name: str) -> Plugin:
    """Return the backbone plugin with this name.

    ``NAME@DISTRIBUTION`` selects the claim of one distribution, ``NAME:ARGUMENT`` passes an argument.

    Raises:
        PluginError: no such backbone is installed, its name is taken by another distribution, or the argument is a path
            or an address.
    """
    called, colon, argument = name.partition(":")
    if not is_plain_argument(argument):
        raise PluginError(
            f"invalid backbone '{shorten(name)}': an argument must not be a path or an address. "
            "For networks of other sources, write a plugin (see `agegen help plugins`)."
        )
    short, _, distribution = called.partition("@")
    plugins = list_plugins()
    for plugin in plugins:
        if plugin.name == short and distribution in ("", plugin.distribution):
            if plugin.taken_by:
                raise PluginError(
                    f"backbone '{short}' of {plugin.source}: the name is taken by {plugin.taken_by}. "
                    "Uninstall one of the two."
                )
            return replace(plugin, name=f"{short}{colon}{argument}", argument=argument)
    known = ", ".join(dict.fromkeys(plugin.name for plugin in plugins)) or "none"
    raise PluginError(
        f"unknown backbone '{shorten(name)}'. Installed: {known} (see `agegen models`). "
        "For a network of timm, give timm:NAME."
    )


def is_plain_argument(argument: str) -> bool:
    """Return whether a backbone's argument is a plain word (``resnet18.a1_in1k``), not a path or an address."""
    return _PLAIN_ARGUMENT.fullmatch(argument) is not None


def load_backbone(name: str) -> tuple[Plugin, type[Backbone]]:
    """Find and import a backbone by name; raises as :func:`find_plugin` and :func:`load_plugin` do."""
    plugin = find_plugin(name)
    return plugin, load_plugin(plugin)


def load_plugin(plugin: Plugin) -> type[Backbone]:
    """Import a backbone plugin and return its class.

    Raises:
        PluginError: the import fails, or the object is not a ``Backbone`` with complete declarations.
    """
    from agegen.backbone import Backbone, find_contract_gap

    loaded = load_entry_point("backbone", plugin)
    if not (isinstance(loaded, type) and issubclass(loaded, Backbone)):
        raise PluginError(
            f"backbone '{plugin.name}' of {plugin.source}: {plugin.entry_point.value} is not a subclass of "
            "agegen.backbone.Backbone"
        )
    # Backbones with an argument may set their declarations when they are built.
    if not loaded.argument_name and (gap := find_contract_gap(loaded)):
        raise PluginError(f"backbone '{plugin.name}' of {plugin.source}: {gap}")
    return loaded


def build_backbone(
    plugin: Plugin,
    backbone_class: type[Backbone],
    *,
    pretrained: bool = True,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Backbone:
    """Build the backbone of a plugin, with its argument if it takes one.

    Args:
        plugin: the plugin, with its argument.
        backbone_class: the class that its entry point names.
        pretrained: whether to load pretrained weights, if the backbone has any.
        options: further keyword arguments: ``image_size``, ``freeze``.

    Raises:
        PluginError: the constructor fails or does not accept an option, or the instance violates the contract; the
            error names the plugin, its distribution and version.
    """
    from agegen.backbone import find_contract_gap

    called = f"backbone '{plugin.name}' of {plugin.source}"
    factory = _choose_factory(called, plugin, backbone_class)
    accepted = signature(factory).parameters
    if missing := [name for name in options if name not in accepted]:
        raise PluginError(f"{called} does not support --{missing[0].replace('_', '-')}")
    try:
        backbone = factory(pretrained=pretrained, **options)
        gap = find_contract_gap(backbone)
    except AgegenError as error:
        raise PluginError(f"{called}: {error}") from error
    except (Exception, SystemExit) as error:  # a third-party constructor may raise anything
        raise PluginError(f"{called} cannot be built: {format_cause(error)}") from error
    if gap:
        raise PluginError(f"{called}: {gap}")
    backbone.build_options = dict(options)
    return backbone


def _choose_factory(called: str, plugin: Plugin, backbone_class: type[Backbone]) -> Callable[..., Backbone]:
    """Return the callable that builds the backbone: the class, or ``from_argument`` with the argument."""
    argument_name = backbone_class.argument_name
    if plugin.argument and not argument_name:
        raise PluginError(f"{called} does not take an argument. Remove ':{plugin.argument}'.")
    if argument_name and not plugin.argument:
        raise PluginError(f"{called} requires an argument: --model {plugin.name.rstrip(':')}:{argument_name}")
    return partial(backbone_class.from_argument, plugin.argument) if argument_name else backbone_class


def locate_file(plugin: Plugin, name: str) -> Path | None:
    """Return the path of a file in a plugin's package, without importing the package; None if it does not exist."""
    spec = _find_module(plugin)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder, name)).is_file():
            return path
    return None


def _find_module(plugin: Plugin) -> ModuleSpec | None:
    """Return the spec of a plugin's module without importing it; None if the module cannot be found."""
    try:
        return find_spec(plugin.entry_point.module)
    except (Exception, SystemExit):  # the lookup of a submodule imports its package, which may raise anything
        return None
