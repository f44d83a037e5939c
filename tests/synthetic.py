"""Makes tiny seeded data sets in the CVDF layout: coloured shapes stand for landmarks.

The tars are built in memory, so that a test can put anything into them.
"""

import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from PIL import Image, ImageDraw

from data.sources import (
    CATEGORY_CSV,
    INDEX_CSV,
    RECOGNITION_SOLUTION,
    RETRIEVAL_SOLUTION,
    TEST_CSV,
    TRAIN_CLEAN_CSV,
    TRAIN_CSV,
    Shard,
)

SIZE = (48, 36)  # width and height of a picture, in pixels
# landmark id -> (colour, shape); out of order, as in train.csv
LANDMARKS = {
    90_001: ((220, 40, 40), "ellipse"),
    17: ((40, 200, 60), "rectangle"),
    203_093: ((50, 70, 230), "triangle"),
    402: ((230, 210, 40), "cross"),
}
RARE_LANDMARK = 5  # has NUM_RARE train pictures
NUM_RARE = 3


# ------------------------------------------------------------------------------------- pictures


def draw(landmark_id, rng):
    """Draws a picture of a landmark, or of nothing but noise for None, as a PIL image."""
    noise = rng.integers(60, 190, (SIZE[1] // 6, SIZE[0] // 6, 3), np.uint8)
    image = Image.fromarray(noise).resize(SIZE, Image.Resampling.BILINEAR)
    if landmark_id is None:
        return image
    colour, shape = LANDMARKS.get(landmark_id, ((150, 60, 200), "ellipse"))
    left, top = rng.integers(2, 16), rng.integers(2, 10)
    right, bottom = left + 28, top + 22
    pen = ImageDraw.Draw(image)
    if shape == "triangle":
        pen.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], colour)
    elif shape == "cross":
        pen.rectangle([left, top + 7, right, bottom - 7], colour)
        pen.rectangle([left + 9, top, right - 9, bottom], colour)
    else:
        getattr(pen, shape)([left, top, right, bottom], colour)
    return image


def encode(image, image_format="JPEG", **options):
    """Writes a PIL image as bytes of a format."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


# ----------------------------------------------------------------------------------------- tars


def make_image_id(*key):
    """Makes the 16 hex characters of an image id from anything that names the image."""
    return hashlib.sha256(repr(key).encode()).hexdigest()[:16]


def member_name(image_id):
    """Gives the name that an image has in its tar."""
    return "/".join([*image_id[:3], f"{image_id}.jpg"])


def entry(name, data=b"", **header):
    """Makes one entry of a tar; `header` sets any other field of its `tarfile.TarInfo`."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in header.items():
        setattr(info, field, value)
    return info, data


def pack(entries, tar_format=tarfile.USTAR_FORMAT):
    """Packs (TarInfo, data) pairs into the bytes of a tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_shard(folder, shard, data):
    """Writes the bytes of a shard and its md5 file; gives the tar's path."""
    path = Path(folder) / shard.path
    md5_path = Path(folder) / shard.md5_path
    path.parent.mkdir(parents=True, exist_ok=True)
    md5_path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    md5_path.write_text(f"{hashlib.md5(data).hexdigest()}  {path.name}\n")
    return path


# ----------------------------------------------------------------------------------- data sets


@dataclass(frozen=True)
class Synthetic:
    """What a test may want to know of a data set.

    Attributes:
        folder: where it is.
        image_ids: dict, `Shard` -> image ids (str) in the tar's order.
        landmark_of: dict, image id -> landmark id, or None for no landmark.
    """

    folder: Path
    image_ids: dict
    landmark_of: dict

    def of_split(self, split):
        """Lists the image ids of a split."""
        return [i for shard, ids in self.image_ids.items() if shard.split == split for i in ids]


