"""The embedded default: a miniature landmark world, drawn by code and served over HTTP.

It has the files and the layout of Google Landmarks v2 as CVDF publishes it, at a thousandth of
the size, so that the whole job can be seen offline in minutes. Run it to look at the world:

    python demo.py --output output/demo
"""

import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import re
import shutil
import socket
import sys
import tarfile
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import demo_art
from landmarks import (
    CATEGORY_CSV,
    INDEX_CSV,
    MIN_IMAGES,
    RECOGNITION_SOLUTION,
    RETRIEVAL_SOLUTION,
    TEST_CSV,
    TRAIN_CLEAN_CSV,
    TRAIN_CSV,
    Shard,
)
from utils import CommandLine, ExpectedError, atomic_write, file_md5, run_command_line, say

# What `--demo` sets differently from the full job: small images, a few epochs from random weights,
# for 2 CPU cores and a few minutes.
DEFAULTS = {
    "train_shards": (0, 11),
    "valid_shards": (11, 12),
    "valid_every": 11,
    "weights": "none",
    "image_size": 64,
    "batch_size": 32,
    "epochs": 5,
    "learning_rate": 1e-3,
}

WORLD_VERSION = 1  # raise it when the same seed draws other pictures
MARKER = "world.json"  # written last: a folder with it is a complete world
OVERVIEW = "demo.png"
SPLITS = ("train", "index", "test")
NUM_LANDMARK_IDS = 203_094  # the full data set's; ids of the world lie below it

PLACES = (*demo_art.LANDMARKS, *demo_art.UNKNOWN_LANDMARKS)


@dataclass(frozen=True)
class WorldSize:
    """How much there is in the world; ranges are (least, most) photographs per landmark."""

    num_landmarks: int = demo_art.NUM_FREQUENT  # with enough photographs to be a class
    num_rare: int = len(demo_art.LANDMARKS) - demo_art.NUM_FREQUENT
    num_unknown: int = len(demo_art.UNKNOWN_LANDMARKS)  # in the index and the test set only
    train_images: tuple = (65, 105)
    index_images: tuple = (14, 22)
    test_images: tuple = (7, 11)
    rare_train_images: tuple = (5, 15)
    rare_index_images: tuple = (3, 5)
    rare_test_images: tuple = (1, 2)
    unknown_index_images: tuple = (4, 6)
    unknown_test_images: tuple = (2, 4)
    index_distractors: int = 175
    test_non_landmarks: int = 130
    two_landmark_queries: int = 8
    ignored_queries: int = 4
    train_shards: int = 12
    index_shards: int = 12
    test_shards: int = 3
    hard_share: float = 0.3  # share of photographs far, cut off, at night, in fog, behind trees ...
    wrong_share: float = 0.05  # share of train photographs that do not show their landmark

    def num_shards(self, split):
        return {"train": self.train_shards, "index": self.index_shards, "test": self.test_shards}[
            split
        ]


# --------------------------------------------------------------------------------- what to draw


@dataclass(frozen=True)
class Picture:
    """One picture of the world.

    Attributes:
        split: "train", "index" or "test".
        number: from 0 within the split; with the world's seed it decides every pixel.
        image_id: 16 hexadecimal digits.
        labels: positions in `PLACES` of the landmarks that the data set says are in it.
        shown: positions in `PLACES` of the landmarks that are in it.
        usage: "Public" or "Private".
    """

    split: str
    number: int
    image_id: str
    labels: tuple
    shown: tuple
    usage: str

    @property
    def member(self):
        """Its name in the tar."""
        return "/".join([*self.image_id[:3], f"{self.image_id}.jpg"])


@dataclass(frozen=True)
class World:
    """The plan of a world: all that is known before the first picture is drawn.

    Attributes:
        seed: what everything random starts from.
        size: a WorldSize.
        landmark_ids: dict, position in `PLACES` -> landmark id, known landmarks only.
        shards: dict, Shard -> tuple of Pictures in the order of the tar.
        ignored: frozenset of test image ids that the recognition score leaves out.
    """

    seed: int
    size: WorldSize
    landmark_ids: dict
    shards: dict
    ignored: frozenset

    def pictures(self, split):
        """Lists the pictures of one split, sorted by image id."""
        chosen = [row for shard, row in self.shards.items() if shard.split == split]
        return sorted(itertools.chain(*chosen), key=lambda picture: picture.image_id)


