"""Runs the whole job on Kaggle: builds the kernels, pushes them in order, collects and submits.

    python kernels.py build --user NAME    write kernels/: eight folders, ready to push
    python kernels.py build --user NAME --recipe strong
                                           the longer chain: the train images name landmarks, too
    python kernels.py build --user NAME --shrink 256
                                           with kernels in front that make the data set small
    python kernels.py run                  push all in order, wait, collect (and --submit)
    python kernels.py push part-3          push one again, whatever its last state
    python kernels.py status               what Kaggle has of each
    python kernels.py collect              download the results of the last sessions
    python kernels.py submit               check both submissions and hand them in

`run` can be stopped and started again at any point: Kaggle is asked what is there. All but `build`
call the official client (pip install kaggle six).
"""

import re
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from on_kaggle.chain import Chain
from on_kaggle.packing import ENTRIES, parse_arguments, read_settings, write_kernels
from on_kaggle.plan import GALLERY, KERNELS, count_shrink_kernels, name_by_gallery, shrink_first
from on_kaggle.results import CHALLENGES, collect, find_submitters, submit
from on_kaggle.states import print_status, read_built
from recipes import RECIPES
from runs.command_line import CommandLine, matching, number, run_command_line
from runs.folders import hold_folder
from utils import ExpectedError

RUN_OPTIONS = ("command", "kernels", "output", "any_build", "submit", "max_hours")  # no build's
WORD = "[A-Za-z0-9_-]+"  # on Kaggle
NAMES = (*KERNELS, *GALLERY, "vote")  # and shrink-0 and so on


def one_of(names, others="(?!)"):
    """Makes an argument type that takes these names, and what matches a pattern."""
    return matching("|".join((*names, others)), f"one of {', '.join(names)}")


def make_parser():
    parser = CommandLine(__doc__, prog="kernels.py")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    help_of = {
        "build": "write a folder for each kernel",
        "run": "push all in order, wait, collect; with --user, build first",
        "push": "push all in order, waiting only in between; or push the named ones again",
        "status": "show what Kaggle has of each kernel",
        "collect": "download outputs",
        "submit": "check the collected submissions and hand them in",
    }
    for name, text in help_of.items():
        add = commands.add_parser(name, help=text).add_argument
        folder = {"type": Path, "default": Path("kernels"), "help": "folder of the built kernels"}
        add("--kernels", **folder)
        if name in ("run", "collect", "submit"):
            folder = {"default": Path("output/kaggle"), "help": "folder for collecting"}
            add("--output", type=Path, **folder)
        if name in ("push", "run"):
            add("--any-build", action="store_true", help="keep what another build finished")
        if name in ("push", "collect"):
            kind, told = one_of(NAMES, r"shrink-\d+"), f"of {', '.join(NAMES)}, shrink-0 and so on"
            add("names", nargs="*", metavar="NAME", type=kind, default=[], help=told)
        if name == "submit":
            kind, told = one_of(CHALLENGES), f"of {', '.join(CHALLENGES)}"
            add("names", nargs="*", metavar="NAME", type=kind, default=[], help=told)
        if name in ("build", "run"):
            _add_build_options(add, name == "build")
        if name == "run":
            add("--submit", action="store_true", help="hand in both submissions")
    return parser


def _add_build_options(add, is_required):
    # fmt: off
    add("--user", required=is_required, metavar="NAME", help="owner on Kaggle",
        type=matching(WORD, "a name on Kaggle"))
    add("--recipe", choices=RECIPES,
        help="of recognition; with strong or frozen, kernels follow in which the nearest train "
        "images name test and index images (default: 2019)")
    add("--max-hours", type=float, default=11, metavar="H",
        help="time budget of a GPU session, hours; Kaggle cuts it off at 12")
    for entry in ENTRIES:
        add(f"--{entry}-args", default="", metavar="ARGS",
            help=f"more arguments for {entry}.py")
    add("--shrink", type=number(int, 32, 4096), metavar="N",
        help="first make the pictures small, to N pixels, in kernels without a GPU (try 256)")
    add("--shrink-kernels", type=number(int, 1, 99), metavar="K",
        help="kernels that share that (default: as many as their outputs need)")
    add("--dataset", action="append", default=[], metavar="OWNER/SLUG", help="data set to mount",
        type=matching(f"{WORD}/{WORD}", "owner/slug, as in the address of its page"))
    add("--model-source", action="append", default=[], metavar="OWNER/MODEL/FRAMEWORK/NAME/VERSION",
        help="model of kaggle.com/models to mount, e.g. for hub: without internet",
        type=matching(rf"{WORD}/{WORD}/{WORD}/{WORD}/\d+", "owner/model/framework/name/version"))
    add("--tpu", action="store_true",
        help="train on a TPU instead of two T4s, see docs/machines.md")
    add("--no-internet", action="store_true",
        help="kernels without internet, but for those that make the pictures small")
    # fmt: on


