"""The edge of every script: options that all have, errors with the flag to change, exit codes."""

import argparse
import dataclasses
import difflib
import errno
import io
import math
import os
import re
import shutil
import sys
import textwrap
from pathlib import Path

from data.connections import MAX_CONNECTIONS
from data.sources import CVDF_URL
from recipes import MAX_BATCH_SIZE, RECIPES
from runs import kernel
from runs.session import DEMO_OUTPUT, DEMO_WORLD, MAX_SKIPPED_SHARE, MODEL, Session
from utils import INTERRUPTED, ExpectedError, StoppedError, end_soon, say

# What to do about a setting, where there is more to say than to change it.
ADVICE = {
    "source": "check --source",
    "model": "check --model",
    "missing_model": "or name the file with --model",
    "demo_model": "or add --demo, whose model is there; or name the file with --model",
    "queries": "or leave out --queries",
    "rerank": "search the parts with this --rerank again",
    "names": "or take --names head",
    "min_images": "lower --min-images",
    "test_images": "check --source, or train alone with `recognition.py train`",
    "own_output": "choose another --output",
    "old_parts": "or choose another --output",
    "output": "free some space or choose another --output",
    "scratch": "free some space or choose another --scratch",
    "skip_bad_shards": "check the shard, or leave it out with --skip-bad-shards",
    "fresh": "or start over with --fresh",
    "any_build": "push it again by its name, or keep it with --any-build",
}
HELP_WIDTH = 100
INPUTS = "inputs"  # in the place of an address
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # of stdout, say; never a bug


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal, up to `HELP_WIDTH`, that shows each default as one types it."""

    def __init__(self, prog):
        super().__init__(prog, width=_help_width())

    def _get_help_string(self, action):
        text = action.help.removesuffix(" (default: %(default)s)")  # of Python before 3.13
        shown = _typed(action.default)
        return f"{text} (default: {shown})" if action.option_strings and shown else text


def _help_width():
    return min(HELP_WIDTH, shutil.get_terminal_size((HELP_WIDTH, 0)).columns)


def _typed(default):
    """Writes a default as one types it; empty where there is nothing to say."""
    if isinstance(default, tuple):
        return ":".join(map(str, default))
    if isinstance(default, bool) or default in (None, [], argparse.SUPPRESS):
        return "on" if default is True else ""
    return str(default)


class CommandLine(argparse.ArgumentParser):
    """A parser that shows a script's docstring, and answers wrong use in one line."""

    def __init__(self, doc=None, **kwargs):
        if doc:  # none with `python -OO`
            lines = doc.splitlines()
            examples = [line for line in lines if line.startswith("    python ")]
            kwargs["description"] = "\n".join([lines[0], *[""] * bool(examples), *examples[:3]])
        super().__init__(allow_abbrev=False, formatter_class=_Help, **kwargs)
        self.further_groups = []

    def add_further_group(self, title):
        """Adds a group of options of which --help lists no more than the names and defaults."""
        if not self.further_groups:
            self.add_argument("--help-all", action=_HelpAll, nargs=0, help="explain every option")
        self.further_groups.append(self.add_argument_group(title))
        return self.further_groups[-1]

    def format_help(self, explains_all=False):
        """Writes the help; what is in further groups is explained if asked for."""
        if explains_all or not self.further_groups:
            return super().format_help()
        groups = self._action_groups
        self._action_groups = [group for group in groups if group not in self.further_groups]
        text = f"{super().format_help()}\nmore, with their defaults; --help-all explains them\n"
        self._action_groups = groups
        wrap = textwrap.TextWrapper(_help_width(), subsequent_indent="  ", break_on_hyphens=False)
        for group in self.further_groups:
            options = (
                f"{one.option_strings[0]} {_typed(one.default)}".rstrip()
                if one.default is not True else one.option_strings[-1]  # e.g. --no-augment
                for one in group._group_actions
            )  # fmt: skip
            text += wrap.fill(f"{group.title}: {', '.join(options)}") + "\n"
        return text

    def parse_known_args(self, args=None, namespace=None):
        """Parses; an option that does not exist ends the process with the one that is nearest."""
        known = self._option_string_actions
        for word in sys.argv[1:] if args is None else args:
            flag = word.partition("=")[0]
            if word == "--" or self._subparsers:
                break
            if flag.startswith("--") and flag not in known and " " not in word:
                near = difflib.get_close_matches(flag, known, 1)
                self.error(f"no option {flag}" + "".join(f" (did you mean {one}?)" for one in near))
        return super().parse_known_args(args, namespace)

    def error(self, message):
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