def plan_world(seed, size):
    """Decides what is in every picture, from the seed alone.

    Args:
        seed: integer >= 0.
        size: a WorldSize.

    Returns:
        A World.
    """
    rng = np.random.default_rng([seed, len(SPLITS)])
    frequent = list(range(size.num_landmarks))
    rare = [demo_art.NUM_FREQUENT + i for i in range(size.num_rare)]
    unknown = [len(demo_art.LANDMARKS) + i for i in range(size.num_unknown)]
    ids = rng.choice(NUM_LANDMARK_IDS, len(frequent) + len(rare), replace=False)
    landmark_ids = dict(zip(frequent + rare, ids.tolist(), strict=True))

    def several(places, least_most):
        return [
            (place,) for place in places for _ in range(rng.integers(*least_most, endpoint=True))
        ]

    pairs = rng.permutation(neighbours(frequent))[: size.two_landmark_queries]
    shown = {
        "train": several(frequent, size.train_images) + several(rare, size.rare_train_images),
        "index": several(frequent, size.index_images)
        + several(rare, size.rare_index_images)
        + several(unknown, size.unknown_index_images)
        + [()] * size.index_distractors,
        "test": several(frequent, size.test_images)
        + several(rare, size.rare_test_images)
        + several(unknown, size.unknown_test_images)
        + [tuple(pair) for pair in pairs.tolist()]
        + [()] * size.test_non_landmarks,
    }
    shards = {}
    for split in SPLITS:
        pictures = [
            plan_picture(rng, seed, split, number, labels, size.wrong_share)
            for number, labels in enumerate(shown[split])
        ]
        order = rng.permutation(len(pictures))
        for number, part in enumerate(np.array_split(order, size.num_shards(split))):
            shards[Shard(split, number)] = tuple(pictures[i] for i in part)
    tests = [p for shard, row in shards.items() if shard.split == "test" for p in row]
    ignored = frozenset(picture.image_id for picture in tests[: size.ignored_queries])
    return World(seed, size, landmark_ids, shards, ignored)


def plan_picture(rng, seed, split, number, labels, wrong_share):
    image_id = hashlib.sha256(f"{seed} {split} {number}".encode()).hexdigest()[:16]
    is_wrong = split == "train" and rng.random() < wrong_share
    usage = "Public" if rng.random() < 1 / 3 else "Private"
    return Picture(split, number, image_id, labels, () if is_wrong else labels, usage)


def neighbours(places):
    """Lists the pairs of places that can stand in one photograph."""
    return [
        (a, b)
        for a, b in itertools.combinations(places, 2)
        if set(PLACES[a].settings) & set(PLACES[b].settings)
        and not (PLACES[a].natural or PLACES[b].natural)
        and max(demo_art.extent(PLACES[a])[0], demo_art.extent(PLACES[b])[0]) < 0.75
    ]


# ------------------------------------------------------------------------- drawing and packing


def view_of(seed, picture, hard_share):
    """Starts a picture: its generator, its places and its scene.

    Returns:
        (numpy Generator, tuple of demo_art.Landmark, demo_art.Scene)
    """
    rng = np.random.default_rng([seed, SPLITS.index(picture.split), picture.number])
    places = tuple(PLACES[i] for i in picture.shown)
    return rng, places, demo_art.scene_for(rng, places, hard_share)


