"""Start-up: commands import heavy libraries only when they need them."""

import subprocess
import sys
import sysconfig
from pathlib import Path

HEAVY = ("torch", "timm", "pandas", "albumentations", "matplotlib", "numpy", "cv2", "PIL")


def run_python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_help_imports_no_heavy_library():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom agegen.cli.app import app\n"
        "result = CliRunner().invoke(app, ['--help'])\nassert result.exit_code == 0, result.output\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert run_python(code).strip() == "[]"


def test_predicting_imports_neither_torch_nor_pandas(portrait):
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom agegen.cli.app import app\n"
        f"result = CliRunner().invoke(app, ['predict', {str(portrait)!r}, '--jsonl', '-'])\n"
        "assert result.exit_code == 0 and 'ok' in result.stdout, result.output\n"
        "print([name for name in ('torch', 'timm', 'pandas', 'albumentations', 'matplotlib') if name in sys.modules])"
    )
    assert run_python(code).strip() == "[]"


def test_listing_plugins_imports_none_of_them():
    code = (
        "import sys\nfrom agegen.plugins import list_plugins\n"
        "assert {'scratch', 'vgg16'} <= {plugin.name for plugin in list_plugins()}\n"
        "print([name for name in ('torch', 'agegen_scratch', 'agegen_vgg16') if name in sys.modules])"
    )
    assert run_python(code).strip() == "[]"


def test_the_module_and_the_script_are_the_same():
    commands = [sys.executable, "-m", "agegen"], [Path(sysconfig.get_path("scripts")) / "agegen"]
    helps = [
        subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout for command in commands
    ]
    assert helps[0] == helps[1]
    assert "Usage: agegen" in helps[0]
