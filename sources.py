"""Where a data set in the CVDF layout comes from: its shards and files, a folder or an address.

Source of the layout: https://github.com/cvdfoundation/google-landmark
"""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from download import SHARD_PATIENCE, download, download_range, online_size, refuse_html
from utils import ExpectedError, MissingFileError, file_md5, require_free_space, say

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


@dataclass(frozen=True, order=True)
class Shard:
    """One tar of a split.

    Attributes:
        split: "train", "index" or "test".
        number: from 0.
    """

    split: str
    number: int

    @property
    def path(self):
        """The tar's place in the layout, e.g. `train/images_037.tar`."""
        return f"{self.split}/images_{self.number:03d}.tar"

    @property
    def md5_path(self):
        """The md5 file's place in the layout, e.g. `md5sum/train/md5.images_037.txt`."""
        return f"md5sum/{self.split}/md5.images_{self.number:03d}.txt"


class Source:
    """A data set in the CVDF layout: a folder, or a web address that serves one.

    Args:
        location: path of the folder, or http(s) address.
        scratch: folder for what must be downloaded.

    Raises:
        ExpectedError: `location` is neither an address nor a folder.
    """

    def __init__(self, location, scratch):
        self.scratch = Path(scratch)
        self.is_online = re.match("(?i)https?://", str(location)) is not None
        self.location = str(location).rstrip("/") + "/" if self.is_online else Path(location)
        if self.is_online:
            _check_address(str(location))
        elif not self.location.is_dir():
            raise ExpectedError(
                f"{location}: no such folder; expected a folder or http(s) address in the CVDF "
                "layout",
                "source",
            )
        self._fetched = {}
        self._splits_without_md5 = set()

    def __str__(self):
        return str(self.location)

    def exists(self, path):
        """Tells whether the source has the file `path` (relative, as in the layout)."""
        if not self.is_online:
            return (self.location / path).is_file()
        try:
            online_size(self.location + path)
        except MissingFileError:
            return False
        return True

    def fetch(self, path):
        """Gives a local copy of a small file of the layout; fetched once by each Source.

        Args:
            path: relative, as in the layout, e.g. `metadata/test.csv`.

        Returns:
            The local `pathlib.Path`.

        Raises:
            MissingFileError: the source does not have it.
        """
        if path not in self._fetched:
            if self.is_online:
                local = self.scratch / path
                download(self.location + path, local)
            else:
                local = self.location / path
                if not local.is_file():
                    raise MissingFileError(
                        f"{local}: no such file; expected the CVDF layout below {self.location}",
                        "source",
                    )
                refuse_html(local, local)
            self._fetched[path] = local
        return self._fetched[path]

    def fetch_shard(self, shard):
        """Gives a verified local copy of a shard; `discard_shard` removes it again.

        Raises:
            ExpectedError: the shard is not there or differs from its md5.
        """
        md5 = self._expected_md5(shard)
        if self.is_online:
            local = self.scratch / shard.path
            download(self.location + shard.path, local, md5, SHARD_PATIENCE)
            return local
        local = self.fetch(shard.path)
        if md5 is not None and file_md5(local) != md5:
            raise ExpectedError(
                f"{local}: md5 differs (expected {md5}); expected the file that {shard.md5_path} "
                "names",
                "skip_bad_shards",
            )
        return local

    def version_of(self, shard):
        """Gives words that differ for another file of this shard: its md5, or else its size."""
        md5 = self._expected_md5(shard)
        if md5 is not None:
            return md5
        if self.is_online:
            return f"{online_size(self.location + shard.path)} bytes"
        return f"{self.fetch(shard.path).stat().st_size} bytes"

    def require_space(self, shard):
        """Raises ExpectedError unless scratch has room for two shards, the most that are there."""
        if self.is_online:
            size_bytes = 2.1 * online_size(self.location + shard.path)  # shards differ a little
            require_free_space(self.scratch, size_bytes, "two shards")

    def discard_shard(self, shard):
        """Removes the local copy of a shard that was downloaded; a folder's own file stays."""
        self._fetched.pop(shard.path, None)
        if self.is_online:
            (self.scratch / shard.path).unlink(missing_ok=True)

    def read_range(self, shard, offset, size_bytes):
        """Reads some bytes of a shard without fetching the rest of it."""
        if self.is_online:
            return download_range(self.location + shard.path, offset, size_bytes)
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

    def _expected_md5(self, shard):
        try:
            path = self.fetch(shard.md5_path)
        except MissingFileError:
            if shard.split not in self._splits_without_md5:
                say(
                    f"{self}: no md5 file for {shard.path}; such shards are checked by length alone"
                )
            self._splits_without_md5.add(shard.split)
            return None
        match = MD5_LINE.match(path.read_text("utf-8-sig", errors="replace"))
        if match is None:
            raise ExpectedError(
                f"{path}: no md5 in it; expected 32 hex characters and a file name", "source"
            )
        return match[1].lower()

    def count_shards(self, split):
        """Counts the shards of a split: images_000.tar, images_001.tar, ... to the last one.

        Raises:
            ExpectedError: an address has more shards than a data set has, which is to say that it
                answers to every name, as a login page does.
        """
        if str(self.location) == CVDF_URL:
            return NUM_CVDF_SHARDS[split]
        if not self.is_online:
            names = (path.name for path in (self.location / split).glob("images_*.tar"))
            numbers = (re.fullmatch(r"images_(\d{3})\.tar", name) for name in names)
            return max((int(number[1]) + 1 for number in numbers if number), default=0)

        def has(number):
            return self.exists(Shard(split, number).path)

        lower, upper = 0, 1  # the shards below `lower` are there, `upper - 1` is to be asked for
        while has(upper - 1):
            if upper > MAX_SHARDS:
                raise ExpectedError(
                    f"{self}: there are {Shard(split, 0).path} to {Shard(split, MAX_SHARDS).path} "
                    f"and more; expected at most {MAX_SHARDS} shards, and not an address that "
                    "answers to every name",
                    "source",
                )
            lower, upper = upper, min(2 * upper, MAX_SHARDS + 1)
        while lower < upper - 1:
            middle = (lower + upper) // 2
            lower, upper = (middle, upper) if has(middle - 1) else (lower, middle)
        return lower

    def select_shards(self, split, first=0, stop=None, setting=None):
        """Lists the shards `first` to `stop - 1` of a split.

        Args:
            split: "train", "index" or "test".
            first, stop: numbers of shards; None stops after the last one.
            setting: the setting that chose them; `<split>_shards` where not given.

        Raises:
            ExpectedError: the source has no such shards.
        """
        num_shards = self.count_shards(split)
        stop = num_shards if stop is None else stop
        if not num_shards:
            raise ExpectedError(
                f"{self}: no {Shard(split, 0).path}; expected shards in the CVDF layout", "source"
            )
        if not 0 <= first < stop <= num_shards:
            raise ExpectedError(
                f"{self}: {split} shards {first}:{stop} asked for; expected a range within "
                f"0:{num_shards}, which is what the source has",
                setting or f"{split}_shards",
            )
        return [Shard(split, number) for number in range(first, stop)]


def _check_address(address):
    """Raises ExpectedError unless an http(s) address has a host, and a port that is a number."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port  # each may raise ValueError
        problem = None if host else "no host in it"
    except ValueError as error:
        problem = error
    if problem:
        raise ExpectedError(
            f"{address}: not a valid address ({problem}); expected a folder or http(s) address in "
            "the CVDF layout",
            "source",
        )
