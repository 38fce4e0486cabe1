"""What one view and int8 save: the time per face of the bundled model, with one and two views, in float32 and int8.

    python tests/benchmarks/inference_cost.py [--model NAME] [--widths 24,56,128,288]

The four networks run in turn, on one thread, and the ratios are medians over the rounds, since speeds of a shared
machine change within seconds. Activations are measured on drawn faces: for the speed, their ranges do not matter.
``--widths`` measures `compact` with these channels and random weights instead, relative to the bundled model.
"""

import argparse
import time

import numpy as np

from agegen.data.demo import draw_face
from agegen.data.images import resize_image
from agegen.engines.engine import OnnxEngine
from agegen.engines.onnx_export import convert_model, encode_model, quantize_model
from agegen.machine import open_session
from agegen.model.checkpoint import load_checkpoint
from agegen.model.network import AgeGenderModel
from agegen.model.weights import DEFAULT_MODEL, find_weights

# One face of a photo, a group, and a full batch of `agegen predict`.
SIZES = (1, 8, 64)
# Faces per measurement and rounds: together under a minute.
FACES, ROUNDS = 64, 9
REFERENCE = "fp32, 2 views"


def make_wide(widths):
    """Return `compact` with other channels and random weights."""
    import agegen_compact

    class Wide(agegen_compact.CompactBackbone):
        feature_dim = 2 * widths[-1]

    agegen_compact.WIDTHS = widths
    return AgeGenderModel(Wide()).eval()


def make_engines(info, model, crops):
    """Return an engine of one thread for each precision and number of views."""
    engines = {}
    for views in (1, 2):
        model.views = views
        proto = convert_model(model, info.model)
        for name, one in (("fp32", proto), ("int8", quantize_model(proto, crops))):
            label = f"{name}, {views} view{'s' if views > 1 else ''}"
            engines[label] = OnnxEngine(open_session(encode_model(one, info), 1), crops.shape[1])
    return engines


def measure(engines, crops, size):
    """Return the milliseconds per face of each engine in each round."""
    times = {name: [] for name in engines}
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            started = time.perf_counter()
            for start in range(0, FACES, size):
                engine.run(crops[start : start + size])
            times[name].append(1000 * (time.perf_counter() - started) / FACES)
    return {name: np.array(values) for name, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--widths", help="channels of the stages, for example 24,56,128,288")
    options = parser.parse_args()
    info, model = load_checkpoint(find_weights(options.model))
    size = model.backbone.input_spec.size
    faces = (draw_face(100 * n / FACES, n % 2 == 0, np.random.default_rng(n)) for n in range(FACES))
    crops = np.stack([resize_image(face, size) for face in faces])
    engines = make_engines(info, model, crops)
    if options.widths:
        wide = make_wide(tuple(map(int, options.widths.split(","))))
        others = make_engines(info, wide, crops)
        engines = {REFERENCE: engines[REFERENCE]} | {f"wide, {name}": engine for name, engine in others.items()}
    print("batch  network               ms per face  of fp32 with 2 views")
    for batch in SIZES:
        times = measure(engines, crops, batch)
        for name, values in times.items():
            ratio = np.median(values / times[REFERENCE])
            print(f"{batch:5}  {name:20}  {np.median(values):11.2f}  {ratio:20.2f}")


if __name__ == "__main__":
    main()
