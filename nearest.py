"""Names each test image by its nearest train images, in parts that can run apart.

    python nearest.py --demo                  after recognition.py --demo: all parts, then the vote
    python nearest.py --model M               all parts one after another, then the vote
    python nearest.py --model M --part 2      part 2 of 6 alone: writes gallery-part-2-of-6.npz
    python nearest.py vote [FILES]            all parts vote: writes recognition_submission.csv

Run the same command again and it continues where it stopped. However many the parts, the submission
is the same.
"""

import contextlib
import dataclasses
import functools
import io
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from cluster.dask_workers import describe_and_search
from data.landmarks import ClassTable, read_image_ids, read_labels
from data.sources import RECOGNITION_SOLUTION, TEST_CSV
from data.submissions import check_recognition_submission, write_recognition_submission
from metrics import format_scores, score_recognition
from network.loading import require_backend
from recipes import LABELS
from report import recognised
from report.write import write_report
from runs.command_line import (
    CommandLine,
    add_describe_options,
    add_part_options,
    add_session_options,
    any_path,
    check_part,
    find_part_files,
    parse_session,
    require_model,
    require_queries,
    run_command_line,
    session_settings,
)
from runs.kernel import require_package
from runs.session import (
    DESCRIPTORS,
    MODEL,
    NAMES,
    RECOGNITION_SUBMISSION,
    gallery_part_name,
    open_session,
)
from search.voting import least_like_gallery, vote
from utils import ExpectedError, require_free_space, say

NAMES_OF_SCORES = {"GAP of the head": "GAP of the head", "GAP": "GAP of the votes"}


def make_parser():
    """Makes the parser of the command line; Keras and faiss are not loaded for it."""
    parser = CommandLine(
        __doc__, prog="nearest.py", usage="%(prog)s [all | vote [FILE ...]] [options]"
    )
    parser.add_argument(
        "step", nargs="?", choices=("all", "vote"), default="all",
        help="search the parts and let them vote, or let part files vote alone",
    )  # fmt: skip
    parser.add_argument("files", nargs="*", type=any_path, help="part files that vote")
    add_session_options(parser)
    descriptors = parser.add_argument_group("descriptors")
    add_describe_options(descriptors, "float16")
    descriptors.add_argument(
        "--labels", choices=LABELS,
        help="landmarks of the train images: train.csv, train_clean.csv, or all images of the "
        "landmarks in train_clean.csv (default: as the model was trained)",
    )  # fmt: skip
    add_part_options(parser.add_argument_group("search and vote"), "train shards", "vote")
    return parser


def parse_arguments(argv):
    """Parses and checks the command line."""
    parser = make_parser()
    args = parse_session(parser, argv)
    check_part(parser, args, "vote")
    return args


def main(argv=None):
    """Searches parts of the gallery and lets them vote, as the module's docstring shows."""
    args = parse_arguments(argv)
    name = "nearest" if args.part is None else f"gallery-part-{args.part}"
    require_backend()
    if args.step == "vote":  # what is missing is told before a world is drawn
        files = find_part_files(args, gallery_part_name("*", args.parts))
    else:
        require_model(args)
        require_queries(args)
    with open_session(name, **session_settings(args)) as session:
        if args.step != "vote":
            search = search_on_workers if args.scheduler else search_parts
            files = search(session, args)
        if args.part is None:
            name_queries(session, files, args)


# ---------------------------------------------------------------------------------------- parts


def search_parts(session, args):
    """Describes and searches one part of the train images, or all parts one after another.

    Returns:
        list of the part files.
    """
    describer, images, queries = prepare(session, args)
    from search import parts  # it loads Keras and faiss: deferred until the arguments are valid

    files = []
    for part in range(args.parts) if args.part is None else [args.part]:
        path = parts.search_gallery_part(session, describer, queries, images, part, args.parts)
        print(path)
        files.append(path)
    return files


def prepare(session, args):
    """Gives what every part takes: `Describer`, (`ClassTable`, `TrainLabels`), the queries."""
    require_package("faiss", "faiss-cpu")  # before hours are spent on descriptors
    session.source.select_shards("train")  # told before Keras is loaded, if missing
    from search import parts  # it loads Keras and faiss

    describer = make_describer(session, args)
    labels = args.labels or describer.recipe.data.labels
    images = read_images(session.source, labels)
    say(f"{session.source}: {len(images[1]):,} train images of {len(images[0]):,} landmarks")
    queries = parts.find_queries(session, describer, args.queries, normalise=True)
    describer = describer.storing(args.descriptor_dtype)
    require_room(session, describer, len(images[1]), 1 if args.part is None else args.parts)
    return describer, images, queries


@functools.lru_cache(maxsize=1)
def read_images(source, labels):
    """Reads the labels of all train images, once for all jobs of a worker."""
    return read_labels(source, labels, min_images=1)


def search_on_workers(session, args):
    """Searches as `search_parts` does, shard by shard and part by part on a scheduler's workers.

    Returns:
        list of the part files.
    """
    import nearest  # by this name, the workers find the functions below

    jobs = nearest.queries_job, nearest.describe_job, nearest.search_job
    numbers = describe_and_search(session, args, "train", jobs)
    files = [session.path(gallery_part_name(part, args.parts)) for part in numbers]
    print(*files, sep="\n")
    return files


def queries_job(session, args):
    """Finds or describes the queries, and looks for room, in a worker."""
    prepare(session, args)


