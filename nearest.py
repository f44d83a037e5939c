"""Names each test image by its nearest train images, in parts that can run apart.

    python nearest.py --demo                  after recognition.py --demo: all parts, then the vote
    python nearest.py --model M               all parts one after another, then the vote
    python nearest.py --model M --part 2      part 2 of 6 alone: writes gallery-part-2-of-6.npz
    python nearest.py vote [FILES]            all parts vote: writes recognition_submission.csv

Run the same command again and it continues where it stopped. However many the parts, the submission
is the same.
"""

import contextlib
import functools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from data.arrays import save_arrays
from data.landmarks import ClassTable, read_labels
from network.loading import require_backend
from recipes import LABELS
from report import recognised
from report.scores import rows_of, score, write_recognised
from report.write import write_report
from runs import command_line
from runs.kernel import require_package
from runs.session import DESCRIPTORS, NAMES, RECOGNITION_SUBMISSION, gallery_part_name, open_session
from search import in_parts
from search.voting import least_like_gallery, vote
from utils import ExpectedError, MissingFileError, require_free_space, say

SPLIT = "train"  # is searched
BY_HEAD, BY_VOTES = "GAP of the head", "GAP of the votes"


def make_parser():
    """Makes the parser of the command line; Keras and faiss are not loaded for it."""
    parser, descriptors = command_line.parser_in_parts(
        __doc__, "nearest", "train shards", "vote", "float16"
    )
    descriptors.add_argument(
        "--labels", choices=LABELS,
        help="landmarks of the train images: train.csv, train_clean.csv, or all images of the "
        "landmarks in train_clean.csv (default: as the model was trained)",
    )  # fmt: skip
    return parser


def parse_arguments(argv):
    """Parses and checks the command line."""
    return command_line.parse_in_parts(make_parser(), argv, "vote")


def main(argv=None):
    """Searches parts of the gallery and lets them vote, as the module's docstring shows."""
    args = parse_arguments(argv)
    name = "nearest" if args.part is None else f"gallery-part-{args.part}"
    require_backend()
    files = command_line.find_part_files(args, gallery_part_name("*", args.parts))
    with open_session(name, **command_line.session_settings(args)) as session:
        files = files or in_parts.search_in_parts(session, args, search_parts, "nearest")
        if args.part is None:
            name_queries(session, files, args)


def search_parts(session, args):
    """Searches one part of the train images, or all one after another: yields the part files."""
    describer, images, queries = prepare(session, args)
    from search import parts  # it loads Keras and faiss

    for part in in_parts.numbers_of_parts(args):
        yield parts.search_gallery_part(session, describer, queries, images, part, args.parts)


def prepare(session, args):
    """Gives what every part takes: `Describer`, (`ClassTable`, `TrainLabels`), the queries.

    Says how large the descriptors become; raises ExpectedError where the disk is too small.
    """
    describer, image_ids = open_images(session, args)
    from search import parts

    images = read_images(session.source, args.labels or describer.recipe.data.labels)
    say(f"{session.source}: {len(image_ids):,} train images of {len(images[0]):,} landmarks")
    of_queries = describer.storing("float32")  # as recognition.py stores them
    queries = parts.find_queries(session, of_queries, args.queries).of_unit_length()
    num_wanted = len(image_ids) / args.parts * len(in_parts.numbers_of_parts(args))
    size_bytes = num_wanted * describer.allocate(1).descriptors.nbytes
    say(f"descriptors of the train images: {size_bytes / 1e9:.2f} GB below {session.output}")
    there = session.output.glob(f"{DESCRIPTORS}/train_*.npz")
    missing_bytes = size_bytes - sum(path.stat().st_size for path in there)
    require_free_space(session.output, missing_bytes, "descriptors of train images")
    return describer, images, queries


def open_images(session, args):
    """Gives the `Describer` of the train images, and their ids."""
    describer = in_parts.make_describer(session, args, SPLIT)
    labels = read_images(session.source, args.labels or describer.recipe.data.labels)[1]
    return describer, labels.image_ids


