"""The world as a data set: its tars, tables and ground truth, in a folder."""

import contextlib
import csv
import dataclasses
import io
import json
import multiprocessing
import os
import shutil
import signal
import tarfile
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import numpy as np

from data.sources import (
    CATEGORY_CSV,
    INDEX_CSV,
    RECOGNITION_SOLUTION,
    RETRIEVAL_SOLUTION,
    SPLITS,
    TEST_CSV,
    TRAIN_CLEAN_CSV,
    TRAIN_CSV,
)
from demo import art
from demo.plan import WorldSize, plan_world
from utils import ExpectedError, Progress, file_md5, say

WORLD_VERSION = 2  # raise it when the same seed draws other pictures
MARKER = "world.json"  # written last: a folder with it is a complete world
OVERVIEW = "demo.png"


def view_of(world, picture):
    """Starts a picture: its generator, its places and its scene.

    Returns:
        (numpy Generator, tuple of art.Landmark, art.Scene)
    """
    rng = np.random.default_rng([world.seed, SPLITS.index(picture.split), picture.number])
    places = tuple(world.places[i] for i in picture.shown)
    return rng, places, art.scene_for(rng, places, world.size.hard_share)


def write_shard(path, world, pictures):
    """Draws pictures and packs them into a tar; the same arguments give the same bytes.

    Args:
        path: of the tar.
        world: a World; its `shards` are not looked at.
        pictures: PlannedPictures in the order of the tar.

    Returns:
        md5 of the tar, 32 hexadecimal digits.
    """
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for picture in pictures:
            jpeg = art.draw_jpeg(*view_of(world, picture))
            member = tarfile.TarInfo(picture.member)
            member.size, member.mode, member.mtime = len(jpeg), 0o644, 1_546_300_800  # 2019
            tar.addfile(member, io.BytesIO(jpeg))
    return file_md5(path)


def draw_shards(world, folder, num_workers):
    """Writes all tars and their md5 files, in `num_workers` processes."""
    jobs = list(world.shards.items())
    # Sent to a process with every shard, so without the plan of all others.
    draw = partial(write_numbered_shard, folder, dataclasses.replace(world, shards={}))
    with Progress("drawing", sum(len(pictures) for _, pictures in jobs), "pictures") as progress:
        if num_workers > 1:
            try:
                _draw_in_processes(draw, jobs, num_workers, progress)
                return
            except BrokenProcessPool:
                say("drawing in one process: no second one can be started here")
        for job in jobs:
            draw(job)
            progress.update(len(job[1]))


def _draw_in_processes(draw, jobs, num_workers, progress):
    """Draws all jobs in processes, which Ctrl-C does not reach: they end with their pool."""
    # Spawned, not forked: the caller may hold threads and a GPU.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        try:
            with _ctrl_c_ignored():  # the processes, which start here, inherit it
                results = pool.map(draw, jobs)
            for (_, pictures), _ in zip(jobs, results, strict=True):
                progress.update(len(pictures))
        except BaseException:
            for process in multiprocessing.active_children():
                process.kill()  # the pool would wait for what they are drawing
            raise


@contextlib.contextmanager
def _ctrl_c_ignored():
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def write_numbered_shard(folder, world, job):
    """Writes the tar and the md5 file of a (Shard, PlannedPictures)."""
    shard, pictures = job
    md5 = write_shard(folder / shard.path, world, pictures)
    (folder / shard.md5_path).write_text(f"{md5}  {Path(shard.path).name}\n", encoding="utf-8")


def write_tables(world, folder):
    """Writes the metadata and the ground truth."""
    train, index, test = (world.pictures(split) for split in SPLITS)
    by_place, clean = group_by_label(train), group_by_label([p for p in train if p.shown])
    ids = sorted((landmark_id, place) for place, landmark_id in world.landmark_ids.items())
    names = {place: world.places[place].name.replace(" ", "_") for _, place in ids}
    address = "http://miniature.invalid/{}/{:04d}.jpg"
    tables = {
        TRAIN_CSV: [("id", "url", "landmark_id")]
        + [
            (
                p.image_id,
                address.format(names[p.labels[0]], p.number),
                world.landmark_ids[p.labels[0]],
            )
            for p in train
        ],
        TRAIN_CLEAN_CSV: [("landmark_id", "images")]
        + [(i, " ".join(clean[place])) for i, place in ids if place in clean],
        CATEGORY_CSV: [("landmark_id", "category")]
        + [
            (i, f"http://commons.wikimedia.org/wiki/Category:{names[place]}")
            for i, place in ids
            if place in by_place
        ],
        INDEX_CSV: [("id",), *((p.image_id,) for p in index)],
        TEST_CSV: [("id",), *((p.image_id,) for p in test)],
        RECOGNITION_SOLUTION: recognition_solution(world, test),
        RETRIEVAL_SOLUTION: retrieval_solution(test, group_by_label(index)),
    }
    for name, rows in tables.items():
        (folder / name).parent.mkdir(exist_ok=True)
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


def group_by_label(pictures):
    """Returns a dict, position in `World.places` -> list of image ids."""
    groups = {}
    for picture in pictures:
        for place in picture.labels:
            groups.setdefault(place, []).append(picture.image_id)
    return groups


