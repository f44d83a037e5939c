"""Tar bytes -> shuffled uint8 batches of 192 x 192: our generators against other ways.

    python benchmarks/decode.py [--images 512] [--rounds 5]

Every way starts from the same tar (Keras' from the extracted files) and ends with batches of 64
images in random order. The baseline is the 2019 way: extract to disk, one thread, full decode,
INTER_AREA. Fidelity is the PSNR of each picture against full decode and INTER_AREA, averaged.
"""

import argparse
import ctypes
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
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
OURS = "ours"
BEST = "simplejpeg at half size + compiled area resize"

# An exact area average, for the limit of what a compiled dependency would bring.
AREA_RESIZE = r"""
#include <stdlib.h>
#define SIZE %d
static int weigh(int n, int *first, float (*weights)[16]) { /* of source pixels in each target */
    int most = 0;
    for (int i = 0; i < SIZE; i++) {
        double begin = (double)i * n / SIZE, end = (double)(i + 1) * n / SIZE;
        first[i] = (int)begin;
        int k = 0;
        for (int j = first[i]; j < end && j < n && k < 16; j++, k++) {
            double low = j > begin ? j : begin, high = j + 1 < end ? j + 1 : end;
            weights[i][k] = (float)((high - low) / (end - begin));
        }
        while (k < 16) weights[i][k++] = 0;
        if ((int)(end - begin) + 2 > most) most = (int)(end - begin) + 2;
    }
    return most;
}
void area_resize(const unsigned char *in, int height, int width, unsigned char *out) {
    int top[SIZE], left[SIZE];
    float down[SIZE][16], across[SIZE][16];
    int rows = weigh(height, top, down), columns = weigh(width, left, across);
    float *sum = malloc(sizeof(float) * width * 3);
    for (int i = 0; i < SIZE; i++) {
        for (int x = 0; x < width * 3; x++) sum[x] = 0.5f;
        for (int k = 0; k < rows && top[i] + k < height; k++) {
            const unsigned char *row = in + (size_t)(top[i] + k) * width * 3;
            float weight = down[i][k];
            if (weight != 0) for (int x = 0; x < width * 3; x++) sum[x] += weight * row[x];
        }
        for (int j = 0; j < SIZE; j++) {
            float a = 0, b = 0, c = 0;
            for (int k = 0; k < columns && left[j] + k < width; k++) {
                const float *pixel = sum + (left[j] + k) * 3;
                a += across[j][k] * pixel[0];
                b += across[j][k] * pixel[1];
                c += across[j][k] * pixel[2];
            }
            out[(i * SIZE + j) * 3] = (unsigned char)a;
            out[(i * SIZE + j) * 3 + 1] = (unsigned char)b;
            out[(i * SIZE + j) * 3 + 2] = (unsigned char)c;
        }
    }
    free(sum);
}
"""


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
        for item in read_shard(SHARD, tar, reading, 0, pool):
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


def webdataset(tar):
    """webdataset with a shuffle buffer, decoding by OpenCV; its loader's processes need torch."""
    import webdataset as wds

    data = wds.WebDataset(f"file:{tar}", shardshuffle=False, empty_check=False).shuffle(BATCH * 4)
    yield from batches((item["__key__"], decode_fully(item["jpg"])) for item in data)


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


def decode_half(data):
    """OpenCV's decode at half size, then INTER_AREA."""
    return area_resize(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_2))


