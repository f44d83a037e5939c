"""Does bfloat16 score as float32 does? Trains the demo in both; step.py has the speed.

    python benchmarks/precision.py [--seeds 0 1] [--epochs 5]

For the choice on a CPU: a GPU uses float16.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, print_table, save_results

from data.sources import RECOGNITION_SOLUTION, RETRIEVAL_SOLUTION
from demo import start
from metrics import score_recognition, score_retrieval

PRECISIONS = {"float32": [], "bfloat16": ["--bfloat16"]}


def train_and_score(options, scratch, output):
    """Runs the demo: (GAP, mAP@100 with the rerank), scores over Public and Private."""
    common = ["--demo", "--output", output, "--scratch", scratch]
    for command in (["recognition.py", *common, *options], ["retrieval.py", *common]):
        command = [sys.executable, *map(str, command)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    world = scratch / "demo-world"
    gap = score_recognition(output / "recognition_submission.csv", world / RECOGNITION_SOLUTION)
    found = score_retrieval(output / "retrieval_submission.csv", world / RETRIEVAL_SOLUTION)
    return gap["all"], found["all"]


def main():
    """Prints the table, as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the trainings")
    parser.add_argument("--epochs", type=int, default=start.DEFAULTS["epochs"])
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            for name, options in PRECISIONS.items():
                options = [*options, "--seed", seed, "--epochs", args.epochs]
                scores = train_and_score(options, Path(folder), Path(folder, f"{name}-{seed}"))
                rows.append((name, seed, *scores))
    print_table(("precision", "seed", "GAP", "mAP@100"), rows)
    save_results("precision", rows)


if __name__ == "__main__":
    main()