def recognition_solution(world, test):
    """Lists the rows of the recognition truth, header first: the known landmarks in each."""
    rows = [("id", "landmarks", "Usage")]
    for picture in test:
        known = [world.landmark_ids[i] for i in picture.labels if i in world.landmark_ids]
        usage = "Ignored" if picture.image_id in world.ignored else picture.usage
        rows.append((picture.image_id, " ".join(map(str, sorted(known))), usage))
    return rows


def retrieval_solution(test, index_by_place):
    """Lists the rows of the retrieval truth, header first: the index images of its landmarks."""
    rows = [("id", "images", "Usage")]
    for picture in test:
        found = sorted({i for place in picture.labels for i in index_by_place.get(place, [])})
        usage = picture.usage if found else "Ignored"
        rows.append((picture.image_id, " ".join(found) or "None", usage))
    return rows


# ------------------------------------------------------------------------------------ the world


def build_world(folder, seed=0, size=None, num_workers=None):
    """Draws the world into a folder in the CVDF layout, or reuses the one that is there.

    The same seed and size give the same bytes, whatever the number of workers. The folder
    appears only when everything in it is written.

    Args:
        folder: where to put it; must be new, empty, or an earlier (perhaps incomplete) world.
        seed: integer >= 0.
        size: a WorldSize; None is the full one.
        num_workers: processes that draw; None is up to 4, one per core.

    Returns:
        Path of the folder.

    Raises:
        ExpectedError: the seed is negative, or the folder holds something else.
    """
    folder, size = Path(folder), size or WorldSize()
    if seed < 0:
        raise ExpectedError(f"seed {seed} is negative; expected 0 or more; choose another --seed")
    if is_complete(folder, seed, size):
        return folder
    refuse_foreign_files(folder)
    world = plan_world(seed, size)
    num_workers = num_workers or min(4, os.cpu_count() or 1)
    num_pictures = sum(map(len, world.shards.values()))
    say(f"drawing the miniature landmark world: {num_pictures:,} pictures ...")
    start = time.monotonic()
    with explained_full_disk(folder), temporary_sibling(folder) as draft:
        for split in SPLITS:
            (draft / split).mkdir()
            (draft / "md5sum" / split).mkdir(parents=True)
        draw_shards(world, draft, num_workers)
        write_tables(world, draft)
        write_marker(world, draft)
        put_in_place(draft, folder, lambda: is_complete(folder, seed, size))
    say(f"drew {num_pictures:,} pictures in {time.monotonic() - start:.0f} s")
    return folder


@contextlib.contextmanager
def explained_full_disk(folder):
    """Turns a failure to write into one line."""
    try:
        yield
    except OSError as error:
        raise ExpectedError(
            f"{folder}: cannot be written ({error.strerror}); expected 100 MB of free space; free "
            "some space or choose another folder"
        ) from error


def write_marker(world, folder):
    """Writes what tells a whole world from a part of one: its size and that of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    marker = {
        "version": WORLD_VERSION,
        "seed": world.seed,
        "size": dataclasses.asdict(world.size),
        "num_pictures": {split: len(world.pictures(split)) for split in SPLITS},
        "size_bytes": {path.relative_to(folder).as_posix(): path.stat().st_size for path in files},
    }
    (folder / MARKER).write_text(json.dumps(marker, indent=1) + "\n")


def read_marker(folder):
    """Reads what a folder says about the world in it; an empty dict if it says nothing."""
    try:
        marker = json.loads((Path(folder) / MARKER).read_text())
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}


def is_complete(folder, seed, size):
    """Tells whether a folder holds the whole world of this seed, size and version."""
    marker = read_marker(folder)
    wanted = json.loads(json.dumps(dataclasses.asdict(size)))  # tuples become lists
    found = marker.get("version"), marker.get("seed"), marker.get("size")
    if found != (WORLD_VERSION, seed, wanted):
        return False
    files = [(folder / name, size_bytes) for name, size_bytes in marker["size_bytes"].items()]
    return all(path.is_file() and path.stat().st_size == size_bytes for path, size_bytes in files)


def refuse_foreign_files(folder):
    """Raises ExpectedError if replacing the folder would destroy something that is no world's."""
    ours = {*SPLITS, "md5sum", "metadata", "ground_truth", MARKER, OVERVIEW}
    if folder.exists() and not folder.is_dir():
        raise ExpectedError(f"{folder} is a file; expected a folder; choose another --output")
    foreign = sorted({path.name for path in folder.iterdir()} - ours) if folder.exists() else []
    if foreign:
        raise ExpectedError(
            f"{folder} holds {foreign[0]}, which is not the demo's; expected a new folder or an "
            "earlier demo; choose another --output"
        )


@contextlib.contextmanager
def temporary_sibling(folder):
    """Yields a new folder beside `folder`; what is left of it afterwards is removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name}.partial-"
    for leftover in folder.parent.glob(f"{prefix}*"):
        # Of a killed run. A young one may belong to a run that is still drawing.
        if time.time() - leftover.stat().st_mtime > 600:
            shutil.rmtree(leftover, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        draft.chmod(0o755)
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def put_in_place(draft, folder, is_there):
    """Renames a finished draft onto `folder`, unless another run was faster."""
    if is_there():
        return
    if folder.exists():
        with temporary_sibling(folder) as outdated:
            folder.rename(outdated / "outdated")
            draft.rename(folder)
    else:
        draft.rename(folder)
