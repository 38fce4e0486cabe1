"""``agegen cache``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agegen.cli.app import DATA, add_command, make_output_console
from agegen.options import CacheDirOption
from agegen.render.tables import PlainTable, format_size, render_table

if TYPE_CHECKING:
    from agegen.batches.cache_folder import CacheEntry


@add_command("cache", "agegen cache --clear", DATA)
def cache(
    cache_dir: CacheDirOption = None,
    clear: Annotated[bool, typer.Option("--clear", help="Delete all cached features.")] = False,
) -> None:
    """List or clear cached features of frozen backbones."""
    from agegen.batches.cache_folder import choose_cache_dir, clear_cache, list_cache

    root = choose_cache_dir(cache_dir)
    output = make_output_console()
    if clear:
        output.print(f"{format_size(clear_cache(root))} freed in {root}", soft_wrap=True)
        return
    entries = list_cache(root)
    output.print(render_table(make_cache_table(entries)))
    total = format_size(sum(entry.size for entry in entries))
    output.print(f"{total} in {root}", soft_wrap=True)


def make_cache_table(entries: list[CacheEntry]) -> PlainTable:
    """Return one row per set of cached features."""
    rows = [
        [entry.key, entry.identity, f"{entry.faces:,}", str(entry.views), format_size(entry.size)] for entry in entries
    ]
    return PlainTable("", ["key", "base", "faces", "views", "size"], rows, left=2)
