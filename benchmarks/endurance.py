"""What does a long stream over a bad network cost? Disk, memory and faults over 50 small shards.

    python benchmarks/endurance.py [--shards 50]

A server on this machine (that of the tests, in a process of its own) breaks, delays or falsifies
every second download. The shards stream through `generators.stream_batches` as for a prediction; a
thread watches the disk.
"""

import contextlib
import gc
import hashlib
import io
import itertools
import multiprocessing
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import common
import numpy as np
from common import print_table, print_verdict
from PIL import Image

sys.path.insert(0, str(common.ROOT / "tests"))

from fault_server import Fault, FaultServer
from synthetic import encode, entry, make_image_id, member_name, pack

from data import sources
from data.connections import MAX_CONNECTIONS
from data.download import Patience, download
from data.images import decode_image
from data.sources import Shard, Source
from generators import Reading, ShardEnd, stream_batches
from recipes import Data

NUM_IMAGES = 64  # in a shard, 1.5 MB
IMAGE_SIZE, BATCH_SIZE = 192, 32  # a shard's images take 7 MB when decoded
SAMPLE_S = 0.002
IMPATIENT = Patience(
    first_wait_s=0.01, longest_wait_s=0.05, timeout_s=0.3, stall_s=0.3, stall_bytes=10_000
)


def make_faults(size_bytes):
    """Gives name -> list of faults of successive answers, for a tar of so many bytes."""
    middle = size_bytes // 2
    return {
        "closed half-way": [Fault(close_after=middle)],
        "reset half-way": [Fault(reset_after=middle)],
        "a wrong byte": [Fault(corrupt_at=middle)],
        "HTTP 503": [Fault(status=503)],
        "no answer": [Fault(raw=b"")],
        "range ignored": [Fault(close_after=middle), Fault(ignore_range=True)],
        "a wrong Content-Length": [Fault(length_error=1000)],
        "silence": [Fault(silence_after=middle)],
        "a drip": [Fault(drip_after=middle)],
        "three in a row": [Fault(close_after=10), Fault(corrupt_at=middle), Fault(status=500)],
    }


def make_photos():
    """Makes the JPEGs that every shard holds, under ids of its own."""
    rng = np.random.default_rng(0)
    pictures = (rng.integers(0, 256, (120, 160, 3), np.uint8) for _ in range(NUM_IMAGES))
    return [encode(Image.fromarray(pixels), quality=85) for pixels in pictures]


def make_files(shards, photos):
    """Makes the server's files: path -> bytes."""
    files = {}
    for shard in shards:
        members = zip(image_ids_of(shard), photos, strict=True)
        tar = pack([entry(member_name(image_id), photo) for image_id, photo in members])
        files[f"/{shard.path}"] = tar
        files[f"/{shard.md5_path}"] = f"{hashlib.md5(tar).hexdigest()}  {shard.path}\n".encode()
    return files


def image_ids_of(shard):
    """Lists the image ids of a shard, in the order of the photos."""
    return [make_image_id(shard, number) for number in range(NUM_IMAGES)]


def serve(pipe, shards, photos):
    """Serves the shards with their faults until told to stop.

    Sends (address, bytes of a shard), and at the end (faults injected, kinds of fault).
    """
    files = make_files(shards, photos)
    size_bytes = len(files[f"/{shards[0].path}"])
    kinds = make_faults(size_bytes).items()
    with FaultServer(files) as server:
        for shard, (_, script) in zip(shards[::2], itertools.cycle(kinds), strict=False):
            # The first question is for the size, to see whether the disk has room.
            first = [Fault()] if shard == shards[0] else []
            server.faults[f"/{shard.path}"] = first + list(script)
        num_faults = sum(map(len, server.faults.values())) - 1
        pipe.send((server.address, size_bytes))
        pipe.recv()
        num_unused = sum(map(len, server.faults.values()))
        pipe.send((num_faults - num_unused, min(len(kinds), len(server.faults))))


def download_impatiently(url, path, md5=None, patience=None, connections=None):
    """Downloads as `download.download` does, whatever the patience, with short waits."""
    download(url, path, md5, IMPATIENT, connections)


@contextlib.contextmanager
def watch_disk(folder):
    """Samples a folder during a `with` block: gives a list of its tars' sizes at each look."""
    looks, is_over = [], threading.Event()

    def look():
        while not is_over.wait(SAMPLE_S):
            sizes = []
            for path in folder.rglob("*.tar"):  # unfinished ones too
                with contextlib.suppress(FileNotFoundError):
                    sizes.append(path.stat().st_size)
            looks.append(sizes)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield looks
    finally:
        is_over.set()
        thread.join()