def build(args):
    extra = {entry: parse_arguments(entry, getattr(args, f"{entry}_args")) for entry in ENTRIES}
    kernels = plan(args, extra)
    if args.tpu:
        kernels = kernels | {"recognition": replace(kernels["recognition"], machine="tpu")}
    for kernel in kernels.values():  # all that is set for it, and what is not
        read_settings(kernel.entry, [*kernel.arguments, *extra[kernel.entry]])
    write_kernels(kernels, extra, args)


def plan(args, extra):
    """Decides which kernels there are: dict, name -> `Kernel`, in the order to push."""
    recipe = [] if args.recipe in (None, "2019") else ["--recipe", args.recipe]
    trained = read_settings("recognition", [*recipe, *extra["recognition"]])
    kernels, labels = KERNELS, {"recognition": trained.labels}
    if recipe:
        if trained.recipe != args.recipe:
            told = f"recipe {trained.recipe}; expected that of --recipe, {args.recipe}"
            raise ExpectedError(f"recognition.py: {told}", setting="recognition_args")
        described_as = ["--batch-size", str(trained.batch_size)]
        described_as += ["--flipped-too"] * trained.flipped_too
        kernels = name_by_gallery(args.recipe, described_as)
        labels["nearest"] = read_settings("nearest", extra["nearest"]).labels or trained.labels
    if not args.shrink:
        return kernels
    words = ["--pixels", str(args.shrink)]
    if "nearest" in labels and set(labels.values()) == {"clean"}:
        words += ["--labels", "clean"]
    settings = read_settings("shrink", [*words, *extra["shrink"]])
    for script, wanted in labels.items():
        if settings.labels == "clean" != wanted and "--source" not in extra[script]:
            raise ExpectedError(
                f"{script}.py: labels {wanted}, but shrink.py keeps clean ones alone; "
                "expected clean of both",
                setting=f"{script}_args",
            )
    return shrink_first(kernels, words, args.shrink_kernels or count_shrink_kernels(settings))


def parse_command_line(argv):
    """Parses the command line; ends the process with exit code 2 if it is wrong."""
    argv = list(argv)
    for place, word in reversed(list(enumerate(argv[:-1]))):
        if re.fullmatch(f"--({'|'.join(ENTRIES)})-args", word):  # its value may begin with --
            argv[place : place + 2] = [f"{word}={argv[place + 1]}"]
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.command in ("build", "run"):
        if not args.user and any(vars(args)[name] for name in vars(args).keys() - RUN_OPTIONS):
            parser.error("options of a build go with --user, which builds first")
        if not args.shrink and (args.shrink_args or args.shrink_kernels):
            parser.error("--shrink-args and --shrink-kernels go with --shrink N")
        if args.nearest_args and args.recipe in (None, "2019"):
            parser.error("--nearest-args goes with --recipe strong or frozen")
        if not 0 < args.max_hours < 12:
            parser.error(f"argument --max-hours: {args.max_hours}; expected more than 0, below 12")
    return args


def main(argv=None):
    """Builds, pushes, shows, collects or submits, as the module's docstring shows."""
    args = parse_command_line(sys.argv[1:] if argv is None else argv)
    names = getattr(args, "names", [])
    if args.command == "build" or (args.command == "run" and args.user):
        build(args)
    if args.command == "build":
        return
    built = read_built(args.kernels)
    if unknown := [name for name in names if args.command != "submit" and name not in built]:
        raise ExpectedError(
            f"{unknown[0]}: not in {args.kernels}; expected one of {', '.join(built)}; build with "
            "--recipe strong or --shrink to have more"
        )
    if args.command == "status":
        print_status(built)
    if args.command in ("push", "run"):
        with hold_folder(args.kernels, "kernels"):  # two at once would push everything twice
            chain = Chain(built, args.any_build)
            chain.push_again(names) if names else chain.advance(to_the_end=args.command == "run")
    if args.command in ("collect", "run"):
        names = names or sum(find_submitters(built).values(), [])
        collect({name: built[name] for name in names}, args.output)
    if args.command == "submit" or (args.command == "run" and args.submit):
        names = names if args.command == "submit" else []
        submit(built, args.output, names or list(CHALLENGES))


if __name__ == "__main__":
    run_command_line(main)
