"""Measure ``agegen predict``: its speed relative to a simple loop and to ``import torch``, and on request more.

    python tests/benchmarks/prediction_speed.py --data data/utkface [--model compact] [--rounds 3] [--parts crops ...]

The data must be aligned crops. Results are medians over rounds in which the compared variants alternate. The simple
loop is that of demo notebooks: Pillow opens a file, torchvision transforms it, and the same model runs one float32
forward pass per image. By default, in less than 3 minutes on 2 cores:

- crops: crops per second of ``agegen predict --no-detect`` relative to the simple loop, each a program of its own from
  its start to its end;
- start: time of ``agegen predict face.jpg`` relative to ``python -c "import torch"``, from the disk cache;
- photos: photos per second with the default detector.

Further parts: stages, growth, memory, annotate. Not a test: it asserts nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from composing import draw_background, paste_face
from PIL import Image

DEFAULT_PARTS = ("crops", "start", "photos")
PARTS = (*DEFAULT_PARTS, "stages", "growth", "memory", "annotate")
MODEL = "compact"
# Enough that the start is not the larger part of the time, few enough for some rounds in a minute.
CROPS = 2400
# Starts vary more than long runs, and take a second.
START_ROUNDS = 10
# The usual size of phone photos, 12 megapixels.
LARGE = (4032, 3024)
RUN_AND_MEASURE = """
import os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(time.perf_counter() - started, usage.ru_maxrss, os.waitstatus_to_exitcode(status))
"""
AGEGEN = str(Path(sysconfig.get_path("scripts")) / "agegen")


def run_command(*arguments: object, program: tuple[str, ...] = (AGEGEN,)) -> tuple[float, float]:
    """Run agegen or another program; return its wall time in seconds and its peak memory in GB.

    It is started by a small process, because the reported peak of a child includes the memory that its parent had when
    it was forked.
    """
    done = subprocess.run(
        [sys.executable, "-c", RUN_AND_MEASURE, *program, *map(str, arguments)], capture_output=True, check=True
    )
    seconds, peak, code = map(float, done.stdout.split())
    # 1 means that a file of the data could not be read.
    assert code in (0, 1), arguments
    return seconds, peak / 1e6


def alternate(rounds: int, variants: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Return the median of each variant over the rounds; the first round is a warm-up and does not count."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, variant in variants.items():
            value = variant()
            if turn:
                taken[name].append(value)
    return {name: statistics.median(values) for name, values in taken.items()}


def print_rows(title: str, rows: dict[str, str]) -> None:
    print(f"\n{title}")
    for name, value in rows.items():
        print(f"  {name:<58} {value}", flush=True)


def list_crops(data: Path, count: int, folder: Path) -> Path:
    """Fill a folder with links to ``count`` images; images are repeated if there are fewer."""
    paths = sorted(data.glob("*.jpg"))
    folder.mkdir()
    for index in range(count):
        (folder / f"{index:06d}.jpg").symlink_to(paths[index % len(paths)].resolve())
    return folder


def measure_start(scratch: Path) -> None:
    photo = compose_photos(scratch / "start", 1, (640, 480)) / "000000.jpg"
    run_command("models")
    commands: dict[str, Callable[[], float]] = {
        "import torch": lambda: run_command("-c", "import torch", program=(sys.executable,))[0],
        "agegen predict face.jpg": lambda: run_command("predict", photo)[0],
        "agegen predict face.jpg --no-detect": lambda: run_command("predict", photo, "--no-detect")[0],
        "agegen --help": lambda: run_command("--help")[0],
    }
    medians = alternate(START_ROUNDS, commands)
    reference = medians["import torch"]
    rows = {name: f"{value:.2f} s, {value / reference:.2f} of import torch" for name, value in medians.items()}
    print_rows("cold start", rows)


def predict_simply(folder: Path) -> None:
    """Write the rows of the simple loop to stdout."""
    import torch
    from torchvision import transforms

    from agegen.model.checkpoint import load_checkpoint
    from agegen.model.weights import find_weights

    _, model = load_checkpoint(find_weights(MODEL))
    model.eval()
    size = model.backbone.input_spec.size
    prepare = transforms.Compose([transforms.Resize((size, size)), transforms.PILToTensor()])
    years = torch.arange(117.0)
    for path in sorted(folder.iterdir()):
        image = Image.open(path).convert("RGB")
        with torch.no_grad():
            outputs = model(prepare(image).unsqueeze(0))
            age = float((torch.softmax(outputs.age_logits, dim=1) * years).sum())
            p_female = float(torch.sigmoid(outputs.gender_logit))
        print(json.dumps({"file": str(path), "age": age, "gender": "female" if p_female > 0.5 else "male"}))


def predict_many(paths: list[Path], engine: str, detector: str, target: Path) -> float:
    """Return the images/s from files to JSON Lines."""
    from agegen import Estimator
    from agegen.machine import use_one_thread_each
    from agegen.predict.rows import open_writer

    use_one_thread_each()
    estimator = Estimator.load(MODEL, detector=detector, engine=engine)
    estimator.predict(paths[0])
    started = time.perf_counter()
    with open_writer("jsonl", str(target), sys.stdout.buffer, False) as writer:
        for photo in estimator.predict_many(paths):
            writer.write(photo)
    return len(paths) / (time.perf_counter() - started)


def measure_crops(data: Path, rounds: int, scratch: Path) -> None:
    folder, target = list_crops(data, CROPS, scratch / "crops"), scratch / "rows.jsonl"
    loop = (sys.executable, str(Path(__file__).resolve()), "--model", MODEL, "--simple-loop")
    predict = ("predict", folder, "--no-detect", "--model", MODEL, "--jsonl", target)
    medians = alternate(
        rounds,
        {
            "simple loop": lambda: run_command(folder, program=loop)[0],
            "agegen predict --no-detect": lambda: run_command(*predict)[0],
        },
    )
    simple = medians["simple loop"]
    rows = {name: f"{CROPS / value:,.0f}/s, {simple / value:.2f} of the loop" for name, value in medians.items()}
    print_rows(f"{CROPS:,} crops from the start to the last row", rows)


def measure_stages(data: Path, rounds: int) -> None:
    """Time each stage alone; on one core if it normally runs in several threads."""
    from agegen.data.images import decode_photo, read_image_file, resize_image
    from agegen.engines.loading import load_engine
    from agegen.model.weights import find_weights
    from agegen.predict.estimator import FaceModel

    paths = sorted(data.glob("*.jpg"))[:512]
    model = FaceModel(*load_engine(find_weights(MODEL), "onnx"))
    size = model.engine.input_size
    images = [decode_photo(read_image_file(path), 4096).image for path in paths]
    crops = np.stack([resize_image(image, size) for image in images])

    def per_face(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        return (time.perf_counter() - started) / len(paths) * 1000

    stages: dict[str, Callable[[], float]] = {
        "read and decode (1 core)": lambda: per_face(
            lambda: [decode_photo(read_image_file(path), 4096) for path in paths]
        ),
        "resize (1 core)": lambda: per_face(lambda: [resize_image(image, size) for image in images]),
        "inference (all cores)": lambda: per_face(
            lambda: [model.engine.run(crops[first : first + 64]) for first in range(0, len(crops), 64)]
        ),
    }
    medians = alternate(rounds, stages)
    print_rows("milliseconds per face", {name: f"{value:.3f}" for name, value in medians.items()})
    peak = statistics.median(measure_gemm() for _ in range(rounds))
    reached = count_operations() * 2 / (medians["inference (all cores)"] / 1000) / 1e9
    print_rows(
        "inference compared with the machine's peak",
        {
            "float32 GEMM of numpy, GFLOP/s": f"{peak:.0f}",
            "inference, GFLOP/s": f"{reached:.0f} ({reached / peak:.0%})",
        },
    )


def measure_gemm(side: int = 2048) -> float:
    """Return the GFLOP/s of a float32 matrix product."""
    first, second = np.random.default_rng(0).random((2, side, side)).astype(np.float32)
    first @ second
    started = time.perf_counter()
    first @ second
    return 2 * side**3 / (time.perf_counter() - started) / 1e9


def count_operations() -> float:
    """Return the floating-point operations of the convolutions and dense layers for one view of a face."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from agegen.model.checkpoint import load_checkpoint
    from agegen.model.weights import find_weights

    _, model = load_checkpoint(find_weights(MODEL))
    size = model.backbone.input_spec.size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    return float(counter.get_total_flops())