def decode_simplejpeg(resize, shrink=True):
    """Makes a decoder of simplejpeg, at half size or in full, and a resize function.

    Left to itself it would take 3/8 of the size, the smallest that covers the target.
    """

    def decode(data):
        height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=False)
        least = {"min_height": height // 2, "min_width": width // 2} if shrink else {}
        return resize(simplejpeg.decode_jpeg(data, "RGB", strict=False, **least))

    return decode


def compile_area_resize():
    """Compiles AREA_RESIZE; gives a function image -> image, or None where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "area.c"), Path(folder, "area.so")
        source.write_text(AREA_RESIZE % SIZE)
        command = [compiler, "-O3", "-ffast-math", "-march=native", "-shared", "-fPIC"]
        subprocess.run([*command, "-o", library, source], check=True)
        function = ctypes.CDLL(library).area_resize  # stays loaded after the file is gone
    pointer = np.ctypeslib.ndpointer(np.uint8, flags="C_CONTIGUOUS")
    function.argtypes = [pointer, ctypes.c_int, ctypes.c_int, pointer]
    function.restype = None

    def resize(image):
        resized = np.empty((SIZE, SIZE, 3), np.uint8)
        function(image, *image.shape[:2], resized)
        return resized

    return resize


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
    compiled = compile_area_resize()
    inter_area = decode_simplejpeg(lambda image: cv2.resize(image, (SIZE, SIZE), None, 0, 0, 3))
    ways = {
        OLD: lambda: extract_and_read(tar),
        f"{OURS}, 1 thread": lambda: ours(tar, 1),
        f"{OURS}, 2 threads": lambda: ours(tar, 2),
        f"{OURS}, 2 threads, crops and mirroring": lambda: ours(tar, 2, crops=True),
        "webdataset, imdecode, INTER_AREA": lambda: webdataset(tar),
        "tf.data, decode_jpeg, area": lambda: tf_data(tar, tf_full),
        "tf.data, half size, INTEGER_FAST, bilinear": lambda: tf_data(tar, tf_half),
        "Keras image_dataset_from_directory, no tar": lambda: keras_from_directory(folder),
        "imdecode, INTER_AREA, 2 threads": lambda: in_threads(tar, decode_fully),
        "imdecode at half size, INTER_AREA, 2 threads": lambda: in_threads(tar, decode_half),
        "simplejpeg at half size, INTER_AREA": lambda: in_threads(tar, inter_area),
    }
    if compiled:
        ways["simplejpeg + compiled area resize"] = lambda: in_threads(
            tar, decode_simplejpeg(compiled, shrink=False)
        )
        ways[BEST] = lambda: in_threads(tar, decode_simplejpeg(compiled))
    return ways


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


def consume(way, num_images, cpu_ms):
    """Makes a function that runs a way, gives its images/s and appends its ms of CPU per image."""

    def run():
        begin = time.process_time()
        num_seen, seconds = common.timed(lambda: sum(len(images) for _, images in way()))
        cpu_ms.append(1000 * (time.process_time() - begin) / num_images)
        if num_seen < num_images:
            raise RuntimeError(f"{num_seen} of {num_images} images")
        return num_images / seconds

    return run


def main():
    """Prints the table, as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512, help="images in the shard")
    parser.add_argument("--rounds", type=int, default=5, help="times that each way is measured")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    tar = common.make_shard(args.images)
    common.print_machine("pillow", "opencv-python-headless", "simplejpeg", "webdataset")
    size = tar.stat().st_size / args.images / 1000
    print(f"{args.images} JPEGs of {common.WIDTH}x{common.HEIGHT}, {size:.0f} KB each\n")
    references = {
        image_id: images[0] for (image_id,), images in one_by_one(in_threads(tar, decode_fully))
    }
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        with tarfile.open(tar) as file:
            file.extractall(folder, filter="data")
        ways = make_ways(tar, folder)
        unchanged = {name: way for name, way in ways.items() if "crops" not in name}
        fidelity = {name: psnr(way, references) for name, way in unchanged.items()}
        cpu_ms = {name: [] for name in ways}
        rates = common.measure(
            {name: consume(way, args.images, cpu_ms[name]) for name, way in ways.items()},
            args.rounds,
        )
    report(rates, cpu_ms, fidelity)
    results = {"images_per_s": rates, "cpu_ms_per_image": cpu_ms, "psnr": fidelity}
    common.save_results("decode", results)


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
    two = f"{OURS}, 2 threads"
    one, best = f"{OURS}, 1 thread", {name: max(found) for name, found in rates.items()}
    times, scaling = ratio(rates, two, OLD), ratio(rates, two, one)
    print_verdict("at least 3.3x the 2019 way", times, times >= 3.3)
    print_verdict("at least 40 dB", fidelity[two], fidelity[two] >= 40)
    print_verdict("1 -> 2 threads at least 1.8x", scaling, scaling >= 1.8)
    print(f"in each way's best round: {best[two] / best[OLD]:.2f}x, {best[two] / best[one]:.2f}x")
    if BEST in rates:
        print(f"share of the best alternative's rate: {ratio(rates, two, BEST):.2f}")


if __name__ == "__main__":
    main()
