"""What small pictures cost and bring: bytes, fidelity, the rate of shrinking, the rate of decoding.

    python benchmarks/small_pictures.py [--images 96] [--photos FOLDER] [--rounds 5]

Fidelity is the PSNR of a picture as the network would see it, read from the small one, against the
same read from the original, averaged. Rates are of processor time, so that other jobs on the
machine change them little. --photos names a data set of real photographs, of which the large ones
are taken. Scores are compared by hand: shrink a data set, then benchmarks/ablation.py on both.
"""

import argparse
import io
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common
import numpy as np
from common import median, print_table, print_verdict, ratio
from PIL import Image

import shrink
from data.images import decode_image, shrink_image, shrunk_size
from data.sources import Shard
from data.tars import list_members
from generators import Reading, ShardEnd, read_shard
from recipes import Data

SHARD = Shard("train", 0)
NETWORK_SIZES = (192, 96)
PIXELS, QUALITIES = (192, 224, 256, 320, 384), (80, 85, 90, 95)
CHOSEN_PIXELS, CHOSEN_QUALITY = 256, 85  # the defaults of shrink.py
LEAST_SIDE = 320  # of the photographs that are compared
SHARD_MB = 1000  # of the data set
DOWNLOAD_MB_S, CORES, FREE_CORES = 33.0, 4, 0.75  # of a kernel, as in epoch_estimate.py


def read_all(tar):
    """Reads the images of a tar: list of bytes."""
    with open(tar, "rb") as file:
        return [os.pread(file.fileno(), m.size, m.offset) for m in list_members(tar)]


def read_photos(folder, most):
    """Reads photographs that are large enough to be made small, from a data set in our layout."""
    found = []
    for tar in sorted(Path(folder).glob("*/images_*.tar")):
        for data in read_all(tar):
            with Image.open(io.BytesIO(data)) as image:
                if min(image.size) >= LEAST_SIDE:
                    found.append(data)
    return found[:: max(1, len(found) // most)][:most]


# -------------------------------------------------------------------------------------- fidelity


def halved_colours(data, pixels, quality):
    """Makes a picture small as `shrink_image` does, but at half the colour resolution (4:2:0)."""
    with Image.open(io.BytesIO(data)) as image:
        size = shrunk_size(image.size, pixels)
        image.draft("RGB", size)
        file = io.BytesIO()
        small = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        small.save(file, "JPEG", quality=quality, subsampling=2)
    return file.getvalue()


def psnr(ours, reference):
    error = np.mean((ours.astype(np.float64) - reference) ** 2)
    return 10 * np.log10(255**2 / error) if error else 99.0


def compare(name, originals):
    """Prints bytes and fidelity for each size and quality."""
    direct = {size: [decode_image(data, size) for data in originals] for size in NETWORK_SIZES}
    before = sum(map(len, originals)) / len(originals) / 1000
    ways = [(pixels, quality, shrink_image) for pixels in PIXELS for quality in QUALITIES]
    ways += [(CHOSEN_PIXELS, quality, halved_colours) for quality in (90, 95)]
    rows = []
    for pixels, quality, way in ways:
        small = [way(data, pixels, quality) for data in originals]
        after = sum(map(len, small)) / len(small) / 1000
        fidelity = [
            float(np.mean([
                psnr(decode_image(data, size), reference)
                for data, reference in zip(small, direct[size], strict=True)
            ]))
            for size in NETWORK_SIZES
        ]  # fmt: skip
        label = f"{quality}" + (", half the colours" if way is halved_colours else "")
        if (pixels, quality, way) == (CHOSEN_PIXELS, CHOSEN_QUALITY, shrink_image):
            label = f"**{label}**"
        rows.append((pixels, label, after, after / before, *fidelity))
    print(f"{len(originals)} {name}, {before:.1f} KB each before\n")
    header = ("pixels", "quality", "KB", "share of the bytes")
    print_table((*header, *(f"PSNR at {size}, dB" for size in NETWORK_SIZES)), rows)


# ----------------------------------------------------------------------------------------- rates


def shrink_rate(originals, rounds):
    """Measures pictures a second and core."""

    def run():
        begin = time.process_time()
        for data in originals:
            shrink_image(data, CHOSEN_PIXELS, CHOSEN_QUALITY)
        return len(originals) / (time.process_time() - begin)

    return median(common.measure({"shrink": run}, rounds), "shrink")


def decode_rates(tars, rounds, size):
    """Measures images/s of processor time from tar bytes to augmented batches, interleaved."""
    reading = Reading(
        Data(image_size=size), 64, lambda image_id: 0, is_training=True, num_threads=1,
    )  # fmt: skip

    def reader(tar):
        def run():
            begin, num_images = time.process_time(), 0
            with ThreadPoolExecutor(1) as pool:
                for item in read_shard(SHARD, tar, reading, 0, pool):
                    num_images += item.num_images if isinstance(item, ShardEnd) else 0
            return num_images / (time.process_time() - begin)

        return run

    return common.measure({name: reader(tar) for name, tar in tars.items()}, rounds)


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=96, help="drawn pictures")
    parser.add_argument("--shard-images", type=int, default=2000, help="in the shard, repeated")
    parser.add_argument("--photos", type=Path, help="data set of real photographs")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    tar = common.make_shard(args.images)
    common.print_machine("pillow")
    originals = read_all(tar)
    compare(f"drawn pictures of {common.WIDTH}x{common.HEIGHT}", originals)
    if args.photos:
        photos = read_photos(args.photos, args.images)
        compare(f"photographs, {LEAST_SIDE} pixels or more", photos)
    rate = shrink_rate(originals, args.rounds)
    report_shrinking(rate, sum(map(len, originals)) / len(originals) / 1000)
    with tempfile.TemporaryDirectory(prefix="shrink-") as folder:
        tars = shrink_shard(tar, args.shard_images, folder)
        rows = []
        for size in NETWORK_SIZES:
            rates = decode_rates(tars, args.rounds, size)
            times = ratio(rates, "small", "originals")
            rows.append((size, median(rates, "originals"), median(rates, "small"), times))
    header = ("network's pixels", "originals, images/s and core", "small, images/s and core", "x")
    print_table(header, rows)
    print_verdict("decodes at least 3x as fast at 192 pixels", rows[0][3], rows[0][3] >= 3)
    common.save_results("small_pictures", {"times": rows[0][3], "shrink_rate": rate})


if __name__ == "__main__":
    main()
