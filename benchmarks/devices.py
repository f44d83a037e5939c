"""What a head split by classes saves against a mirrored one, on virtual devices of JAX.

    python benchmarks/devices.py [--classes 81313] [--rounds 3]

Virtual devices share the processor's cores: bytes a device and bytes that cross are what they are
on GPUs, times are not. Needs JAX.
"""

import argparse
import os
import re
import sys

if __name__ == "__main__":  # read when JAX is imported
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import common
import keras
import numpy as np

import model
from network import devices as replicas
from recipes import Recipe

BATCH, CHANNELS = 64, 512


def build(num_classes):
    """Builds a cosine head on vectors of 512 values, ready to train."""
    recipe = Recipe.of({"loss": "arcface"})
    network = model.build_head(recipe, CHANNELS, num_classes, 100)
    model.compile_network(network, recipe, np.full(num_classes, 20))
    network.optimizer.build(network.trainable_variables)
    return network


def mirrored():
    """Gives the devices with every variable on each of them."""
    devices = replicas.JaxDevices(keras.distribution.list_devices())
    for path in list(devices.distribution._layout_map):
        del devices.distribution._layout_map[path]
    return devices


def crossing_bytes(devices, network, batch):
    """Adds up the results of the collectives in the compiled step, bytes a device."""
    state = [[devices._place(v) for v in group] for group in replicas._state_of(network)]
    step = devices._steps[id(network), "train"][1]
    text = step.lower(state, [*map(devices._split, batch), None]).compile().as_text()
    names = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    results = re.findall(rf"= (.*?) (?:{names})\(", text)
    shapes = [shape for result in results for shape in re.findall(r"[fsu]32\[([\d,]*)\]", result)]
    return 4 * sum(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes)


def main():
    """Prints the table, as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=81_313)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    batch = (
        rng.standard_normal((BATCH, CHANNELS), np.float32),
        rng.integers(0, args.classes, BATCH).astype(np.int32),
    )
    split = replicas.JaxDevices(keras.distribution.list_devices())
    networks = {name: build(args.classes) for name in ("split", "mirrored")}
    ways = {"split": split, "mirrored": mirrored()}

    def step(name):
        ways[name].train_on_batch(networks[name], *batch)

    times = common.measure({name: lambda name=name: step(name) for name in ways}, args.rounds)
    rows = []
    for name, devices in ways.items():
        placed = [p.array.addressable_shards[0].data.nbytes for p in devices._placed.values()]
        crossing = crossing_bytes(devices, networks[name], batch)
        rows.append((name, sum(placed) / 1e6, crossing / 1e6, 1000 * common.median(times, name)))
    common.print_machine("keras", "jax")
    print(f"{args.classes:,} classes x {CHANNELS}, batch of {BATCH}, 2 virtual devices\n")
    header = ("head", "MB of weights and moments a device", "MB that cross a step", "ms a step")
    common.print_table(header, rows)
    print(f"split / mirrored, time of a step: {common.ratio(times, 'split', 'mirrored'):.2f}")


if __name__ == "__main__":
    sys.exit(main())
