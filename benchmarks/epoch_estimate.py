"""How long an epoch of Google Landmarks v2, a part, the strong chain take in kernels; what binds.

    python benchmarks/epoch_estimate.py --step-rate 550 --step-source "..." [--gpus 2] [--cores 4]

Takes the decode rate per core, what is lost in overlapping and the search rate from the results of
decode.py, overlap.py and search_speed.py, and the gain of small pictures from small_pictures.py,
unless given. The step rate of a GPU must be given with its source; describing counts as fast.
"""

import argparse
import math

from common import load_results, print_table

import shrink
from data.connections import MAX_CONNECTIONS, SPARE
from data.sources import NUM_CVDF_SHARDS
from on_kaggle import plan
from on_kaggle.plan import NUM_GALLERY_PARTS, NUM_PARTS, PICTURE_KB
from recipes import RECIPES
from runs.command_line import number
from runs.kernel import MAX_HOURS
from search.voting import NON_LANDMARK_SHARE

NUM_IMAGES = plan.NUM_IMAGES | {"train": plan.NUM_IMAGES["full"]}
INDEX_SHARD_MB, TEST_SHARD_MB = 850, 500  # as CVDF says
SESSION_HOURS = 12.0  # a kernel's limit
QUOTA_HOURS = 30.0  # of GPU sessions in a week
SEARCHED = 127_000 * 2048  # numbers that a query of --search-rate is multiplied with
# As shares of a plain search of the same images: search_cost.py.
CANDIDATES_OF_ALL_RERANKS = 1 + 0.30
ROW_BYTES = 38  # of an image's description beside the descriptor: ids, confidence, place
PART_GB = 0.19 + 0.28  # candidates of all reranks, docs/reranks.md


def measured_rates():
    """Reads what the other benchmarks measured last: dict, option -> rate, or None."""
    decode = load_results("decode").get("images_per_s")
    overlap, search = load_results("overlap"), load_results("search_rates")
    small = load_results("small_pictures")
    return {
        # per core, of the least disturbed round
        "decode_rate": max(decode["ours, 2 threads, crops and mirroring"]) / 2 if decode else None,
        # the worst simulated mini-epoch, or the target
        "overlap": max([row[6] for row in overlap if row[0] == "simulated"], default=1.05),
        # of the largest index, a real part's
        "search_rate": search[max(search, key=int)] if search else None,
        "small_times": small.get("times"),
        "shrink_rate": small.get("shrink_rate"),
    }


# option -> (default, meaning)
RATES = {
    "step_rate": (None, "images/s of one GPU that trains ResNet50 at 192 pixels in half precision"),
    "decode_rate": ("decode.py", "images/s per core"),
    "free_cores": (0.75, "share of the cores left for decoding beside download, md5 and feeding"),
    "download_rate": (33.0, "MB/s of a connection; in 2019 a kernel took 30 s for a shard of 1 GB"),
    "connections": (MAX_CONNECTIONS, "at most, each at that rate; 1 is the stream of before"),
    "shard_mb": (1000.0, "mean size of a train shard, MB"),
    "overlap": ("overlap.py", "mini-epoch / longest stage"),
    "search_rate": ("search_speed.py", "queries/s in 127,000 index images"),
    "small_times": ("small_pictures.py", "decode rate of small pictures / of originals"),
    "shrink_rate": ("small_pictures.py", "pictures/s per core made small"),
    "mount_rate": (100.0, "MB/s from a mounted output of another kernel, an assumption"),
}


