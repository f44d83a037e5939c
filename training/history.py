"""The history of a training run: history.csv, history.png, a line for each mini-epoch."""

import numpy as np
import pandas as pd

from data.tables import write_table
from runs.pictures import draw_picture
from runs.session import HISTORY, HISTORY_COLUMNS, HISTORY_PICTURE
from utils import format_duration

ALL_SHARDS = -1  # in the place of a shard's number, where a mini-epoch is a pass over all vectors


def write_history(session, rows, with_picture):
    """Writes history.csv, a row per mini-epoch, and history.png if asked to."""
    write_table(session.path(HISTORY), pd.DataFrame(rows, columns=HISTORY_COLUMNS))
    if with_picture:
        draw_picture(session.path(HISTORY_PICTURE), lambda: draw_history(rows), dpi=110)


def draw_history(rows):
    """Draws loss, accuracy and speed over the mini-epochs as a matplotlib Figure."""
    from matplotlib.figure import Figure  # has settings of its own, see `draw_picture`

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    loss, accuracy, speed = figure.subplots(1, 3)
    rows = [row for row in rows if row["loss"] is not None]
    steps = [row["mini_epoch"] for row in rows]
    valid = [row for row in rows if "valid_loss" in row]
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        axes.plot(steps, [row[name] for row in rows], label="train", color="tab:blue")
        axes.plot(
            [row["mini_epoch"] for row in valid],
            [row[f"valid_{name}"] for row in valid],
            label="held out", color="tab:orange", marker=".",
        )  # fmt: skip
        axes.set_title(name)
        axes.legend()
    accuracy.set_ylim(0, 1)
    speed.plot(steps, [row["images_per_s"] for row in rows], color="tab:green")
    speed.set_ylim(0)
    speed.set_title("images/s")
    for axes in (loss, accuracy, speed):
        axes.set_xlabel("mini-epoch")
        axes.grid(alpha=0.3)
    return figure


def describe_progress(rows, num_mini_epochs):
    """Writes the last mini-epoch as one line: loss, speed, share of waiting, time to go."""
    row, recent = rows[-1], rows[-10:]
    # The median: a session's first mini-epoch also compiles the network.
    left_s = (num_mini_epochs - len(rows)) * np.median([row["seconds"] for row in recent])
    valid = f", held out {row['valid_accuracy']:.3f}" if "valid_accuracy" in row else ""
    bad = f", {row['bad_images']} bad" if row["bad_images"] else ""
    skipped = f", {row['skipped_steps']} steps skipped" if row.get("skipped_steps") else ""
    learned = ""
    if row["loss"] is not None:
        learned = f", loss {row['loss']:.3f}, accuracy {row['accuracy']:.3f}"
    place = "vectors" if row["shard"] == ALL_SHARDS else f"train shard {row['shard']:03d}"
    return (
        f"mini-epoch {row['mini_epoch']}/{num_mini_epochs} ({place}): "
        f"{row['images']:,} images{bad}{learned}{valid}{skipped}, "
        f"{row['images_per_s']:.0f} images/s, "
        f"{row['waited_s'] / row['seconds']:.0%} waiting for data, {format_duration(left_s)} to go"
    )
