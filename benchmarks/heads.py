"""What the head costs: time and memory of a step beside that of 2019, and its checkpoint.

    python benchmarks/heads.py [--rounds 5] [--landmarks 55180 81313]

Every network trains in a process of its own, whose peak memory counts, and takes turns with that of
2019. The time is the processor's, which other jobs on the machine disturb least. Two feeds: vectors
of 2048 values that a frozen backbone has described, so the head alone; and images of 64 pixels
through ResNet50.
"""

import argparse
import contextlib
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import common
import numpy as np

BATCH = 64  # images in a step
CHANNELS, PIXELS = 2048, 64
NECK, ARCFACE = {"neck": 512}, {"loss": "arcface", "scale": 30.0}
HEADS = {
    "2048, softmax (2019)": {},
    "2048, ArcFace": ARCFACE,
    "neck of 512, softmax": NECK,
    "neck of 512, ArcFace (strong)": NECK | ARCFACE,
    "neck of 512, ArcFace, 3 sub-centers": NECK | ARCFACE | {"sub_centers": 3},
}
BASELINE, LARGEST = list(HEADS)[0], list(HEADS)[-1]
FEEDS = {"head alone": True, "with ResNet50": False}  # whether it takes vectors


# ----------------------------------------------------------------------- in a process of its own


def work(connection, head, num_classes, takes_vectors):
    """Trains a step whenever it is told to, and gives its processor seconds.

    Args:
        connection: gets "step", or "end" for (weights, peak memory in GB).
        head: of `HEADS`.
        num_classes: landmarks.
        takes_vectors: leave the backbone out.
    """
    from network.devices import OneDevice

    network = build(head, num_classes, takes_vectors)
    inputs, classes = noise(num_classes, takes_vectors)
    while connection.recv() == "step":
        begin = time.process_time()
        OneDevice().train_on_batch(network, inputs, classes)
        connection.send(time.process_time() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    connection.send((network.count_params(), peak))


def build(head, num_classes, takes_vectors):
    """Builds and compiles a network as a training run does."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import model

    recipe = recipe_of(head)
    if takes_vectors:
        network = model.build_head(recipe, CHANNELS, num_classes, 1000)
    else:
        network = model.build_network(recipe, num_classes, 1000)
    model.compile_network(network, recipe, np.ones(num_classes))
    return network


def recipe_of(head):
    """Gives the recipe of 2019 with another head."""
    from recipes import Recipe

    return Recipe().changed(weights="none", image_size=PIXELS, **HEADS[head])


def noise(num_classes, takes_vectors):
    """Gives (vectors or images, class indices) of a step."""
    rng = np.random.default_rng(0)
    inputs = rng.random((BATCH, CHANNELS), np.float32)
    if not takes_vectors:
        inputs = rng.integers(0, 256, (BATCH, PIXELS, PIXELS, 3), np.uint8)
    return inputs, rng.integers(0, num_classes, BATCH, np.int32)


def write_checkpoint(connection, num_classes):
    """Gives (GB of the file, seconds to write it, seconds to read it) for the largest head."""
    from network.devices import OneDevice
    from training import checkpoints

    network = build(LARGEST, num_classes, takes_vectors=False)
    OneDevice().train_on_batch(network, *noise(num_classes, takes_vectors=False))
    page = SimpleNamespace(fingerprint="")
    images = SimpleNamespace(class_table=page, labels=page)
    with tempfile.TemporaryDirectory(dir=common.CACHE) as folder:
        session = SimpleNamespace(
            path=lambda name: Path(folder, name), copy_earlier=lambda name: None
        )
        what = (session, network, recipe_of(LARGEST), images, [])
        _, writing_s = common.timed(checkpoints.save_checkpoint, *what)
        (path, _, _), reading_s = common.timed(checkpoints.load_checkpoint, session)
        connection.send((path.stat().st_size / 1e9, writing_s, reading_s))


# -------------------------------------------------------------------------------------- measuring


@contextlib.contextmanager
def process_of(function, *args):
    """Runs a function in a fresh process; gives the connection to it."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=function, args=(theirs, *args))
    process.start()
    theirs.close()  # so that a process that dies is noticed here
    try:
        yield ours
    finally:
        ours.close()
        process.join()


def compare(num_classes, takes_vectors, rounds):
    """Measures each head in turns with that of 2019.

    Returns:
        dict, head -> (weights, list of CPU seconds a step, times those of 2019, peak memory in GB).
    """
    found = {}
    with process_of(work, BASELINE, num_classes, takes_vectors) as baseline:
        for head in list(HEADS)[1:]:
            with process_of(work, head, num_classes, takes_vectors) as other:
                ways = {"2019": turn_of(baseline), "other": turn_of(other)}
                seconds = common.measure(ways, rounds)
                weights, peak = ask(other, "end")
            ratio = common.ratio(seconds, "other", "2019")
            found[head] = (weights, seconds["other"], ratio, peak)
            before = found.get(BASELINE, (0, []))[1]
            found[BASELINE] = (0, before + seconds["2019"], 1.0, 0)
        weights, peak = ask(baseline, "end")
    found[BASELINE] = (weights, found[BASELINE][1], 1.0, peak)
    return found


def ask(connection, word):
    connection.send(word)
    return connection.recv()


def turn_of(connection):
    return lambda: ask(connection, "step")


def main():
    """Prints the tables, as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each network")
    parser.add_argument("--landmarks", type=int, nargs="+", default=[55_180, 81_313])
    parser.add_argument("--feeds", nargs="+", choices=FEEDS, default=list(FEEDS))
    args = parser.parse_args()
    common.print_machine("tensorflow", "keras")
    rows = []
    for num_classes in args.landmarks:
        found = {name: compare(num_classes, FEEDS[name], args.rounds) for name in args.feeds}
        for head in HEADS:
            row = [f"{num_classes:,}", head]
            for of_feed in found.values():
                weights, seconds, ratio, peak = of_feed[head]
                row += [weights / 1e6, float(np.median(seconds)), ratio, peak]
            rows.append(row)
    measured = ("M weights", "CPU s", "x 2019", "GB")
    columns = [f"{name}: {what}" for name in args.feeds for what in measured]
    common.print_table(("landmarks", "head", *columns), rows)
    with process_of(write_checkpoint, args.landmarks[-1]) as connection:
        size, writing_s, reading_s = connection.recv()
    print(
        f"checkpoint of {args.landmarks[-1]:,} landmarks, {LARGEST}, with Adam: {size:.3f} GB, "
        f"{writing_s:.1f} s to write, {reading_s:.1f} s to read"
    )
    common.save_results("heads", rows)


if __name__ == "__main__":
    main()
