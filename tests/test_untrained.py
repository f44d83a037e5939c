"""Tests of what a network scores before its training: as the scripts score that network's file."""

import pytest

import model
import recognition
import retrieval
from data.sources import Source
from descriptors.describe import Describer
from metrics import format_scores
from report.untrained import score_untrained
from runs.session import Session
from utils import Stop

pytestmark = pytest.mark.usefixtures("tiny_models")


def test_the_network_before_training_scores_as_its_own_file_by_both_scripts(
    data_set, recognition_run, tmp_path, capsys
):
    source = Source(str(data_set.folder), tmp_path / "scratch")
    describer = Describer(source, recognition_run.output / "model.keras", 8)
    scores = score_untrained(Session(recognition_run.output, source, Stop()), describer)

    file, recipe = tmp_path / "untrained.keras", describer.recipe
    model.set_up_keras(recipe.training.seed)
    network = model.build_network(recipe, len(describer.class_table), 1)
    model.save_recogniser(network, file, describer.class_table, recipe)
    capsys.readouterr()
    asked = ["--source", str(data_set.folder), "--output", str(tmp_path / "output")]
    recognition.main(["predict", *asked, "--model", str(file), "--batch-size", "8"])
    retrieval.main([*asked, "--model", str(file), "--rerank", "none", "--batch-size", "8"])
    printed = capsys.readouterr().out.splitlines()
    assert format_scores("GAP", scores["GAP"]) in printed
    assert format_scores("mAP@100", scores["mAP@100"]) in printed


def test_a_network_that_began_with_weights_from_elsewhere_has_no_such_scores(
    data_set, recognition_run, tmp_path
):
    source = Source(str(data_set.folder), tmp_path / "scratch")
    describer = Describer(source, recognition_run.output / "model.keras", 8)
    describer.recipe = describer.recipe.changed(weights="imagenet")
    assert score_untrained(Session(recognition_run.output, source, Stop()), describer) == {}
