"""From shards to batches: fetch ahead, read the tar, decode, batch.

Nothing here knows a deep-learning framework: NumPy batches come out, whatever Keras runs on. The
stages are plain generators, composed in `stream_batches`.
"""

import contextlib
import os
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress, islice

import numpy as np

from data.images import PLAIN, BadImageError, decode_image, draw_view
from data.landmarks import format_image_id
from data.sources import Shard
from data.tars import list_members, read_member
from recipes import Data
from utils import ExpectedError, StoppedError, in_background, map_ahead, run_ahead, say

MAX_BAD_SHARE = 0.05  # of a shard's images; more means that something else is wrong
MIN_BAD_IMAGES = 3  # ... but a tiny shard may have a few
NUM_CORES = os.cpu_count() or 1
QUEUED_BATCHES = 4  # decoded ahead of the network; 4 x 64 images of 192 pixels are 28 MB


@dataclass(frozen=True)
class Batch:
    """Images for one step of the network."""

    # (batch_size, image_size, image_size, 3) uint8 RGB. Another shape would compile the network
    # again, so that a shard's last batch is filled up with images that it has already.
    images: np.ndarray
    # (n,) uint64 of the first n images; n < batch_size only where the filling does not count
    image_ids: np.ndarray
    class_indices: np.ndarray | None  # (n,) int32, or None where classes are unknown
    # (n, 2) int64, the offset and size in bytes of each image in the shard's tar
    locations: np.ndarray
    # of each image in the loss, where several machines train together; else None
    weight: float | None = None


@dataclass(frozen=True)
class ShardEnd:
    """Follows the last batch of a shard."""

    shard: Shard
    num_images: int  # images that came in batches
    bad_images: tuple  # tuple of (image id as int, reason)
    problem: str = ""  # why the shard was left out; empty if it was not


@dataclass(frozen=True)
class Reading:
    """How shards are read: what `stream_batches` must know besides the shards."""

    data: Data  # how large images become, how they fit, what is left to chance
    batch_size: int  # images in a batch
    # function, image id -> class index or None (leave the image out). None itself: every image of
    # the shard that is in `image_ids`, without classes.
    class_of: callable = None
    # (n,) uint64, the images to read where `class_of` is None
    image_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64), repr=False)
    # in an order of its own for each epoch and shard, augmented as `data` says, the last batch
    # filled up with images that count. Else in the tar's order, as they are.
    is_training: bool = False
    seed: int = 0  # of order and augmentation
    num_threads: int = NUM_CORES  # decoding threads


def stream_batches(source, plan, reading, is_stopped=lambda: False, num_skippable=0):
    """Streams the `Batch`es of shard after shard, each with its `ShardEnd`, as `stream_shards`."""
    read = partial(read_shard, reading)
    return stream_shards(source, plan, read, reading.num_threads, is_stopped, num_skippable)


def stream_shards(
    source, plan, read, num_threads=NUM_CORES, is_stopped=lambda: False, num_skippable=0
):
    """Streams what `read` makes of shard after shard, everything done ahead in the background.

    Args:
        plan: list of (epoch, `Shard`), in the order to read; the epoch seeds what is random.
        read: generator function of (shard, path of its local tar, list of its `Member`s, epoch,
            executor that decodes); a `ShardEnd` comes last.
        num_threads: of the executor.
        is_stopped: function without arguments; once it says True, None may come instead of a batch.
        num_skippable: broken shards to leave out before one more is an error.

    Yields:
        What `read` yields. After a broken shard that is left out, a `ShardEnd` that says so.
    """
    connections = source.open_connections()

    def items():
        num_left, shards = num_skippable, [shard for _, shard in plan]
        with (
            contextlib.closing(fetch_ahead(source, shards, connections)) as fetched,
            ThreadPoolExecutor(num_threads, "decode") as pool,
        ):
            for (epoch, shard), local in zip(plan, fetched, strict=True):
                num_images = 0
                try:
                    for item in read(shard, *local.result(), epoch, pool):
                        num_images += len(item.image_ids) if isinstance(item, Batch) else 0
                        yield item
                except ExpectedError as error:
                    if num_left <= 0:
                        raise
                    num_left -= 1
                    yield ShardEnd(shard, num_images, (), str(error))

    return run_ahead(items, QUEUED_BATCHES, is_stopped, connections.stopped.set)


def fetch_ahead(source, shards, connections):
    """Yields path and images of each shard, fetching the next ones while the caller uses this one.

    As many are fetched ahead as there are connections and scratch has room for; a shard is
    discarded when the next is asked for. So `connections.limit + 1` are on disk at most.
    The number of connections follows from how long shards take to come and are used; they are
    stopped when the caller leaves.

    Yields a Future of each shard, which is done: its `result()` gives (path, list of `Member`s) or
    raises ExpectedError.
    """
    ahead, to_come = {}, deque(shards)  # shard -> Future, in the order of use

    def fetch(shard):
        path = source.fetch_shard(shard, connections)
        return path, list_members(path)  # 0.25 s for 8,000 images

    def fetch_more(used=None):
        while to_come and len(ahead) < connections.number:
            # A shard that comes again has the same path.
            if to_come[0] in (used, *ahead) or (ahead and not source.has_space(len(ahead) + 1)):
                return
            shard = to_come.popleft()
            ahead[shard] = in_background(fetch, shard)

    if shards:
        source.require_space(shards[0])
    try:
        for shard in shards:
            fetch_more()
            fetched = ahead[shard]
            wait([fetched])
            del ahead[shard]
            fetch_more(shard)
            begin = time.monotonic()
            try:
                yield fetched
            finally:
                source.discard_shard(shard)
            connections.adapt(time.monotonic() - begin)
    finally:
        connections.stopped.set()
        for shard, future in ahead.items():
            future.add_done_callback(lambda _, left=shard: source.discard_shard(left))