class _HelpAll(argparse.Action):
    def __call__(self, parser, *_):
        print(parser.format_help(explains_all=True), end="")
        parser.exit()


def run_command_line(main):
    """Runs `main()` and turns its outcome into an exit code; a bug keeps its traceback.

    0 is done or stopped cleanly, 1 an expected failure (one line), 130 Ctrl-C.
    """
    _settle()
    try:
        main()
        if sys.stdout:  # flushed here, so that a failure shows below and not at the exit
            sys.stdout.flush()
    except ExpectedError as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(1)
    except StoppedError as stopped:
        say(stopped)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        end_soon()
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.EPIPE, *FULL):
            raise
        if error.errno in FULL:  # else the reader of stdout left, as in `... | head`
            expected = "expected room for the results; free some space or send stdout elsewhere"
            print(f"error: {error.strerror}; {expected}", file=sys.stderr)
        # Drops what stdout still holds: it would fail once more at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _settle():
    """Makes a script independent of where it was started: a notebook, a service, a language."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:  # closed streams lead nowhere: the next file would be taken for one of them
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r+" if number else "r", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path or a name may have any letters
    os.environ["MPLBACKEND"] = "agg"


def explain(error):
    """Writes an `ExpectedError` as one line, with the flag of the setting to change."""
    if error.setting is None:
        return str(error)
    flag = f"--{error.setting.replace('_', '-')}"
    advice = ADVICE.get(error.setting, f"change {flag}")
    return f"{error}{',' if advice.startswith('or ') else ';'} {advice}"


def any_path(text):
    """Makes a path of an argument; `~` is the home folder in `--output=~/x` too."""
    if not text:
        raise argparse.ArgumentTypeError("''; expected a path")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}; expected a path") from error


def number(kind, lowest, highest=math.inf):
    """Makes an argument type: a finite int or float from `lowest` to `highest`."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (lowest <= value <= highest and value < math.inf):
            upwards = "up" if highest == math.inf else f"to {highest}"
            raise argparse.ArgumentTypeError(f"{text!r}; expected a number from {lowest} {upwards}")
        return value

    return parse


def matching(pattern, expected):
    """Makes an argument type that takes what matches a pattern; `expected` says what that is."""

    def parse(text):
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r}; expected {expected}")
        return text

    return parse


scheduler_address = matching(
    r"(?!local:).+|local:[1-9]\d{0,2}",
    "the address of a Dask scheduler, or local:N for N workers here",
)


def shard_range(text):
    """Parses `FIRST:STOP`, e.g. 10:500 for the shards 10 to 499."""
    found = re.fullmatch(r"(\d{1,6}):(\d{1,6})", text)
    first, stop = map(int, found.groups()) if found else (0, 0)
    if first >= stop:
        expected = "FIRST:STOP with FIRST < STOP, e.g. 10:500"
        raise argparse.ArgumentTypeError(f"{text!r} is no range of shards; expected {expected}")
    return first, stop


def addresses(text):
    """Parses `HOST:PORT,HOST:PORT`: two machines or more, each once."""
    found = tuple(one.strip() for one in text.split(","))
    ports = [int(one.rpartition(":")[2]) for one in found if re.fullmatch(r"[\w.-]+:\d{1,5}", one)]
    are_all = 2 <= len(found) == len(ports) == len(set(found))
    if not are_all or not all(0 < port < 1 << 16 for port in ports):
        expected = "two machines or more, each once, by names or IPv4 addresses"
        raise argparse.ArgumentTypeError(f"{text!r}; expected HOST:PORT,HOST:PORT, {expected}")
    return found