@functools.lru_cache(maxsize=1)
def read_images(source, labels):
    """Reads the labels of all train images, once for all jobs of a worker."""
    return read_labels(source, labels, min_images=1)


def name_queries(session, files, args):
    """Lets all the parts vote; writes names.npz and the submission, checks it and scores it."""
    require_package("faiss", "faiss-cpu")
    from search import gallery_parts

    parts, shared = gallery_parts.load_parts(files)
    if args.step == "vote":  # else they were searched with these labels just now
        require_same_labels(session.source, files[0], shared["labels"])
    test_ids = in_parts.read_test_ids(session.source, files[0], parts[0][0].query_ids)
    queries = gallery_parts.find_queries_of(session, shared, args.queries)
    named, num_compared = _name(session, queries, [part.neighbors for part, _ in parts], shared)
    known = np.concatenate([part.gallery_landmarks for part, _ in parts] + [queries.landmark_ids])
    class_table = ClassTable(np.unique(known))
    both = {BY_HEAD: rows_of(queries), BY_VOTES: rows_of(named)}
    scores, solution = score(session, "recognition", both)
    # By the Public images alone, so that the Private score stays one of what was not chosen by it.
    public = {name: usages.get("Public", 0) for name, usages in scores.items()}
    is_worse = bool(scores) and public[BY_HEAD] > public[BY_VOTES]
    whose = "names of the votes; the head's stay in queries.npz"
    if is_worse:
        whose = "the head's names, whose public score is higher; names.npz has the votes"
    say(f"{session.path(RECOGNITION_SUBMISSION)}: {whose}")
    write_recognised(session, test_ids, queries if is_worse else named, class_table)
    left_out = sorted({name for _, facts in parts for name in facts["left_out"]})
    facts = {
        "title": "Nearest train images", "num_landmarks": len(class_table),
        "known_to": "the head or a train image",
        "left_out": [f"{name}: no image of this train shard names others." for name in left_out],
        "model": shared["described"]["model"],
        "details": [["non-landmarks compared", num_compared]],
        "scores": [{"name": name, "usages": one} for name, one in scores.items()],
    }  # fmt: skip
    write_report(
        session, "nearest",
        lambda: facts | recognised.judge(session, named, solution, len(class_table)),
    )  # fmt: skip


def require_same_labels(source, file, searched_with):
    """Raises ExpectedError if no train table of a source has labels as a part was searched with."""
    known = []
    for labels in ("clean", "full", "all-of-clean"):  # the smallest first
        with contextlib.suppress(MissingFileError):
            known.append("-".join(one.fingerprint for one in read_images(source, labels)))
        if searched_with in known:
            return
    if known:
        what = f"{file}: searched with other labels than the train tables of {source} have now"
        raise ExpectedError(f"{what}; expected equal ones; search the parts again", "source")


def _name(session, queries, found, shared):
    """Lets neighbors vote, and writes names.npz: (named `Descriptions`, non-landmarks compared)."""
    from search import gallery

    neighbors = gallery.merge_neighbors(found)
    rows = least_like_gallery(neighbors)
    say(f"{len(rows):,} test images, the least like any train image, stand for what is no landmark")
    likeness = gallery.likeness_to(queries.descriptors, rows)
    landmark_ids, confidences = vote(neighbors, likeness, queries.landmark_ids, queries.confidences)
    save_arrays(
        session.path(NAMES), shared | {"non_landmarks": len(rows)},
        image_ids=queries.image_ids, landmark_ids=landmark_ids, confidences=confidences,
        neighbor_ids=neighbors.image_ids, neighbor_landmarks=neighbors.landmark_ids,
        cosines=neighbors.cosines,
    )  # fmt: skip
    print(session.path(NAMES))
    none = queries.descriptors[:, :0]  # not looked at, and large
    named = replace(queries, landmark_ids=landmark_ids, confidences=confidences, descriptors=none)
    return named.only(landmark_ids >= 0), len(rows)


if __name__ == "__main__":
    command_line.run_command_line(main)
