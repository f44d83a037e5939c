"""How small may the demo be? Runs it in several sizes: scores against time.

    python benchmarks/demo_size.py [--variants "the demo" ...] [--seeds 0 1 2]

The time is the processor's, which other jobs on the machine disturb least: of drawing the world, of
recognition.py and of retrieval.py. The first variant is the demo as it is; the others change it.
"""

import argparse
import itertools
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, print_machine, print_table, save_results

from data.sources import RECOGNITION_SOLUTION, RETRIEVAL_SOLUTION, TRAIN_CSV
from demo import start
from demo.plan import WorldSize
from demo.world import build_world
from metrics import score_recognition, score_retrieval

RECOGNIZED, RETRIEVED = "recognition_submission.csv", "retrieval_submission.csv"

# name -> (changes of the world's size, changes of the settings)
VARIANTS = {
    "the demo": ({}, {}),
    "max pooling, in steps, four epochs": (
        {},
        start.DEFAULTS | {"pooling": "max", "schedule": "steps", "warm_up": 0.0},
    ),
    "more pictures, fewer epochs": ({"train_images": (110, 150)}, {"epochs": 2}),
    "half the pictures, twice the epochs": ({"train_images": (32, 45)}, {"epochs": 6}),
    "larger images, fewer epochs": ({}, {"image_size": 64, "epochs": 2}),
    "smaller images, more epochs": ({}, {"image_size": 32, "epochs": 4}),
    "larger batches": ({}, {"batch_size": 64}),
    "no crops or mirroring": ({}, {"augment": False}),
    "gradients clipped": ({}, {"clip_norm": 1.0}),
    "half the learning rate": ({}, {"learning_rate": 1e-3}),
    "more under hard conditions": ({"hard_share": 0.3}, {}),
}


def main():
    """Prints the table, as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the trainings")
    args = parser.parse_args()
    print_machine("tensorflow", "keras")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(args.variants):
            size, settings = VARIANTS[name]
            folder_of = Path(folder, str(number))
            rows += [run(name, size, settings, seed, folder_of) for seed in args.seeds]
    header = ("variant", "seed", "train pictures", "pixels", "epochs", "drawing, CPU s")
    header += ("recognition, CPU s", "retrieval, CPU s", "together, CPU s", "s", "GAP", "mAP@100")
    print_table(header, rows)
    save_results("demo_size", rows)


def run(name, size, settings, seed, folder):
    """Runs both commands on a world of a size; gives a row of the table."""
    world, settings = folder / "world", start.defaults_beside("2019") | settings
    begin, used = time.perf_counter(), [processor_seconds()]
    build_world(world, size=WorldSize(**size))
    used.append(processor_seconds())
    with tempfile.TemporaryDirectory(dir=folder) as output:
        options = ["--source", world, "--output", output]
        run_command("recognition.py", *options, "--seed", seed, *flags_of(settings))
        used.append(processor_seconds())
        run_command("retrieval.py", *options, "--batch-size", settings["batch_size"])
        used.append(processor_seconds())
        seconds = time.perf_counter() - begin
        scores = (
            score_recognition(Path(output, RECOGNIZED), world / RECOGNITION_SOLUTION)["all"],
            score_retrieval(Path(output, RETRIEVED), world / RETRIEVAL_SOLUTION)["all"],
        )
    num_pictures = len((world / TRAIN_CSV).read_text().splitlines()) - 1
    spent = [after - before for before, after in itertools.pairwise(used)]
    row = (name, seed, f"{num_pictures:,}", settings["image_size"], settings["epochs"], *spent)
    return (*row, sum(spent), seconds, *scores)


def processor_seconds():
    """Gives the processor time that this process and its finished children took."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, whose))


def flags_of(settings):
    """Writes settings as a command line has them."""
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            yield flag if value else flag.replace("--", "--no-", 1)
        else:
            yield flag
            yield ":".join(map(str, value)) if isinstance(value, tuple) else value


def run_command(*command):
    subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )


if __name__ == "__main__":
    main()
