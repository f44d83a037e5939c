"""Tar bytes -> shuffled uint8 batches of 192 x 192: our generators against other ways.

    python benchmarks/decode.py [--images 512] [--rounds 5]

Every way starts from the same tar (Keras' from the extracted files) and ends with batches of 64
images in random order. The baseline is the 2019 way: extract to disk, one thread, full decode,
INTER_AREA. Fidelity is the PSNR of each picture against full decode and INTER_AREA, averaged.
"""

import functools
import os
import tarfile
import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common
import numpy as np
from common import CACHE, median, print_table, print_verdict, ratio

from data.sources import Shard
from data.tars import list_members
from generators import Reading, ShardEnd, read_shard
from network.loading import muted_stderr
from recipes import Data

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import cv2
import simplejpeg

SIZE, BATCH = 192, 64
SHARD = Shard("train", 0)
OLD = "2019: extract, imread, INTER_AREA, 1 thread"
ONE, TWO, CROPS = "ours, 1 thread", "ours, 2 threads", "ours, 2 threads, crops and mirroring"
BEST = "simplejpeg at half size, INTER_AREA"

# -------------------------------------------------------------------------------------- the ways


def ours(tar, num_threads, crops=False):
    """Reads a shard as `generators.stream_batches` does, without the download."""
    reading = Reading(
        Data(image_size=SIZE, augment=crops),
        BATCH,
        lambda image_id: 0,
        is_training=True,
        num_threads=num_threads,
    )
    with ThreadPoolExecutor(num_threads) as pool:
        for item in read_shard(reading, SHARD, tar, list_members(tar), 0, pool):
            if not isinstance(item, ShardEnd):
                yield item.image_ids, item.images


def extract_and_read(tar):
    """The 2019 way."""
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        with tarfile.open(tar) as file:
            file.extractall(folder, filter="data")
        paths = sorted(Path(folder).rglob("*.jpg"))
        np.random.default_rng(0).shuffle(paths)
        yield from batches((path, area_resize(cv2.imread(str(path)))) for path in paths)


def in_threads(tar, decode, num_threads=2):
    """Decodes with any function bytes -> image, in threads, straight from the tar."""
    members = list_members(tar)
    np.random.default_rng(0).shuffle(members)
    with open(tar, "rb") as file, ThreadPoolExecutor(num_threads) as pool:

        def read(member):
            return member.image_id, decode(os.pread(file.fileno(), member.size, member.offset))

        yield from batches(run_ahead(pool, read, members))


def run_ahead(pool, function, items, ahead=BATCH):
    """Maps like `pool.map`, but holds a bounded number of results."""
    futures = deque()
    for item in items:
        futures.append(pool.submit(function, item))
        if len(futures) > ahead:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def tf_data(tar, decode, num_threads=2):
    """tf.data fed by a generator of bytes, decoding in its own threads."""
    import tensorflow as tf

    members = list_members(tar)
    np.random.default_rng(0).shuffle(members)

    def read():
        with open(tar, "rb") as file:
            for member in members:
                data = os.pread(file.fileno(), member.size, member.offset)
                yield np.uint64(member.image_id), data

    signature = (tf.TensorSpec((), tf.uint64), tf.TensorSpec((), tf.string))
    data = tf.data.Dataset.from_generator(read, output_signature=signature)
    data = data.map(lambda image_id, data: (image_id, decode(data)), num_threads).batch(BATCH)
    options = tf.data.Options()
    options.autotune.enabled = False  # else the end of the iterator can take seconds
    options.threading.private_threadpool_size = num_threads
    yield from data.prefetch(2).with_options(options).as_numpy_iterator()


def tf_full(data):
    """Decodes fully and averages areas, in TensorFlow."""
    import tensorflow as tf

    image = tf.io.decode_jpeg(data, 3)
    resized = tf.image.resize(image, (SIZE, SIZE), "area")
    return tf.cast(tf.round(resized), tf.uint8)


def tf_half(data):
    """Decodes at half size with the fast DCT and resizes bilinearly, in TensorFlow."""
    import tensorflow as tf

    image = tf.io.decode_jpeg(data, 3, ratio=2, dct_method="INTEGER_FAST")
    return tf.cast(tf.round(tf.image.resize(image, (SIZE, SIZE))), tf.uint8)


def keras_from_directory(folder):
    """keras.utils.image_dataset_from_directory over the extracted files, bilinear, float32."""
    import keras

    with muted_stderr():
        data = keras.utils.image_dataset_from_directory(
            folder, None, label_mode=None, image_size=(SIZE, SIZE), batch_size=BATCH, seed=0,
            verbose=False,
        )  # fmt: skip
    for images in data.as_numpy_iterator():
        yield None, images


def area_resize(image):
    """BGR of any size -> RGB of the target's, by OpenCV's exact area average."""
    resized = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(resized, cv2.COLOR_BGR2RGB)


