"""What small pictures bring: the rate of shrinking, the bytes, the rate of decoding.

    python benchmarks/small_pictures.py [--images 96] [--rounds 5]

Rates are of processor time, so that other jobs on the machine change them little. Scores are
compared by hand: shrink a data set, then benchmarks/ablation.py on both.
"""

import functools
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common
from common import median, print_table, print_verdict, ratio

import shrink
from data.images import shrink_image
from data.sources import Shard
from data.tars import list_members
from generators import Reading, read_shard
from recipes import Data

SHARD = Shard("train", 0)
NETWORK_SIZES = (192, 96)
PIXELS, QUALITY = 256, 85  # the defaults of shrink.py
SHARD_MB = 1000  # of the data set
DOWNLOAD_MB_S, CORES, FREE_CORES = 33.0, 4, 0.75  # of a kernel, as in epoch_estimate.py


def read_all(tar):
    """Reads the images of a tar: list of bytes."""
    with open(tar, "rb") as file:
        return [os.pread(file.fileno(), m.size, m.offset) for m in list_members(tar)]


def shrink_rate(originals, rounds):
    """Measures pictures a second and core."""

    def run():
        for data in originals:
            shrink_image(data, PIXELS, QUALITY)

    _, seconds = common.measure_both({"shrink": run}, rounds)
    return len(originals) / median(seconds, "shrink")


def decode_rates(tars, num_images, rounds, size):
    """Measures images/s of processor time from tar bytes to augmented batches, interleaved."""
    data = Data(image_size=size)
    reading = Reading(data, 64, lambda image_id: 0, is_training=True, num_threads=1)

    def read(tar):
        with ThreadPoolExecutor(1) as pool:
            for _ in read_shard(reading, SHARD, tar, list_members(tar), 0, pool):
                pass

    ways = {name: functools.partial(read, tar) for name, tar in tars.items()}
    _, seconds = common.measure_both(ways, rounds)
    return {name: [num_images / s for s in found] for name, found in seconds.items()}


def shrink_shard(tar, num_images, folder):
    """Runs shrink.py on one shard: dict, name -> path of the tar before and after."""
    source = Path(folder, "source")
    ids, pictures = common.shard_ids(num_images), read_all(tar)
    repeated = (pictures[number % len(pictures)] for number in range(num_images))
    common.write_shard(source / SHARD.path, ids, repeated)
    output = Path(folder, "output")
    words = ["--source", source, "--output", output, "--split", "train"]
    _, seconds = common.timed(shrink.main, list(map(str, words)))
    paths = {"originals": source / SHARD.path, "small": output / SHARD.path}
    before, after = (path.stat().st_size / 1e6 for path in paths.values())
    print(
        f"a shard of {num_images:,} pictures: {before:,.1f} -> {after:,.1f} MB, "
        f"{before / after:.2f} times smaller, in {seconds:.0f} s on this machine\n"
    )
    return paths


def report_shrinking(rate, photo_kb):
    """Prints whether shrinking keeps up with the download."""
    in_kernel = rate * CORES * FREE_CORES
    num_images = SHARD_MB * 1000 / photo_kb
    download_s, shrink_s = SHARD_MB / DOWNLOAD_MB_S, num_images / in_kernel
    print(f"shrinking: {rate:.0f} pictures/s and core")
    print(
        f"a shard of {SHARD_MB} MB ({num_images:,.0f} pictures): {download_s:.0f} s to download, "
        f"{shrink_s:.0f} s to shrink on {CORES} cores of which {FREE_CORES:.0%} do so (calculated)"
    )
    times = download_s / shrink_s
    print_verdict("shrinks as fast as a kernel downloads, x", times, times >= 1)


def main():
    """Prints the tables, as the module's docstring says."""
    args = common.parse_arguments(
        __doc__, images=(96, "drawn pictures"), rounds=(5, "times that each way is measured"),
        shard_images=(2000, "pictures in the shard, which repeats them"),
    )  # fmt: skip
    tar = common.make_shard(args.images)
    common.print_machine("pillow")
    originals = read_all(tar)
    rate = shrink_rate(originals, args.rounds)
    report_shrinking(rate, sum(map(len, originals)) / len(originals) / 1000)
    with tempfile.TemporaryDirectory(prefix="shrink-") as folder:
        tars = shrink_shard(tar, args.shard_images, folder)
        rows = []
        for size in NETWORK_SIZES:
            rates = decode_rates(tars, args.shard_images, args.rounds, size)
            times = ratio(rates, "small", "originals")
            rows.append((size, median(rates, "originals"), median(rates, "small"), times))
    header = ("network's pixels", "originals, images/s and core", "small, images/s and core", "x")
    print_table(header, rows)
    print_verdict("decodes at least 3x as fast at 192 pixels", rows[0][3], rows[0][3] >= 3)
    common.save_results("small_pictures", {"times": rows[0][3], "shrink_rate": rate})


if __name__ == "__main__":
    main()
