"""Trains a landmark recogniser from a stream of tar shards, predicts the test set and scores it.

    python recognition.py --demo                  the whole job on the miniature landmark world
    python recognition.py                         the whole job on Google Landmarks v2
    python recognition.py train                   training alone
    python recognition.py predict --model M       prediction and score alone

Run the same command again and it continues where it stopped.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from data.landmarks import categories_of, read_image_ids, read_labels, write_categories
from data.sources import TEST_CSV
from network.loading import require_backend
from recipes import ACTS_BESIDE, HUB, RECIPES, Data, Loss, Network, Recipe, Training
from report import recognised
from report.scores import rows_of, score, write_recognised
from report.threshold import calibrate, save_calibration
from report.write import write_report
from runs.command_line import (
    CommandLine,
    add_session_options,
    add_settings,
    addresses,
    any_path,
    number,
    parse_session,
    require_model,
    run_command_line,
    session_settings,
    setting_flag,
    shard_range,
)
from runs.session import CALIBRATION, CATEGORIES, MODEL, open_session
from utils import ExpectedError, say

LONG_RUN_BYTES = 10e9  # to fetch: what takes so long is told before it begins


def make_parser():
    """Makes the parser of the command line; Keras is not loaded for it."""
    parser = CommandLine(
        __doc__, prog="recognition.py", usage="%(prog)s [all | train | predict] [options]"
    )
    parser.add_argument(
        "step", nargs="?", choices=("all", "train", "predict"), default="all", help="what to do"
    )
    add_session_options(parser)
    recipe = parser.add_further_group("recipe")
    recipe.add_argument(
        "--recipe", choices=RECIPES, default="2019", help="what the settings below are by default"
    )
    for group in (Data, Network, Loss, Training):
        add_settings(recipe, group)
    training = parser.add_argument_group("training")
    training.add_argument(
        "--valid-shards", type=shard_range, default=(1, 2), metavar="FIRST:STOP",
        help="train shards held out to validate on",
    )  # fmt: skip
    training.add_argument(
        "--valid-every", type=number(int, 1), default=10, metavar="N",
        help="validate after every N mini-epochs, and after the last",
    )  # fmt: skip
    training.add_argument("--fresh", action="store_true", help="start over instead of continuing")
    machines = parser.add_further_group("several machines, see docs/machines.md")
    machines.add_argument(
        "--machines", type=addresses, metavar="HOST:PORT,...",
        help="machines that train together; this command runs on each of them",
    )  # fmt: skip
    machines.add_argument(
        "--machine", type=number(int, 0), metavar="K",
        help="which of --machines this one is, from 0 (default: 0, which reads and writes the "
        "results)",
    )  # fmt: skip
    prediction = parser.add_argument_group("prediction")
    prediction.add_argument(
        "--model", type=any_path, help="model to predict with (default: <output>/model.keras)"
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
    _check_recipe(parser, args)
    if args.machine is not None and not args.machines:
        parser.error(f"argument --machine: {args.machine}; expected --machines beside it")
    args.machine = args.machine or 0
    if args.machines:
        _check_machines(parser, args)
    return args


def _check_recipe(parser, args):
    """Ends with one line if a setting was changed that changes nothing beside the others."""
    for name, other, values in ACTS_BESIDE:
        value, beside = getattr(args, name), getattr(args, other)
        if value != parser.get_default(name) and beside not in values:
            problem = f"{setting_flag(name, value)} changes nothing beside"
            expected = " or ".join(setting_flag(other, value) for value in values)
            parser.error(f"{problem} {setting_flag(other, beside)}; expected {expected}")
    if args.kept not in (0, parser.get_default("kept")) and not args.neck:
        problem = f"--kept {args.kept} changes nothing beside --neck 0"
        parser.error(f"{problem}; expected values of a neck, such as --neck 512")
    if args.pooling == "token" and not args.backbone.startswith(HUB):
        problem = f"argument --pooling: token, which {args.backbone} does not have"
        parser.error(f"{problem}; expected max, average or gem")


def _check_machines(parser, args):
    """Ends with one line unless several machines can do what is asked for."""
    if args.step != "train":
        parser.error("--machines go with `recognition.py train`; predict on one machine")
    number = len(args.machines)
    if args.machine >= number:
        parser.error(f"argument --machine: {args.machine}; expected 0 to {number - 1}")
    if args.frozen_backbone:
        parser.error(
            "--machines go with a backbone that is trained; a frozen one needs one machine"
        )
    if args.batch_size % number:
        problem = f"argument --batch-size: {args.batch_size}"
        parser.error(f"{problem}; expected a multiple of the {number} machines")


def main(argv=None):
    """Trains, predicts and scores, as the module's docstring shows."""
    args = parse_arguments(argv)
    require_backend()
    if args.step == "predict":
        require_model(args)
    settings = session_settings(args)
    if args.machine:  # its folder may be that of the first machine
        settings["output"] /= f"machine-{args.machine}"
    with open_session("recognition", **settings) as session:
        if args.step == "all":
            require_test_images(session.source)
        if args.step != "predict":
            recipe, group = Recipe.of(vars(args)), (args.machines, args.machine)
            train(session, recipe, args.valid_shards, args.valid_every, args.fresh, group)
        if args.step != "train":
            predict(session, args.model, args.batch_size, args.flipped_too)


