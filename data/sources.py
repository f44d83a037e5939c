"""Where a data set in the CVDF layout comes from: its shards and files, in folders or at addresses.

Source of the layout: https://github.com/cvdfoundation/google-landmark
"""

import contextlib
import re
import shutil
import threading
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from data.arrays import digest_of
from data.connections import MAX_CONNECTIONS, Connections
from data.download import SHARD_PATIENCE, download, download_range, online_size, refuse_disguised
from data.tars import list_unpacked, pack_again, read_unpacked
from utils import ExpectedError, MissingFileError, file_md5, masked, require_free_space, say

CVDF_URL = "https://s3.amazonaws.com/google-landmark/"
NUM_CVDF_SHARDS = {"train": 500, "index": 100, "test": 20}
MAX_SHARDS = 1000  # in a split: their names have three digits
# As md5sum writes it, or as BSD's md5 and OpenSSL do: `MD5 (images_000.tar) = <md5>`.
MD5_LINE = re.compile(r"(?:MD5 ?\(.*\) ?= ?)?([0-9a-fA-F]{32})\b")

TRAIN_CSV = "metadata/train.csv"
TRAIN_CLEAN_CSV = "metadata/train_clean.csv"
INDEX_CSV = "metadata/index.csv"
TEST_CSV = "metadata/test.csv"
CATEGORY_CSV = "metadata/train_label_to_category.csv"
RECOGNITION_SOLUTION = "ground_truth/recognition_solution_v2.1.csv"
RETRIEVAL_SOLUTION = "ground_truth/retrieval_solution_v2.1.csv"
TABLES = (
    TRAIN_CSV, TRAIN_CLEAN_CSV, INDEX_CSV, TEST_CSV, CATEGORY_CSV,
    RECOGNITION_SOLUTION, RETRIEVAL_SOLUTION,
)  # fmt: skip
SPLITS = ("train", "index", "test")


@dataclass(frozen=True, order=True)
class Shard:
    """One tar of a split."""

    split: str  # "train", "index" or "test"
    number: int  # from 0

    @property
    def path(self):
        """The tar's place in the layout, e.g. `train/images_037.tar`."""
        return f"{self.split}/images_{self.number:03d}.tar"

    @property
    def md5_path(self):
        """The md5 file's place in the layout, e.g. `md5sum/train/md5.images_037.txt`."""
        return f"md5sum/{self.split}/md5.images_{self.number:03d}.txt"


def share_of(shards, part, num_parts):
    """Gives the shards of a part: consecutive, as many as any other part has or one more."""
    size, num_larger = divmod(len(shards), num_parts)
    begin = part * size + min(part, num_larger)
    return shards[begin : begin + size + (part < num_larger)]


def digest_of_shards(source, shards):
    """Gives 32 hex characters that differ where a shard's file is another one than before."""
    return digest_of(np.array([f"{one.path} {source.version_of(one)}" for one in shards], "U"))


