"""A data set in the CVDF layout, written from folders of photos: shards, tables, ground truth."""

import csv
import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from data.images import BadImageError
from data.landmarks import format_image_id
from data.sources import (
    CATEGORY_CSV,
    INDEX_CSV,
    RECOGNITION_SOLUTION,
    RETRIEVAL_SOLUTION,
    SPLITS,
    TEST_CSV,
    TRAIN_CLEAN_CSV,
    TRAIN_CSV,
    Shard,
)
from data.tars import add_image, open_new
from gathering.division import divide
from gathering.folders import find_photos, read
from generators import NUM_CORES
from utils import (
    ExpectedError,
    Progress,
    StoppedError,
    file_md5,
    map_ahead,
    require_free_space,
    say,
)

LEFT_OUT_CSV = "left_out.csv"
MARKER = "gathered.json"  # written last: how often what was found
OURS = {*SPLITS, "md5sum", "metadata", "ground_truth", LEFT_OUT_CSV, MARKER}
SMALL_BYTES = 60_000  # of a small picture, at most, to see whether the disk has room


@dataclass(frozen=True)
class Picture:
    """A photo of the data set."""

    image_id: int
    landmark: str  # name of what it shows; "" shows no landmark
    place: object  # `division.Place`
    # begin, end: where its bytes are in the spool
    begin: int
    end: int