def parse_arguments():
    """Parses the command line; what is not given comes from the other benchmarks' results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step-source", required=True, help="where the step rate comes from")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--cores", type=int, default=4)
    measured = measured_rates()
    for name, (default, what) in RATES.items():
        where = f" (default: {default}'s last result)" if isinstance(default, str) else ""
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=number(float, 1e-9), required=default is None,
            default=measured.get(name, default), help=what + where,
        )  # fmt: skip
    args = parser.parse_args()
    for name, (script, _) in RATES.items():
        if getattr(args, name) is None:
            parser.error(f"no result of {script}; run it first, or give {name}")
    return args


def count_connections(args, fetch, use):
    """Gives the connections that a stream opens, given times to download and to use the same."""
    return max(1, min(int(args.connections), math.ceil(SPARE * fetch / use)))


def stage_rates(args, split, shard_mb):
    """Gives dict, stage -> images/s, of reading a split and running the network on it."""
    images_per_shard = NUM_IMAGES[split] / NUM_CVDF_SHARDS[split]
    over_one = args.download_rate / shard_mb * images_per_shard
    others = {
        f"decode, {args.decode_rate:.0f} images/s per core, {args.cores} cores "
        f"of which {args.free_cores:.0%} decode":
            args.decode_rate * args.cores * args.free_cores,
        f"step, {args.step_rate:g} images/s per GPU, {args.gpus} GPUs": args.step_rate * args.gpus,
    }  # fmt: skip
    num = count_connections(args, 1 / over_one, 1 / min(others.values()))
    plural = "s" * (num > 1)
    name = f"download over {num} connection{plural} of {args.download_rate:g} MB/s"
    return {f"{name}, shards of {shard_mb:,.0f} MB": num * over_one} | others


def print_epoch(args):
    """Prints the stages of an epoch, the one that binds, and how long it all takes."""
    num_images, num_shards = NUM_IMAGES["train"], NUM_CVDF_SHARDS["train"]
    rates = stage_rates(args, "train", args.shard_mb)
    binding = min(rates, key=rates.get)
    rows = [
        (f"**{name}**" if name == binding else name, rate, num_images / num_shards / rate,
         num_images / rate / 3600)
        for name, rate in rates.items()
    ]  # fmt: skip
    print_table(("stage", "images/s", "s a shard", "hours an epoch, alone"), rows)
    hours = num_images / rates[binding] / 3600 * args.overlap
    print(f"binds: {binding.partition(',')[0].partition(' over ')[0]}")
    print(
        f"one epoch of {num_images:,} images: {hours:.1f} hours, the longest stage x "
        f"{args.overlap:.2f} for imperfect overlap; {SESSION_HOURS / hours:.1f} epochs in "
        f"{SESSION_HOURS:g} hours"
    )


def print_part(args):
    """Prints how long a retrieval part takes: its index images described, then searched."""
    rates = stage_rates(args, "index", INDEX_SHARD_MB)
    num_images = NUM_IMAGES["index"] / NUM_PARTS
    describing_s = num_images / min(rates.values()) * args.overlap
    searching_s = NUM_IMAGES["test"] / args.search_rate
    print(
        f"a retrieval part of {num_images:,.0f} index images: {describing_s / 60:.0f} min to "
        f"describe them, {searching_s / 60:.0f} min to search for {NUM_IMAGES['test']:,} queries "
        f"at {args.search_rate:,.0f} queries/s"
    )


def print_quota(args):
    """Prints how many epochs fit into a week's GPU hours, of originals and of small pictures."""
    decode_rate = args.decode_rate * args.cores * args.free_cores
    step_rate = args.step_rate * args.gpus
    whole_mb = args.shard_mb * NUM_CVDF_SHARDS["train"]  # all shards come, whatever is in them
    rows = []
    for labels in ("full", "clean"):
        num_images = NUM_IMAGES[labels]
        for name, megabytes, rate, times in (
            ("originals", whole_mb, args.download_rate, 1.0),
            ("256 pixels", num_images * PICTURE_KB / 1000, args.mount_rate, args.small_times),
        ):
            fetch, *others = (
                megabytes / rate / 3600,
                num_images / (decode_rate * times) / 3600,
                num_images / step_rate / 3600,
            )
            num = count_connections(args, fetch, max(others)) if name == "originals" else None
            fetch /= num or 1
            hours = max(fetch, *others) * args.overlap
            rows.append((labels, name, num, fetch, *others, hours, QUOTA_HOURS / hours))
    header = ("train images", "read from", "connections", "fetch, h", "decode, h", "step, h",
              "epoch, h")  # fmt: skip
    print_table((*header, f"epochs in {QUOTA_HOURS:g} GPU hours"), rows)


