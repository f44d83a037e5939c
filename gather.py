"""Makes a data set of your own photos: a folder for each landmark in, shards out.

    python gather.py my_photos                    my_photos/<landmark>/<any file>, in output/photos
    python gather.py my_photos --non-landmarks other_photos
    python recognition.py --source output/photos --recipe small

Photos are made small and upright and divided into train, index and test; near duplicates and photos
that a camera took in a row stay together. What is left out is told, file by file, in left_out.csv.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from runs.command_line import CommandLine, any_path, number, run_command_line
from utils import Stop, say


def parse_arguments(argv):
    parser = CommandLine(__doc__, prog="gather.py")
    add, others = parser.add_argument, "pictures that show no landmark"
    add("folder", type=any_path, help="holds a folder of photos for each landmark")
    add("--non-landmarks", type=any_path, metavar="FOLDER", help=others)
    add("--output", type=any_path, default=Path("output/photos"), help="folder of the data set")
    add("--pixels", type=number(int, 32, 4096), default=256, metavar="N",
        help="shorter side of a picture; none is enlarged")  # fmt: skip
    return parser.parse_args(argv)


def main(argv=None):
    """Makes the data set, and says what is in it and what to do next."""
    args = parse_arguments(argv)
    from gathering.data_set import LEFT_OUT_CSV, gather  # slow to import

    with Stop() as stop:
        counts = gather(args.folder, args.non_landmarks, args.output, args.pixels, stop)
    photos = counts["photos"]
    say(
        f"{counts['landmarks']:,} landmarks; {photos['train']:,} photos to train on, "
        f"{photos['index']:,} in the index, {photos['test']:,} to test with, of all these "
        f"{counts['non_landmarks']:,} without a landmark"
    )
    if counts["left_out"]:
        path = args.output / LEFT_OUT_CSV
        say(f"{counts['left_out']:,} files left out, each with its reason in {path}")
    print(args.output)
    step = "" if photos["test"] else "train "  # without a test photo there is nothing to predict
    say(f"next: python recognition.py {step}--source {args.output} --recipe small")


if __name__ == "__main__":
    run_command_line(main)
