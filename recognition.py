"""Trains a landmark recogniser from a stream of tar shards, predicts the test set and scores it.

    python recognition.py --demo                  the whole job on the miniature landmark world
    python recognition.py                         the whole job on Google Landmarks v2
    python recognition.py train                   training alone
    python recognition.py predict --model M       prediction and score alone

Run the same command again and it continues where it stopped.
"""

import argparse
from pathlib import Path

from command_line import CommandLine, add_session_options, number, parse_session, run_command_line
from descriptions import QUERIES
from landmarks import MIN_IMAGES, read_2019_classes, read_image_ids, read_train_labels
from metrics import format_scores, score_recognition
from on_kaggle.kernel import find_inputs
from session import MAX_BATCH_SIZE, find_result, num_skippable, open_session
from sources import RECOGNITION_SOLUTION, TEST_CSV, TRAIN_CLEAN_CSV, TRAIN_CSV
from submissions import check_recognition_submission, write_recognition_submission
from utils import copy_file, say

# --------------------------------------------------------------------------------- command line


def shard_range(text):
    """Parses `FIRST:STOP`, e.g. 10:500 for the shards 10 to 499."""
    first, colon, stop = text.partition(":")
    is_range = colon and first.isdecimal() and stop.isdecimal() and len(stop) < 7
    if not (is_range and int(first) < int(stop)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no range of shards; expected FIRST:STOP with FIRST < STOP, e.g. 10:500"
        )
    return int(first), int(stop)


def make_parser():
    """Makes the parser of the command line; Keras is not loaded for it."""
    parser = CommandLine(prog="recognition.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "step", nargs="?", choices=("all", "train", "predict"), default="all", help="what to do"
    )
    add_session_options(parser)
    training = parser.add_argument_group("training")
    training.add_argument(
        "--train-shards", type=shard_range, default=(10, 500), metavar="FIRST:STOP",
        help="shards to train on; STOP is not among them",
    )  # fmt: skip
    training.add_argument(
        "--valid-shards", type=shard_range, default=(1, 2), metavar="FIRST:STOP",
        help="train shards held out to validate on",
    )  # fmt: skip
    training.add_argument(
        "--valid-every", type=number(int, 1), default=10, metavar="N",
        help="validate after every N mini-epochs, and after the last",
    )  # fmt: skip
    training.add_argument(
        "--min-images", type=number(int, 1), default=MIN_IMAGES, metavar="N",
        help="leave out landmarks with fewer train images",
    )  # fmt: skip
    training.add_argument(
        "--clean", action="store_true", help="train on train_clean.csv instead of train.csv"
    )
    training.add_argument(
        "--backbone", choices=("resnet50", "resnet101", "mobilenet_v2"), default="resnet50",
        help="network below the pooling",
    )  # fmt: skip
    training.add_argument(
        "--weights", default="imagenet", metavar="WEIGHTS",
        help="the backbone's first weights: imagenet, none (random), or a file without top",
    )  # fmt: skip
    training.add_argument(
        "--image-size", type=number(int, 32), default=192, metavar="PIXELS",
        help="side of the square images",
    )  # fmt: skip
    training.add_argument(
        "--batch-size", type=number(int, 1, MAX_BATCH_SIZE), default=64, metavar="IMAGES",
        help="images in a step; prediction uses it too",
    )  # fmt: skip
    training.add_argument(
        "--epochs", type=number(int, 1), default=1, metavar="N", help="passes over all shards"
    )
    training.add_argument(
        "--learning-rate", type=number(float, 0), default=2e-4, metavar="RATE",
        help="Adam's first rate; x0.5, x0.2, x0.1 after 35%%, 70%%, 80%% of the mini-epochs",
    )  # fmt: skip
    training.add_argument(
        "--augment", action=argparse.BooleanOptionalAction, default=True,
        help="mirror and crop the train images at random",
    )  # fmt: skip
    training.add_argument(
        "--bfloat16", action="store_true",
        help="train in bfloat16: faster on a processor that has it, at equal scores",
    )  # fmt: skip
    training.add_argument(
        "--seed",
        type=number(int, 0, 2**32 - 1),
        default=0,
        help="of weights, order and augmentation",
    )
    training.add_argument("--fresh", action="store_true", help="start over instead of continuing")
    prediction = parser.add_argument_group("prediction")
    prediction.add_argument(
        "--model", type=Path, help="model to predict with (default: <output>/model.keras)"
    )
    prediction.add_argument(
        "--flipped-too", action="store_true",
        help="average each prediction with that of the mirrored image (test-time augmentation)",
    )  # fmt: skip
    return parser


