"""train.csv of 4,132,914 rows to the class table: landmarks.read_train_labels and the 2019 way.

    python benchmarks/metadata.py [--rows 4132914] [--rounds 3]

The CSV is generated once. Every run is a process of its own; its peak memory is what it takes
beyond what its imports took. Ours includes the import of pandas, in seconds and in memory.
"""

import argparse
import json

import common
import numpy as np
from common import CACHE, median, print_table, print_verdict, ratio

from data import landmarks
from utils import atomic_write, file_md5, say

NUM_LANDMARKS = 203_094
OLD, OURS = "2019: csv.reader into dictionaries", "ours (landmarks.read_train_labels)"

OLD_WAY = """
import csv
def read(path):
    landmark_of_image, num_images = {}, {}
    with open(path, newline="") as file:
        reader = csv.reader(file)
        next(reader)
        for image_id, url, landmark_id in reader:
            landmark_id = int(landmark_id)
            landmark_of_image[image_id] = landmark_id
            num_images[landmark_id] = num_images.get(landmark_id, 0) + 1
    classes = {}
    for landmark_id in sorted(num_images):
        if num_images[landmark_id] >= 20:
            classes[landmark_id] = len(classes)
    class_of_image = {
        image_id: classes[landmark_id]
        for image_id, landmark_id in landmark_of_image.items()
        if landmark_id in classes
    }
    return len(classes), len(class_of_image), class_of_image
"""

OUR_WAY = """
from data import landmarks
def read(path):
    class_table, labels = landmarks.read_train_labels(path)
    return len(class_table), len(labels), labels
"""

TIMED = """
import json, sys, time
def peak_mb():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1000
before, begin = peak_mb(), time.perf_counter()
num_classes, num_images, kept = read(sys.argv[1])
seconds = time.perf_counter() - begin
print(json.dumps([seconds, peak_mb() - before, peak_mb(), num_classes, num_images]))
"""


def make_csv(num_rows):
    """Writes a train.csv with as many landmarks and rows of about the length of the real one.

    The images of a landmark vary so much that about a quarter of the landmarks reach 20.
    """
    path = CACHE / f"train-{num_rows}.csv"
    if path.exists():
        return path
    say(f"writing {path}")
    rng = np.random.default_rng(0)
    share = rng.lognormal(0, 1.3, NUM_LANDMARKS)
    chosen = rng.choice(NUM_LANDMARKS, num_rows, p=share / share.sum())
    image_ids = rng.permutation(num_rows).astype(np.uint64) * np.uint64(4_463_401_234_567)
    image_ids = landmarks.format_image_ids(image_ids).astype("U16").tolist()
    with atomic_write(path) as temporary, open(temporary, "w") as file:
        file.write("id,url,landmark_id\n")
        for number, (image_id, landmark_id) in enumerate(
            zip(image_ids, chosen.tolist(), strict=True)
        ):
            file.write(
                f"{image_id},https://upload.wikimedia.org/wikipedia/commons/{image_id[0]}/"
                f"{image_id[:2]}/Some_church_or_castle_{number:07d}.jpg,{landmark_id}\n"
            )
    return path


def main():
    """Prints the table, as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4_132_914, help="rows of train.csv")
    parser.add_argument("--rounds", type=int, default=3, help="times that each way is measured")
    args = parser.parse_args()
    common.print_machine("numpy", "pandas", "pyarrow")
    path = make_csv(args.rows)
    file_md5(path)  # reads it into the page cache, for all alike
    results = {OLD: [], OURS: []}

    def run(name, code):
        results[name].append(common.run_python(code + TIMED, path))
        return results[name][-1][0]

    seconds = common.measure(
        {OLD: lambda: run(OLD, OLD_WAY), OURS: lambda: run(OURS, OUR_WAY)},
        args.rounds,
        warm_up=False,
    )
    found = {tuple(result[3:]) for runs in results.values() for result in runs}
    if len(found) != 1:
        raise RuntimeError(f"the ways disagree on classes and images: {found}")
    num_classes, num_images = found.pop()
    print(f"{args.rows:,} rows, {path.stat().st_size / 1e6:,.0f} MB, {num_classes:,} classes, "
          f"{num_images:,} images of them\n")  # fmt: skip
    memory = {name: [run[1] for run in runs] for name, runs in results.items()}
    peak = {name: [run[2] for run in runs] for name, runs in results.items()}
    rows = [
        (name, median(seconds, name), 1 / ratio(seconds, name, OLD), median(memory, name),
         median(peak, name))
        for name in results
    ]  # fmt: skip
    print_table(("way", "s", "x faster", "MB taken", "peak MB of the process"), rows)
    times, share = ratio(seconds, OLD, OURS), ratio(peak, OURS, OLD)
    print_verdict("at least 4x faster", times, times >= 4)
    print_verdict("less memory, x", share, share < 1)
    common.save_results("metadata", json.loads(json.dumps(results)))


if __name__ == "__main__":
    main()
