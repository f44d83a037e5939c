"""What benchmarks share: timing in turns, command line, tables, the machine, realistic shards.

Results also go to <name>.json in the cache; `epoch_estimate.py` reads what it needs there.
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import platform
import statistics
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image, ImageDraw

from data.connections import MAX_CONNECTIONS, Connections
from utils import Progress, atomic_write, say

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(tempfile.gettempdir()) / "landmark-benchmarks"  # what is made once, and the results
WIDTH, HEIGHT = 800, 600  # pixels, the most frequent size of the data set's pictures
JPEG_QUALITY = 85
NUM_LEAVES = 700  # shapes that hide one another in a picture
TEXTURE = 7.0  # standard deviation of the 1/f texture on them, of 255


# ------------------------------------------------------------------------------------- measuring


def measure(ways, rounds, warm_up=True):
    """Runs each way once in every round, A B C B C A ..., so that noise meets all of them alike.

    Ways are functions without arguments; a float that one returns counts instead of its seconds.
    Gives a dict, name -> list of `rounds` numbers.
    """
    return measure_both(ways, rounds, warm_up)[0]


def measure_both(ways, rounds, warm_up=True):
    """Measures as `measure` does; gives two such dicts, the second of processor seconds."""
    results, processor = ({name: [] for name in ways} for _ in range(2))
    for number in range(-1 if warm_up else 0, rounds):
        first = number % len(ways)
        for name in [*ways, *ways][first : first + len(ways)]:
            time.sleep(0.1)  # until threads of the one before sleep
            begin, used = time.perf_counter(), time.process_time()
            result = ways[name]()
            seconds, used = time.perf_counter() - begin, time.process_time() - used
            if number >= 0:
                results[name].append(result if isinstance(result, float) else seconds)
                processor[name].append(used)
    return results, processor


def median(results, name):
    """Gives the median of a way's results."""
    return statistics.median(results[name])


def ratio(results, name, baseline):
    """Gives the median over the rounds of result / result of the baseline in the same round."""
    pairs = zip(results[name], results[baseline], strict=True)
    return statistics.median(a / b for a, b in pairs)


def timed(function, *args):
    """Calls a function; gives (its result, seconds)."""
    begin = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - begin


# ---------------------------------------------------------------------- command line and reporting


def parse_arguments(doc, **options):
    """Parses options: name -> (default, help); a list takes several values of its first's type."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name, (default, what) in options.items():
        is_list = isinstance(default, list)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default[0] if is_list else default),
            nargs="+" if is_list else None, default=default, help=f"{what} (default: %(default)s)",
        )  # fmt: skip
    return parser.parse_args()


def print_table(header, rows):
    """Prints a Markdown table; floats are rounded to three digits."""
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(map(format_cell, row))} |")
    print(flush=True)


def format_cell(value):
    """Writes a table's cell: floats with three digits, None as a dash."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def print_verdict(target, value, is_reached):
    """Prints whether a target of the project is reached."""
    print(f"{'reached' if is_reached else 'MISSED'}: {target}: {format_cell(value)}", flush=True)


def print_machine(*packages):
    """Prints what the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor()
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    parts = [f"{os.cpu_count()} cores of {cpu}", f"Python {platform.python_version()}", *versions]
    print(f"Machine: {', '.join(parts)}; load {os.getloadavg()[0]:.1f} at the start.\n")


def save_results(name, results):
    """Keeps a script's results for other scripts, as JSON."""
    with atomic_write(CACHE / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1))


def load_results(name):
    """Reads what `save_results` kept, or gives {} where there is nothing."""
    with contextlib.suppress(FileNotFoundError):
        return json.loads((CACHE / f"{name}.json").read_text())
    return {}


class SleepingSource:
    """A source whose downloads are sleeps; every shard is the same file, and is kept."""

    def __init__(self, tar, download_s=0.0):
        self.tar, self.download_s = tar, download_s

    def open_connections(self):
        return Connections(MAX_CONNECTIONS)

    def has_space(self, num_shards):
        return True

    def fetch_shard(self, shard, connections):
        with connections.hold():
            time.sleep(self.download_s)
        return self.tar

    def discard_shard(self, shard):
        pass

    require_space = discard_shard


class Steady:
    """Stands for `loop.Pace`: nothing changes from step to step."""

    def progress(self):
        return Progress("steps")

    def describe(self, loss, progress):
        return ""

    def set_for(self, step):
        return 0.0


# ------------------------------------------------------------------------------- realistic shards


def draw_photo(rng):
    """Draws a picture with the statistics of photographs: shapes of all sizes and 1/f texture.

    Shapes that hide one another, with areas spread as 1/r^3 ("dead leaves"), give the edges and the
    1/f^2 power spectrum of natural scenes.

    Source: Lee, Mumford, Huang: Occlusion models for natural images, IJCV 41 (2001).
    """
    # Drawn at twice the size: a lens leaves no jagged edges.
    image = Image.new("RGB", (2 * WIDTH, 2 * HEIGHT), tuple(rng.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    smallest, largest = 8.0, 600.0  # pixels
    share = rng.uniform(size=NUM_LEAVES)
    radii = (largest**-2 + share * (smallest**-2 - largest**-2)) ** -0.5
    base = rng.normal(128, 45, 3)  # one light in a picture, so that colours go together
    for radius in radii:
        x, y = rng.uniform(0, 2 * WIDTH), rng.uniform(0, 2 * HEIGHT)
        colour = np.clip(base + rng.normal(0, 50) + rng.normal(0, 15, 3), 0, 255)
        corners = int(rng.integers(3, 9))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        points = [(x + radius * np.cos(a), y + radius * np.sin(a)) for a in angles]
        draw.polygon(points, fill=tuple(colour.astype(int).tolist()))
    pixels = np.asarray(image.reduce(2), np.float32) + texture(rng)[..., None]
    return np.clip(pixels, 0, 255).astype(np.uint8)


def texture(rng):
    """Draws noise whose amplitude falls as 1/f: (HEIGHT, WIDTH) float32, as luminance."""
    rows = np.fft.fftfreq(HEIGHT)[:, None]
    columns = np.fft.rfftfreq(WIDTH)
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((HEIGHT, WIDTH))) / frequency
    noise = np.fft.irfft2(spectrum, (HEIGHT, WIDTH))
    return (noise * (TEXTURE / noise.std())).astype(np.float32)


def encode_photo(number):
    """Draws photo `number` and gives it as the bytes of a JPEG."""
    file, photo = io.BytesIO(), Image.fromarray(draw_photo(np.random.default_rng(number)))
    photo.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def make_shard(num_images, folder=None):
    """Gives the path of a tar of drawn photographs in the data set's layout, made once."""
    path = (folder or CACHE) / f"photos-{num_images}.tar"
    if path.exists():
        return path
    say(f"drawing {num_images} photographs into {path}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        write_shard(path, shard_ids(num_images), pool.map(encode_photo, range(num_images)))
    return path


def write_shard(path, image_ids, photos):
    """Writes a tar of JPEGs (iterable of bytes) under these ids, in the data set's layout."""
    with atomic_write(path) as temporary, tarfile.open(temporary, "w") as tar:
        for image_id, data in zip(image_ids, photos, strict=True):
            name = f"{image_id:016x}"
            info = tarfile.TarInfo(f"{name[0]}/{name[1]}/{name[2]}/{name}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def shard_ids(num_images):
    """Gives the image ids in a shard of `make_shard`, in its order."""
    return np.random.default_rng(0).integers(0, 2**63, num_images).tolist()
