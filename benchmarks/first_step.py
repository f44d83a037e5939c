"""The first step of a process, and later ones: graphs that TensorFlow rewrites, or as traced.

    python benchmarks/first_step.py [--rounds 3] [--backbone resnet50] [--image-size 48]

Each measurement is a process of its own, on one thread, since only there a step is the first.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import common
import numpy as np
from common import median, print_table, print_verdict, ratio

REWRITTEN, AS_TRACED = "rewritten", "as traced (ours)"
NUM_LATER, BATCH, NUM_CLASSES = 10, 32, 20
COLUMNS = ("first step", "a later step", "first prediction", "a later prediction")
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}


def measure_here(way, backbone, image_size):
    """Measures in this process; prints the processor seconds of `COLUMNS` as JSON."""
    import model
    from network import devices
    from recipes import Recipe

    if way == REWRITTEN:
        devices._trace_quickly = lambda: None
    recipe = Recipe().changed(backbone=backbone, weights="none", image_size=image_size)
    model.set_up_keras(0)
    one = devices.choose_devices(BATCH)
    network = model.build_network(recipe, NUM_CLASSES, 100)
    model.compile_network(network, recipe, np.ones(NUM_CLASSES))
    network.optimizer.build(network.trainable_variables)
    predictor = model.build_predictor(network)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, image_size, image_size, 3), dtype=np.uint8)
    labels = np.arange(BATCH) % NUM_CLASSES
    times = []
    for step in (
        lambda: one.train_on_batch(network, images, labels),
        lambda: one.predict_on_batch(predictor, images),
    ):
        begin = time.process_time()
        step()
        times.append(time.process_time() - begin)
        begin = time.process_time()
        for _ in range(NUM_LATER):
            step()
        times.append((time.process_time() - begin) / NUM_LATER)
    print(json.dumps(times))


def measure_apart(way, backbone, image_size):
    """Measures in a process of its own; gives its list of seconds."""
    command = [sys.executable, str(Path(__file__)), "--here", way, backbone, str(image_size)]
    environment = os.environ | ONE_THREAD | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    """Prints the table, as the module's docstring says."""
    args = common.parse_arguments(
        __doc__, rounds=(3, "times that each way is measured"),
        backbone=(["resnet50"], "networks"), image_size=(48, "pixels"),
    )  # fmt: skip
    common.print_machine("tensorflow", "keras")
    rows, shares = [], {}
    for backbone in args.backbone:
        found = {way: [] for way in (REWRITTEN, AS_TRACED)}
        for _ in range(args.rounds):
            for way, times in found.items():
                times.append(measure_apart(way, backbone, args.image_size))
        columns = [{way: [one[n] for one in found[way]] for way in found} for n in range(4)]
        rows += [(backbone, way, *(f"{median(c, way):.2f}" for c in columns)) for way in found]
        shares[backbone] = [ratio(column, AS_TRACED, REWRITTEN) for column in columns]
        rows.append((backbone, "ratio", *(f"{share:.2f}" for share in shares[backbone])))
    print("processor seconds\n")
    print_table(("network", "graphs", *COLUMNS), rows)
    for backbone, (first, later, *_) in shares.items():
        print_verdict(f"{backbone}: the first step at most 0.7 as long", first, first <= 0.7)
        print_verdict(f"{backbone}: later steps at most 1.03 as long", later, later <= 1.03)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--here", nargs=3)
    here, _ = parser.parse_known_args()
    measure_here(*here.here[:2], int(here.here[2])) if here.here else main()
