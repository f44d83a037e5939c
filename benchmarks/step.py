"""What a training step and a prediction cost beyond the bare network.

    python benchmarks/step.py [--rounds 3] [--image-size 64] [--feeding-size 192]

Four tables: the step fed by our generators, by a constant batch, and by one `fit` per shard; labels
as integers and as one-hot rows of 55,000 classes; float32, bfloat16 and XLA; prediction.
"""

import argparse
import contextlib
import itertools
import os
import resource
import tempfile
import time
from pathlib import Path

import common
import numpy as np
from common import CACHE, median, print_table, print_verdict, ratio

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import model
from data.sources import Shard
from descriptors import describe
from generators import Batch, Reading, ShardEnd, stream_batches
from network.devices import OneDevice
from recipes import Data, Loss, Recipe
from training import loop
from utils import Stop

BATCH = 32
FEEDING_BATCH = 16  # the smaller, the more feeding costs
STEPS_PER_SHARD, NUM_SHARDS = 2, 2  # short mini-epochs: what is lost between them shows
NUM_CLASSES = 1000
WIDE = 55_000  # classes of the full data set
BACKBONE = "resnet50"
OURS = "ours (Describer.describe)"


class SameShard:
    """A source whose shards are all the same file."""

    def __init__(self, tar):
        self.tar = tar

    def require_space(self, shard):
        """Nothing is downloaded."""

    def fetch_shard(self, shard):
        """Gives the file."""
        return self.tar

    def discard_shard(self, shard):
        """It is kept."""


def build(size, num_classes=NUM_CLASSES):
    """Builds and compiles the network as a training run does."""
    recipe = Recipe.of(
        {"backbone": BACKBONE, "weights": "none", "image_size": size, "learning_rate": 1e-4}
    )
    network = model.build_network(recipe, num_classes, 1000)
    model.compile_network(network, recipe, np.ones(num_classes))
    return network


def constant_batch(size, num_classes=NUM_CLASSES, batch=BATCH):
    """Gives (images, class indices) of noise."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    return images, rng.integers(0, num_classes, batch, dtype=np.int32)


# ------------------------------------------------------------------------------ feeding the step


def compare_feeding(size, rounds):
    """Times the same steps fed by a constant batch, by our stream, and by a `fit` per shard.

    Returns:
        dict, way -> list of seconds a step.
    """
    tar = common.make_shard(FEEDING_BATCH * STEPS_PER_SHARD)
    network = build(size)
    reading = Reading(
        Data(image_size=size),
        FEEDING_BATCH,
        lambda image_id: image_id % NUM_CLASSES,
        is_training=True,
    )
    images, classes = constant_batch(size, batch=FEEDING_BATCH)
    num_steps = STEPS_PER_SHARD * NUM_SHARDS

    def constant():
        begin = time.perf_counter()
        for _ in range(num_steps):
            network.train_on_batch(images, classes)
        return (time.perf_counter() - begin) / num_steps

    def ours():
        # Some shards before, and some more to decode after: the steady state of a long run.
        with open_stream(tar, reading) as stream:
            what = (OneDevice(), network, stream, common.Steady(), Stop(), "")
            loop.train_mini_epoch(*what)
            begin = time.perf_counter()
            for _ in range(NUM_SHARDS):
                loop.train_mini_epoch(*what)
            return (time.perf_counter() - begin) / num_steps

    def fit_per_shard():
        with open_stream(tar, reading) as stream:
            fit_shard(network, stream, size)
            begin = time.perf_counter()
            for _ in range(NUM_SHARDS):
                fit_shard(network, stream, size)
            return (time.perf_counter() - begin) / num_steps

    ways = {"constant batch": constant, "ours": ours, "one fit per shard, tf.data": fit_per_shard}
    network.train_on_batch(images, classes)  # compiles
    return common.measure(ways, rounds, warm_up=False)


@contextlib.contextmanager
def open_stream(tar, reading):
    """Gives an endless stream of batches; ends its thread."""
    plan = [(0, Shard("train", number)) for number in range(3 * NUM_SHARDS + 4)]
    stream = stream_batches(SameShard(tar), plan, reading)
    with contextlib.closing(stream):
        yield stream


def fit_shard(network, stream, size):
    """Trains on one shard by `fit` over a tf.data pipeline, as is common."""
    import tensorflow as tf

    def batches():
        batch_stream = itertools.takewhile(lambda item: not isinstance(item, ShardEnd), stream)
        return ((batch.images, batch.class_indices) for batch in batch_stream)

    signature = (
        tf.TensorSpec((FEEDING_BATCH, size, size, 3), tf.uint8),
        tf.TensorSpec((FEEDING_BATCH,), tf.int32),
    )
    data = tf.data.Dataset.from_generator(batches, output_signature=signature)
    network.fit(data.prefetch(tf.data.AUTOTUNE), verbose=0)


# ------------------------------------------------------------------------------------- the labels


def compare_labels(rounds):
    """Times a 55,000-wide head with both kinds of labels, and what it takes to build them.

    Returns:
        (dict of step times, dict of building times, dict of label bytes).
    """
    rng = np.random.default_rng(0)
    descriptors = rng.standard_normal((64, 256), dtype=np.float32)
    classes = rng.integers(0, WIDE, 64, dtype=np.int32)
    losses = {
        "class indices": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "one-hot rows": keras.losses.CategoricalCrossentropy(from_logits=True),
    }
    make = {"class indices": lambda: classes.copy(), "one-hot rows": lambda: one_hot(classes)}
    steps = {}
    for name, loss in losses.items():
        network = keras.Sequential([keras.Input((256,)), keras.layers.Dense(WIDE)])
        network.compile("adam", loss, jit_compile=False)
        labels = make[name]()

        def step(network=network, labels=labels):
            network.train_on_batch(descriptors, labels)

        steps[name] = step
    sizes = {name: labels().nbytes for name, labels in make.items()}
    building = common.measure({name: lambda n=name: void(make[n]()) for name in make}, 3 * rounds)
    return common.measure(steps, 2 * rounds), building, sizes


def one_hot(classes):
    """Builds one-hot rows as 2019's `to_categorical` did."""
    return keras.utils.to_categorical(classes, WIDE)