def resident_bytes():
    """Gives the memory that this process holds."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def stream(source, shards, photo_of, expected, memory_after):
    """Streams all shards; gives (Counter of image ids, number of wrong images, memory by shard)."""
    reading = Reading(
        Data(image_size=IMAGE_SIZE), BATCH_SIZE, image_ids=np.array(list(photo_of), np.uint64)
    )
    seen, num_wrong, memory, num_ended = Counter(), 0, {}, 0
    for item in stream_batches(source, [(0, shard) for shard in shards], reading):
        if isinstance(item, ShardEnd):
            num_ended += 1
            if num_ended in memory_after:
                memory[num_ended] = resident_bytes()
            continue
        ids = item.image_ids.tolist()
        seen.update(ids)
        for image_id, image in zip(ids, item.images, strict=False):
            num_wrong += not np.array_equal(image, expected[photo_of[image_id]])
    return seen, num_wrong, memory


def main():
    """Streams the shards and prints what that took, as the module's docstring shows."""
    num_shards = common.parse_arguments(__doc__, shards=(50, "number of shards")).shards
    common.print_machine("pillow", "numpy")
    shards = [Shard("index", number) for number in range(num_shards)]
    photos = make_photos()
    pipe, far_end = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(far_end, shards, photos), daemon=True)
    server.start()
    address, size_bytes = pipe.recv()
    found = endure(address, shards, photos)
    pipe.send("stop")
    num_faults, num_kinds = pipe.recv()
    server.join()
    rows = {
        "shards, MB each": f"{num_shards}, {size_bytes / 1e6:.2f}",
        "downloads with a fault": f"{len(shards[::2])} of {num_shards}",
        "faults injected": f"{num_faults} of {num_kinds} kinds",
    }
    print_table(("what", "figure"), list((rows | found.rows).items()))
    print_verdict("every image read once and right", f"{found.num_once:,}", found.is_exact)
    most = MAX_CONNECTIONS + 1
    print_verdict(f"{most} shards on disk at most", found.num_tars, found.num_tars <= most)
    # A shard that stayed would be 7 MB of decoded images, 40 of them 280 MB.
    growth = found.growth_bytes
    print_verdict("memory grows by less than 30 MB", growth / 1e6, growth < 30e6)


def endure(address, shards, photos):
    """Streams all shards from a server that injects faults: `rows` to print, and what is judged."""
    expected = [decode_image(photo, IMAGE_SIZE) for photo in photos]
    photo_of = {
        int(image_id, 16): number
        for shard in shards
        for number, image_id in enumerate(image_ids_of(shard))
    }
    early, late = max(1, len(shards) // 5), len(shards)
    with (
        tempfile.TemporaryDirectory() as scratch,
        watch_disk(Path(scratch)) as looks,
        mock.patch.object(sources, "download", download_impatiently),
        contextlib.redirect_stderr(io.StringIO()) as told,
    ):
        begin = time.perf_counter()
        source = Source(address, scratch)
        seen, num_wrong, memory = stream(source, shards, photo_of, expected, (early, late))
        seconds = time.perf_counter() - begin
        num_left = len(list(Path(scratch).rglob("*.tar")))
    num_tars = max(map(len, looks))
    num_once = sum(count == 1 for count in seen.values())
    rows = {
        "further attempts told": told.getvalue().count("; attempt "),
        "shards lost": len(shards) - len(seen) // NUM_IMAGES,
        "images read exactly once": f"{num_once:,} of {len(photo_of):,}",
        "images with a wrong pixel": num_wrong,
        "tars on disk at most": num_tars,
        "MB on disk at most": max(map(sum, looks)) / 1e6,
        "tars left at the end": num_left,
        f"memory after shard {early}, MB": memory[early] / 1e6,
        f"memory after shard {late}, MB": memory[late] / 1e6,
        "seconds": seconds,
    }
    return SimpleNamespace(
        rows=rows,
        num_once=num_once,
        is_exact=num_once == len(photo_of) == len(seen) and num_wrong == 0,
        num_tars=num_tars,
        growth_bytes=memory[late] - memory[early],
    )


if __name__ == "__main__":
    main()
