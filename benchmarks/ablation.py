"""What each part of the strong recipe is worth: trainings that differ in one thing, several seeds.

    python benchmarks/ablation.py --source FOLDER --weights FILE          all variants, three seeds
    python benchmarks/ablation.py --source FOLDER --weights FILE --variants 2019 together

Every variant is a real run of recognition.py and retrieval.py with the same network, size and
epochs; those named "frozen" train a head on the vectors of the backbone as it is, for 10 epochs. A
run that is there already is not made again, so that it can be stopped at any time.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common

GEM, NECK = {"pooling": "gem"}, {"neck": 512, "loss": "cosine", "scale": 30}
ARCFACE = {"loss": "arcface", "scale": 30, "margin": 0.3}
COSINE = {"schedule": "cosine", "warm-up": 0.05}
TOGETHER = GEM | NECK | ARCFACE | COSINE | {"learning-rate": 6e-4}
STRONG = TOGETHER | {"min-images": 9}
SOFTMAX = {"loss": "softmax"}
FROZEN = {"recipe": "frozen", "labels": "full", "min-images": 20, "batch-size": 128, "epochs": 10}
VARIANTS = {
    "2019": {},
    "GeM": GEM,
    "neck, cosine softmax": NECK,
    "ArcFace without a neck": ARCFACE,
    "cosine schedule": COSINE,
    "erasing": {"erase": 0.5},
    "AdamW": {"optimizer": "adamw", "weight-decay": 0.01},
    "landmarks from 9 images": {"min-images": 9},
    "together": TOGETHER,
    "together, no margin": TOGETHER | {"loss": "cosine"},
    "together, CosFace": TOGETHER | {"loss": "cosface"},
    "together, dynamic margins": TOGETHER | {"dynamic-margin": True},
    "together, 3 sub-centers": TOGETHER | {"sub-centers": 3},
    "together, from 9 images": STRONG,
    "... and erasing": STRONG | {"erase": 0.5},
    "... and mild geometry": STRONG | {"geometry": 0.7},
    "... and AdamW": STRONG | {"optimizer": "adamw", "weight-decay": 0.01},
    "... and 3 sub-centers, dynamic margins": STRONG | {"sub-centers": 3, "dynamic-margin": True},
    "frozen: 2019's softmax": FROZEN | SOFTMAX | {"neck": 0},
    "frozen: neck, softmax": FROZEN | SOFTMAX,
    "frozen: neck, cosines": FROZEN | {"loss": "cosine"},
    "frozen: neck, ArcFace": FROZEN,
    "frozen: neck, CosFace": FROZEN | {"loss": "cosface"},
    "frozen: neck, ArcFace, dynamic margins": FROZEN | {"dynamic-margin": True},
    "frozen: neck, ArcFace, 3 sub-centers": FROZEN | {"sub-centers": 3},
    "frozen: neck, ArcFace, both": FROZEN | {"dynamic-margin": True, "sub-centers": 3},
}


def main():
    """Runs what is missing and prints the table."""
    args = parse_arguments()
    jobs = [(name, seed) for seed in range(args.seeds) for name in args.variants]
    with ThreadPoolExecutor(args.workers) as pool:
        results = dict(zip(jobs, pool.map(lambda job: run(args, *job), jobs), strict=True))
    rows = []
    for name in args.variants:
        of_seeds = [results[name, seed] for seed in range(args.seeds)]
        rows.append([name, *(describe([one[key] for one in of_seeds]) for key in of_seeds[0])])
    print(
        f"{args.backbone}, {args.image_size} pixels, {args.epochs} epochs, {args.seeds} seeds: "
        "mean, and half the range behind it\n"
    )
    common.print_table(["what", "GAP", "mAP@100", "with the rerank", "s"], rows)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="data set in the CVDF layout")
    parser.add_argument("--weights", required=True, help="the backbone's first weights")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--output", type=Path, default=common.CACHE / "ablation")
    return parser.parse_args()


def run(args, name, seed):
    """Trains, predicts and retrieves once: dict of scores, kept as JSON."""
    setting = f"{args.backbone}-{args.image_size}-{args.epochs}"
    folder = args.output / setting / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{seed}"
    result = folder / "result.json"
    if result.exists():
        return json.loads(result.read_text())
    options = {
        "backbone": args.backbone, "weights": args.weights, "image-size": args.image_size,
        "epochs": args.epochs, "batch-size": 32, "seed": seed, "train-shards": "0:9",
        "valid-shards": "9:10", "valid-every": 100, "fresh": None,
    } | VARIANTS[name]  # fmt: skip
    common_words = ["--source", args.source, "--output", folder]
    begin = time.perf_counter()
    recognised = call("recognition.py", *common_words, *flags_of(options))
    seconds = time.perf_counter() - begin
    retrieved = call("retrieval.py", *common_words, "--batch-size", 32, "--rerank", "divide")
    found = {
        "GAP": score_of("GAP", recognised),
        "mAP@100": score_of("mAP@100 without the rerank", retrieved),
        "reranked": score_of("mAP@100", retrieved),
        "seconds": seconds,
    }
    for path in folder.rglob("*"):  # half a gigabyte of checkpoints a run
        if path.is_file() and path.name != "history.csv":
            path.unlink()
    result.write_text(json.dumps(found))
    print(f"{name}, seed {seed}: {found}", file=sys.stderr, flush=True)
    return found


def flags_of(options):
    """Writes options as a command line has them."""
    for name, value in options.items():
        yield f"--{name}"
        if value is not None and value is not True:  # 1 == True
            yield value


def call(*command):
    """Runs a script of the project on one core; gives what it printed."""
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    one_core = dict.fromkeys(names, "1")
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=common.ROOT, env=os.environ | one_core, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr[-500:]}")
    return done.stdout


def score_of(name, text):
    """Reads the score of all usages from a line as `metrics.format_scores` writes it."""
    return float(re.search(rf"^{re.escape(name)}: .*all ([\d.]+)$", text, re.MULTILINE)[1])


def describe(values):
    """Writes mean and half the range, e.g. `0.893 ± 0.004`; seconds as a mean alone."""
    mean, half = statistics.mean(values), (max(values) - min(values)) / 2
    return f"{mean:.0f}" if mean > 10 else f"{mean:.3f} ± {half:.3f}"


if __name__ == "__main__":
    main()