def add_settings(group, settings):
    """Adds an option for each field of a group of a recipe, see `recipes.setting`."""
    for field in dataclasses.fields(settings):
        limits = dict(field.metadata)
        if field.type is bool:
            options = {"action": argparse.BooleanOptionalAction}
        elif field.type is tuple:
            options = {"type": shard_range, "metavar": "FIRST:STOP"}
        elif "prefix" in limits:
            choices, prefix = limits["choices"], limits["prefix"]
            expected = f"one of {', '.join(choices)} or {prefix}PRESET"
            kind = matching("|".join((*choices, f"{prefix}.+")), expected)
            options = {"type": kind, "metavar": limits["metavar"]}
        elif field.type is str:
            options = {name: limits[name] for name in ("choices", "metavar") if name in limits}
        else:
            kind = number(field.type, limits["least"], limits.get("most", math.inf))
            options = {"type": kind, "metavar": limits.get("metavar", "N")}
        flag = f"--{field.name.replace('_', '-')}"
        group.add_argument(flag, default=field.default, help=limits["help"], **options)


def setting_flag(name, value):
    """Writes a setting as the command line has it, e.g. `--neck 512` or `--no-augment`."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value}"


def add_session_options(parser):
    """Adds the options that every script has to its command line."""
    add, in_kernel = parser.add_argument, kernel.is_kernel()
    # fmt: off
    add("--source", action="append", metavar="PLACE",
        help="folder or web address in the CVDF layout; may be given again, for a data set spread "
        f"over several; {INPUTS} stands for all that a kernel has mounted (default: {CVDF_URL})")
    add("--demo", action="store_true",
        help="draw the miniature landmark world, serve it on this machine and use it as the source "
        "(unless there is a --source), with settings for its size")
    add("--output", type=any_path,
        default=kernel.FOLDER / "working" if in_kernel else Path("output"),
        help="folder for the results, continued if they are there")
    add("--scratch", type=any_path, default=kernel.FOLDER / "tmp" if in_kernel else None,
        help="folder for downloads (default: <output>/scratch)")
    add("--connections", type=number(int, 1, 64), default=MAX_CONNECTIONS, metavar="N",
        help="shards downloaded at once; N + 1 are in scratch at most")
    add("--max-hours", type=float, metavar="H", default=kernel.MAX_HOURS if in_kernel else None,
        help="stop cleanly after H hours")
    add("--skip-bad-shards", action="store_true",
        help=f"leave out shards that stay broken, up to {MAX_SKIPPED_SHARE:.0%}% (rounded up)")
    # fmt: on


def parser_in_parts(doc, script, whole, last_step, descriptor_dtype):
    """Makes the parser of a script that describes images and searches them in parts.

    The `whole`, e.g. `index`, has parts; the `last_step`, e.g. `merge`, joins them. Gives
    (`CommandLine`, its group of the descriptors).
    """
    usage = f"%(prog)s [all | {last_step} [FILE ...]] [options]"
    parser = CommandLine(doc, prog=f"{script}.py", usage=usage)
    add = parser.add_argument
    # fmt: off
    add("step", nargs="?", choices=("all", last_step), default="all",
        help=f"search the parts, then {last_step}; or {last_step} with part files alone")
    add("files", nargs="*", type=any_path, help=f"part files to {last_step}")
    add_session_options(parser)
    descriptors = parser.add_argument_group("descriptors")
    add = descriptors.add_argument
    add("--model", type=any_path,
        help="model.keras of recognition.py (default: <output>/model.keras)")
    add("--queries", type=any_path, metavar="FILE",
        help="queries.npz of another run (default: <output>/queries.npz, described where missing)")
    add("--descriptor-dtype", choices=("float32", "float16"), default=descriptor_dtype,
        help="of stored descriptors; float16 takes half the room")
    add("--flipped-too", action="store_true",
        help="average each image with its mirror image (test-time augmentation)")
    add("--batch-size", type=number(int, 1, MAX_BATCH_SIZE), default=64, metavar="IMAGES",
        help="images in a step")
    add = parser.add_argument_group("search").add_argument
    add("--part", type=number(int, 0), metavar="K",
        help=f"search part K alone, counted from 0 (default: all parts, then the {last_step})")
    add("--parts", type=number(int, 1), default=6, metavar="N", help=f"parts of the {whole}")
    add("--scheduler", type=scheduler_address, metavar="ADDRESS",
        help="describe and search on the workers of this Dask scheduler, or of local:N")
    # fmt: on
    return parser, descriptors


def parse_in_parts(parser, argv, last_step):
    """Parses; ends with one line unless part, files and step go together."""
    args = parse_session(parser, argv)
    if args.files and args.step == "all":
        parser.error(f"{args.files[0]}: part files go with `{parser.prog} {last_step}`")
    if args.part is not None and args.step != "all":
        expected = f"expected `{parser.prog} {last_step}` alone or with files"
        parser.error(f"--part goes with a search; {expected}")
    return args


def require_model(args):
    """Gives the model's path; that it is missing is told before anything is drawn or loaded."""
    found = args.model or Session(args.output, source=None, stop=None).find(MODEL)
    if not found.is_file():
        told = f"{found}: no such file; expected a model written by recognition.py"
        raise ExpectedError(told, setting="model")
    return found