class Source:
    """A data set in the CVDF layout, in one place or spread over several.

    A file comes from the first place that has it, a shard with its own md5 file.

    Args:
        locations: path of a folder, or http(s) address, or a list of these; ExpectedError where
            one is neither.
        scratch: folder for what must be downloaded.
        max_connections: shards that are downloaded at once, at most.
    """

    def __init__(self, locations, scratch, max_connections=MAX_CONNECTIONS):
        self.scratch, self.max_connections = Path(scratch), max_connections
        self._connections, self._largest_bytes = Connections(), 0
        if isinstance(locations, (str, Path)):
            locations = [locations]
        kinds = Place.__subclasses__()[::-1]
        self.places = [
            next(kind for kind in kinds if kind.takes(str(location)))(location, self.scratch)
            for location in locations
        ]
        self._place_of = {}  # shard -> place, as far as it was asked for
        self._in_scratch = set()  # shards

    def __str__(self):
        return ", ".join(map(str, self.places))

    def exists(self, path):
        """Tells whether the source has the file `path` (relative, as in the layout)."""
        return any(place.exists(path) for place in self.places)

    def fetch(self, path):
        """Gives a local copy of a small file of the layout, fetched once, or MissingFileError."""
        if len(self.places) == 1:
            return self.places[0].fetch(path)  # which says so itself if it lacks it
        for place in self.places:
            with contextlib.suppress(MissingFileError):
                return place.fetch(path)
        raise self._is_missing(path)

    def _is_missing(self, path):
        problem = f"{path}: in none of {self}; expected the CVDF layout, spread over these"
        return MissingFileError(problem, "source")

    def place_of(self, shard):
        """Gives the first place that has a shard, or raises MissingFileError."""
        if len(self.places) == 1:
            return self.places[0]  # which says so itself if it lacks it
        if shard not in self._place_of:
            place = next((place for place in self.places if place.has_shard(shard)), None)
            if place is None:
                raise self._is_missing(shard.path)
            self._place_of[shard] = place
        return self._place_of[shard]

    def open_connections(self):
        """Gives the `Connections` of a stream: it begins with as many as the last one needed."""
        self._connections = Connections(self.max_connections, self._connections.number)
        return self._connections

    def fetch_shard(self, shard, connections=None):
        """Gives a verified local copy of a shard; `discard_shard` removes it again.

        Raises:
            ExpectedError: the shard is not there or differs from its md5.
            CancelledError: the stream has stopped.
        """
        place = self.place_of(shard)
        if not place.takes_scratch(shard):
            return place.fetch_shard(shard)
        self._in_scratch.add(shard)
        local = place.fetch_shard(shard, connections)
        self._largest_bytes = max(self._largest_bytes, local.stat().st_size)
        return local

    def version_of(self, shard):
        """Gives words that differ for another file of this shard: its md5, or else its size."""
        return self.place_of(shard).version_of(shard)

    def size_of(self, shard):
        """Gives the size of a shard in bytes; 0 where a server does not say."""
        return self.place_of(shard).size_of(shard)

    def require_space(self, shard):
        """Raises ExpectedError unless scratch has room for two shards, the most that are there."""
        place = self.place_of(shard)
        if place.takes_scratch(shard):
            self._largest_bytes = max(self._largest_bytes, place.size_of(shard))
            size_bytes = 2.1 * self._largest_bytes  # shards differ a little
            require_free_space(self.scratch, size_bytes, "two shards")

    def has_space(self, num_shards):
        """Tells whether scratch has room for so many more shards, and then for another one."""
        return shutil.disk_usage(self.scratch).free >= 1.1 * (num_shards + 1) * self._largest_bytes

    def discard_shard(self, shard):
        """Removes the copy of a shard that was made in scratch; a folder's own file stays."""
        if shard in self._in_scratch:
            (self.scratch / shard.path).unlink(missing_ok=True)

    def read_range(self, shard, offset, size_bytes):
        """Reads some bytes of a shard without fetching the rest of it."""
        return self.place_of(shard).read_range(shard, offset, size_bytes)

    def count_shards(self, split):
        """Counts the shards of a split: images_000.tar, images_001.tar, ... to the last one."""
        known = max(place.known_count(split) for place in self.places)
        to_ask = [place for place in self.places if place.must_be_asked]
        if not to_ask:
            return known

        def has(number):
            shard = Shard(split, number)
            return number < known or any(place.has_shard(shard) for place in to_ask)

        lower, upper = 0, 1  # the shards below `lower` are there, `upper - 1` is to be asked for
        while has(upper - 1):
            if upper > MAX_SHARDS:  # a login page, say
                first, last = Shard(split, 0).path, Shard(split, MAX_SHARDS).path
                expected = f"expected at most {MAX_SHARDS} shards"
                expected += ", and not an address that answers to every name"
                problem = f"{self}: there are {first} to {last} and more; {expected}"
                raise ExpectedError(problem, "source")
            lower, upper = upper, min(2 * upper, MAX_SHARDS + 1)
        return bisect_left(range(upper), True, lower, upper - 1, key=lambda one: not has(one))

    def select_shards(self, split, first=0, stop=None, setting=None):
        """Lists the shards `first` to `stop - 1` of a split, or all from `first` on.

        Raises ExpectedError where the source has no such shards; `setting` is what chose them.
        """
        num_shards = self.count_shards(split)
        stop = num_shards if stop is None else stop
        if not num_shards:
            raise ExpectedError(
                f"{self}: no {Shard(split, 0).path}; expected shards in the CVDF layout", "source"
            )
        if not 0 <= first < stop <= num_shards:
            problem = f"{self}: {split} shards {first}:{stop} asked for"
            expected = f"expected a range within 0:{num_shards}, which is what the source has"
            raise ExpectedError(f"{problem}; {expected}", setting or f"{split}_shards")
        return [Shard(split, number) for number in range(first, stop)]


class Place:
    """One place of a data set; a new kind of place is a class like the two below, and no more.

    Of the kinds that take a location, the last one defined gets it.
    """

    must_be_asked = False  # for each shard, whether it is there

    def __init__(self, location, scratch):
        self.location, self.scratch = location, scratch
        self._splits_told, self._telling = set(), threading.Lock()

    def __str__(self):
        return masked(self.location)

    def version_of(self, shard):
        """Gives words that differ for another file of this shard."""
        return self.expected_md5(shard) or f"{self.size_of(shard)} bytes"

    def expected_md5(self, shard):
        """Reads the shard's md5 file: 32 hex characters, or None where there is none."""
        try:
            path = self.fetch(shard.md5_path)
        except MissingFileError:
            problem = f"no md5 file for {shard.path}; such shards are checked by length alone"
            self.say_once(shard, problem)
            return None
        match = MD5_LINE.match(path.read_text("utf-8-sig", errors="replace"))
        if match is None:
            raise ExpectedError(
                f"{path}: no md5 in it; expected 32 hex characters and a file name", "source"
            )
        return match[1].lower()

    def say_once(self, shard, text):
        """Says what is odd about a shard, unless it was said of its split before."""
        with self._telling:  # shards are fetched side by side
            if shard.split not in self._splits_told:
                self._splits_told.add(shard.split)
                say(f"{self}: {text}")