def void(_):
    """Takes a result and gives None, so that the time counts."""


# ---------------------------------------------------------------------------------- the precision


def compare_precision(size, rounds):
    """Times a step in float32, in bfloat16 and under XLA: dict, way -> list of images/s."""
    images, classes = constant_batch(size)
    ways = {}
    for name, policy, jit in (
        ("float32", "float32", False),
        ("mixed_bfloat16", "mixed_bfloat16", False),
        ("float32, XLA", "float32", True),
    ):
        keras.mixed_precision.set_global_policy(policy)
        network = build(size)
        network.jit_compile = jit

        def run(network=network):
            begin = time.perf_counter()
            for _ in range(3):
                network.train_on_batch(images, classes)
            return 3 * BATCH / (time.perf_counter() - begin)

        ways[name] = run
    keras.mixed_precision.set_global_policy("float32")
    return common.measure(ways, rounds)


# --------------------------------------------------------------------------------- the prediction


def compare_prediction(size, rounds, num_batches=4):
    """Times our describing against the bare forward pass: dict, way -> list of images/s."""
    import tensorflow as tf

    images, _ = constant_batch(size, batch=64 * num_batches)
    pieces = [images[i : i + 64] for i in range(0, len(images), 64)]
    nowhere = np.zeros((64, 2), np.int64)
    batches = [Batch(piece, np.arange(64, dtype=np.uint64), None, nowhere) for piece in pieces]
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        path = Path(folder, "model.keras")
        page = {"landmark_ids": list(range(NUM_CLASSES))}
        model.save_model(model.build_classifier(build(size), Loss()), path, page)
        describer = describe.Describer(describe.Settings(path, 64), None)
    predictor = describer.predictor
    bare = tf.function(lambda batch: predictor(batch, training=False))

    def rate(function, items):
        def run():
            begin = time.perf_counter()
            for item in items:
                function(item)
            return len(images) / (time.perf_counter() - begin)

        return run

    def predict(piece):
        predictor.predict(piece, 64, verbose=0)

    def forward(piece):
        return [output.numpy() for output in bare(piece)]

    ways = {
        "bare tf.function": rate(forward, pieces),
        OURS: rate(lambda batch: describer.describe(batch, Shard("index", 0)), batches),
        "model.predict": rate(predict, [images]),
        "model.predict, batch by batch": rate(predict, pieces),
    }
    return common.measure(ways, rounds)


# -------------------------------------------------------------------------------------- reporting


def report_rates(title, rates, baseline):
    """Prints a table of images/s."""
    print(f"### {title}\n")
    rows = [(name, median(rates, name), ratio(rates, name, baseline)) for name in rates]
    print_table(("way", "images/s", f"x {baseline}"), rows)


def main():
    """Prints the tables, as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="times that each way is measured")
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument(
        "--feeding-size", type=int, default=192, help="pixels of the first table, the real job's"
    )
    args = parser.parse_args()
    size, rounds = args.image_size, args.rounds
    common.print_machine("tensorflow", "keras")
    feeding = compare_feeding(args.feeding_size, rounds)
    rates = {name: [FEEDING_BATCH / s for s in seconds] for name, seconds in feeding.items()}
    title = f"Feeding the step: {args.feeding_size} pixels, {FEEDING_BATCH} images a step"
    report_rates(title, rates, "constant batch")
    cost = ratio(feeding, "ours", "constant batch")
    print_verdict("at most 1.05 x the step with a constant batch", cost, cost <= 1.05)

    print(f"\n### Labels of {WIDE:,} classes, batch of 64, a head of 256 x {WIDE:,}\n")
    steps, building, sizes = compare_labels(rounds)
    rows = [
        (name, sizes[name] / 1e6, 1000 * median(building, name), 1000 * median(steps, name))
        for name in steps
    ]
    print_table(("labels", "MB a batch", "ms to build", "ms a step"), rows)

    title = f"Precision and XLA: {size} pixels, {BATCH} images a step"
    report_rates(title, compare_precision(size, 2), "float32")
    prediction = compare_prediction(size, 3 * rounds)
    title = f"Prediction: {size} pixels, 64 images a step"
    report_rates(title, prediction, "bare tf.function")
    share = ratio(prediction, OURS, "bare tf.function")
    print_verdict("at least 0.95x of the bare forward pass", share, share >= 0.95)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory of this script: {peak:.1f} GB")
    common.save_results("step", {"feeding_s": feeding, "prediction": prediction})


if __name__ == "__main__":
    main()
