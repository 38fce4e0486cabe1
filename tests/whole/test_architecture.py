"""Architecture: no import runs upwards, none in a circle, and no command imports a heavy library at module level."""

import ast
import tomllib
from functools import cache
from pathlib import Path

import pytest

import agegen

ROOT = Path(agegen.__file__).parent
# From the bottom up. A package may import packages of lower layers and its own modules, nothing else.
LAYERS = (
    {"errors", "options"},
    {"distributed", "backbone"},
    {"files", "machine", "hub", "plugins"},
    {"data", "runs"},
    {"model", "faces", "render"},
    {"engines", "batches"},
    {"evaluate", "predict"},
    {"export"},
    {"train", "compare", "datatools", "serve"},
    {"testing", "cli"},
    {"__main__"},
)
HEAVY = {"torch", "timm", "pandas", "albumentations", "matplotlib", "numpy", "cv2", "PIL", "onnxruntime", "onnx"}


def name_module(path):
    parts = ("agegen", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_module(path): path for path in sorted(ROOT.rglob("*.py"))}


def list_imports(tree):
    """Yield the full names of everything that a file imports, at any level."""
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


def find_layer(package):
    return next(number for number, packages in enumerate(LAYERS) if package in packages)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "agegen"])
def test_no_import_runs_upwards(module):
    package = module.split(".")[1]
    for name in find_imports(module):
        # agegen/__init__.py is the public interface; nothing inside the package imports it.
        assert name != "agegen", f"{module} imports agegen itself"
        other = name.split(".")[1]
        higher = find_layer(other) >= find_layer(package)
        assert other == package or not higher, f"{module} ({package}) imports {name}, which is not in a lower layer"


def test_every_package_belongs_to_a_layer():
    packages = {name.split(".")[1] for name in MODULES if name != "agegen"}
    assert packages == set().union(*LAYERS)


def test_one_place_opens_image_files():
    """It names the format, so that Pillow tries no other of its plugins, and limits time and memory."""
    places = []
    for path in sorted(ROOT.parent.rglob("*.py")):
        if path.relative_to(ROOT.parent).parts[0] not in ("agegen", "plugins"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            call = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if call.endswith(("Image.open", "cv2.imread", "cv2.imdecode", "read_image", "decode_jpeg")):
                places.append((path.relative_to(ROOT.parent).as_posix(), ast.unparse(node)))
    # Augmentation decodes what it has encoded itself a line above.
    own = ("agegen/batches/images.py", "cv2.imdecode(content, cv2.IMREAD_COLOR)")
    plain = "simplejpeg.decode_jpeg(content, min_width=width, min_height=height)"
    opened = "Image.open(io.BytesIO(content), formats=formats)"
    assert sorted(places) == [own, ("agegen/data/images.py", opened), ("agegen/data/images.py", plain)]


def test_there_are_no_import_cycles():
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
def test_commands_import_no_heavy_library_at_module_level(module):
    """Neither directly nor through other modules of agegen."""

    def list_top(name):
        body = ast.parse(MODULES[name].read_text(encoding="utf-8")).body
        for node in body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield from list_imports(ast.Module([node], []))

    seen, queue = set(), [module]
    while queue:
        for name in list_top(queue.pop()):
            assert name.split(".")[0] not in HEAVY, f"{module} imports {name} at module level"
            if name in MODULES and name not in seen:
                seen.add(name)
                queue.append(name)


def test_extras_have_the_usual_names_and_former_ones_remain():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert extras["many"] == ["agegen[distributed]"]
    assert {"distributed", "gpu", "video", "serve"} <= set(extras["all"][0].removeprefix("agegen[")[:-1].split(","))
