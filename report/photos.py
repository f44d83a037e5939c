"""A person's photos: found in folders and by patterns, the described pictures nearest to them, and
drawn with what they were named."""

import glob
import os
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.images import PHOTO_FORMATS
from descriptors.descriptions import load_descriptions, unit_length
from report.neighbors import picture_of
from runs.session import DESCRIPTORS
from utils import ExpectedError, say

MAX_DRAWN = 30  # photos in identify.png
MAX_ABREAST = 3  # of them in a line, where no pictures near them are drawn
THUMBNAIL = 256  # pixels, the longest side
SPLITS = ("train", "index")  # the test pictures are what is asked about


# A `neighbors.Picture` near a photo: squared L2 between descriptors of length 1 (0 to 4), and the
# landmark that the recogniser names there.
Near = namedtuple("Near", "picture distance landmark_id name")
# A landmark that a photo may show: its name, or `landmark 1234` where nobody told; the address of
# its category on Wikimedia Commons, or None; 0 to 1, a cosine may be below 0.
Guess = namedtuple("Guess", "landmark_id name category confidence")


@dataclass(frozen=True)
class Answer:
    """What is said of a photo."""

    path: Path  # the photo's file
    guesses: tuple  # of `Guess`, best first
    is_landmark: bool | None  # the best one is at or above the threshold; None without calibration
    nearest: tuple  # of `Near`, nearest first

    def as_page(self):
        """Gives the dict that is printed as JSON."""
        best, *others = [guess._asdict() for guess in self.guesses]
        nearest = [{"image_id": near.picture.image_id, "split": near.picture.shard.split,
                    "distance": near.distance, "landmark_id": near.landmark_id, "name": near.name}
                   for near in self.nearest]  # fmt: skip
        for one in others:
            del one["category"]
        return {"file": str(self.path), **best, "is_landmark": self.is_landmark,
                "runners_up": others, "nearest": nearest}  # fmt: skip

    def as_text(self):
        """Writes the answer as a person reads it: one line, and one each for what there is more."""
        best, *others = self.guesses
        if self.is_landmark is False:
            text, kind, others = "probably no landmark", "best guesses", self.guesses
        else:
            text, kind = f"{best.name} ({best.landmark_id}) {best.confidence:.3f}", "or"
            if (best.category or "").startswith("http"):
                text += f"  {best.category}"
        lines = [f"{self.path}: {text}"]
        if others:
            guesses = [f"{other.name} {other.confidence:.3f}" for other in others]
            lines.append(f"    {kind}: {', '.join(guesses)}")
        if self.nearest:
            near = [f"{near.picture.image_id} ({near.name})" for near in self.nearest[:3]]
            lines.append(f"    nearest: {', '.join(near)}")
        return "\n".join(map(printable, lines))


