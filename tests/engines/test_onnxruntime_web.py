"""Exported files in onnxruntime-web, the runtime of browsers, here in Node: the same estimates as in Python."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import REQUIRE_SHARED

from agegen.data.demo import draw_face
from agegen.data.images import resize_image
from agegen.engines.engine import CropOutputs, load_onnx
from agegen.engines.onnx_export import convert_checked, encode_model, quantize_model
from agegen.model.checkpoint import load_checkpoint
from agegen.model.weights import find_weights

# Newer versions read older files; this one is known to read agegen's.
PACKAGE = "onnxruntime-web@1.30.0"
# Largest differences in years and in probability. In float32, only the order of sums differs. In int8, activations
# near the middle of two steps are rounded to either, as between CPUs.
TOLERANCES = {"fp32": (0.01, 0.001), "int8": (0.5, 0.03)}
SCRIPT = """
const fs = require("fs");
const ort = require("onnxruntime-web");

async function main(model, crops, size) {
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(new Uint8Array(fs.readFileSync(model)), {
    executionProviders: ["wasm"],
  });
  const pixels = new Uint8Array(fs.readFileSync(crops));
  const count = pixels.length / (size * size * 3);
  const outputs = await session.run({ crops: new ort.Tensor("uint8", pixels, [count, size, size, 3]) });
  const plain = {};
  for (const name of session.outputNames) plain[name] = Array.from(outputs[name].data);
  console.log(JSON.stringify(plain));
}

main(process.argv[2], process.argv[3], Number(process.argv[4]));
"""


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """A folder with onnxruntime-web and the script."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("web")
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), PACKAGE]
    # The tests set an own cache folder for agegen; npm keeps its downloads in the user's.
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=dict(os.environ))
    if done.returncode:
        reason = f"{PACKAGE} cannot be installed: {done.stderr.strip()[-300:]}"
        if REQUIRE_SHARED:
            pytest.fail(reason)
        pytest.skip(reason)
    (folder / "run.js").write_text(SCRIPT)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_browsers_give_the_same_estimates(web, precision):
    info, model = load_checkpoint(find_weights("compact"))
    faces = [draw_face(12.0 * n, n % 2 == 0, np.random.default_rng(n)) for n in range(8)]
    crops = np.stack([resize_image(face, 96) for face in faces])
    proto = convert_checked(info, model)
    proto = quantize_model(proto, crops) if precision == "int8" else proto
    path = Path(web, f"{precision}.onnx")
    path.write_bytes(encode_model(proto, info, changes="{}" if precision == "int8" else None))
    (web / "crops.bin").write_bytes(crops.tobytes())
    command = ["node", "run.js", path.name, "crops.bin", "96"]
    done = subprocess.run(command, cwd=web, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    _, engine = load_onnx(path)
    assert engine.precision == precision
    expected = engine.run(crops, distribution=True)
    assert list(found) == list(CropOutputs._fields)
    years, share = TOLERANCES[precision]
    for name, tolerance in (("age", years), ("spread", years), ("p_female", share), ("distribution", share)):
        values = np.array(found[name]).reshape(getattr(expected, name).shape)
        assert np.abs(values - getattr(expected, name)).max() < tolerance
