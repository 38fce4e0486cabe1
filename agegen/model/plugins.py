"""Backbone plugins, found through entry points; nothing is imported until it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from agegen.entry_points import Entry, list_entries, load_entry, name_cause
from agegen.errors import AgegenError, PluginError

if TYPE_CHECKING:
    from agegen.backbone import Backbone

GROUP = "agegen.backbones"


@dataclass(frozen=True)
class Plugin:
    """One entry point of the group ``agegen.backbones``.

    ``taken_by`` names the distribution that owns the name, where this one came second. ``argument`` is what was asked
    for behind the name, which then stands in ``name`` too: ``timm:resnet18``.
    """

    name: str
    distribution: str
    version: str
    entry_point: EntryPoint
    taken_by: str | None = None
    argument: str = ""

    @property
    def source(self) -> str:
        """The distribution and its version, as errors name them."""
        return f"{self.distribution} {self.version}"


def list_plugins() -> list[Plugin]:
    """Return every registered backbone, sorted by name, without importing one.

    agegen owns the names that it ships; any other name belongs to the alphabetically first
    distribution that registers it. Later claims are listed too, with ``taken_by`` set.
    """
    owners: dict[str, Entry] = {}
    plugins = []
    for entry in list_entries(GROUP):
        owner = owners.setdefault(entry.name, entry)
        taken_by = None if owner is entry else owner.source
        plugins.append(Plugin(entry.name, entry.distribution, entry.version, entry.point, taken_by=taken_by))
    return plugins


def find_plugin(name: str) -> Plugin:
    """Return the plugin called ``name``; ``name@distribution`` asks for one distribution's claim.

    ``name:argument`` is for those that take one.

    Raises:
        PluginError: there is none, or the name is taken by another distribution.
    """
    called, colon, argument = name.partition(":")
    short, _, distribution = called.partition("@")
    plugins = list_plugins()
    for plugin in plugins:
        if plugin.name == short and distribution in ("", plugin.distribution):
            if plugin.taken_by:
                raise PluginError(
                    f"backbone '{short}' of {plugin.source}: the name is taken by {plugin.taken_by}; "
                    "uninstall one of the two"
                )
            return replace(plugin, name=f"{short}{colon}{argument}", argument=argument)
    known = ", ".join(dict.fromkeys(plugin.name for plugin in plugins)) or "none"
    raise PluginError(f"no backbone is called '{name}'; installed: {known} (see `agegen models`)")


def load_plugin(plugin: Plugin) -> type[Backbone]:
    """Import a plugin and return its backbone class.

    Raises:
        PluginError: the import fails, or what it gives is no ``Backbone`` with a whole contract.
    """
    from agegen.backbone import Backbone, find_contract_gap

    loaded = load_entry("backbone", Entry(plugin.name, plugin.distribution, plugin.version, plugin.entry_point))
    if not (isinstance(loaded, type) and issubclass(loaded, Backbone)):
        raise PluginError(
            f"backbone '{plugin.name}' of {plugin.source}: {plugin.entry_point.value} is no subclass of "
            "agegen.backbone.Backbone"
        )
    # What depends on the argument is known once it is built.
    if not loaded.argument_name and (gap := find_contract_gap(loaded)):
        raise PluginError(f"backbone '{plugin.name}' of {plugin.source}: {gap}")
    return loaded


def load_backbone(name: str) -> tuple[Plugin, type[Backbone]]:
    """Find and import the backbone called ``name``; raises as :func:`find_plugin` and :func:`load_plugin`."""
    plugin = find_plugin(name)
    return plugin, load_plugin(plugin)


def build_backbone(
    plugin: Plugin,
    backbone_class: type[Backbone],
    *,
    pretrained: bool = True,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Backbone:
    """Build a plugin's backbone, with its argument where it takes one.

    Args:
        plugin: whose backbone it is.
        backbone_class: what its entry point gives.
        pretrained: whether weights that it brings are wanted.
        options: further keywords: ``image_size``, ``freeze``.

    Raises:
        PluginError: the constructor fails, takes no such option, or what it builds breaks the contract; the error
            names the plugin, its distribution and version.
    """
    from agegen.backbone import find_contract_gap

    called = f"backbone '{plugin.name}' of {plugin.source}"
    factory = _choose_factory(called, plugin, backbone_class)
    taken = signature(factory).parameters
    if missing := [name for name in options if name not in taken]:
        raise PluginError(f"{called} has no --{missing[0].replace('_', '-')}")
    try:
        backbone = factory(pretrained=pretrained, **options)
    except AgegenError as error:
        raise PluginError(f"{called}: {error}") from error
    except Exception as error:  # a stranger's constructor may raise anything
        raise PluginError(f"{called} can't be built: {name_cause(error)}") from error
    if gap := find_contract_gap(backbone):
        raise PluginError(f"{called}: {gap}")
    backbone.build_options = dict(options)
    return backbone


def _choose_factory(called: str, plugin: Plugin, backbone_class: type[Backbone]) -> Callable[..., Backbone]:
    """Return what builds the backbone: its constructor, or ``from_argument`` with the argument."""
    wanted = backbone_class.argument_name
    if plugin.argument and not wanted:
        raise PluginError(f"{called} takes no argument; leave ':{plugin.argument}' out")
    if wanted and not plugin.argument:
        raise PluginError(f"{called} needs an argument: --model {plugin.name.rstrip(':')}:{wanted}")
    return partial(backbone_class.from_argument, plugin.argument) if wanted else backbone_class


def find_module(plugin: Plugin) -> ModuleSpec | None:
    """Return where a plugin's module lies, without importing it; None where there is none."""
    try:
        return find_spec(plugin.entry_point.module)
    except (Exception, SystemExit):  # looking into a package imports it, and a stranger's may raise anything
        return None


def locate_file(plugin: Plugin, name: str) -> Path | None:
    """Return a file in the folder of a plugin's package, without importing it; None where it isn't there."""
    spec = find_module(plugin)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder, name)).is_file():
            return path
    return None
