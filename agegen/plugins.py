"""Plugins: entry points of installed packages, and the backbones among them, listed without importing them."""

from __future__ import annotations

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

from agegen.errors import AgegenError, PluginError

if TYPE_CHECKING:
    from agegen.backbone import Backbone


OWN_DISTRIBUTION = "agegen"


@dataclass(frozen=True)
class Entry:
    """One entry point: what it is called, and the distribution and version that brought it."""

    name: str
    distribution: str
    version: str
    point: EntryPoint

    @property
    def source(self) -> str:
        """The distribution and its version, as errors name them."""
        return f"{self.distribution} {self.version}"


def list_entries(group: str) -> list[Entry]:
    """Return a group's entry points by name; of one name, agegen's own come first, then by distribution."""
    found = [_describe(point) for point in entry_points(group=group)]
    return sorted(found, key=lambda entry: (entry.name, entry.distribution != OWN_DISTRIBUTION, entry.distribution))


def load_entry(kind: str, entry: Entry) -> Any:
    """Import what an entry point names.

    Raises:
        PluginError: a stranger's package raises, whatever it is; the error names the ``kind``, package and version.
    """
    try:
        return entry.point.load()
    except (Exception, SystemExit) as error:
        raise PluginError(f"{kind} '{entry.name}' of {entry.source} can't be loaded: {name_cause(error)}") from error


def name_cause(error: BaseException) -> str:
    """Return an error's kind and the first line of its text."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _describe(point: EntryPoint) -> Entry:
    # Read once: each look at a distribution's name or version parses all of its metadata.
    metadata = point.dist.metadata if point.dist else {"Name": "unknown", "Version": "?"}
    return Entry(point.name, metadata["Name"], metadata["Version"], point)


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
