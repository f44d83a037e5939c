"""All that a GPU has to show, in one run from a bare machine: prints one JSON, and writes it.

    python benchmarks/on_a_gpu.py [--minutes 20] [--output gpu.json] [--backends jax ...]
    CUDA_VISIBLE_DEVICES=-1 python benchmarks/on_a_gpu.py --tiny      every item on a CPU, in small

What requirements.txt names must be installed, and at least one of jax, tensorflow and torch. Each
item runs in a process of its own: one that fails leaves its last line in the JSON and costs the
others nothing. Items go in the order of what is asked first, the backends in turn; those that no
time is left for say so. The JSON is written anew after each item.
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common
import numpy as np

BACKENDS = ("jax", "tensorflow", "torch")
PACKAGES = ("keras", "jax", "tensorflow", "torch", "numpy", "pillow", "faiss-cpu", "keras-hub")
ITEM_MINUTES = 4  # of one item at most
NUM_STRONG, NUM_FULL = 81_313, 55_180  # landmarks of the cleaned train set; those of 2019


# ------------------------------------------------------------------------------------- the items


def demo(tiny):
    """Trains the demo's recognition as `make demo` does, in the precision of the device."""
    import recognition

    words = ["--epochs", "1", "--train-shards", "0:1", "--image-size", "32"] if tiny else []
    out = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(out):
        _, seconds = common.timed(recognition.main, ["--demo", "--output", folder, *words])
    gap = re.search(r"^GAP: .*all ([\d.]+)$", out.getvalue(), re.MULTILINE)
    return {"GAP": float(gap[1]), "seconds": seconds}


def step(tiny):
    """The 2019 recipe: images/s of our loop's step and of Keras' `fit`, with and without XLA.

    Under TensorFlow also with the batch normalisation of Keras.
    """
    import model

    def rates(batches, note=""):
        return {
            f"batch {batch}, XLA {xla}{note}": guarded(
                step_rates, tiny, "2019", batch, NUM_FULL, xla
            )
            for batch in batches
            for xla in (False, True)
        }

    found = rates((4,) if tiny else (64, 256))
    if os.environ["KERAS_BACKEND"] == "tensorflow":
        model.fuse_batch_norms = lambda network: None
        found |= rates((4,) if tiny else (64,), ", Keras' batch normalisation")
    return found


def strong(tiny):
    """The strong recipe with 3 sub-centers; with two classes it shows what the head takes."""
    batch = 4 if tiny else 64
    return {
        f"{num_classes} landmarks": guarded(step_rates, tiny, "strong", batch, num_classes, None)
        for num_classes in (NUM_STRONG, 2)
    }


def step_rates(tiny, recipe, batch, num_classes, xla):
    """Measures training steps on constant batches: ours, and `fit` on the same arrays."""
    from network.devices import OneDevice

    network, size = build(tiny, recipe, num_classes, xla)
    steps = 2 if tiny else 30
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, size, size, 3), np.uint8)
    classes = rng.integers(0, network.output_shape[-1], batch, dtype=np.int32)
    devices = OneDevice()
    _, first_s = common.timed(devices.train_on_batch, network, images, classes)
    many = [np.concatenate([values] * steps) for values in (images, classes)]
    ways = {
        "ours": lambda: [devices.train_on_batch(network, images, classes) for _ in range(steps)],
        "fit": lambda: network.fit(*many, batch_size=batch, shuffle=False, verbose=0),
    }
    seconds = common.measure(ways, 1 if tiny else 3)
    rates = {f"{name}, images/s": batch * steps / common.median(seconds, name) for name in ways}
    shares = {"ours / fit": common.ratio(seconds, "fit", "ours"), "first step, s": first_s}
    return rates | shares | {"peak memory, GB": peak_gb()}


def build(tiny, recipe, num_classes, xla=None):
    """Builds and compiles a recipe's network on random weights: (network, image size)."""
    import model
    from recipes import RECIPES

    few = {"sub_centers": 3} if recipe == "strong" else {}
    recipe = RECIPES[recipe].changed(weights="none", image_size=32 if tiny else 192, **few)
    num_classes = min(num_classes, 50) if tiny else num_classes
    network = model.build_network(recipe, num_classes, 1000)
    model.compile_network(network, recipe, np.ones(num_classes))
    network.optimizer.build(network.trainable_variables)  # as a training run does
    if xla is not None:
        network.jit_compile = xla
    return network, recipe.data.image_size


