"""Files of an earlier version still open, and say what they said: see data/README.md."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from synthetic import make_source
from test_training import images_of, session_at
from tiny_network import in_place_of_backbones

import model
from data.arrays import load_arrays
from descriptors.descriptions import load_queries
from model import load_recogniser
from recipes import Recipe
from runs.session import features_name
from search.merging import load_parts
from training import checkpoints, loop
from utils import ExpectedError

DATA = Path(__file__).parent / "data"
RUNS = ("2019", "strong", "frozen")
EXPECTED = dict(np.load(DATA / "expected.npz"))


@pytest.fixture(autouse=True)
def tiny_where_it_was(request):
    """Puts the tiny network where it was, too, when the files were written."""
    if "mobilenet" in request.node.name:
        yield
        return
    with in_place_of_backbones():
        yield


@pytest.mark.parametrize("name", [*RUNS, "mobilenet"])
def test_an_old_model_opens_and_says_what_it_said(name):
    path = DATA / name / "model.keras" if name in RUNS else DATA / f"{name}.keras"
    recogniser = load_recogniser(path)
    predictor = model.build_predictor(recogniser.classifier)
    _, confidences, descriptors = predictor.predict_on_batch(EXPECTED["images"])
    np.testing.assert_allclose(confidences, EXPECTED[f"{name}_confidences"], rtol=1e-4)
    np.testing.assert_allclose(descriptors, EXPECTED[f"{name}_descriptors"], rtol=1e-4, atol=1e-6)
    # Parts and queries of this model are told by it.
    assert recogniser.fingerprint == EXPECTED[f"{name}_fingerprint"]


@pytest.mark.parametrize("name", RUNS)
def test_old_queries_and_parts_are_of_the_old_model(name):
    queries, of_queries = load_queries(DATA / name / "queries.npz")
    parts, of_parts = load_parts(sorted((DATA / name).glob("part-*-of-2.npz")))
    assert len(queries) == 18 and len(parts) == 2
    assert of_queries["model"] == of_parts["model"] == EXPECTED[f"{name}_fingerprint"]


def test_an_old_run_with_a_setting_that_is_none_now_is_refused(tmp_path):
    page = load_arrays(DATA / "strong" / "checkpoint" / "training.npz")[1]
    session = session_at(DATA / "strong", make_source(tmp_path / "source").folder)
    recipe = Recipe.of(page["recipe"])
    with pytest.raises(ExpectedError, match="was begun with gem_learnt, which is no setting now"):
        checkpoints.find_checkpoint(session, recipe, images_of(session.source, recipe))


def test_an_old_run_goes_on_from_its_checkpoint(tmp_path):
    source = make_source(tmp_path / "source").folder
    recipe = Recipe.of(load_arrays(DATA / "2019" / "checkpoint" / "training.npz")[1]["recipe"])
    session = session_at(DATA / "2019", source)
    images = images_of(session.source, recipe)
    build = partial(model.build_network, recipe, len(images.class_table), 10)
    network, rows = loop.begin(session, recipe, images, build)
    assert len(rows) == 3
    classifier = model.build_classifier(network, recipe.loss)
    digest = model.digest_of_variables(classifier.variables, images.class_table.fingerprint)
    assert digest == EXPECTED["2019_fingerprint"]  # the weights of model.keras


def test_an_old_run_on_a_frozen_backbone_goes_on_from_its_checkpoint_and_vectors(tmp_path):
    page = load_arrays(DATA / "frozen" / "checkpoint" / "training.npz")[1]
    recipe = Recipe.of(page["recipe"])
    session = session_at(DATA / "frozen", make_source(tmp_path / "source").folder)
    images = images_of(session.source, recipe)

    def build(restored):
        return model.build_head(recipe, 16, len(images.class_table), 10)

    head, rows = loop.begin(session, recipe, images, build, page["backbone"])
    assert len(rows) == 3
    trained = load_recogniser(DATA / "frozen" / "model.keras").classifier
    for layer in head.layers[1:]:
        for ours, theirs in zip(layer.weights, trained.get_layer(layer.name).weights, strict=True):
            np.testing.assert_array_equal(model.to_numpy(ours), model.to_numpy(theirs))
    shard = images.shards[0]
    features, _ = load_arrays(session.path(features_name(shard)))
    assert features["vectors"].shape == (20, 2, 16)