def printable(text):
    """Escapes what would break the line or steer the terminal: a file may have any name."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in str(text))


def find_photos(words):
    """Finds the files that a person named: files, folders with all below them, patterns.

    A file that does not exist is among them, to be told when its turn comes. Raises ExpectedError
    if a folder or a pattern has no picture.
    """
    found = {}
    for word in map(str, words):
        paths = [Path(word)]
        if os.path.isdir(word):
            paths = [path for path in sorted(paths[0].rglob("*")) if _is_picture(path, word)]
        elif not os.path.exists(word) and glob.has_magic(word):
            paths = map(Path, sorted(glob.glob(word, recursive=True)))
            paths = [path for path in paths if path.is_file()]
        if not paths:
            what = f"{word}: no picture in it; expected photos, a folder or a pattern of them"
            raise ExpectedError(f"{what}; check the path")
        found |= dict.fromkeys(paths)
    return list(found)


def _is_picture(path, folder):
    """Tells whether a file goes by the name of a photo; hidden ones are copies of a file system."""
    from PIL import Image

    Image.init()
    formats = Image.registered_extensions() | dict.fromkeys((".heic", ".heif"), "HEIF")
    is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not is_hidden and formats.get(path.suffix.lower()) in PHOTO_FORMATS and path.is_file()


def load_described(session):
    """Loads all descriptions of train and index pictures that earlier runs left.

    All of it is in memory: 6.2 GB for the index of Google Landmarks v2 with 2048 values in float32.
    A damaged file is named and left out. Gives a list of (split, fingerprint of the recogniser,
    `Descriptions` of length 1).
    """
    files = []
    for split in SPLITS:
        for path in session.find_all(f"{DESCRIPTORS}/{split}_*.npz"):
            try:
                images, fingerprint = load_descriptions(path)
            except ExpectedError as error:
                say(f"{error}: not searched")
                continue
            files.append((split, fingerprint.get("model"), images.of_unit_length()))
    return files


def of_model(files, fingerprint):
    """Gives those of `load_described` that are of a recogniser: list of (split, `Descriptions`)."""
    kept = [(split, images) for split, model, images in files if model == fingerprint]
    if num_others := len(files) - len(kept):
        say(f"{num_others} files of {DESCRIPTORS}/ are of another model, not searched")
    return kept


def find_nearest(files, descriptor, num_nearest):
    """Finds the pictures of files of `of_model` that are nearest to a descriptor (d,), exactly.

    Gives a list of (`Picture`, squared L2 distance between descriptors of length 1, landmark id),
    nearest first, equal distances by image id.
    """
    if not files:
        return []
    from search import exact  # loads faiss, which a photo alone does not need

    query, found = unit_length(descriptor[None].astype(np.float32)), []
    for split, images in files:
        (rows,), (distances,) = exact.nearest(query, images.descriptors, num_nearest)
        for row, distance in zip(rows[rows >= 0], distances[rows >= 0].tolist(), strict=True):
            landmark_id = int(images.landmark_ids[row])
            found.append((picture_of(split, images, row), distance, landmark_id))
    return sorted(found, key=lambda near: (near[1], near[0].image_id))[:num_nearest]


def draw_answers(rows):
    """Draws (`Answer`, PIL image, list of (`Near`, PIL image)) as rows: a matplotlib Figure."""
    from matplotlib.figure import Figure  # slow to import

    num_near = max(len(nearest) for _, _, nearest in rows)
    num_abreast = 1 if num_near else min(len(rows), MAX_ABREAST)
    widths = [1.1, 1.5, *[0.8] * num_near] * num_abreast
    num_lines = -(-len(rows) // num_abreast)
    figure = Figure(figsize=(2.2 * sum(widths), 2.3 * num_lines), layout="constrained")
    if num_near:  # a tall picture would push its name out of the last line
        figure.get_layout_engine().set(h_pad=0.12)
    grid = figure.subplots(num_lines, len(widths), squeeze=False, width_ratios=widths)
    for axes in grid.flat:
        axes.axis("off")
    places = grid.reshape(num_lines * num_abreast, -1)
    for (answer, photo, nearest), line in zip(rows, places, strict=False):
        line[0].imshow(photo)
        _draw_guesses(line[1], answer)
        for axes, (near, image) in zip(line[2:], nearest, strict=False):
            axes.imshow(image)
            title = f"{near.picture.shard.split}, {near.distance:.2f}"
            axes.set_title(title, fontsize=8, color="#666666")
            below, place = _shorten(f"named {near.name}", 24), {"ha": "center", "va": "top"}
            axes.text(0.5, -0.04, below, fontsize=8, transform=axes.transAxes, **place)
    return figure


def _draw_guesses(axes, answer):
    """Writes the answer, and draws the confidence of each guess as a bar."""
    is_refused = answer.is_landmark is False
    title = "probably no landmark" if is_refused else answer.guesses[0].name
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.text(0, 0.97, _shorten(answer.path.name, 34), fontsize=8, color="#666666", va="top")
    color = "#9a5b00" if is_refused else "black"
    axes.text(0, 0.84, _shorten(title, 26), fontsize=12, weight="bold", va="top", color=color)
    for place, guess in enumerate(answer.guesses[:3]):
        top = 0.58 - 0.19 * place
        color = "#1a7f5a" if place == 0 and not is_refused else "#9a9a9a"
        for share, shade in ((1, "#e8e8e8"), (min(max(guess.confidence, 0), 1), color)):
            axes.barh(top - 0.13, share, 0.035, left=0, color=shade, align="edge")
        axes.text(0, top - 0.08, _shorten(guess.name, 30), fontsize=9)
        axes.text(1, top - 0.08, f"{guess.confidence:.2f}", fontsize=9, ha="right")


def _shorten(text, length):
    text = printable(text)
    return text if len(text) <= length else text[: length - 1] + "…"