def stream(tiny):
    """Originals and small pictures through decode into the step: images/s, share of waiting."""
    from small_pictures import PIXELS, QUALITY, read_all

    from data.images import shrink_image

    num_images, batch = (16, 8) if tiny else (1024, 64)
    tar = common.make_shard(num_images)
    small = common.CACHE / f"small-{num_images}.tar"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pictures = pool.map(lambda data: shrink_image(data, PIXELS, QUALITY), read_all(tar))
        common.write_shard(small, common.shard_ids(num_images), pictures)
    network, size = build(tiny, "2019", NUM_FULL)
    tars = {"originals": tar, "256 pixels": small}
    return {"cores": os.cpu_count()} | {
        name: guarded(train_from, path, network, size, batch, num_images)
        for name, path in tars.items()
    }


def train_from(tar, network, size, batch, num_images):
    """Decodes alone, then trains from the stream: which of the two binds."""
    from data.sources import Shard
    from generators import Reading, stream_batches
    from network.devices import OneDevice
    from recipes import Data
    from training import loop
    from utils import Stop

    reading = Reading(Data(image_size=size), batch, lambda image_id: 0, is_training=True)
    plan, source = [(0, Shard("train", number)) for number in range(3)], common.SleepingSource(tar)
    _, decode_s = common.timed(lambda: list(stream_batches(source, plan[:1], reading)))
    batches = stream_batches(source, plan, reading)
    what = (OneDevice(), network, batches, common.Steady(), Stop(), "")
    loop.train_mini_epoch(*what)  # compiles
    row, seconds = common.timed(loop.train_mini_epoch, *what)
    batches.close()
    return {"decode alone, images/s": num_images / decode_s, "images/s": num_images / seconds,
            "share waited": row["waited_s"] / seconds}  # fmt: skip


def describe(tiny):
    """Images/s of ResNet50 and of a ViT-B of random weights at 224 pixels."""
    return {make.__name__: guarded(describe_with, tiny, make) for make in (resnet50, vit_base)}


def resnet50(size, tiny):
    """Builds our network below the head."""
    import model
    from recipes import RECIPES

    return model.build_pooled(RECIPES["2019"].changed(weights="none", image_size=size))


def vit_base(size, tiny):
    """Builds a vision transformer of keras-hub without a preset."""
    import keras
    import keras_hub

    num_layers, width = (1, 64) if tiny else (12, 768)
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(size, size, 3), patch_size=16, num_layers=num_layers, num_heads=width // 64,
        hidden_dim=width, mlp_dim=4 * width,
    )  # fmt: skip
    images = keras.Input((size, size, 3), dtype="uint8")
    return keras.Model(images, backbone(keras.ops.cast(images, "float32"))[:, 0])


def describe_with(tiny, make):
    """Measures predictions of one network."""
    size, batch, times = (32, 8, 2) if tiny else (224, 128, 20)
    network, images = make(size, tiny), np.zeros((batch, size, size, 3), np.uint8)
    ways = {"": lambda: [network.predict_on_batch(images) for _ in range(times)]}
    return {"images/s": batch * times / common.median(common.measure(ways, 3), "")}


