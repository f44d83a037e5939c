"""How long one epoch of Google Landmarks v2 takes in a kernel, and which stage binds.

    python benchmarks/epoch_estimate.py --step-rate 550 --step-source "..." [--gpus 2] [--cores 4]

Takes the decode rate per core and what is lost in overlapping from the results of decode.py and
overlap.py, unless given. The step rate of a GPU cannot be measured on a
machine without one and must be given with its source.
"""

import argparse

from common import load_results, print_table

from landmarks import NUM_CVDF_SHARDS

NUM_IMAGES = {"train": 4_132_914, "index": 761_757, "test": 117_577}  # of the data set's page
SESSION_HOURS = 12.0  # a kernel's limit


def measured_decode_rate():
    """Gives images/s per core of decode.py's least disturbed round on 2 threads, augmenting."""
    rates = load_results("decode").get("images_per_s")
    if not rates:
        return None
    return max(rates["ours, 2 threads, crops and mirroring"]) / 2


def measured_overlap():
    """Gives the worst mini-epoch / max(T, D, L) that overlap.py simulated in its last run."""
    rows = load_results("overlap")
    return max(row[5] for row in rows if row[0] == "simulated") if rows else None


def positive(text):
    """Parses a number above 0."""
    value = float(text)
    if not value > 0:
        raise ValueError
    return value


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--step-rate", type=positive, required=True,
        help="images/s of one GPU that trains ResNet50 at 192 pixels in mixed precision",
    )  # fmt: skip
    parser.add_argument("--step-source", required=True, help="where that rate comes from")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--cores", type=int, default=4)
    parser.add_argument(
        "--decode-rate", type=positive, default=measured_decode_rate(),
        help="images/s per core (default: decode.py's last result)",
    )  # fmt: skip
    parser.add_argument(
        "--free-cores", type=positive, default=0.75,
        help="share of the cores' time left for decoding beside download, md5 and feeding",
    )  # fmt: skip
    parser.add_argument(
        "--download-rate", type=positive, default=33.0,
        help="MB/s; the author of the 2019 kernel saw about 30 s for a shard of 1 GB",
    )  # fmt: skip
    parser.add_argument(
        "--shard-mb", type=positive, default=1000.0, help="mean size of a train shard, MB"
    )
    parser.add_argument(
        "--overlap", type=positive, default=measured_overlap() or 1.10,
        help="mini-epoch / longest stage (default: overlap.py's worst simulation, or the target)",
    )  # fmt: skip
    args = parser.parse_args()
    if args.decode_rate is None:
        parser.error("no result of decode.py; run it first, or give --decode-rate")
    return args


def main():
    """Prints the table, as the module's docstring says."""
    args = parse_arguments()
    images_per_shard = NUM_IMAGES["train"] / NUM_CVDF_SHARDS["train"]
    decoding = args.decode_rate * args.cores * args.free_cores
    rates = {
        f"download at {args.download_rate:g} MB/s, shards of {args.shard_mb:,.0f} MB":
            args.download_rate / args.shard_mb * images_per_shard,
        f"decode, {args.decode_rate:.0f} images/s per core, {args.cores} cores "
        f"of which {args.free_cores:.0%} decode": decoding,
        f"step, {args.step_rate:g} images/s per GPU, {args.gpus} GPUs": args.step_rate * args.gpus,
    }  # fmt: skip
    binding = min(rates, key=rates.get)
    rows = [
        (("**" + name + "**") if name == binding else name, rate,
         NUM_IMAGES["train"] / NUM_CVDF_SHARDS["train"] / rate, NUM_IMAGES["train"] / rate / 3600)
        for name, rate in rates.items()
    ]  # fmt: skip
    print_table(("stage", "images/s", "s a shard", "hours an epoch, alone"), rows)
    hours = NUM_IMAGES["train"] / rates[binding] / 3600 * args.overlap
    print(f"binds: {binding.partition(',')[0].partition(' at ')[0]}")
    print(
        f"one epoch of {NUM_IMAGES['train']:,} images: {hours:.1f} hours, the longest stage x "
        f"{args.overlap:.2f} for imperfect overlap; {SESSION_HOURS / hours:.1f} epochs in "
        f"{SESSION_HOURS:g} hours"
    )
    print(f"assumed: step rate from {args.step_source}; download rate and shard size as given")


if __name__ == "__main__":
    main()