def describe_job(session, job):
    """Describes one train shard, in a worker; the job is (arguments, `Shard`)."""
    from descriptors import describe

    args, shard = job
    describer = make_describer(session, args)
    _, labels = read_images(session.source, args.labels or describer.recipe.data.labels)
    describer = describer.storing(args.descriptor_dtype)
    describe.describe_shards(session, describer, [shard], labels.image_ids)


def search_job(session, args):
    """Searches one part, in a worker."""
    with contextlib.redirect_stdout(io.StringIO()):  # the script prints the files
        search_parts(session, args)


def require_room(session, describer, num_images, num_parts):
    """Says how large the descriptors become; raises ExpectedError where the disk is too small."""
    size_bytes = num_images / num_parts * describer.allocate(1).descriptors.nbytes
    files = session.output.glob(f"{DESCRIPTORS}/train_*.npz")
    there_bytes = sum(path.stat().st_size for path in files)
    say(f"descriptors of the train images: {size_bytes / 1e9:.2f} GB below {session.output}")
    require_free_space(session.output, size_bytes - there_bytes, "descriptors of train images")


def make_describer(session, args):
    """Loads the network; the queries are stored as recognition.py stores them."""
    from descriptors import describe

    settings = describe.Settings(
        args.model or session.find(MODEL), args.batch_size, args.flipped_too
    )
    return describe.open_describer(settings, session.source)


# ----------------------------------------------------------------------------------------- vote


def name_queries(session, files, args):
    """Lets the parts vote; writes names.npz and the submission, checks it and scores it.

    Args:
        session: `Session`.
        files: paths of all the parts.
        args: the command line.

    Raises:
        ExpectedError: parts are missing, repeated, damaged or do not belong together.
    """
    require_package("faiss", "faiss-cpu")
    from search import gallery, gallery_parts

    parts, shared = gallery_parts.load_parts(files)
    test_ids = read_image_ids(session.source.fetch(TEST_CSV))
    if not np.isin(parts[0][0].query_ids, test_ids).all():
        raise ExpectedError(
            f"{files[0]}: it has queries that are not in {TEST_CSV} of {session.source}; expected "
            "parts of this source",
            setting="source",
        )
    queries = gallery_parts.find_queries_of(session, shared, args.queries)
    neighbors = gallery.merge_neighbors([part.neighbors for part, _ in parts])
    rows = least_like_gallery(neighbors)
    say(f"{len(rows):,} test images, the least like any train image, stand for what is no landmark")
    likeness = gallery.likeness_to(queries.descriptors, rows)
    named, confidences = vote(neighbors, likeness, queries.landmark_ids, queries.confidences)
    found = neighbors.image_ids, neighbors.landmark_ids, neighbors.cosines
    names = gallery.Names(queries.image_ids, named, confidences, *found)
    ways = {"non_landmarks": len(rows)}
    gallery.save_names(session.path(NAMES), names, shared | ways)
    print(session.path(NAMES))
    known = np.concatenate([part.gallery_landmarks for part, _ in parts] + [queries.landmark_ids])
    class_table = ClassTable(np.unique(known))
    scores = write_submission(session, test_ids, names, queries, class_table)
    left_out = sorted({name for _, facts in parts for name in facts["left_out"]})
    ways |= {"num_landmarks": len(class_table), "left_out": left_out}
    write_report(session, "nearest", lambda: gather_facts(session, scores, names, queries, ways))


def write_submission(session, test_ids, names, queries, class_table):
    """Writes, checks and scores the submission; gives its scores and those of the head."""
    source, path = session.source, session.path(RECOGNITION_SUBMISSION)
    if path.exists():
        say(
            f"{path}: replaced; the head's landmarks stay in queries.npz, and `recognition.py "
            "predict` writes them again"
        )
    is_named = names.landmark_ids >= 0
    named = (names.image_ids, names.landmark_ids, names.confidences)
    write_recognition_submission(path, test_ids, *(column[is_named] for column in named))
    num_named = check_recognition_submission(path, test_ids, class_table)
    say(f"{num_named:,} of {len(test_ids):,} test images named")
    print(path)
    if not source.exists(RECOGNITION_SOLUTION):
        say(f"{source}: no {RECOGNITION_SOLUTION}; the submission is not scored")
        return {}
    solution = source.fetch(RECOGNITION_SOLUTION)
    of_head = source.scratch / "of_the_head.csv"
    write_recognition_submission(
        of_head, test_ids, queries.image_ids, queries.landmark_ids, queries.confidences
    )
    scores = {
        "GAP of the head": score_recognition(of_head, solution),
        "GAP": score_recognition(path, solution),
    }
    for name, score in scores.items():
        print(format_scores(name, score))
    return scores


def gather_facts(session, scores, names, queries, ways):
    """Gathers what the report says of the names, see `report.page.render`."""
    facts = {
        "title": "Nearest train images",
        "num_landmarks": ways["num_landmarks"],
        "known_to": "the head or a train image",
        "left_out": [
            f"{name}: no image of this train shard names others." for name in ways["left_out"]
        ],
        "details": [["non-landmarks compared", ways["non_landmarks"]]],
        "scores": [{"name": NAMES_OF_SCORES[name], "usages": one} for name, one in scores.items()],
    }
    if not scores:
        return facts
    is_named = names.landmark_ids >= 0
    found = dataclasses.replace(
        queries,
        landmark_ids=names.landmark_ids,
        confidences=names.confidences,
        descriptors=queries.descriptors[:, :0],  # not looked at, and large
    )
    columns = (getattr(found, field.name)[is_named] for field in dataclasses.fields(found))
    return facts | recognised.judge(session, type(found)(*columns))


if __name__ == "__main__":
    run_command_line(main)
