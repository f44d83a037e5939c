"""What one takes along opens with Keras alone, says the same, and tells where it comes from."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checks import one_line
from PIL import Image

import identify
import model
from network import layers
from network.plain import without_own_layers
from runs.session import Session
from utils import ExpectedError

DATA = Path(__file__).parent / "data"
pytestmark = pytest.mark.usefixtures("tiny_models")


@pytest.mark.parametrize("recipe", ["2019", "strong", "frozen"])
def test_the_twin_has_keras_own_layers_and_the_same_outputs(recipe):
    classifier = model.load_recogniser(DATA / recipe / "model.keras").classifier
    twin = without_own_layers(classifier)
    assert all(type(layer).__module__.startswith("keras.") for layer in twin.layers)
    images = np.random.default_rng(0).integers(0, 256, (3, *classifier.input.shape[1:]), np.uint8)
    expected = classifier.predict_on_batch(images)
    np.testing.assert_allclose(twin.predict_on_batch(images), expected, atol=1e-5)


def test_learnt_powers_and_sub_centers_stay():
    images = model.keras.Input((4, 4, 3))
    pooled = layers.GeM(2.5, learnt=True)(images)
    network = model.keras.Model(images, layers.CosineHead(5, sub_centers=3)(pooled))
    network.layers[1].exponent.assign(4.0)
    features = np.random.default_rng(0).random((2, 4, 4, 3), np.float32)
    twin = without_own_layers(network)
    np.testing.assert_allclose(
        twin.predict_on_batch(features), network.predict_on_batch(features), atol=1e-6
    )


def test_the_folder_works_where_nothing_of_this_project_is(recognition_run, tmp_path, monkeypatch):
    folder = tmp_path / "taken"
    monkeypatch.chdir(tmp_path)
    identify.main(["--take-away", str(folder), "--output", str(recognition_run.output)])
    settings = json.loads((folder / "settings.json").read_text())
    with open(folder / "landmarks.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert settings["image_size"] == 32 and len(rows) > 1
    card = (folder / "README.md").read_text()
    assert f"# A recogniser of {len(rows)} landmarks" in card and "- GAP: Public" in card
    assert str(tmp_path) not in card and "under which licence" in card
    settings["threshold"] = None
    (folder / "settings.json").write_text(json.dumps(settings))
    Image.new("RGB", (50, 40), (200, 100, 0)).save(tmp_path / "photo.png")
    done = subprocess.run(
        [sys.executable, "-I", "name_photo.py", str(tmp_path / "photo.png")],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    name, _, confidence = done.stdout.strip().rpartition(" ")
    assert name in [row["name"] for row in rows] and 0 <= float(confidence) <= 1
    assert len((folder / "name_photo.py").read_text().splitlines()) <= 13


def test_the_card_has_no_scores_of_an_earlier_model(recognition_run, tmp_path):
    facts = json.loads((recognition_run.output / "report.json").read_text())
    shutil.copy(recognition_run.output / "model.keras", tmp_path)
    facts["recognition"]["model"] = "of an earlier run"
    (tmp_path / "report.json").write_text(json.dumps(facts))
    identify.main(["--take-away", str(tmp_path / "taken"), "--output", str(tmp_path)])
    assert "Nobody measured any." in (tmp_path / "taken" / "README.md").read_text()


def test_a_folder_with_something_else_is_not_written_into(tmp_path):
    path = tmp_path / "model.keras"  # the output itself, say: the twin would replace the model
    path.write_bytes((DATA / "2019" / "model.keras").read_bytes())
    with pytest.raises(ExpectedError) as caught:
        identify.main(["--take-away", str(tmp_path), "--output", str(tmp_path)])
    assert "expected a new folder, or an earlier one of this kind" in one_line(caught.value)
    assert path.read_bytes() == (DATA / "2019" / "model.keras").read_bytes()


def test_a_photo_beside_the_folder_is_wrong_use(capsys):
    with pytest.raises(SystemExit) as caught:
        identify.parse_arguments(["a.jpg", "--take-away", "folder"])
    assert caught.value.code == 2 and "--take-away goes without a PHOTO" in capsys.readouterr().err


@pytest.mark.parametrize("keep_aspect", [True, False])
def test_pictures_are_fitted_there_as_the_recipe_says(tmp_path, monkeypatch, keep_aspect):
    from report import take_away

    path = DATA / "2019" / "model.keras"
    recogniser = model.load_recogniser(path)
    recipe = recogniser.recipe.changed(keep_aspect=keep_aspect)
    changed = model.Recogniser(recogniser.classifier, recogniser.class_table, recipe)
    monkeypatch.setattr(take_away, "load_recogniser", lambda path: changed)
    take_away.write_take_away(Session(tmp_path, source=None, stop=None), path, tmp_path / "taken")
    settings = json.loads((tmp_path / "taken" / "settings.json").read_text())
    assert settings["keep_aspect"] is keep_aspect


def test_a_backbone_of_keras_hub_is_refused(tmp_path, monkeypatch):
    from report import take_away

    recogniser = model.load_recogniser(DATA / "2019" / "model.keras")
    recipe = recogniser.recipe.changed(backbone="hub:dinov2_small")
    changed = model.Recogniser(recogniser.classifier, recogniser.class_table, recipe)
    monkeypatch.setattr(take_away, "load_recogniser", lambda path: changed)
    with pytest.raises(ExpectedError) as caught:
        take_away.write_take_away(None, DATA / "2019" / "model.keras", tmp_path)
    assert "its backbone is of keras-hub" in one_line(caught.value)
