"""What each augmentation costs: CPU time from tar bytes to batches of 192 x 192, on one thread.

python benchmarks/augmentation.py [--images 256] [--rounds 9]
"""

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import common
from common import median, print_table

from data.sources import Shard
from generators import Reading, read_shard
from recipes import Data

SIZE, BATCH = 192, 64
NOTHING = "nothing"
WAYS = {
    NOTHING: {},
    "mirror and crop, the default": {"augment": True},
    "one box erased": {"erase": 1.0},
    "turned, rescaled and shifted": {"geometry": 1.0},
    "mirror and crop, 0.5 erased, 0.7 turned": {"augment": True, "geometry": 0.7, "erase": 0.5},
    "aspect ratio kept": {"keep_aspect": True},
}


def cpu_ms(tar, num_images, settings):
    """Reads a shard as `generators.stream_batches` does; gives the CPU time of an image in ms."""
    data = Data(image_size=SIZE, **({"augment": False} | settings))
    reading = Reading(data, BATCH, lambda image_id: 0, is_training=True, num_threads=1)
    with ThreadPoolExecutor(1) as pool:
        begin = time.process_time()
        for _ in read_shard(Shard("train", 0), tar, reading, 0, pool):
            pass
        return 1000 * (time.process_time() - begin) / num_images


def main():
    """Prints the table, as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256, help="images in the shard")
    parser.add_argument("--rounds", type=int, default=9, help="times that each way is measured")
    args = parser.parse_args()
    tar = common.make_shard(args.images)
    common.print_machine("pillow")
    print(f"{args.images} JPEGs of {common.WIDTH}x{common.HEIGHT}\n")
    results = common.measure(
        {
            name: lambda settings=settings: cpu_ms(tar, args.images, settings)
            for name, settings in WAYS.items()
        },
        args.rounds,
    )
    rows = []
    for name in WAYS:
        pairs = zip(results[name], results[NOTHING], strict=True)
        more = statistics.median(way - nothing for way, nothing in pairs)
        rows.append((name, median(results, name), f"{more:+.2f}"))
    print_table(("what is done to an image", "CPU ms", "more than nothing"), rows)
    common.save_results("augmentation", {"cpu_ms_per_image": results})


if __name__ == "__main__":
    main()
