"""Train the architecture of the backbone compact or scratch in Keras 3 on TensorFlow, as in a notebook; print images/s.

    python -m venv keras-env && keras-env/bin/pip install -r tests/benchmarks/keras/requirements.txt
    keras-env/bin/python tests/benchmarks/keras/train.py --data data/utkface [--model compact] [--count N]

float32, 96×96, a tf.data pipeline that decodes, resizes and mirrors in parallel; compact in batches of 128 as agegen
trains it, scratch in batches of 32. The first epoch is a warm-up (tracing, file cache); the fastest of the others
counts. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from keras import layers

SIZE, AGES = 96, 117
BATCH = {"compact": 128, "scratch": 32}
# Of scratch.
CHANNELS, KERNELS = (32, 64, 128, 256), (5, 3, 3, 3)
# Of compact, as in plugins/agegen_compact.
STEM, WIDTHS, BLOCKS = 16, (24, 48, 80, 128), (1, 2, 2, 2)
# Width and dropout of the heads.
HIDDEN = {"compact": (128, 0.2), "scratch": (32, 0.3)}


def build_model(name: str) -> keras.Model:
    images = keras.Input((SIZE, SIZE, 3))
    features = build_compact(images) if name == "compact" else build_scratch(images)
    outputs = [
        build_branch(features, *HIDDEN[name], AGES, "softmax", "age"),
        build_branch(features, *HIDDEN[name], 1, "sigmoid", "gender"),
    ]
    return keras.Model(images, outputs)


def build_scratch(flow):
    for channels, kernel in zip(CHANNELS, KERNELS, strict=True):
        flow = layers.Conv2D(channels, kernel, padding="same", use_bias=False)(flow)
        flow = layers.MaxPooling2D()(flow)
        flow = layers.ReLU()(layers.BatchNormalization()(flow))
    return layers.Flatten()(flow)


def build_compact(flow):
    flow = layers.ReLU()(convolve(flow, STEM, stride=2))
    width = STEM
    for outputs, count in zip(WIDTHS, BLOCKS, strict=True):
        for block in range(count):
            stride = 1 if block else 2
            same = width == outputs and stride == 1
            shortcut = flow if same else convolve(flow, outputs, kernel=1, stride=stride)
            inner = layers.ReLU()(convolve(flow, outputs, stride=stride))
            flow = layers.ReLU()(layers.Add()([convolve(inner, outputs), shortcut]))
            width = outputs
    return layers.Concatenate()([layers.GlobalAveragePooling2D()(flow), layers.GlobalMaxPooling2D()(flow)])


def convolve(flow, outputs: int, kernel: int = 3, stride: int = 1):
    flow = layers.Conv2D(outputs, kernel, strides=stride, padding="same", use_bias=False)(flow)
    return layers.BatchNormalization()(flow)


def build_branch(features, hidden: int, dropout: float, outputs: int, activation: str, name: str):
    flow = layers.Dense(hidden, use_bias=False)(features)
    flow = layers.Dropout(dropout)(layers.ReLU()(layers.BatchNormalization()(flow)))
    return layers.Dense(outputs, activation=activation, name=name)(flow)


def make_input(paths: list[Path], batch: int) -> tf.data.Dataset:
    labels = [path.name.split("_")[:2] for path in paths]
    ages = [min(int(age), AGES - 1) for age, _ in labels]
    genders = [float(gender) for _, gender in labels]

    def read(path, age, gender):
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        image = tf.image.random_flip_left_right(tf.image.resize(image, (SIZE, SIZE)) / 255.0)
        return image, (age, gender)

    data = tf.data.Dataset.from_tensor_slices(([str(path) for path in paths], ages, genders))
    data = data.shuffle(len(paths)).map(read, num_parallel_calls=tf.data.AUTOTUNE)
    return data.batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


class EpochTimer(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch, logs=None) -> None:
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None) -> None:
        self.seconds.append(time.perf_counter() - self._started)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--model", choices=sorted(BATCH), default="compact")
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    paths = [path for path in sorted(options.data.glob("*.jpg")) if path.name.count("_") == 3]
    random.Random(0).shuffle(paths)
    paths = paths[: options.count]
    model = build_model(options.model)
    model.compile("adam", loss=["sparse_categorical_crossentropy", "binary_crossentropy"])
    timer, batch = EpochTimer(), BATCH[options.model]
    model.fit(make_input(paths, batch), epochs=options.epochs, callbacks=[timer], verbose=0)
    faces = len(paths) // batch * batch
    rate = faces / min(timer.seconds[1:] or timer.seconds)
    print(
        json.dumps(
            {
                "images_per_second": round(rate, 1),
                "parameters": model.count_params(),
                "keras": keras.__version__,
                "tensorflow": tf.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