def read_shard(reading, shard, path, members, epoch, pool):
    """Yields the batches of one shard, then its `ShardEnd`; see `stream_shards`."""
    if (class_of := reading.class_of) is None:
        ids = np.array([member.image_id for member in members], np.uint64)
        members = list(compress(members, np.isin(ids, reading.image_ids)))
    else:
        classes = ((member, class_of(member.image_id)) for member in members)
        members = [replace(member, class_index=one) for member, one in classes if one is not None]
    if reading.is_training:
        rng = np.random.default_rng([reading.seed, epoch, shard.number])
        rng.shuffle(members)
    bad_images = []

    def good(results):
        for member, image in results:
            if isinstance(image, BadImageError):
                bad_images.append((member.image_id, str(image)))
            else:
                yield member, image

    with open(path, "rb") as file:
        images = good(decode_members(file.fileno(), members, reading, epoch, pool))
        yield from batch_images(images, reading)
    check_bad_images(shard, bad_images, len(members))
    yield ShardEnd(shard, len(members) - len(bad_images), tuple(bad_images))


class NextShard:
    """What a stream yields up to the end of its next shard, which is not among it.

    StoppedError, with what is `done`, if `stop` asks to stop here.
    """

    def __init__(self, stream, stop, done):
        self.stream, self.stop, self.done = stream, stop, done
        self.end = None  # the `ShardEnd`; after the last item
        self.waited_s = 0.0  # for data

    def __iter__(self):
        while True:
            asked = time.perf_counter()
            item = next(self.stream)
            self.waited_s += time.perf_counter() - asked
            if isinstance(item, ShardEnd):
                self.end = item
                return
            if self.stop.requested():
                raise StoppedError(self.stop, self.done)
            yield item


def tell_problems(shard_end, consequence):
    """Names what went wrong in a shard: what could not be read and, e.g., was `left out`."""
    shard = shard_end.shard
    if shard_end.problem:
        after = f" after {shard_end.num_images} images" if shard_end.num_images else ""
        say(f"{shard.path} {consequence}{after}: {shard_end.problem}")
    for image_id, reason in shard_end.bad_images:
        say(f"{shard.path}: image {format_image_id(image_id)} {consequence}: {reason}")


def check_bad_images(shard, bad_images, num_images):
    """Raises ExpectedError if too many of a shard's images are bad, a list of (id, reason)."""
    if len(bad_images) > max(MIN_BAD_IMAGES, MAX_BAD_SHARE * num_images):
        image_id, reason = bad_images[0]
        problem = f"{shard.path}: {len(bad_images)} of {num_images} images cannot be read, first "
        problem += f"{format_image_id(image_id)} ({reason}); expected at most {MAX_BAD_SHARE:.0%}"
        raise ExpectedError(problem, "skip_bad_shards")


def decode_members(descriptor, members, reading, epoch, pool):
    """Yields (member, image or BadImageError) in the order of `members`, decoded by the pool."""
    data = reading.data

    def decode(member):
        view = PLAIN
        if reading.is_training:  # seeded by the image: the number of threads changes nothing
            view = draw_view(data, np.random.default_rng([reading.seed, epoch, member.image_id]))
        try:
            content = read_member(descriptor, member)
            return decode_image(content, data.image_size, data.keep_aspect, view)
        except BadImageError as error:
            return error

    num_ahead = reading.batch_size + 2 * reading.num_threads
    yield from zip(members, map_ahead(pool, decode, members, num_ahead), strict=True)


def batch_images(images, reading):
    """Gathers (member, image) pairs into batches of one shape.

    The last batch of a shard is filled up with the shard's first images. Where they count (in
    training, where all are equally likely, since the shard is shuffled), no image is lost, and a
    mini-epoch is whole by itself, so that continuing after it needs no images carried over.
    """
    images, first = iter(images), None
    while counted := list(islice(images, reading.batch_size)):
        first = first or counted
        # A shard smaller than a batch repeats its own images.
        filling = [first[i % len(first)] for i in range(reading.batch_size - len(counted))]
        whole = counted + filling
        pixels = np.stack([image for _, image in whole])
        members = [member for member, _ in (whole if reading.is_training else counted)]
        classes = [member.class_index for member in members]
        yield Batch(
            pixels,
            np.array([member.image_id for member in members], np.uint64),
            None if classes[0] is None else np.array(classes, np.int32),
            np.array([(member.offset, member.size) for member in members], np.int64),
        )
