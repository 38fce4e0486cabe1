"""The house: no import runs upwards, none in a circle, and no command imports a heavy library at its top."""

import ast
from functools import cache
from pathlib import Path

import pytest

import agegen

ROOT = Path(agegen.__file__).parent
# From the ground up. What stands on one floor may not import from each other, unless it is the same wing.
FLOORS = (
    {"errors"},
    {"team"},
    {"hub", "backbone", "files", "machine", "entry_points", "sessions"},
    {"data", "runs"},
    {"model", "faces", "render"},
    {"engines", "batches"},
    {"evaluate", "predict", "export"},
    {
        "train",
        "compare",
        "check",
        "convert",
        "crop",
        "download",
        "explain",
        "split",
        "new_plugin",
        "calibrate",
        "push",
        "serve",
    },
    {"testing", "cli"},
    {"__main__"},
)
HEAVY = {"torch", "timm", "pandas", "albumentations", "matplotlib", "numpy", "cv2", "PIL", "onnxruntime", "onnx"}


def name_module(path):
    parts = ("agegen", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_module(path): path for path in sorted(ROOT.rglob("*.py"))}


def list_imports(tree):
    """Yield the full names of all that a file imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


@cache
def find_imports(module):
    names = set(list_imports(ast.parse(MODULES[module].read_text(encoding="utf-8"))))
    return sorted(name for name in names if name in MODULES and name != module)


def find_floor(wing):
    return next(number for number, wings in enumerate(FLOORS) if wing in wings)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "agegen"])
def test_no_import_runs_upwards(module):
    wing = module.split(".")[1]
    for name in find_imports(module):
        # The package itself is the public face: nothing inside goes through it.
        assert name != "agegen", f"{module} imports agegen itself"
        other = name.split(".")[1]
        higher = find_floor(other) >= find_floor(wing)
        assert other == wing or not higher, f"{module} ({wing}) imports {name}, which stands no lower"


def test_every_wing_has_its_floor():
    wings = {name.split(".")[1] for name in MODULES if name != "agegen"}
    assert wings == set().union(*FLOORS)


def test_no_imports_in_a_circle():
    done, path = set(), []

    def visit(module):
        assert module not in path, " → ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for name in find_imports(module):
            visit(name)
        done.add(path.pop())

    for module in MODULES:
        visit(module)


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("agegen.cli")])
def test_commands_import_no_heavy_library_at_their_top(module):
    """Nor what imports one at its own top, all the way down."""

    def list_top(name):
        body = ast.parse(MODULES[name].read_text(encoding="utf-8")).body
        for node in body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield from list_imports(ast.Module([node], []))

    seen, queue = set(), [module]
    while queue:
        for name in list_top(queue.pop()):
            assert name.split(".")[0] not in HEAVY, f"{module} imports {name} as it starts"
            if name in MODULES and name not in seen:
                seen.add(name)
                queue.append(name)