class _Folder(Place):
    """A data set in a folder, read in place; see `Source` for what the functions do."""

    @staticmethod
    def takes(location):
        return True  # whatever no other kind takes

    def __init__(self, location, scratch):
        super().__init__(Path(location), scratch)
        if not self.location.is_dir():
            problem = "no such folder; expected a folder or http(s) address in the CVDF layout"
            raise ExpectedError(f"{location}: {problem}", "source")

    def exists(self, path):
        return (self.location / path).is_file()

    def fetch(self, path):
        local = self.location / path
        if not local.is_file():
            raise MissingFileError(
                f"{local}: no such file; expected the CVDF layout below {self.location}", "source"
            )
        refuse_disguised(local, local)
        return local

    def known_count(self, split):
        names = (path.name for path in (self.location / split).glob("images_*"))
        numbers = (re.fullmatch(r"images_(\d{3})(\.tar)?", name) for name in names)
        return max((int(number[1]) + 1 for number in numbers if number), default=0)

    def has_shard(self, shard):
        return self.exists(shard.path) or self.unpacked(shard) is not None

    def unpacked(self, shard):
        """Gives the folder into which a shard was unpacked, or None."""
        path = self.location / shard.path
        if path.is_file():
            return None
        return next((one for one in (path, path.with_suffix("")) if one.is_dir()), None)

    def takes_scratch(self, shard):
        return self.unpacked(shard) is not None

    def size_of(self, shard):
        if folder := self.unpacked(shard):
            last = list_unpacked(folder)[-1]
            return last.offset + last.size  # but for its end
        return self.fetch(shard.path).stat().st_size

    def version_of(self, shard):
        # Its images lie elsewhere in it than in the tar that was unpacked.
        return super().version_of(shard) + (" unpacked" if self.unpacked(shard) else "")

    def fetch_shard(self, shard, connections=None):
        if folder := self.unpacked(shard):
            self.say_once(shard, f"{shard.path} is unpacked; the md5 of such shards is not checked")
            local = self.scratch / shard.path
            pack_again(folder, local)
            return local
        md5 = self.expected_md5(shard)
        local = self.fetch(shard.path)
        if md5 is not None and file_md5(local) != md5:
            expected = f"expected the file that {shard.md5_path} names"
            problem = f"{local}: md5 differs (expected {md5}); {expected}"
            raise ExpectedError(problem, "skip_bad_shards")
        return local

    def read_range(self, shard, offset, size_bytes):
        if local := self.unpacked(shard):
            data = read_unpacked(local, offset, size_bytes)
        else:
            local = self.fetch(shard.path)
            with open(local, "rb") as file:
                file.seek(offset)
                data = file.read(size_bytes)
        if len(data) != size_bytes:
            raise ExpectedError(
                f"{local}: {len(data)} of {size_bytes} bytes from {offset} on; expected the whole "
                "shard; copy it again"
            )
        return data


class _Address(Place):
    """A data set on a web server; see `Source` for what the functions do."""

    @staticmethod
    def takes(location):
        return re.match("(?i)https?://", location)

    def __init__(self, location, scratch):
        parts = _split_address(str(location))
        folder = parts._replace(path=parts.path.rstrip("/") + "/", fragment="")
        super().__init__(folder.geturl(), scratch)
        self.is_cvdf = self.location == CVDF_URL
        self.must_be_asked = not self.is_cvdf
        self._fetched = {}

    def url(self, path):
        """Gives the address of a file: its path goes before a query, which may hold a token."""
        parts = urlsplit(self.location)
        return parts._replace(path=parts.path + path).geturl()

    def exists(self, path):
        try:
            online_size(self.url(path))
        except MissingFileError:
            return False
        return True

    def fetch(self, path):
        if path not in self._fetched:
            local = self.scratch / path
            download(self.url(path), local)
            self._fetched[path] = local
        return self._fetched[path]

    def known_count(self, split):
        return NUM_CVDF_SHARDS[split] if self.is_cvdf else 0

    def has_shard(self, shard):
        return shard.number < self.known_count(shard.split) or self.exists(shard.path)

    def takes_scratch(self, shard):
        return True

    def size_of(self, shard):
        return online_size(self.url(shard.path))

    def fetch_shard(self, shard, connections=None):
        md5 = self.expected_md5(shard)
        local = self.scratch / shard.path
        download(self.url(shard.path), local, md5, SHARD_PATIENCE, connections)
        return local

    def read_range(self, shard, offset, size_bytes):
        return download_range(self.url(shard.path), offset, size_bytes)


def _split_address(address):
    """Splits an http(s) address that has a host, and a port that is a number."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port  # each may raise ValueError
        if not host:
            raise ValueError("no host in it")
    except ValueError as error:
        expected = "expected a folder or http(s) address in the CVDF layout"
        problem = f"{address}: not a valid address ({error}); {expected}"
        raise ExpectedError(problem, "source") from error
    return parts