def parse_arguments(argv):
    """Parses and checks the command line."""
    parser = make_parser()
    args = parse_session(parser, argv)
    if set(range(*args.train_shards)) & set(range(*args.valid_shards)):
        parser.error("--valid-shards overlap --train-shards; expected shards held out of training")
    if args.model and args.step != "predict":
        parser.error("--model goes with `recognition.py predict`; training writes its own")
    return args


def main(argv=None):
    """Trains, predicts and scores, as the module's docstring shows."""
    args = parse_arguments(argv)
    with open_session(args) as session:
        if args.step != "predict":
            train(session, args)
        if args.step != "train":
            predict(session, args.model or find_result(args.output, "model.keras"), args)


# ---------------------------------------------------------------------------------------- steps


def train(session, args):
    """Trains on the source's shards, from the checkpoint if there is one; writes model.keras."""
    import model  # these two load Keras: not before the command line proved right
    import training

    recipe = training.Recipe.from_args(args)
    source = session.source
    shards = source.select_shards("train", *recipe.train_shards, "train_shards")
    valid_shards = source.select_shards("train", *args.valid_shards, "valid_shards")
    labels_csv = source.fetch(TRAIN_CLEAN_CSV if recipe.clean else TRAIN_CSV)
    class_table, labels = read_train_labels(labels_csv, recipe.min_images)
    say(f"{source}: {len(labels):,} train images of {len(class_table):,} landmarks")

    checkpoint = args.output / "checkpoint" / "training.npz"
    checkpoints = (checkpoint, training.previous_checkpoint(checkpoint))
    if args.fresh:
        for path in (*checkpoints, args.output / "model.keras"):
            path.unlink(missing_ok=True)
    elif not any(path.exists() for path in checkpoints):
        for path in checkpoints:
            for earlier in find_inputs(f"checkpoint/{path.name}")[:1]:
                say(f"{earlier}: taken up from an earlier session")
                copy_file(earlier, path)
    network = training.train(
        session,
        recipe,
        class_table,
        labels,
        shards,
        valid_shards,
        args.valid_every,
        num_skippable(args, shards),
        checkpoint,
    )
    path = args.output / "model.keras"
    page = {"landmark_ids": class_table.landmark_ids.tolist()}
    model.save_model(model.build_classifier(network), path, page)
    print(path)


def predict(session, model_path, args):
    """Names the landmark of every test image; writes and scores recognition_submission.csv.

    The descriptors that come with it are kept in queries.npz, which retrieval.py takes up.
    """
    import describe

    source = session.source
    test_ids = read_image_ids(source.fetch(TEST_CSV))
    describer = describe.Describer(
        model_path,
        lambda: read_2019_classes(source.fetch(TRAIN_CSV)),
        args.batch_size,
        args.flipped_too,
    )
    shards = source.select_shards("test")
    found = describe.describe_split(
        session, describer, shards, test_ids, args.output / QUERIES, num_skippable(args, shards)
    )
    path = args.output / "recognition_submission.csv"
    write_recognition_submission(
        path, test_ids, found.image_ids, found.landmark_ids, found.confidences
    )
    num_predicted = check_recognition_submission(path, test_ids, describer.recogniser.class_table)
    say(f"{num_predicted:,} of {len(test_ids):,} test images predicted")
    print(path)
    if source.exists(RECOGNITION_SOLUTION):
        solution = source.fetch(RECOGNITION_SOLUTION)
        print(format_scores("GAP", score_recognition(path, solution)))
    else:
        say(f"{source}: no {RECOGNITION_SOLUTION}; the submission is not scored")


if __name__ == "__main__":
    run_command_line(main)
