"""Whatever tells files apart is varied one fact at a time: one forgotten would take up old files.

Where a file says what it was made of, or something is kept for the next time, each case below
changes one fact of a base, and must change the answer.
"""

import os
from types import SimpleNamespace

import numpy as np
import pytest

import model
from data.arrays import digest_of, digest_of_rows
from data.landmarks import ClassTable, TrainLabels
from data.sources import Shard, digest_of_shards
from descriptors import describe
from descriptors.describe import Describer
from descriptors.descriptions import Descriptions
from on_kaggle import packing
from on_kaggle.plan import Kernel
from recipes import Recipe
from search import parts
from search.gallery import Gallery
from search.naming import Namer
from search.parts import Expansion, WantedSearch
from shrinking.small_shards import Settings
from training import frozen
from training.loop import TrainImages

IDS, OTHER_IDS = np.array([3, 5], np.uint64), np.array([3, 6], np.uint64)
ROWS, OTHER_ROWS = np.eye(2, dtype=np.float32), -np.eye(2, dtype=np.float32)


class FakeSource:
    """A source of 4 shards a split, of which one may have another file."""

    def __init__(self, other=None, num_shards=4):
        self.other, self.num_shards = other, num_shards

    def version_of(self, shard):
        return "other" if shard.path == self.other else "first"

    def count_shards(self, split):
        return self.num_shards

    def select_shards(self, split):
        return [Shard(split, number) for number in range(self.num_shards)]


class Asking:
    """Stands for a session; notes the facts of each file that it is asked for."""

    def __init__(self, source):
        self.source, self.asked = source, []

    def find_fitting(self, name, facts, load, copied=False):
        self.asked.append(facts)
        return name, None


def changed(make, base, changes):
    """Parametrises: function, its arguments, and each change of one of them."""
    return [
        pytest.param(make, base, change, id=f"{make.__name__}-{'-'.join(change)}")
        for change in changes
    ]


# ------------------------------------------------------------------------------ what is described


def of_describer(monkeypatch, model_is, keep_aspect, images, shards, other, **settings):
    recogniser = SimpleNamespace(
        fingerprint=model_is, classifier=None, class_table=None, image_size=32,
        recipe=Recipe().changed(keep_aspect=keep_aspect),
    )  # fmt: skip
    monkeypatch.setattr(describe, "load_recogniser", lambda *args: recogniser)
    monkeypatch.setattr(model, "build_predictor", lambda *args: None)
    describer = Describer(None, "model.keras", **settings)
    return describer.fingerprint_for(FakeSource(other), shards, images)


DESCRIBED = {
    "model_is": "a", "keep_aspect": False, "images": IDS, "shards": [Shard("index", 0)],
    "other": None, "batch_size": 8, "flipped_too": False, "dtype": "float32",
}  # fmt: skip
OTHERS_DESCRIBED = [
    {"model_is": "b"}, {"keep_aspect": True}, {"images": OTHER_IDS}, {"batch_size": 4},
    {"shards": [Shard("index", 1)]}, {"other": "index/images_000.tar"}, {"flipped_too": True},
    {"dtype": "float16"},
]  # fmt: skip


def of_frozen(monkeypatch, weights, precision, images, shards, other, **settings):
    network = SimpleNamespace(output=np.empty((1, 2, 4)))
    monkeypatch.setattr(model, "build_pooled", lambda recipe: SimpleNamespace(weights=[weights]))
    monkeypatch.setattr(model, "build_views", lambda *args: network)
    monkeypatch.setattr(model, "to_numpy", np.asarray)
    monkeypatch.setattr(model, "precision", lambda: precision)
    describer = frozen.Describer(Recipe().changed(**settings), None)
    return describer.fingerprint_for(FakeSource(other), shards, images)


FROZEN = {
    "weights": 1.0, "precision": "float32", "images": IDS, "shards": [Shard("train", 0)],
    "other": None, "backbone": "resnet50", "pooling": "gem", "gem_p": 3.0, "image_size": 32,
    "keep_aspect": False, "augment": True,
}  # fmt: skip
OTHERS_FROZEN = [
    {"weights": 2.0}, {"precision": "mixed_float16"}, {"images": OTHER_IDS}, {"gem_p": 4.0},
    {"shards": [Shard("train", 1)]}, {"other": "train/images_000.tar"}, {"image_size": 48},
    {"backbone": "resnet101"}, {"pooling": "max"}, {"keep_aspect": True}, {"augment": False},
]  # fmt: skip


# ------------------------------------------------------------------------------- what is searched


def queries_of(ids, rows):
    n = len(ids)
    return Descriptions(
        ids, np.zeros(n, int), np.ones(n, np.float32), rows, np.zeros(n, np.int16),
        np.zeros((n, 2), int),
    )  # fmt: skip