def make_source(
    folder, seed=0, train_shards=4, per_train_shard=20, test_shards=2, extra=None, replaced=None
):
    """Writes a whole data set: tars, md5 files, metadata and ground truth.

    Args:
        folder: a new folder.
        seed: of ids, pictures and order.
        train_shards, test_shards: number of tars; the index has one.
        per_train_shard: images in a train tar; a multiple of 4 has as many of each landmark.
        extra: dict, `Shard` -> entries that its tar begins with.
        replaced: dict, (`Shard`, position) -> bytes in the place of that image's JPEG.

    Returns:
        `Synthetic`.
    """
    rng = np.random.default_rng(seed)
    known = list(LANDMARKS)
    labels = {}
    for number in range(train_shards):
        labels[Shard("train", number)] = [known[i % 4] for i in range(per_train_shard)]
    labels[Shard("train", train_shards - 1)] += [RARE_LANDMARK] * NUM_RARE
    labels[Shard("index", 0)] = [*known, *known, RARE_LANDMARK, None, None]
    for number in range(test_shards):
        labels[Shard("test", number)] = [*known, *known, None]
    image_ids, landmark_of = {}, {}
    for shard, landmark_ids in labels.items():
        entries, image_ids[shard] = list((extra or {}).get(shard, [])), []
        for position, place in enumerate(rng.permutation(len(landmark_ids))):
            image_id = make_image_id(seed, shard, position)
            jpeg = encode(draw(landmark_ids[place], rng), quality=90)
            data = (replaced or {}).get((shard, position), jpeg)
            entries.append(entry(member_name(image_id), data))
            image_ids[shard].append(image_id)
            landmark_of[image_id] = landmark_ids[place]
        write_shard(folder, shard, pack(entries))
    made = Synthetic(Path(folder), image_ids, landmark_of)
    _write_tables(made)
    return made


def _write_tables(made):
    train, index, test = (made.of_split(split) for split in ("train", "index", "test"))
    groups = {}
    for image_id in train:
        groups.setdefault(made.landmark_of[image_id], []).append(image_id)
    usages = {i: ("Private", "Public", "Private")[n % 3] for n, i in enumerate(test)}
    tables = {
        TRAIN_CSV: ["id,url,landmark_id"] + [f"{i},,{made.landmark_of[i]}" for i in train],
        TRAIN_CLEAN_CSV: ["landmark_id,images"] + [f"{k},{' '.join(v)}" for k, v in groups.items()],
        CATEGORY_CSV: ["landmark_id,category"] + [f"{k},http://x/Category:No_{k}" for k in groups],
        INDEX_CSV: ["id", *index],
        TEST_CSV: ["id", *test],
        RECOGNITION_SOLUTION: ["id,landmarks,Usage"],
        RETRIEVAL_SOLUTION: ["id,images,Usage"],
    }
    for image_id in test:
        landmark_id = made.landmark_of[image_id]
        found = [i for i in index if landmark_id is not None and made.landmark_of[i] == landmark_id]
        known = "" if landmark_id is None else landmark_id
        usage = usages[image_id]
        tables[RECOGNITION_SOLUTION].append(f"{image_id},{known},{usage}")
        row = f"{' '.join(found)},{usage}" if found else "None,Ignored"
        tables[RETRIEVAL_SOLUTION].append(f"{image_id},{row}")
    for name, lines in tables.items():
        path = made.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


def squared_distances(query, rows):
    """Sums the squared differences of one query (d,) and each row (n, d): (n,) float32.

    Each pair alone, by faiss' own sum in float32; checked against a sum in float64.
    """
    query, rows = query.astype(np.float32), rows.astype(np.float32)
    of_query = faiss.swig_ptr(query)
    squared = [faiss.fvec_L2sqr(of_query, faiss.swig_ptr(row), len(row)) for row in rows]
    difference = rows.astype(np.float64) - query
    np.testing.assert_allclose(squared, (difference**2).sum(axis=1), rtol=1e-6)
    return np.array(squared, np.float32)