def search(tiny):
    """Certified searches proposed by the device and by faiss: queries/s of both, equal bytes.

    The device takes queries of the full number; faiss a share of them, to save time.
    """
    from search_speed import make_descriptors

    from search import exact, on_gpu

    if not tiny and not on_gpu.find_proposer():
        raise RuntimeError("no GPU that multiplies as expected")
    on_gpu.find_proposer = lambda: on_gpu._propose  # what it cannot do is not left to faiss
    cases = ((117_577, 126_960, 2048), (117_577, 1_580_470, 512))
    found = {}
    for num_queries, num_rows, width in ((64, 500, 32),) if tiny else cases:
        queries = make_descriptors(num_queries, 2, np.float16, width)
        index = make_descriptors(num_rows, 3, np.float16, width)
        few = queries[: max(32, num_queries // 64)]
        with_device = common.timed(search_with, queries, index, 0)
        exact.nearest(few, index, 1)  # faiss' threads start
        with_faiss = common.timed(search_with, few, index, np.inf)
        rates = [num_queries / with_device[1], len(few) / with_faiss[1]]
        pairs = zip(with_device[0], with_faiss[0], strict=True)
        found[f"{num_queries} x {num_rows} x {width}"] = {
            "device, queries/s": rates[0], "faiss, queries/s": rates[1], "x": rates[0] / rates[1],
            "equal bytes": all(np.array_equal(one[: len(few)], other) for one, other in pairs),
        }  # fmt: skip
    return found


def search_with(queries, index, min_scores):
    """Searches exactly; `min_scores` of 0 lets a GPU propose, infinity lets faiss."""
    from search import exact

    exact.MIN_SCORES = min_scores
    return exact.nearest(queries, index, 100)


def devices(tiny):
    """Two virtual devices against one: mirrored by TensorFlow; split by JAX, on a CPU's alone."""
    import keras

    from network.devices import MirroredDevices, OneDevice, SplitDevices

    kinds, backend = {"one": OneDevice}, keras.backend.backend()
    found = [] if backend == "torch" else keras.distribution.list_devices()
    if backend == "tensorflow":
        kinds["mirrored on two"] = lambda: MirroredDevices(found)
    elif backend == "jax":  # a GPU cannot be halved: what the split costs on one
        kinds[f"split over {len(found)}"] = lambda: SplitDevices(found)
    return {name: guarded(run_devices, tiny, make()) for name, make in kinds.items()}


def halve_device():
    """Makes two TensorFlow devices of one, which must come before all else."""
    import tensorflow as tf

    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    limit = {"memory_limit": 8192} if kind == "GPU" else {}
    halves = [tf.config.LogicalDeviceConfiguration(**limit)] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices(kind)[0], halves)


def run_devices(tiny, on):
    """Measures training steps on devices of a kind."""
    batch, steps = (8, 2) if tiny else (64, 20)
    with on.scope():
        network, size = build(tiny, "strong", NUM_STRONG)
    images, classes = np.zeros((batch, size, size, 3), np.uint8), np.zeros(batch, np.int32)
    _, first_s = common.timed(on.train_on_batch, network, images, classes)
    ways = {"": lambda: [on.train_on_batch(network, images, classes) for _ in range(steps)]}
    seconds = common.median(common.measure(ways, 1), "")
    return {"images/s": batch * steps / seconds, "first step, s": first_s}


ITEMS = (step, search, demo, strong, stream, describe, devices)  # what is asked first comes first


# --------------------------------------------------------------------------------- the running


def guarded(function, *args):
    """Calls a function; gives its result, or what went wrong in one line."""
    try:
        return function(*args)
    except Exception as error:
        return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def peak_gb():
    """Gives the most memory in use on a GPU; torch and CPUs do not tell here."""
    with contextlib.suppress(Exception):
        if os.environ["KERAS_BACKEND"] == "jax":
            import jax

            return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"] / 1e9
        import tensorflow as tf

        return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e9


def run_item(name, tiny):
    """Runs one item here, and prints its result as JSON, last."""
    if name == "devices" and os.environ["KERAS_BACKEND"] == "tensorflow":
        halve_device()
    import model

    if tiny:
        sys.path.append(str(common.ROOT / "tests"))
        from tiny_network import in_place_of_backbones
    precision = model.set_up_keras(0)
    with in_place_of_backbones() if tiny else contextlib.nullcontext():
        found = {item.__name__: item for item in ITEMS}[name](tiny)
    print(json.dumps({"precision": precision} | found))


def call_item(name, backend, tiny, timeout_s):
    """Runs one item in a process of its own: its result, or what went wrong."""
    settings = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if name == "devices":
        settings["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    command = [sys.executable, __file__, "--item", name, *(["--tiny"] if tiny else [])]
    try:
        done = subprocess.run(
            command, env=os.environ | settings, capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return f"failed: not done after {timeout_s:.0f} s"
    if done.returncode:
        return f"failed: {' '.join(done.stderr.strip().splitlines()[-1:])[:300]}"
    return json.loads(done.stdout.splitlines()[-1])


def device_name():
    """Gives what nvidia-smi says of the GPUs, or what went wrong."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return guarded(lambda: subprocess.check_output(query, text=True).strip())


def main():
    """Runs all items on all backends, as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [item.__name__ for item in ITEMS]
    parser.add_argument("--minutes", type=float, default=20, help="for all (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), help="the JSON")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, help="default: the installed")
    parser.add_argument("--items", nargs="+", choices=names, default=names)
    parser.add_argument("--tiny", action="store_true", help="try every item in small, on a CPU")
    parser.add_argument("--item", choices=names, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.item:
        return run_item(args.item, args.tiny)
    begin, versions = time.perf_counter(), {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    backends = args.backends or [backend for backend in BACKENDS if backend in versions]
    page = {"device": device_name(), "cores": os.cpu_count(), "tiny": args.tiny} | versions
    for name in args.items:
        for backend in backends:
            left_s = 60 * args.minutes - (time.perf_counter() - begin)
            result = "left out: no time left"
            if left_s > 0:
                result = call_item(name, backend, args.tiny, min(left_s, 60 * ITEM_MINUTES))
            page.setdefault(name, {})[backend] = result
            with common.atomic_write(args.output) as temporary:
                temporary.write_text(json.dumps(page, indent=1))
    print(json.dumps(page, indent=1))


if __name__ == "__main__":
    main()