def decode_fully(data):
    """Full decode and INTER_AREA: the reference."""
    return area_resize(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))


def decode_with_simplejpeg(data):
    """simplejpeg's decode at half size (left to itself it would take 3/8), then INTER_AREA."""
    height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=False)
    least = {"min_height": height // 2, "min_width": width // 2}
    image = simplejpeg.decode_jpeg(data, "RGB", strict=False, **least)
    return cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def batches(pairs):
    """Gathers (name or id, image) pairs into (list of names, images)."""
    names, images = [], []
    for name, image in pairs:
        names.append(name)
        images.append(image)
        if len(images) == BATCH:
            yield names, np.stack(images)
            names, images = [], []
    if images:
        yield names, np.stack(images)


# --------------------------------------------------------------------------------- the measuring


def make_ways(tar, folder):
    """Lists the ways to compare: dict, name -> function that gives an iterator of batches."""
    return {
        OLD: lambda: extract_and_read(tar),
        ONE: lambda: ours(tar, 1),
        TWO: lambda: ours(tar, 2),
        CROPS: lambda: ours(tar, 2, crops=True),
        "tf.data, decode_jpeg, area": lambda: tf_data(tar, tf_full),
        "tf.data, half size, INTEGER_FAST, bilinear": lambda: tf_data(tar, tf_half),
        "Keras image_dataset_from_directory, no tar": lambda: keras_from_directory(folder),
        BEST: lambda: in_threads(tar, decode_with_simplejpeg),
    }


def psnr(way, references):
    """Gives the mean PSNR in dB of a way's pictures; None where it does not name them."""
    values = []
    for names, images in way():
        if names is None:
            return None
        for name, image in zip(names, images, strict=True):
            is_path = isinstance(name, (str, Path))
            image_id = int(Path(name).stem, 16) if is_path else int(name)
            error = np.mean((image.astype(np.float64) - references[image_id]) ** 2)
            values.append(10 * np.log10(255**2 / error) if error else np.inf)
    return float(np.mean(values))


def consume(way, num_images):
    """Runs a way to its end."""
    num_seen = sum(len(images) for _, images in way())
    if num_seen < num_images:
        raise RuntimeError(f"{num_seen} of {num_images} images")


def main():
    """Prints the table, as the module's docstring says."""
    args = common.parse_arguments(
        __doc__, images=(512, "images in the shard"), rounds=(5, "times that each way is measured")
    )
    cv2.setNumThreads(1)
    tar = common.make_shard(args.images)
    common.print_machine("pillow", "opencv-python-headless", "simplejpeg")
    size = tar.stat().st_size / args.images / 1000
    print(f"{args.images} JPEGs of {common.WIDTH}x{common.HEIGHT}, {size:.0f} KB each\n")
    references = {
        image_id: images[0] for (image_id,), images in one_by_one(in_threads(tar, decode_fully))
    }
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        with tarfile.open(tar) as file:
            file.extractall(folder, filter="data")
        ways = make_ways(tar, folder)
        fidelity = {name: psnr(way, references) for name, way in ways.items() if name != CROPS}
        runs = {name: functools.partial(consume, way, args.images) for name, way in ways.items()}
        seconds, used = common.measure_both(runs, args.rounds)
    rates = {name: [args.images / s for s in found] for name, found in seconds.items()}
    cpu_ms = {name: [1000 * s / args.images for s in found] for name, found in used.items()}
    report(rates, cpu_ms, fidelity)
    common.save_results("decode", {"images_per_s": rates})


def one_by_one(stream):
    """Cuts batches into batches of one image."""
    for names, images in stream:
        for name, image in zip(names, images, strict=True):
            yield [name], image[None]


def report(rates, cpu_ms, fidelity):
    """Prints the table and the targets."""
    rows = [
        (name, median(rates, name), ratio(rates, name, OLD), max(rates[name]),
         max(rates[name]) / max(rates[OLD]), median(cpu_ms, name), fidelity.get(name))
        for name in rates
    ]  # fmt: skip
    header = ("way", "images/s", "x the 2019 way", "best round", "x", "CPU ms an image", "PSNR, dB")
    print_table(header, rows)
    best = {name: max(found) for name, found in rates.items()}
    times, scaling = ratio(rates, TWO, OLD), ratio(rates, TWO, ONE)
    print_verdict("at least 3.3x the 2019 way", times, times >= 3.3)
    print_verdict("at least 40 dB", fidelity[TWO], fidelity[TWO] >= 40)
    print_verdict("1 -> 2 threads at least 1.8x", scaling, scaling >= 1.8)
    print(f"in each way's best round: {best[TWO] / best[OLD]:.2f}x, {best[TWO] / best[ONE]:.2f}x")
    print(f"share of the best alternative's rate: {ratio(rates, TWO, BEST):.2f}")


if __name__ == "__main__":
    main()
