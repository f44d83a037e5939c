"""Builds the miniature landmark world and a picture of it: python -m demo --output output/world."""

import argparse
import contextlib
import sys
import threading
from pathlib import Path

from demo.overview import draw_overview
from demo.plan import WorldSize
from demo.server import serve
from demo.world import OVERVIEW, build_world
from utils import ExpectedError


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="Builds the miniature landmark world and a picture of it.",
    )
    parser.add_argument("--output", type=Path, default=Path("output/world"), help="folder to fill")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws another world")
    parser.add_argument(
        "--landmarks",
        type=int,
        default=WorldSize().num_landmarks,
        help="landmarks to learn; those beyond the default are made up by the seed",
    )
    parser.add_argument(
        "--serve", action="store_true", help="serve it over HTTP on this machine until Ctrl-C"
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Builds the world and its overview, and serves it if asked to."""
    arguments = parse_arguments(argv)
    folder = build_world(arguments.output, arguments.seed, WorldSize.of(arguments.landmarks))
    print(folder)
    if not (folder / OVERVIEW).exists():
        draw_overview(folder, folder / OVERVIEW)
    print(folder / OVERVIEW)
    if arguments.serve:
        with serve(folder) as url, contextlib.suppress(KeyboardInterrupt):  # its ordinary end
            print(url, flush=True)
            threading.Event().wait()


if __name__ == "__main__":
    try:
        main()
    except ExpectedError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("error: interrupted by Ctrl-C", file=sys.stderr)
        sys.exit(130)