def gather(folder, non_landmarks, output, pixels, stop):
    """Makes a data set of the photos below a folder, unless it is there.

    The same photos give the same bytes. The output takes its name only when it is whole.

    Args:
        folder, non_landmarks: as for `folders.find_photos`.
        output: folder of the data set; new, empty, or an earlier one of this kind.
        pixels: of the pictures' shorter side.

    Returns:
        dict of what it holds, as `MARKER` has it.

    Raises:
        StoppedError: `stop` asked to.
        ExpectedError: too few photos, a foreign output, or no room.
    """
    output = Path(output)
    refuse_foreign(output)
    photos, left_out = find_photos(folder, non_landmarks)
    require_free_space(output.parent, 2 * SMALL_BYTES * len(photos), f"{len(photos):,} photos")
    say(f"{folder}: {len(photos):,} files")
    for leftover in output.parent.glob(f".{output.name}.gathering-*"):  # of a killed run
        shutil.rmtree(leftover, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{output.name}.gathering-", dir=output.parent))
    try:
        spool = draft / "spool"
        found, positions, unread = read_all(photos, pixels, spool, stop)
        left_out += unread
        pictures = _place_all(found, positions, left_out)
        write_shards(draft, pictures, spool)
        spool.unlink()
        write_tables(draft, pictures)
        counts = count(pictures, left_out)
        write_rows(draft / LEFT_OUT_CSV, [("file", "reason"), *sorted(map(_as_text, left_out))])
        (draft / MARKER).write_text(json.dumps(counts, indent=1) + "\n")
        draft.chmod(0o755)
        if output.exists():
            shutil.rmtree(output)
        os.rename(draft, output)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return counts


def refuse_foreign(output):
    """Raises ExpectedError if replacing the output would destroy something that is not ours."""
    if output.exists() and not output.is_dir():
        raise ExpectedError(f"{output}: a file; expected a folder", setting="own_output")
    output.parent.mkdir(parents=True, exist_ok=True)
    foreign = sorted({path.name for path in output.iterdir()} - OURS) if output.exists() else []
    if foreign or (output.exists() and any(output.iterdir()) and not (output / MARKER).exists()):
        raise ExpectedError(
            f"{output}: it holds {foreign[0] if foreign else 'another data set'}; expected a new "
            "folder, or one that gather.py made",
            setting="own_output",
        )


def read_all(photos, pixels, spool, stop):
    """Reads all photos on all cores; their small pictures go to the spool and need no memory.

    Returns:
        (list of (`Photo`, `ReadPhoto` without its JPEG), list of (begin, end) in the spool, list
        of (path, reason) of those that cannot be read).
    """

    def try_to_read(photo):
        try:
            return read(photo, pixels)
        except BadImageError as error:
            return error

    found, positions, unread = [], [], []
    with (
        open(spool, "wb") as file,
        ThreadPoolExecutor(NUM_CORES) as pool,
        Progress("reading", len(photos), "photos") as progress,
    ):
        results = map_ahead(pool, try_to_read, photos, 4 * NUM_CORES)
        for photo, result in zip(photos, results, strict=True):
            progress.update()
            if stop.requested():
                raise StoppedError(stop, f"{len(found):,} of {len(photos):,} photos read")
            if isinstance(result, BadImageError):
                unread.append((photo.path, str(result)))
                continue
            begin = file.tell()
            file.write(result.jpeg)
            positions.append((begin, file.tell()))
            found.append((photo, replace(result, jpeg=b"")))
    return found, positions, unread


def _place_all(found, positions, left_out):
    """Leaves out what is there twice, and divides the others: list of `Picture` by image id."""
    first, landmarks_of = {}, {}
    for (photo, read_photo), position in zip(found, positions, strict=True):
        landmarks_of.setdefault(read_photo.image_id, set()).add(photo.landmark)
        if read_photo.image_id in first:
            other = first[read_photo.image_id][0].path
            left_out.append((photo.path, f"the same picture as {other}"))
        else:
            first[read_photo.image_id] = photo, read_photo, position
    for image_id, landmarks in landmarks_of.items():
        if len(landmarks) > 1:
            names = " and ".join(sorted(name or "no landmark" for name in landmarks))
            left_out.append((first.pop(image_id)[0].path, f"shown as {names}"))
    kept = [first[image_id] for image_id in sorted(first)]
    places = divide(
        [read_photo for _, read_photo, _ in kept],
        [photo.landmark for photo, _, _ in kept],
        [photo.split for photo, _, _ in kept],
    )
    pictures = [
        Picture(read_photo.image_id, photo.landmark, place, *position)
        for (photo, read_photo, position), place in zip(kept, places, strict=True)
    ]
    trained = {p.landmark for p in pictures if p.landmark and p.place.split == "train"}
    if len(trained) < 2 or len({p.place for p in pictures if p.place.split == "train"}) < 2:
        raise ExpectedError(
            f"{len(trained)} landmarks with {len(kept)} photos that can be read; expected two "
            "landmarks or more, each with a few photos; add some"
        )
    return pictures


def write_shards(folder, pictures, spool):
    """Writes the tars, each by ascending image id, and their md5 files."""
    shards = {Shard("train", 0): []}  # held out: without a picture where each landmark has a group
    for picture in pictures:
        shard = Shard(picture.place.split, picture.place.shard)
        shards.setdefault(shard, []).append(picture)
    with open(spool, "rb") as file:
        for shard, members in sorted(shards.items()):
            path, md5_path = folder / shard.path, folder / shard.md5_path
            path.parent.mkdir(parents=True, exist_ok=True)
            md5_path.parent.mkdir(parents=True, exist_ok=True)
            with open_new(path) as tar:
                for picture in members:
                    file.seek(picture.begin)
                    add_image(tar, picture.image_id, file.read(picture.end - picture.begin))
            md5_path.write_text(f"{file_md5(path)}  {path.name}\n")


def write_tables(folder, pictures):
    """Writes the metadata and the ground truth."""
    of = {split: [p for p in pictures if p.place.split == split] for split in SPLITS}
    names = sorted({picture.landmark for picture in pictures} - {""})
    number_of = {name: number for number, name in enumerate(names)}
    index_of = {}
    for picture in of["index"]:
        index_of.setdefault(picture.landmark, []).append(format_image_id(picture.image_id))
    train_of = {}
    for picture in of["train"]:
        train_of.setdefault(picture.landmark, []).append(format_image_id(picture.image_id))
    train = [(format_image_id(p.image_id), "", number_of[p.landmark]) for p in of["train"]]
    recognition, retrieval = [], []
    for picture in of["test"]:
        image_id, number = format_image_id(picture.image_id), number_of.get(picture.landmark, "")
        usage = "Public" if picture.image_id % 3 == 0 else "Private"
        right = index_of.get(picture.landmark, []) if picture.landmark else []
        recognition.append((image_id, number, usage))
        retrieval.append((image_id, " ".join(right) or "None", usage if right else "Ignored"))
    tables = {
        TRAIN_CSV: [("id", "url", "landmark_id"), *train],
        TRAIN_CLEAN_CSV: [("landmark_id", "images")]
        + [(number_of[name], " ".join(ids)) for name, ids in sorted(train_of.items())],
        CATEGORY_CSV: [("landmark_id", "category"), *((number_of[name], name) for name in names)],
        INDEX_CSV: [("id",), *((format_image_id(p.image_id),) for p in of["index"])],
        TEST_CSV: [("id",), *((format_image_id(p.image_id),) for p in of["test"])],
        RECOGNITION_SOLUTION: [("id", "landmarks", "Usage"), *recognition],
        RETRIEVAL_SOLUTION: [("id", "images", "Usage"), *retrieval],
    }
    for name, rows in tables.items():
        write_rows(folder / name, rows)


def write_rows(path, rows):
    """Writes a CSV, its first row the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def count(pictures, left_out):
    """Counts what is in the data set."""
    names = {picture.landmark for picture in pictures} - {""}
    trained = {p.landmark for p in pictures if p.place.split == "train"}
    shards = {
        split: {p.place.shard for p in pictures if p.place.split == split} for split in SPLITS
    }
    return {
        "landmarks": len(names),
        "not_trained": sorted(names - trained),
        "photos": {split: sum(p.place.split == split for p in pictures) for split in SPLITS},
        "non_landmarks": sum(not p.landmark for p in pictures),
        "shards": {split: len(numbers) for split, numbers in shards.items()},
        "left_out": len(left_out),
    }


def _as_text(row):
    return tuple(str(cell).encode("utf-8", "backslashreplace").decode() for cell in row)