def expansion_of(num_of_query, num_of_index, version):
    return Expansion(num_of_query, num_of_index, Gallery({"x": {"shards": version}}, IDS, IDS))


class FakeDescriber:
    def __init__(self, of_model):
        self.fingerprint = {"model": of_model}

    fingerprint_for = Describer.fingerprint_for


def of_part(monkeypatch, of_model, part, images, queries, other, **wanted):
    session = Asking(FakeSource(other))
    wanted = WantedSearch(**wanted)
    parts.search_part(session, FakeDescriber(of_model), wanted, queries, part, images)
    return session.asked


PART = {
    "of_model": "a", "part": 0, "images": IDS, "queries": queries_of(IDS, ROWS), "other": None,
    "num_parts": 2, "num_nearest": 10, "normalise": True, "rerank": "divide",
    "has_all_reranks": True, "namer": Namer(facts={"labels": "a"}),
    "expansion": expansion_of(2, 2, "v"),
}  # fmt: skip
OTHER_PARTS = [
    {"of_model": "b"}, {"part": 1}, {"images": OTHER_IDS}, {"num_parts": 3},
    {"queries": queries_of(OTHER_IDS, ROWS)}, {"other": "test/images_001.tar"},
    {"num_nearest": 11}, {"normalise": False}, {"rerank": "agreement"},
    {"has_all_reranks": False}, {"namer": Namer(facts={"labels": "b"})}, {"namer": Namer()},
    {"expansion": expansion_of(3, 2, "v")}, {"expansion": expansion_of(2, 3, "v")},
    {"expansion": expansion_of(2, 2, "w")}, {"expansion": None},
]  # fmt: skip


def of_index_shard(monkeypatch, other):
    return of_part(monkeypatch, **(PART | {"other": other}))


def of_expanded(monkeypatch, ids, rows, num_of_query, version):
    session = Asking(FakeSource())
    expansion = expansion_of(num_of_query, 0, version)
    parts.expand_queries(session, queries_of(ids, rows), expansion)
    return session.asked


EXPANDED = {"ids": IDS, "rows": ROWS, "num_of_query": 2, "version": "v"}
OTHERS_EXPANDED = [
    {"ids": OTHER_IDS}, {"rows": OTHER_ROWS}, {"num_of_query": 3}, {"version": "w"}
]  # fmt: skip


def of_gallery(
    monkeypatch, of_model, ids, rows, landmarks, classes, images, part, num_parts, other
):
    session, labels = Asking(FakeSource(other)), TrainLabels(images, np.array(classes, np.int32))
    known = ClassTable(np.array(landmarks)), labels
    describer, queries = FakeDescriber(of_model), queries_of(ids, rows)
    parts.search_gallery_part(session, describer, queries, known, part, num_parts)
    return session.asked[-1]


GALLERY = {
    "of_model": "a", "ids": IDS, "rows": ROWS, "landmarks": [17, 18], "classes": [0, 1],
    "images": IDS, "part": 0, "num_parts": 2, "other": None,
}  # fmt: skip
OTHER_GALLERIES = [
    {"of_model": "b"}, {"ids": OTHER_IDS}, {"rows": OTHER_ROWS}, {"landmarks": [17, 19]},
    {"classes": [1, 0]}, {"images": OTHER_IDS}, {"part": 1}, {"num_parts": 3},
    {"other": "train/images_001.tar"},
]  # fmt: skip


def of_queries(monkeypatch, of_model, images, other, num_shards):
    monkeypatch.setattr(parts, "read_image_ids", lambda path: images)
    source = FakeSource(other, num_shards)
    source.fetch = str
    session, found = Asking(source), queries_of(IDS, ROWS)
    session.path = lambda name: name
    answer = session.find_fitting
    session.find_fitting = lambda *args: answer(*args) and ("queries.npz", (found, []))
    parts.find_queries(session, FakeDescriber(of_model))
    return session.asked


QUERIES = {"of_model": "a", "images": IDS, "other": None, "num_shards": 2}
OTHER_QUERIES = [
    {"of_model": "b"}, {"images": OTHER_IDS}, {"other": "test/images_001.tar"}, {"num_shards": 3}
]  # fmt: skip


# ----------------------------------------------------------------------------------- other facts


def of_train_images(monkeypatch, landmarks, images, classes, numbers):
    labels = TrainLabels(images, np.array(classes, np.int32))
    shards = [Shard("train", number) for number in numbers]
    return TrainImages(ClassTable(np.array(landmarks)), labels, shards, []).fingerprint


TRAIN = {"landmarks": [17, 18], "images": IDS, "classes": [0, 1], "numbers": [0, 1]}
OTHERS_TRAIN = [
    {"landmarks": [17, 19]}, {"images": OTHER_IDS}, {"classes": [1, 0]}, {"numbers": [0, 2]}
]  # fmt: skip