def require_test_images(source):
    """Raises ExpectedError where there is nothing to predict, before days of training."""
    source.select_shards("train")  # a wrong source is told first
    try:
        source.select_shards("test")
        read_image_ids(source.fetch(TEST_CSV))
    except ExpectedError as error:
        raise ExpectedError(str(error), setting="test_images") from error


def train(session, recipe, valid_shards, valid_every, fresh=False, group=(None, 0)):
    """Trains on the source's shards, from the checkpoint if there is one; writes model.keras.

    Args:
        valid_shards: (first, stop) of the held-out train shards.
        valid_every: mini-epochs between validations.
        fresh: forget the checkpoint first.
        group: (addresses of the machines that train together or None, number of this one).
    """
    recipe, valid_shards = fit_to_source(session.source, recipe, valid_shards)
    source, data = session.source, recipe.data
    shards = source.select_shards("train", *data.train_shards, "train_shards")
    held_out = source.select_shards("train", *valid_shards, "valid_shards")
    announce(source, shards, recipe)

    import model
    from cluster import machines
    from network import backbones  # loads Keras, which is deferred until the source has answered
    from training import checkpoints, frozen, loop

    # Before 450 MB of train.csv are fetched for them.
    backbones.check(recipe.network.backbone, data.image_size, recipe.network.weights)
    class_table, labels = read_labels(source, data.labels, data.min_images)
    say(f"{source}: {len(labels):,} train images of {len(class_table):,} landmarks")
    if len(class_table) < 2:
        problem = f"one landmark alone has {data.min_images} images or more"
        expected = "expected two landmarks to tell apart"
        raise ExpectedError(f"{source}: {problem}; {expected}", "min_images")
    if fresh:  # nothing was wrong so far
        checkpoints.forget(session)
    images = loop.TrainImages(class_table, labels, shards, held_out)
    trainer = frozen if recipe.network.frozen_backbone else loop
    with machines.join(*group) as joined:
        together = (joined,) if group[0] else ()  # a frozen backbone needs one machine
        network = trainer.train(session, recipe, images, valid_every, *together)
    if group[1] == 0:  # the first machine writes
        model.save_recogniser(network, session.path(MODEL), class_table, recipe)
        print(session.path(MODEL))


def fit_to_source(source, recipe, valid_shards):
    """Takes all shards but the first, which is held out, of a source of fewer than the default.

    Gives (`Recipe`, (first, stop) of the held-out shards); as they were where a person chose.
    """
    num_shards = source.count_shards("train")
    is_default = recipe.data.train_shards == Data().train_shards
    if not is_default or not 1 < num_shards < recipe.data.train_shards[1]:
        return recipe, valid_shards
    say(f"{source}: {num_shards} train shards; the first is held out to validate on")
    return recipe.changed(train_shards=(1, num_shards)), (0, 1)


def announce(source, shards, recipe):
    """Says what a long run is about to fetch, before it begins."""
    size_bytes = len(shards) * source.size_of(shards[0])
    if not source.place_of(shards[0]).takes_scratch(shards[0]) or size_bytes < LONG_RUN_BYTES:
        return
    is_once, num_epochs = recipe.network.frozen_backbone, recipe.training.epochs
    say(
        f"{source}: {len(shards)} train shards, about {size_bytes / 1e9:.0f} GB, are fetched "
        f"{'once' if is_once else f'in each of {num_epochs} epochs'} into {source.scratch}, where "
        f"{source.max_connections + 1} are at most; "
        f"{size_bytes / 20e6 / 3600:.1f} h over one connection of 20 MB/s, of which there are up "
        f"to {source.max_connections}; Ctrl-C stops cleanly, and the same command continues"
    )


def predict(session, model_path, batch_size, flipped_too):
    """Names the landmark of every test image; writes and scores recognition_submission.csv.

    The descriptors that come with it are kept in queries.npz, which retrieval.py uses. Without
    `model_path` the output's model is taken.
    """
    source = session.source
    test_ids = read_image_ids(source.fetch(TEST_CSV))  # a wrong source is told before Keras loads
    from descriptors import describe

    model_path = model_path or session.find(MODEL)
    describer = describe.Describer(source, model_path, batch_size, flipped_too)
    found = describe.describe_queries(session, describer, test_ids)
    write_recognised(session, test_ids, found, describer.class_table)
    scores, solution = score(session, "recognition", {"GAP": rows_of(found)})
    calibration = None
    if solution:
        calibration = calibrate(describer.fingerprint["model"], found, solution)
    keep_for_photos(session, describer.class_table, calibration)
    write_report(
        session, "recognition",
        lambda: recognised.gather(session, describer, found, calibration, scores, solution),
    )  # fmt: skip


def keep_for_photos(session, class_table, calibration):
    """Writes what identify.py takes besides the model, for as far as the source has it."""
    if calibration:
        save_calibration(session.path(CALIBRATION), calibration)
    categories = categories_of(session.source)
    if not categories.keys().isdisjoint(class_table.landmark_ids.tolist()):
        write_categories(session.path(CATEGORIES), categories, class_table)


if __name__ == "__main__":
    run_command_line(main)
