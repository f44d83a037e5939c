"""What `--demo` begins with: other defaults, and the world drawn and served on this machine."""

import contextlib

from demo.overview import draw_overview
from demo.server import serve
from demo.world import build_world

# What `--demo` sets differently from the full job: small images, a few epochs from random weights,
# for 2 CPU cores and a few minutes. Sizes tried: benchmarks/README.md.
DEFAULTS = {
    "train_shards": (0, 4),
    "valid_shards": (4, 5),
    "valid_every": 4,
    "weights": "none",
    "image_size": 48,
    "batch_size": 32,
    "epochs": 4,
    "learning_rate": 1e-3,
}
# ... and beside the recipe of 2019, whose pooling and schedule the demo replaces as well: so three
# epochs reach a GAP above 0.5, which else takes four. Measured: benchmarks/README.md.
QUICKER_2019 = {
    "epochs": 3,
    "learning_rate": 2e-3,
    "pooling": "average",
    "schedule": "cosine",
    "warm_up": 0.15,
}


def defaults_beside(recipe):
    """Gives the defaults of `--demo` beside the recipe of a name: dict, setting -> value."""
    return DEFAULTS | (QUICKER_2019 if recipe == "2019" else {})


@contextlib.contextmanager
def open_world(folder, overview):
    """Draws the world into a folder unless it is there, draws its overview, and serves it.

    Args:
        folder: where the world is or is to be.
        overview: path of the PNG.

    Yields:
        The world's address on this machine.
    """
    build_world(folder)
    if not overview.exists():
        draw_overview(folder, overview)
    with serve(folder) as address:
        yield address
