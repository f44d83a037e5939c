"""Does bfloat16 score as float32 does? Trains the demo in both; time and scores of each.

    python benchmarks/precision.py [--seeds 0 1] [--epochs 5]

For the choice on a CPU: a GPU uses float16.
"""

import argparse
import csv
import tempfile
import time
from pathlib import Path

from common import print_table, run_python, save_results

import demo
from landmarks import RECOGNITION_SOLUTION, RETRIEVAL_SOLUTION
from metrics import score_recognition, score_retrieval
from utils import say

POLICIES = ("float32", "mixed_bfloat16")
# The scripts themselves, with another precision in place of theirs.
RUN = """
import sys
import model, recognition, retrieval
policy, *arguments = sys.argv[1:]
real = model.set_up_keras
def set_up_keras(seed):
    real(seed)
    model.keras.mixed_precision.set_global_policy(policy)
    return policy
model.set_up_keras = set_up_keras
recognition.main(arguments)
retrieval.main([*arguments[:5], "--parts", "1"])
print(0)
"""


def train_and_score(policy, seed, epochs, scratch, output):
    """Runs the demo: (seconds a mini-epoch, GAP, mAP@100 with the rerank), scores over all."""
    options = ["--demo", "--output", output, "--scratch", scratch]
    run_python(RUN, policy, *options, "--seed", seed, "--epochs", epochs)
    with open(output / "history.csv", newline="") as file:
        seconds = sorted(float(row["seconds"]) for row in csv.DictReader(file))
    world = scratch / "demo-world"
    gap = score_recognition(output / "recognition_submission.csv", world / RECOGNITION_SOLUTION)
    found = score_retrieval(output / "retrieval_submission.csv", world / RETRIEVAL_SOLUTION)
    return seconds[len(seconds) // 2], gap["all"], found["all"]


def main():
    """Prints the table, as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the trainings")
    parser.add_argument("--epochs", type=int, default=demo.DEFAULTS["epochs"])
    args = parser.parse_args()
    rows, begin = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            for policy in POLICIES:
                output = Path(folder, f"{policy}-{seed}")
                scores = train_and_score(policy, seed, args.epochs, Path(folder), output)
                rows.append((policy, seed, *scores))
                say(f"{policy}, seed {seed}: {scores}, {time.perf_counter() - begin:.0f} s so far")
    print_table(("precision", "seed", "s a mini-epoch", "GAP", "mAP@100"), rows)
    save_results("precision", rows)


if __name__ == "__main__":
    main()
