"""A data set in the CVDF layout, written from folders of photos: shards, tables, ground truth."""

import csv
import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data import sources
from data.images import BadImageError
from data.sources import SPLITS, Shard
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


def gather(folder, non_landmarks, output, pixels, stop):
    """Makes a data set of the photos below a folder; gives what it holds, as `MARKER` has it.

    The same photos give the same bytes. The output, which is new, empty, or an earlier one of this
    kind, takes its name only when it is whole.

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
        kept = leave_out(read_all(photos, pixels, spool, stop, left_out), left_out)
        divide(kept)
        of_train = [photo for photo in kept if photo.shard.split == "train"]
        trained = {photo.landmark for photo in of_train} - {""}
        if len(trained) < 2 or len({photo.shard for photo in of_train}) < 2:
            raise ExpectedError(
                f"{len(trained)} landmarks with {len(kept)} photos that can be read; expected two "
                "landmarks or more, each with a few photos; add some"
            )
        write_shards(draft, kept, spool)
        spool.unlink()
        write_tables(draft, kept)
        counts = count(kept, left_out)
        left_out = sorted((str(path), reason) for path, reason in left_out)
        write_rows(draft / LEFT_OUT_CSV, [("file", "reason"), *left_out])
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
    names = {path.name for path in output.iterdir()} if output.exists() else set()
    foreign = sorted(names - OURS)
    if foreign or (names and MARKER not in names):
        raise ExpectedError(
            f"{output}: it holds {foreign[0] if foreign else 'another data set'}; expected a new "
            "folder, or one that gather.py made",
            setting="own_output",
        )


def read_all(photos, pixels, spool, stop, left_out):
    """Reads all photos on all cores; their small pictures go to the spool and need no memory.

    Gives those that can be read; the others go to `left_out`, a list of (path, reason).
    """

    def try_to_read(photo):
        try:
            return read(photo, pixels)
        except BadImageError as error:
            return error

    found = []
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
                left_out.append((photo.path, str(result)))
                continue
            begin = file.tell()
            file.write(result)
            photo.position = begin, file.tell()
            found.append(photo)
    return found


def leave_out(photos, left_out):
    """Leaves out what is there twice; gives a list of `Photo` by image id."""
    first, landmarks_of = {}, {}
    for photo in photos:
        landmarks_of.setdefault(photo.image_id, set()).add(photo.landmark)
        other = first.setdefault(photo.image_id, photo)
        if other is not photo:
            left_out.append((photo.path, f"the same picture as {other.path}"))
    for image_id, landmarks in landmarks_of.items():
        if len(landmarks) > 1:
            names = " and ".join(sorted(name or "no landmark" for name in landmarks))
            left_out.append((first.pop(image_id).path, f"shown as {names}"))
    return [first[image_id] for image_id in sorted(first)]


def write_shards(folder, photos, spool):
    """Writes the tars, each by ascending image id, and their md5 files."""
    shards = {Shard("train", 0): []}  # held out: without a picture where each landmark has a group
    for photo in photos:
        shards.setdefault(photo.shard, []).append(photo)
    with open(spool, "rb") as file:
        for shard, members in sorted(shards.items()):
            path, md5_path = folder / shard.path, folder / shard.md5_path
            path.parent.mkdir(parents=True, exist_ok=True)
            md5_path.parent.mkdir(parents=True, exist_ok=True)
            with open_new(path) as tar:
                for photo in members:
                    begin, end = photo.position
                    file.seek(begin)
                    add_image(tar, photo.image_id, file.read(end - begin))
            md5_path.write_text(f"{file_md5(path)}  {path.name}\n")


def write_tables(folder, photos):
    of = {split: [photo for photo in photos if photo.shard.split == split] for split in SPLITS}
    names = sorted({photo.landmark for photo in photos} - {""})
    number_of = {name: number for number, name in enumerate(names)}
    train_of, index_of = {}, {}
    for ids_of, split in ((train_of, "train"), (index_of, "index")):
        for photo in of[split]:
            ids_of.setdefault(photo.landmark, []).append(photo.id)
    index_of[""] = []  # what shows no landmark answers no query
    recognition, retrieval = [], []
    for photo in of["test"]:
        usage = "Public" if photo.image_id % 3 == 0 else "Private"
        right = index_of.get(photo.landmark, [])
        recognition.append((photo.id, number_of.get(photo.landmark, ""), usage))
        retrieval.append((photo.id, " ".join(right) or "None", usage if right else "Ignored"))
    clean = [(number_of[name], " ".join(ids)) for name, ids in sorted(train_of.items())]
    tables = {
        sources.TRAIN_CSV: [("id", "url", "landmark_id")]
        + [(photo.id, "", number_of[photo.landmark]) for photo in of["train"]],
        sources.TRAIN_CLEAN_CSV: [("landmark_id", "images"), *clean],
        sources.CATEGORY_CSV: [("landmark_id", "category"), *enumerate(names)],
        sources.INDEX_CSV: [("id",), *((photo.id,) for photo in of["index"])],
        sources.TEST_CSV: [("id",), *((photo.id,) for photo in of["test"])],
        sources.RECOGNITION_SOLUTION: [("id", "landmarks", "Usage"), *recognition],
        sources.RETRIEVAL_SOLUTION: [("id", "images", "Usage"), *retrieval],
    }
    for name, rows in tables.items():
        write_rows(folder / name, rows)


def write_rows(path, rows):
    """Writes a CSV, its first row the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def count(photos, left_out):
    names = {photo.landmark for photo in photos} - {""}
    trained = {photo.landmark for photo in photos if photo.shard.split == "train"}
    shards = {photo.shard for photo in photos}
    return {
        "landmarks": len(names),
        "not_trained": sorted(names - trained),
        "photos": {split: sum(p.shard.split == split for p in photos) for split in SPLITS},
        "non_landmarks": sum(not photo.landmark for photo in photos),
        "shards": {split: sum(shard.split == split for shard in shards) for split in SPLITS},
        "left_out": len(left_out),
    }