def find_part_files(args, pattern):
    """Lists the part files of a last step, those named or all; None where they are searched first.

    What is missing then is told by an ExpectedError before a world is drawn.
    """
    if args.step != "all":
        return args.files or Session(args.output, source=None, stop=None).find_parts(pattern)
    require_model(args)
    # Not when the command line is parsed: kernels.py does that where no data set is mounted.
    if args.queries and not args.queries.is_file():
        told = f"{args.queries}: no such file; expected the queries of another run; check it"
        raise ExpectedError(told, setting="queries")
    return None


def parse_session(parser, argv):
    """Parses the command line; --recipe and then --demo say which defaults the options have."""
    args = parse_with_files(parser, argv)
    defaults = dict(RECIPES[args.recipe].settings()) if "recipe" in args else {}
    if args.demo:
        from demo import start

        of_demo = start.defaults_beside(getattr(args, "recipe", "2019"))
        defaults |= {key: of_demo[key] for key in of_demo.keys() & vars(args).keys()}
        if not kernel.is_kernel():
            defaults["output"] = DEMO_OUTPUT.joinpath(*parser.get_default("output").parts[1:])
    if defaults:
        parser.set_defaults(**defaults)
        args = parse_with_files(parser, argv)
    if args.scratch is None:
        is_demo = args.demo and args.output.is_relative_to(DEMO_OUTPUT)
        args.scratch = (DEMO_OUTPUT if is_demo else args.output) / "scratch"
    if not (args.demo or args.source) and (args.scratch / DEMO_WORLD).is_dir():
        expected = "expected --demo, or another --output"
        parser.error(f"{args.output} has the results of a demo; {expected}")
    if getattr(args, "part", None) is not None and args.part >= args.parts:
        parser.error(f"argument --part: {args.part}; expected 0 to {args.parts - 1} of --parts")
    if args.max_hours is not None and not args.max_hours > 0:
        parser.error(f"argument --max-hours: {args.max_hours} hours; expected more than 0")
    return args


def session_settings(args):
    """Picks the arguments of `session.open_session` from a parsed command line."""
    source = None if args.demo else [CVDF_URL]
    if args.source:
        source = []
        for place in args.source:
            source += kernel.find_data_sets() if place == INPUTS else [os.path.expanduser(place)]
    return {
        "source": source, "output": args.output, "scratch": args.scratch,
        "max_hours": args.max_hours, "skips_bad_shards": args.skip_bad_shards,
        "max_connections": args.connections,
    }  # fmt: skip


def parse_with_files(parser, argv):
    """Parses; files may follow options too (argparse's own way to allow that spoils --help)."""
    args, rest = parser.parse_known_args(argv)
    if rest and ("files" not in args or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.files += map(any_path, rest)
    return args
