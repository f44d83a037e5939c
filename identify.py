"""Names the landmark of your own photos with a trained recogniser.

    python identify.py PHOTO ...                  with output/model.keras, of recognition.py
    python identify.py holiday/ '*.png' --model M     folders and patterns, another model
    python identify.py --demo                     some pictures of the demo, after `make demo`
    python identify.py PHOTO --json               one JSON object a photo, for programs
    python identify.py --take-away FOLDER         model, names and an example that needs Keras alone

Where retrieval.py or nearest.py left descriptors, the pictures nearest to each photo are told too.
Nothing is fetched, unless --source names where those pictures are.
"""

import contextlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from data import images
from data.images import BadImageError, read_photo
from data.sources import Source
from network.loading import require_backend
from report import photos
from report.neighbors import find_thumbnail
from runs import command_line, kernel
from runs.command_line import any_path
from runs.folders import scratch_folder
from runs.pictures import draw_picture
from runs.session import (
    DEMO_OUTPUT,
    DEMO_PHOTOS,
    DEMO_WORLD,
    IDENTIFIED_PICTURE,
    Session,
    mute_warnings,
)
from utils import ExpectedError, in_background, say

WORLD = f"scratch/{DEMO_WORLD}"  # where `make demo` drew it


def make_parser():
    """Makes the parser of the command line; Keras is not loaded for it."""
    usage = "%(prog)s PHOTO ... [options]"
    parser = command_line.CommandLine(__doc__, prog="identify.py", usage=usage)
    add = parser.add_argument
    # fmt: off
    add("files", nargs="*", type=any_path, metavar="PHOTO",
        help="a JPEG, PNG, TIFF, HEIC ..., a folder, or a pattern of them")
    add("--model", type=any_path,
        help="model.keras of recognition.py (default: <output>/model.keras)")
    add("--output", type=any_path, help="folder of the runs, where identify.png goes too (default: "
        "output, or output/demo)")
    add("--demo", action="store_true",
        help="with what `make demo` left; without a PHOTO, some test pictures of its world")
    add("--source", help="web address or folder in the CVDF layout, of the nearest pictures")
    add("--nearest", type=command_line.number(int, 0, 20), default=5, metavar="N",
        help="pictures near each photo to tell, where there are descriptors")
    add("--json", action="store_true", help="print one JSON object a photo")
    add("--take-away", type=any_path, metavar="FOLDER", help="write a folder with model, names, "
        "threshold, an example and a card to publish")
    # fmt: on
    return parser


def parse_arguments(argv):
    """Parses and checks the command line."""
    parser = make_parser()
    args = command_line.parse_with_files(parser, argv)
    if args.take_away:
        if args.files:
            parser.error("--take-away goes without a PHOTO")
    elif not args.files and not args.demo:
        parser.error("no photo given; expected PHOTO ..., or --demo")
    if args.output is None:
        home = kernel.FOLDER / "working" if kernel.is_kernel() else Path("output")
        args.output = DEMO_OUTPUT if args.demo and not kernel.is_kernel() else home
    return args


def main(argv=None):
    """Names the landmarks, as the module's docstring shows."""
    args = parse_arguments(argv)
    require_backend()
    model_path = command_line.require_model(args)
    if args.take_away:
        from report.take_away import write_take_away  # loads Keras

        with open_output(args) as session:
            write_take_away(session, model_path, args.take_away)
        return print(args.take_away)
    images.register_heic()
    paths = photos.find_photos(args.files) if args.files else None
    # What is wrong with a photo is told before a network is loaded for it.
    readable = []
    for path in paths or ():
        with telling_unreadable(path):
            read_photo(path)
            readable.append(path)
    if readable or paths is None:
        with open_output(args) as session:
            if paths is None:
                from demo.photos import write_photos

                paths = write_photos(session.path(WORLD), session.path(DEMO_PHOTOS))
            readable = identify(session, model_path, readable or paths, args)
    if num_failed := len(paths) - len(readable):
        what = f"{num_failed} of {len(paths)} photos could not be read"
        expected = "pictures, e.g. JPEG, PNG, TIFF or HEIC"
        raise ExpectedError(f"{what}; expected {expected}; see the lines above")


@contextlib.contextmanager
def telling_unreadable(path):
    """Says what is wrong with a photo that cannot be read, and goes on after the block."""
    try:
        yield
    except BadImageError as error:
        say(
            f"{photos.printable(path)}: {error}; expected a whole photo, e.g. a JPEG, PNG, TIFF or "
            f"HEIC, of {images.MAX_DECODED_PIXELS / 1e6:.0f} million pixels at most; check it"
        )


@contextlib.contextmanager
def open_output(args):
    """Gives a `Session` on the output, whose source is None unless there is one to take."""
    mute_warnings()
    with scratch_folder(args.output / "scratch", "own_output") as scratch:
        location = args.source
        if args.demo:
            from demo.world import build_world  # a folder of its own: nobody else loads it

            location = build_world(args.output / WORLD)
        source = Source(location, scratch) if location else None
        yield Session(args.output, source, stop=None)


def identify(session, model_path, paths, args):
    """Names one photo after another, and draws identify.png; lists the paths that could be read."""
    # While Keras loads.
    loading = in_background(photos.load_described, session) if args.nearest else None
    from report import photo_answer  # loads Keras: deferred until the arguments are valid

    described = loading.result() if loading else []
    namer = photo_answer.PhotoNamer(session, model_path, described, args.nearest)
    rows, named = [], []
    for path in paths:
        with telling_unreadable(path):
            data = read_photo(path)
            answer = namer.name(path, data)
            named.append(path)
            print(json.dumps(answer.as_page()) if args.json else answer.as_text(), flush=True)
            if len(rows) < photos.MAX_DRAWN:
                image = images.make_thumbnail(data, photos.THUMBNAIL, formats=images.PHOTO_FORMATS)
                rows.append((answer, image, []))
    path, source = session.path(IDENTIFIED_PICTURE), session.source
    for answer, _, shown in rows:  # the answers stand without the pictures near them
        for near in answer.nearest if source else ():
            if image := find_thumbnail(source, near.picture, "not drawn"):
                shown.append((near, image))
    if rows and draw_picture(path, lambda: photos.draw_answers(rows), dpi=110):
        (say if args.json else print)(path)
    return named


if __name__ == "__main__":
    command_line.run_command_line(main)