def write_shard(path, seed, pictures, hard_share):
    """Draws pictures and packs them into a tar; the same arguments give the same bytes.

    Args:
        path: of the tar.
        seed: of the world.
        pictures: Pictures in the order of the tar.
        hard_share: share of pictures under hard conditions, 0..1.

    Returns:
        md5 of the tar, 32 hexadecimal digits.
    """
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for picture in pictures:
            jpeg = demo_art.draw_jpeg(*view_of(seed, picture, hard_share))
            member = tarfile.TarInfo(picture.member)
            member.size, member.mode, member.mtime = len(jpeg), 0o644, 1_546_300_800  # 2019
            tar.addfile(member, io.BytesIO(jpeg))
    return file_md5(path)


def draw_shards(world, folder, num_workers):
    """Writes all tars and their md5 files, in `num_workers` processes."""
    jobs = list(world.shards.items())
    draw = partial(write_numbered_shard, folder, world.seed, world.size.hard_share)
    if num_workers > 1:
        # Spawned, not forked: the caller may hold threads and a GPU.
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
                list(pool.map(draw, jobs))
            return
        except BrokenProcessPool:
            say("drawing in one process: no second one can be started here")
    for job in jobs:
        draw(job)


def write_numbered_shard(folder, seed, hard_share, job):
    shard, pictures = job
    md5 = write_shard(folder / shard.path, seed, pictures, hard_share)
    (folder / shard.md5_path).write_text(f"{md5}  {Path(shard.path).name}\n")


