"""Models loaded before a fork run in the child (gunicorn --preload, multiprocessing with fork)."""

import multiprocessing
import sys

import numpy as np
import pytest

from agegen.engines.loading import load_engine


def run_crops(engine, crops, results):
    results.put(engine.run(crops).age.tolist())


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
@pytest.mark.parametrize("name", ["torch", "onnx"])
@pytest.mark.parametrize("used_before", [False, True])
def test_inference_works_in_a_forked_child(trained_run, name, used_before):
    _, engine = load_engine(trained_run / "best.safetensors", name)
    crops = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3)).astype(np.uint8)
    if used_before:
        engine.run(crops)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=run_crops, args=(engine, crops, results))
    child.start()
    try:
        assert results.get(timeout=60) == pytest.approx(engine.run(crops).age.tolist(), abs=0.01)
        child.join(20)
        assert child.exitcode == 0
    finally:
        child.kill()