def of_shrunk(monkeypatch, split, **settings):
    return Settings(**settings).page_of(Shard(split, 0))


SHRUNK = {
    "split": "train", "pixels": 256, "quality": 85, "kept": {"train": IDS}, "is_slice": False
}  # fmt: skip
OTHERS_SHRUNK = [
    {"split": "index"}, {"pixels": 255}, {"quality": 86}, {"kept": {"train": OTHER_IDS}},
    {"kept": {}}, {"is_slice": True},
]  # fmt: skip


def of_build(monkeypatch, version, max_hours, extra, **kernel):
    monkeypatch.setattr(packing, "find_modules", lambda *args: {})
    monkeypatch.setattr(packing, "source_version", lambda modules: version)
    monkeypatch.setattr(packing, "_metadata", lambda *args: {"code_file": "x.py"})
    written = []
    monkeypatch.setattr(packing, "_write", lambda path, text: written.append(text))
    args = SimpleNamespace(
        kernels="/nowhere",
        max_hours=max_hours,
        user="me",
        no_internet=False,
        dataset=[],
        model_source=[],
    )
    extra = dict.fromkeys(("nearest", "shrink"), extra)
    packing.write_kernels({"x": Kernel(title="A title", **kernel)}, extra, args)
    return next(line for text in written for line in text.splitlines() if '"build"' in line)


BUILD = {
    "version": "1", "max_hours": 7, "extra": [], "name": "x",
    "entry": "nearest", "arguments": ("a",), "result": "r", "inputs": (),
}  # fmt: skip
OTHER_BUILDS = [
    {"version": "2"}, {"max_hours": 6}, {"extra": ["b"]}, {"name": "y"}, {"entry": "shrink"},
    {"arguments": ("c",)}, {"result": "s"}, {"machine": "tpu"}, {"machine": "cpu"},
]  # fmt: skip


def of_modules(monkeypatch, path, content):
    return packing.source_version({"utils.py": b"", path: content})


def of_rows(monkeypatch, ids, rows):
    return digest_of_rows(ids, rows)


def of_shards(monkeypatch, other, numbers):
    return digest_of_shards(FakeSource(other), [Shard("train", number) for number in numbers])


CASES = [
    *changed(of_describer, DESCRIBED, OTHERS_DESCRIBED),
    *changed(of_frozen, FROZEN, OTHERS_FROZEN),
    *changed(of_part, PART, OTHER_PARTS),
    *changed(of_index_shard, {"other": None}, [{"other": "index/images_000.tar"}]),
    *changed(of_expanded, EXPANDED, OTHERS_EXPANDED),
    *changed(of_gallery, GALLERY, OTHER_GALLERIES),
    *changed(of_queries, QUERIES, OTHER_QUERIES),
    *changed(of_train_images, TRAIN, OTHERS_TRAIN),
    *changed(of_shrunk, SHRUNK, OTHERS_SHRUNK),
    *changed(of_build, BUILD, OTHER_BUILDS),
    *changed(
        of_modules, {"path": "a.py", "content": b"1"}, [{"path": "b.py"}, {"content": b"2"}]
    ),
    *changed(of_rows, {"ids": IDS, "rows": ROWS}, [{"ids": OTHER_IDS}, {"rows": OTHER_ROWS}]),
    *changed(of_shards, {"other": None, "numbers": [0, 1]},
             [{"other": "train/images_001.tar"}, {"numbers": [0, 2]}]),
]  # fmt: skip


@pytest.mark.parametrize(("make", "base", "change"), CASES)
def test_one_fact_that_differs_tells_files_apart(monkeypatch, make, base, change):
    assert make(monkeypatch, **base) == make(monkeypatch, **base)
    assert make(monkeypatch, **base) != make(monkeypatch, **(base | change))


def test_the_order_of_images_tells_no_sets_apart():
    assert digest_of(IDS[::-1]) == digest_of(IDS) != digest_of(OTHER_IDS)


@pytest.mark.parametrize("change", [{"batch_size": 4}, {"source": 2}, {"text": "ab"}, {"time": 2}])
def test_a_worker_opens_the_network_again_when_it_may_be_another(monkeypatch, tmp_path, change):
    monkeypatch.setattr(describe, "Describer", lambda *settings: list(settings))
    monkeypatch.setattr(describe, "_describers", {})
    path = tmp_path / "model.keras"

    def opened(batch_size=8, source=1, text="a", time=1):
        path.write_text(text)
        os.utime(path, (time, time))
        return describe.open_describer(source, path, batch_size)

    first = opened()
    assert opened() is first
    assert opened(**change) is not first
