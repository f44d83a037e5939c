"""Tests of the recipes as data."""

import dataclasses
import json

import pytest

import recognition
from recipes import Data, Loss, Network, Recipe, Training


def test_the_default_is_the_recipe_of_2019():
    expected = {
        **{"train_shards": (10, 500), "labels": "full", "min_images": 20, "image_size": 192},
        **{"augment": True, "erase": 0, "geometry": 0, "keep_aspect": False},
        **{"backbone": "resnet50", "weights": "imagenet", "pooling": "max", "neck": 0},
        **{"loss": "softmax", "class_weights": False, "batch_size": 64, "epochs": 1},
        **{"optimizer": "adam", "learning_rate": 2e-4, "schedule": "steps", "warm_up": 0},
        **{"clip_norm": 0, "backbone_rate": 1, "frozen_share": 0, "bfloat16": False, "seed": 0},
    }
    settings = Recipe().settings()
    assert {name: settings[name] for name in expected} == expected


def test_a_page_from_before_there_were_three_sets_of_labels_is_understood():
    assert Recipe.of({"clean": True}).data.labels == "clean"
    assert Recipe.of({"clean": False}).data.labels == "full"


def test_a_setting_has_one_name_in_all_groups():
    names = [
        field.name
        for group in (Data, Network, Loss, Training)
        for field in dataclasses.fields(group)
    ]
    assert len(names) == len(set(names)) == len(Recipe().settings())


def test_a_recipe_survives_its_page():
    recipe = Recipe(
        Data(train_shards=(0, 3), labels="clean"),
        Network(weights="none"),
        training=Training(seed=5),
    )
    assert Recipe.of(json.loads(json.dumps(recipe.as_page()))) == recipe


def test_what_a_page_lacks_is_as_in_2019_and_what_is_unknown_is_left_alone():
    assert Recipe.of({"epochs": 3, "of_a_later_version": 1}) == Recipe(training=Training(epochs=3))


def test_the_command_line_takes_every_setting_and_its_defaults_are_those_of_2019():
    args = vars(recognition.make_parser().parse_args([]))
    assert Recipe.of(args) == Recipe()
    assert Recipe().settings().keys() <= args.keys()
    flags = [
        "--image-size",
        "64",
        "--train-shards",
        "2:5",
        "--no-augment",
        "--backbone",
        "resnet101",
    ]
    changed = Recipe.of(vars(recognition.make_parser().parse_args(flags))).settings()
    assert {name for name, value in changed.items() if value != Recipe().settings()[name]} == {
        "image_size", "train_shards", "augment", "backbone",
    }  # fmt: skip


@pytest.mark.parametrize("flag", ["--erase", "--geometry"])
@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan"])
def test_a_share_is_a_number_from_0_to_1(flag, value, capsys):
    with pytest.raises(SystemExit):
        recognition.make_parser().parse_args([f"{flag}={value}"])
    assert "expected a number from 0 to 1;" in capsys.readouterr().err
