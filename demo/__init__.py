"""The embedded default: a miniature landmark world, drawn by code and served over HTTP.

It has the files and the layout of Google Landmarks v2 as CVDF publishes it, at a thousandth of the
size, so that the whole job can be seen offline in minutes. Imported only with `--demo`. To look at
the world alone:

    python -m demo --output output/world

A larger one, for which `--source output/many` and not `--demo` is the option of the scripts:

    python -m demo --landmarks 300 --output output/many
"""

import contextlib

from demo.overview import draw_overview
from demo.server import serve
from demo.world import build_world

# What `--demo` sets differently from the full job: small images, a few epochs from random weights,
# for 2 CPU cores and a few minutes. Chosen with benchmarks/demo_size.py.
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
