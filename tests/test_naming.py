"""Tests of who names landmarks: the head, the gallery, both; and what is told about it."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from checks import one_line
from test_gallery import describe

from data.arrays import digest_of_rows, save_table
from descriptors.descriptions import load_descriptions, unit_length
from runs.session import Session
from search.gallery import Gallery, find_neighbors
from search.gallery_parts import save_part
from search.naming import find_namer
from utils import ExpectedError

NETWORK = {"model": "abc", "flipped_too": False, "keeps_aspect": False}


@pytest.fixture
def session(tmp_path):
    """A session's output with the two parts of a gallery of 20 images of 3 landmarks."""
    rng = np.random.default_rng(2)
    vectors = unit_length(rng.normal(size=(30, 4)).astype(np.float32))
    (tmp_path / "descriptors").mkdir()
    described = describe(tmp_path / "queries.npz", np.arange(100, 110), vectors[20:])
    queries = replace(
        load_descriptions(described)[0],
        landmark_ids=np.arange(10) % 3,
        confidences=np.linspace(0, 1, 10, dtype=np.float32),
    )
    for part in range(2):
        name = f"descriptors/train_{part:03d}.npz"
        ids = np.arange(10 * part, 10 * part + 10, dtype=np.uint64)
        facts = NETWORK | {"descriptor_dtype": "float32", "shards": f"v{part}"}
        path = describe(tmp_path / name, ids, vectors[ids.astype(int)])
        save_table(path, load_descriptions(path)[0], facts)
        gallery = Gallery({path: None}, ids, (ids % 3).astype(np.int64))
        save_part(
            tmp_path / f"gallery-part-{part}-of-2.npz",
            {
                "part": part, "parts": 2, "labels": "l", "left_out": [],
                "queries": digest_of_rows(queries.image_ids, queries.descriptors),
                "described": NETWORK | {"descriptor_dtype": "float32"},
                "files": {name: f"v{part}"},
            },
            queries.image_ids, gallery, find_neighbors(gallery, queries.descriptors),
        )  # fmt: skip
    own = Session(tmp_path, source=None, stop=None)
    return SimpleNamespace(
        output=tmp_path, queries=queries, train=vectors[:20],
        find_all=own.find_all, find_fitting=own.find_fitting,
    )  # fmt: skip


def test_test_and_index_images_are_named_alike(session):
    """By the parts' neighbors and by a search of the gallery: the same images, the same names."""
    for named_by in ("head", "both"):
        namer = find_namer(session, NETWORK, session.queries, named_by)
        as_queries, as_index = namer.name(session.queries, True), namer.name(session.queries)
        np.testing.assert_array_equal(as_queries.labels, as_index.labels)
        np.testing.assert_array_equal(as_queries.weights, as_index.weights)


def test_the_gallery_names_by_brute_force(session):
    naming = find_namer(session, NETWORK, session.queries).name(session.queries, True)
    of_head = session.queries.landmark_ids, session.queries.confidences
    cosines = session.queries.descriptors.astype(float) @ session.train.astype(float).T
    for row, of_query in enumerate(cosines):
        nearest = np.argsort(-of_query)[:5]
        powers = np.maximum(of_query[nearest], 0) ** 8
        shares = np.bincount(nearest % 3, powers / powers.sum(), minlength=100)
        weights = 0.75 * of_query[nearest[0]] * shares
        weights[of_head[0][row]] += 0.25 * max(of_head[1][row], 0)
        assert naming.landmark_ids[row] == np.argmax(weights)
        assert naming.weights[row].max() == pytest.approx(weights.max())


def test_the_default_is_both_where_there_is_a_gallery_and_says_so(session, capsys):
    namer = find_namer(session, NETWORK, session.queries)
    assert namer.facts["named_by"] == "both"
    assert capsys.readouterr().err == (
        f"{session.output / 'gallery-part-0-of-2.npz'}: 20 train images name landmarks (both)\n"
    )


def test_without_a_gallery_the_head_names_and_that_is_said(session, capsys):
    for path in session.output.glob("gallery-part-*"):
        path.unlink()
    namer = find_namer(session, NETWORK, session.queries)
    assert (namer.gallery, namer.facts) == (None, None)
    assert "the head alone names landmarks" in capsys.readouterr().err
    with pytest.raises(ExpectedError) as caught:
        find_namer(session, NETWORK, session.queries, "both")
    assert one_line(caught.value) == (
        f"{session.output}: no gallery there; expected the parts of nearest.py; run that first, "
        "or take --names head"
    )


def test_the_head_is_not_asked_about_galleries(session, capsys):
    assert find_namer(session, NETWORK, session.queries, "head").gallery is None
    assert capsys.readouterr().err == ""


def not_whole(session):
    (session.output / "gallery-part-1-of-2.npz").unlink()


def without_descriptors(session):
    (session.output / "descriptors" / "train_001.npz").unlink()


def damaged(session):
    path = session.output / "gallery-part-1-of-2.npz"
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("spoil", [not_whole, without_descriptors, damaged])
def test_a_gallery_that_is_not_whole_does_not_name_and_the_reason_is_told(session, spoil, capsys):
    spoil(session)
    assert find_namer(session, NETWORK, session.queries).gallery is None
    assert ": not used\n" in capsys.readouterr().err
    with pytest.raises(ExpectedError):
        find_namer(session, NETWORK, session.queries, "both")


@pytest.mark.parametrize("key", NETWORK)
def test_a_gallery_of_another_network_does_not_name(session, key, capsys):
    assert find_namer(session, NETWORK | {key: "other"}, session.queries).gallery is None
    assert "of another model or other test images: not used" in capsys.readouterr().err


def test_a_gallery_of_other_queries_does_not_name(session, capsys):
    other = replace(session.queries, descriptors=-session.queries.descriptors)
    assert find_namer(session, NETWORK, other).gallery is None
    assert "other test images: not used" in capsys.readouterr().err


def test_of_two_galleries_the_one_that_fits_names(session):
    for part in range(2):
        path = session.output / f"gallery-part-{part}-of-2.npz"
        shutil.copy(path, session.output / f"gallery-part-{part}-of-1.npz")
    assert find_namer(session, NETWORK, session.queries).facts["named_by"] == "both"


def test_the_own_parts_of_a_gallery_go_before_those_of_other_kernels(session, tmp_path):
    own = session.find_all
    older = tmp_path / "older"
    older.mkdir()
    for path in session.output.glob("gallery-part-*"):
        shutil.copy(path, older)
    damaged(SimpleNamespace(output=older))
    session.find_all = lambda name: [*own(name), *sorted(older.glob(name))]
    assert find_namer(session, NETWORK, session.queries).facts["named_by"] == "both"


def test_another_gallery_has_other_facts(session):
    gallery = [["descriptors/train_000.npz", "v0"], ["descriptors/train_001.npz", "v1"]]
    facts = find_namer(session, NETWORK, session.queries).facts
    assert facts == {"named_by": "both", "labels": "l", "gallery": gallery}