def compose_photos(folder: Path, count: int, size: tuple[int, int], data: Path | None = None) -> Path:
    """Write photos with one face each: from the data, or by default the portrait bundled with matplotlib."""
    import matplotlib

    portrait = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    faces = [portrait] if data is None else sorted(data.glob("*.jpg"))
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        face = np.asarray(Image.open(faces[index * 37 % len(faces)]).convert("RGB"))
        if data is None:
            face = face[60:400, 100:440]
        canvas = draw_background(*size, rng)
        side = min(size) // 2
        paste_face(canvas, face, (size[0] // 2, size[1] // 2), side, float(rng.uniform(-20, 20)))
        Image.fromarray(canvas).save(folder / f"{index:06d}.jpg", quality=90)
    return folder


def measure_photos(data: Path, rounds: int, scratch: Path) -> None:
    target, rows = scratch / "rows.jsonl", {}
    for size, count in (((1920, 1280), 40), (LARGE, 16)):
        paths = sorted(compose_photos(scratch / f"photos-{size[0]}", count, size, data).iterdir())
        medians = alternate(rounds, {"": lambda paths=paths: predict_many(paths, "onnx", "auto", target)})
        rows[f"photos of {size[0]}×{size[1]}"] = f"{medians['']:.1f}/s"
    print_rows("from disk to rows, default detector", rows)


def measure_annotation(data: Path, scratch: Path) -> None:
    """Run prediction with annotated copies of large photos."""
    folder, rows = compose_photos(scratch / "large", 40, LARGE, data), {}
    for detector in ("mtcnn", "yunet"):
        words = ("predict", folder, "--detector", detector, "--annotate", scratch / "boxes")
        seconds, memory = run_command(*words, "--csv", scratch / "rows.csv")
        rows[detector] = f"{40 / seconds:.1f}/s, peak {memory:.2f} GB"
    print_rows(f"annotated copies of {LARGE[0]}×{LARGE[1]}", rows)


def measure_growth(data: Path, scratch: Path, counts: list[int]) -> None:
    rows = {}
    for count in counts:
        folder = list_crops(data, count, scratch / f"growth-{count}")
        seconds, memory = run_command("predict", folder, "--no-detect", "--jsonl", scratch / "rows.jsonl")
        rows[f"{count:,} crops"] = f"{seconds:8.1f} s, {count / seconds:5.0f}/s, peak {memory:.2f} GB"
    print_rows("agegen predict --no-detect, from start to end", rows)


def measure_memory(data: Path, scratch: Path, counts: list[int]) -> None:
    """Run prediction with detection on links to 200 photos, and evaluation on all data."""
    photos, rows = compose_photos(scratch / "small", 200, (320, 240), data), {}
    for count in counts:
        folder = list_crops(photos, count, scratch / f"memory-{count}")
        words = ("predict", folder, "--detector", "yunet", "--jsonl", scratch / "rows.jsonl")
        seconds, memory = run_command(*words)
        rows[f"predict, {count:,} photos, yunet"] = f"{seconds:8.1f} s, peak {memory:.2f} GB"
    seconds, memory = run_command("eval", "--model", "scratch", "--data", data, "--split", "all")
    rows["eval --split all"] = f"{seconds:8.1f} s, peak {memory:.2f} GB"
    print_rows("peak memory", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--simple-loop", type=Path, metavar="FOLDER", help="only run the simple loop on a folder")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(DEFAULT_PARTS))
    parser.add_argument("--counts", nargs="+", type=int, default=[1000, 10_000, 100_000])
    options = parser.parse_args()
    globals()["MODEL"] = options.model
    if options.simple_loop:
        predict_simply(options.simple_loop)
        return
    if options.data is None:
        parser.error("--data is required")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if "crops" in options.parts:
            measure_crops(options.data, options.rounds, scratch)
        if "start" in options.parts:
            measure_start(scratch)
        if "stages" in options.parts:
            measure_stages(options.data, options.rounds)
        if "photos" in options.parts:
            measure_photos(options.data, options.rounds, scratch)
        if "growth" in options.parts:
            measure_growth(options.data, scratch, options.counts)
        if "annotate" in options.parts:
            measure_annotation(options.data, scratch)
        if "memory" in options.parts:
            measure_memory(options.data, scratch, [1000, 10_000])


if __name__ == "__main__":
    main()