def print_chain(args, is_small):
    """Prints what each kernel of the strong chain takes, with the cleaned labels."""
    recipe = RECIPES["strong"]
    data, width, num_queries = recipe.data, recipe.network.neck, NUM_IMAGES["test"]
    num_gallery, num_index = NUM_IMAGES[data.labels], NUM_IMAGES["index"]
    shard_mb = {"train": args.shard_mb, "index": INDEX_SHARD_MB, "test": TEST_SHARD_MB}

    def pass_h(split, num_images):
        """Hours of the longest stage of reading a split, and running the network on it."""
        fetching = (shard_mb[split] * NUM_CVDF_SHARDS[split]) / args.download_rate
        decoding = num_images / (args.decode_rate * args.cores * args.free_cores)
        decoding /= args.small_times if is_small else 1
        step = num_images / (args.step_rate * args.gpus * (192 / data.image_size) ** 2)
        fetching /= count_connections(args, fetching, max(decoding, step))
        if is_small:
            fetching = num_images * PICTURE_KB / 1000 / args.mount_rate
        return max(fetching, decoding, step) * args.overlap / 3600

    def search_h(num_rows, num_asked, times=1.0):
        return num_rows * width * num_asked * times / (args.search_rate * SEARCHED) / 3600

    training = pass_h("train", num_gallery) * recipe.training.epochs
    describing = pass_h("train", num_gallery), pass_h("index", num_index)
    hours = {
        "recognition": training + pass_h("test", num_queries),
        "gallery": (describing[0] + search_h(num_gallery, num_queries)) / NUM_GALLERY_PARTS,
        "vote": search_h(NON_LANDMARK_SHARE * num_queries, num_queries),
        "part": (
            describing[1]
            + search_h(num_gallery, num_index)  # who names the index images
            + search_h(num_index, num_queries, CANDIDATES_OF_ALL_RERANKS)
        ) / NUM_PARTS,
    }  # fmt: skip
    print_kernels(hours, num_gallery * (2 * width + ROW_BYTES) / 1e9, num_index * 4 * width / 1e9)


def print_kernels(hours, gallery_gb, index_gb):
    """Prints the table of the strong chain's kernels: hours of each kind, GB of all descriptors."""
    rows = []
    for kind, name, num, has_gpu, memory, output_gb in (
        ("recognition", "recognition", 1, True, "< 16", "2.2"),
        ("gallery", f"gallery-0 to -{NUM_GALLERY_PARTS - 1}", NUM_GALLERY_PARTS, True, "< 10",
         f"{gallery_gb / NUM_GALLERY_PARTS:.1f}"),
        ("vote", "vote", 1, False, "< 6", "0.1"),
        ("part", f"part-0 to -{NUM_PARTS - 1}", NUM_PARTS, True, "< 10",
         f"{index_gb / NUM_PARTS + PART_GB:.1f}"),
    ):  # fmt: skip
        num_sessions = num * math.ceil(hours[kind] / MAX_HOURS)
        gpu_hours = num * hours[kind] if has_gpu else 0.0
        rows.append((name, num_sessions, "T4 x2" if has_gpu else "CPU", hours[kind], gpu_hours,
                     memory, output_gb))  # fmt: skip
    rows.append(("merge", 1, "CPU", "minutes", 0.0, "< 8", "0.2"))
    total = sum(row[4] for row in rows)
    rows.append(("together", sum(row[1] for row in rows), "", "", total, "", ""))
    header = ("kernel", "sessions", "machine", "h each", "GPU h", "memory, GB")
    print_table((*header, "output of each, GB"), rows)


def print_shrinking(args):
    """Prints what the kernels in front take, which need no GPU."""
    megabytes = args.shard_mb * NUM_CVDF_SHARDS["train"]
    megabytes += INDEX_SHARD_MB * NUM_CVDF_SHARDS["index"] + TEST_SHARD_MB * NUM_CVDF_SHARDS["test"]
    download_h = megabytes / args.download_rate / 3600
    for labels in ("full", "clean"):
        num_images = NUM_IMAGES[labels] + NUM_IMAGES["index"] + NUM_IMAGES["test"]
        shrink_h = num_images / (args.shrink_rate * args.cores * args.free_cores) / 3600
        settings = shrink.parse_arguments(["--labels", labels])
        num_kernels = plan.count_shrink_kernels(settings)
        num = count_connections(args, download_h, shrink_h)
        hours = max(download_h / num, shrink_h) / num_kernels
        print(
            f"made small, {labels}: {num_images * PICTURE_KB / 1e6:.0f} GB of 256 pixels in "
            f"{num_kernels} kernels without a GPU, {hours:.1f} h each"
        )


def main():
    """Prints the estimates, as the module's docstring says."""
    args = parse_arguments()
    print_epoch(args)
    print_part(args)
    print()
    print_quota(args)
    print_shrinking(args)
    for is_small, name in ((False, "originals"), (True, "256 pixels")):
        print(f"\nstrong chain, cleaned labels, read from {name}:\n")
        print_chain(args, is_small)
    print(
        f"assumed: step rate from {args.step_source}; shard size, and the rate of each connection "
        "as given, calculated and not measured on S3; "
        f"{args.mount_rate:g} MB/s from a mount; {PICTURE_KB:g} KB a small picture"
    )


if __name__ == "__main__":
    main()
