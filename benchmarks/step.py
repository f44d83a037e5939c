"""What a training step and a prediction cost beyond the bare network.

    python benchmarks/step.py [--rounds 3] [--image-size 64] [--feeding-size 192]

Two tables: the step fed by our generators, by a constant batch, and by one `fit` per shard;
prediction.
"""

import contextlib
import functools
import itertools
import os
import resource
import tempfile
from pathlib import Path

import common
import numpy as np
from common import CACHE, median, print_table, print_verdict, ratio

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


import model
from data.sources import Shard
from descriptors import describe
from generators import Batch, Reading, ShardEnd, stream_batches
from network.devices import OneDevice
from recipes import Data, Loss, Recipe
from training import loop
from utils import Stop

FEEDING_BATCH = 16  # the smaller, the more feeding costs
STEPS_PER_SHARD, NUM_SHARDS = 2, 2  # short mini-epochs: what is lost between them shows
NUM_CLASSES = 1000
BACKBONE = "resnet50"
CONSTANT, BARE = "constant batch", "bare tf.function"
OURS = "ours (Describer.describe)"


def build(size):
    """Builds and compiles the network as a training run does."""
    recipe = Recipe.of(
        {"backbone": BACKBONE, "weights": "none", "image_size": size, "learning_rate": 1e-4}
    )
    network = model.build_network(recipe, NUM_CLASSES, 1000)
    model.compile_network(network, recipe, np.ones(NUM_CLASSES))
    return network


def constant_batch(size, batch):
    """Gives (images, class indices) of noise."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    return images, rng.integers(0, NUM_CLASSES, batch, dtype=np.int32)


def rate(function, items, num_images):
    """Makes a function that calls another one with each item, and gives images/s."""

    def run():
        _, seconds = common.timed(lambda: [function(*item) for item in items])
        return num_images / seconds

    return run


# ------------------------------------------------------------------------------ feeding the step


def compare_feeding(size, rounds):
    """Times the same steps fed by a constant batch, by our stream, and by a `fit` per shard.

    Returns:
        dict, way -> list of images/s.
    """
    tar = common.make_shard(FEEDING_BATCH * STEPS_PER_SHARD)
    network = build(size)
    reading = Reading(
        Data(image_size=size),
        FEEDING_BATCH,
        lambda image_id: image_id % NUM_CLASSES,
        is_training=True,
    )
    batch = constant_batch(size, FEEDING_BATCH)
    num_images = FEEDING_BATCH * STEPS_PER_SHARD * NUM_SHARDS

    def streamed(train_on_shard):
        # Some shards before, and some more to decode after: the steady state of a long run.
        with open_stream(tar, reading) as stream:
            train_on_shard(stream)
            return rate(train_on_shard, [(stream,)] * NUM_SHARDS, num_images)()

    def ours(stream):
        what = (OneDevice(), network, stream, common.Steady(), Stop(), "")
        loop.train_mini_epoch(*what)

    steps = [batch] * (STEPS_PER_SHARD * NUM_SHARDS)
    ways = {
        CONSTANT: rate(network.train_on_batch, steps, num_images),
        "ours": lambda: streamed(ours),
        "one fit per shard, tf.data": lambda: streamed(functools.partial(fit_shard, network, size)),
    }
    network.train_on_batch(*batch)  # compiles
    return common.measure(ways, rounds, warm_up=False)


@contextlib.contextmanager
def open_stream(tar, reading):
    """Gives an endless stream of batches; ends its thread."""
    plan = [(0, Shard("train", number)) for number in range(3 * NUM_SHARDS + 4)]
    stream = stream_batches(common.SleepingSource(tar), plan, reading)
    with contextlib.closing(stream):
        yield stream


def fit_shard(network, size, stream):
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


# --------------------------------------------------------------------------------- the prediction


def compare_prediction(size, rounds, num_batches=4):
    """Times our describing against the bare forward pass: dict, way -> list of images/s."""
    import tensorflow as tf

    images, _ = constant_batch(size, 64 * num_batches)
    pieces = [images[i : i + 64] for i in range(0, len(images), 64)]
    nowhere = np.zeros((64, 2), np.int64)
    batches = [Batch(piece, np.arange(64, dtype=np.uint64), None, nowhere) for piece in pieces]
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        path = Path(folder, "model.keras")
        page = {"landmark_ids": list(range(NUM_CLASSES))}
        model.save_model(model.build_classifier(build(size), Loss()), path, page)
        describer = describe.Describer(None, path, 64)
    predictor = describer.predictor
    bare = tf.function(lambda batch: predictor(batch, training=False))

    def predict(piece):
        predictor.predict(piece, 64, verbose=0)

    def forward(piece):
        return [output.numpy() for output in bare(piece)]

    described = [(batch, Shard("index", 0)) for batch in batches]
    pieces, num = [(piece,) for piece in pieces], len(images)
    ways = {
        BARE: rate(forward, pieces, num),
        OURS: rate(describer.describe, described, num),
        "model.predict": rate(predict, [(images,)], num),
        "model.predict, batch by batch": rate(predict, pieces, num),
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
    args = common.parse_arguments(
        __doc__,
        rounds=(3, "times that each way is measured"),
        image_size=(64, "pixels"),
        feeding_size=(192, "pixels of the first table, the real job's"),
    )
    size, rounds = args.image_size, args.rounds
    common.print_machine("tensorflow", "keras")
    feeding = compare_feeding(args.feeding_size, rounds)
    title = f"Feeding the step: {args.feeding_size} pixels, {FEEDING_BATCH} images a step"
    report_rates(title, feeding, CONSTANT)
    cost = ratio(feeding, CONSTANT, "ours")
    print_verdict("at most 1.05 x the step with a constant batch", cost, cost <= 1.05)
    print()
    prediction = compare_prediction(size, 3 * rounds)
    report_rates(f"Prediction: {size} pixels, 64 images a step", prediction, BARE)
    share = ratio(prediction, OURS, BARE)
    print_verdict("at least 0.95x of the bare forward pass", share, share >= 0.95)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory of this script: {peak:.1f} GB")


if __name__ == "__main__":
    main()