def write_tables(world, folder):
    """Writes the metadata and the ground truth."""
    train, index, test = (world.pictures(split) for split in SPLITS)
    by_place, clean = group_by_label(train), group_by_label([p for p in train if p.shown])
    ids = sorted((landmark_id, place) for place, landmark_id in world.landmark_ids.items())
    names = {place: PLACES[place].name.replace(" ", "_") for _, place in ids}
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
        with open(folder / name, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


def group_by_label(pictures):
    """Returns a dict, position in `PLACES` -> list of image ids."""
    groups = {}
    for picture in pictures:
        for place in picture.labels:
            groups.setdefault(place, []).append(picture.image_id)
    return groups


def recognition_solution(world, test):
    rows = [("id", "landmarks", "Usage")]
    for picture in test:
        known = [world.landmark_ids[i] for i in picture.labels if i in world.landmark_ids]
        usage = "Ignored" if picture.image_id in world.ignored else picture.usage
        rows.append((picture.image_id, " ".join(map(str, sorted(known))), usage))
    return rows


def retrieval_solution(test, index_by_place):
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


# -------------------------------------------------------------------------------------- serving


class WorldHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for the files of one folder, whole or one byte range of them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    folder = None  # set by `serve`

    def do_GET(self):
        path = self.find_file()
        if path is None:
            self.refuse(404)
            return
        status = path.stat()
        size_bytes, etag = status.st_size, f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
        modified = formatdate(status.st_mtime, usegmt=True)
        headers = {"ETag": etag, "Last-Modified": modified, "Accept-Ranges": "bytes"}
        wanted = None
        # A range is only safe if the file is still the one that the client knows.
        if self.command == "GET" and self.headers.get("If-Range", etag) in (etag, modified):
            wanted = parse_range(self.headers.get("Range"), size_bytes)
        if wanted == "unsatisfiable":
            self.refuse(416, {"Content-Range": f"bytes */{size_bytes}"})
            return
        first, last = wanted or (0, size_bytes - 1)
        num_bytes = last - first + 1
        if wanted:
            headers["Content-Range"] = f"bytes {first}-{last}/{size_bytes}"
        headers |= {"Content-Length": num_bytes, "Content-Type": "application/octet-stream"}
        self.send_head(206 if wanted else 200, headers)
        if self.command == "GET" and num_bytes:
            self.send_bytes(path, first, num_bytes)

    do_HEAD = do_GET  # noqa: N815

    def send_bytes(self, path, first, num_bytes):
        with open(path, "rb") as file:  # the kernel copies: the processor is left to the decoding
            self.connection.sendfile(file, first, num_bytes)

    def find_file(self):
        """Returns the file asked for, or None if there is none inside the folder."""
        name = unquote(urlsplit(self.path).path).lstrip("/")
        if "\0" in name:
            return None
        path = (self.folder / name).resolve()
        return path if path.is_relative_to(self.folder) and path.is_file() else None

    def send_head(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def refuse(self, status, headers=None):
        self.send_head(status, {"Content-Length": 0, **(headers or {})})

    def log_message(self, *_):
        """Stays silent: the progress of the client is what one wants to read."""


def parse_range(header, size_bytes):
    """Reads a `Range` header.

    Args:
        header: its value or None.
        size_bytes: size of the file.

    Returns:
        (first, last) byte, both included; "unsatisfiable"; or None for the whole file, also for
        what is malformed or asks for several ranges, as RFC 9110 allows.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").strip())
    if not match or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        suffix = min(int(last), size_bytes)
        return (size_bytes - suffix, size_bytes - 1) if suffix else "unsatisfiable"
    if last and int(last) < int(first):
        return None
    if int(first) >= size_bytes:
        return "unsatisfiable"
    return int(first), min(int(last), size_bytes - 1) if last else size_bytes - 1


class WorldServer(ThreadingHTTPServer):
    """A server that leaves nothing open and is quiet about clients that leave early."""

    daemon_threads = True

    def __init__(self, *args):
        super().__init__(*args)
        self.connections = set()

    def process_request(self, request, client_address):
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.connections.discard(request)
        super().shutdown_request(request)

    def server_close(self):
        super().server_close()
        for connection in list(self.connections):  # kept alive by clients
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serve(folder):
    """Serves a folder over HTTP on this machine only, until the `with` block ends.

    Args:
        folder: what to serve.

    Yields:
        The address, e.g. "http://127.0.0.1:40123/".
    """
    handler = type("Handler", (WorldHandler,), {"folder": Path(folder).resolve()})
    server = WorldServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --------------------------------------------------------------------------------- the overview

SHEET_WIDTH, MARGIN, TITLE_HEIGHT = 1600, 24, 100  # pixels, as all sizes here
COLUMNS, GAP = 4, 18  # tiles in a row, and between them
TILE_WIDTH = (SHEET_WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) // COLUMNS
PHOTOS, PHOTO_GAP = 3, 5  # photographs on a tile, and between them
PHOTO_WIDTH = (TILE_WIDTH - (PHOTOS - 1) * PHOTO_GAP) // PHOTOS
PHOTO_HEIGHT = PHOTO_WIDTH * 3 // 4
CAPTION_HEIGHT = 28
ROW_HEIGHT = CAPTION_HEIGHT + PHOTO_HEIGHT + 26
PAPER, INK, QUIET, WARNING, PANEL = "#fbf9f4", "#26313d", "#7b8590", "#c4611f", "#e6edf0"


def draw_overview(folder, path):
    """Draws the contact sheet of a world: every landmark, look-alikes side by side, and the rest.

    Args:
        folder: a complete world; the photographs are read back from its tars.
        path: of the PNG.

    Raises:
        ExpectedError: the folder holds no complete world.
    """
    world = read_world(Path(folder))
    rows = arrange(list(world.landmark_ids))
    strips = choose_strips(
        world, free_columns=COLUMNS - sum(map(len, rows[-1])), num_rows=len(rows)
    )
    chosen = {place: choose_photos(world, place) for place in world.landmark_ids}
    wanted = [*chosen.values(), *(pictures for _, _, _, pictures in strips)]
    photos = read_photos(Path(folder), world, itertools.chain(*wanted))
    num_rows = max(row for _, row, _, _ in strips) + 1
    sheet = Image.new("RGB", (SHEET_WIDTH, TITLE_HEIGHT + num_rows * ROW_HEIGHT + 4), PAPER)
    draw_title(sheet, world)
    for number, row in enumerate(rows):
        draw_tiles(sheet, TITLE_HEIGHT + number * ROW_HEIGHT, row, world, chosen, photos)
    for title, row, column, pictures in strips:
        draw_strip(sheet, title, row, column, [photos[p.image_id] for p in pictures])
    with atomic_write(path) as temporary:
        sheet.save(temporary, "PNG", optimize=True)


def read_world(folder):
    """Plans the world anew that a folder says it holds."""
    marker = read_marker(folder)
    if marker.get("version") != WORLD_VERSION:
        raise ExpectedError(
            f"{folder} holds no complete demo world; expected its {MARKER}; run demo.py first"
        )
    size = {name: tuple(v) if isinstance(v, list) else v for name, v in marker["size"].items()}
    return plan_world(marker["seed"], WorldSize(**size))


def arrange(places):
    """Lays the places out in rows of tiles; look-alikes stay together in one row.

    Returns:
        List of rows; a row is a list of groups; a group is a list of positions in `PLACES`.
    """
    groups = {}
    for place in places:
        groups.setdefault(PLACES[place].look_alikes or PLACES[place].name, []).append(place)
    rows = []
    for group in sorted(groups.values(), key=lambda group: -len(group)):  # stable
        fitting = (row for row in rows if sum(map(len, row)) + len(group) <= COLUMNS)
        row = next(fitting, None)
        if row is None:
            rows.append(row := [])
        row.append(group)
    return rows


def choose_strips(world, free_columns, num_rows):
    """Picks test pictures that show no known landmark.

    Args:
        world: a World.
        free_columns: tiles left free in the last row of landmarks.
        num_rows: rows of landmarks.

    Returns:
        List of (title, row, first column, Pictures).
    """
    test = world.pictures("test")
    unknown = [p for p in test if p.labels and not set(p.labels) & set(world.landmark_ids)]
    unknown.sort(key=lambda p: is_hard_to_see(view_of(world.seed, p, world.size.hard_share)[2]))
    others = [p for p in test if not p.labels]
    row, column = (num_rows - 1, COLUMNS - free_columns) if free_columns > 1 else (num_rows, 0)
    room = PHOTOS * (COLUMNS - column)
    return [
        ("Index and test only: landmarks nobody trains on", row, column, unknown[:room]),
        ("Index and test only: no landmark at all", row + 1, 0, others[: PHOTOS * COLUMNS]),
    ]


def choose_photos(world, place):
    """Picks photographs of one landmark under conditions as different as there are."""
    pictures = [p for p in world.pictures("train") if p.labels == p.shown == (place,)]
    scenes = {p: view_of(world.seed, p, world.size.hard_share)[2] for p in pictures}
    difficulties = (
        lambda scene: scene.light == "night" and scene.weather == "clear",
        lambda scene: scene.light == "day" and scene.weather == "snow",
        lambda scene: scene.light == "day" and scene.weather == "fog",
    )
    wishes = (
        lambda scene: not scene.hard and scene.light == "day" and scene.weather == "clear",
        lambda scene: scene.light in ("golden", "dusk") and scene.weather == "clear",
        difficulties[place % len(difficulties)],
    )

    def dislike(picture, wish):
        # Upright ones would lose their tops in the sheet's frames.
        scene = scenes[picture]
        return scene.portrait, not wish(scene), is_hard_to_see(scene), scene.hard

    chosen = []
    for wish in wishes:
        left = [picture for picture in pictures if picture not in chosen] or pictures
        chosen.append(min(left, key=lambda picture: dislike(picture, wish)))  # noqa: B023
    return chosen


def is_hard_to_see(scene):
    return scene.light == "night" and scene.weather != "clear"


def read_photos(folder, world, wanted):
    """Reads photographs back from the tars.

    Returns:
        Dict, image id -> PIL image.
    """
    wanted = {picture.image_id for picture in wanted}
    photos = {}
    for shard, pictures in world.shards.items():
        members = [picture for picture in pictures if picture.image_id in wanted]
        if not members:
            continue
        with tarfile.open(folder / shard.path) as tar:
            for picture in members:
                jpeg = tar.extractfile(picture.member).read()
                photos[picture.image_id] = Image.open(io.BytesIO(jpeg)).convert("RGB")
    return photos


def draw_title(sheet, world):
    size, count = world.size, {split: len(world.pictures(split)) for split in SPLITS}
    write(sheet, MARGIN, 16, "The miniature landmark world", 34, INK)
    text = (
        f"{count['train']:,} train, {count['index']:,} index and {count['test']:,} test pictures, "
        f"drawn by code   |   {size.num_landmarks} landmarks to learn, {size.num_rare} with fewer "
        f"than {MIN_IMAGES} photos   |   tinted: look-alikes"
    )
    write(sheet, MARGIN, 60, text, 17, QUIET)


def draw_tiles(sheet, top, row, world, chosen, photos):
    """Draws one row of landmarks."""
    num_photos = group_by_label(world.pictures("train"))
    column = 0
    for group in row:
        left = column_left(column)
        if len(group) > 1:
            right = column_left(column + len(group)) - GAP
            frame = [left - 7, top - 6, right + 7, top + ROW_HEIGHT - 16]
            ImageDraw.Draw(sheet).rounded_rectangle(frame, 10, PANEL)
        for place in group:
            left, count = column_left(column), len(num_photos[place])
            note, colour = f"{count} photos", QUIET
            if count < MIN_IMAGES:
                note, colour = f"only {count}: below the threshold", WARNING
            write(sheet, left, top, PLACES[place].name, 17, INK)
            write(sheet, left + TILE_WIDTH, top + 2, note, 14, colour, anchor="ra")
            for i, picture in enumerate(chosen[place]):
                x = left + i * (PHOTO_WIDTH + PHOTO_GAP)
                paste_photo(sheet, photos[picture.image_id], x, top + CAPTION_HEIGHT)
            column += 1


def draw_strip(sheet, title, row, column, photos):
    """Draws a caption and photographs from a column to the right margin."""
    top = TITLE_HEIGHT + row * ROW_HEIGHT
    write(sheet, column_left(column), top, title, 17, INK)
    for i, photo in enumerate(photos):
        left = column_left(column + i // PHOTOS) + i % PHOTOS * (PHOTO_WIDTH + PHOTO_GAP)
        paste_photo(sheet, photo, left, top + CAPTION_HEIGHT)


def column_left(column):
    return MARGIN + column * (TILE_WIDTH + GAP)


def write(sheet, x, y, text, size, colour, anchor="la"):
    font = ImageFont.load_default(size)
    ImageDraw.Draw(sheet).text((x, y), text, colour, font, anchor=anchor)


def paste_photo(sheet, photo, x, y):
    """Pastes a photograph, cut to the sheet's format, with rounded corners."""
    width, height = photo.size
    crop = min(height, round(width * PHOTO_HEIGHT / PHOTO_WIDTH))
    box = (0, (height - crop) // 3, width, (height - crop) // 3 + crop)
    size = (PHOTO_WIDTH, PHOTO_HEIGHT)
    mask = Image.new("L", (2 * PHOTO_WIDTH, 2 * PHOTO_HEIGHT))
    ImageDraw.Draw(mask).rounded_rectangle([0, 0, *(2 * side - 1 for side in size)], 12, 255)
    small = photo.resize(size, Image.Resampling.LANCZOS, box)
    sheet.paste(small, (x, y), mask.resize(size))


# --------------------------------------------------------------------------------- command line


def parse_arguments(argv=None):
    parser = CommandLine(
        prog="demo.py", description="Builds the miniature landmark world and a picture of it."
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder to fill")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws another world")
    parser.add_argument(
        "--serve", action="store_true", help="serve it over HTTP on this machine until Ctrl-C"
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Builds the world and its overview, and serves it if asked to."""
    arguments = parse_arguments(argv)
    folder = build_world(arguments.output, arguments.seed)
    print(folder)
    if not (folder / OVERVIEW).exists():
        draw_overview(folder, folder / OVERVIEW)
    print(folder / OVERVIEW)
    if arguments.serve:
        with serve(folder) as url, contextlib.suppress(KeyboardInterrupt):  # its ordinary end
            print(url, flush=True)
            threading.Event().wait()


if __name__ == "__main__":
    run_command_line(main)
