"""Tests of the recipes as data."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

import recognition
from recipes import RECIPES, Data, Loss, Network, Recipe, Training, find_given_up, learning_rate_at

ROOT = Path(__file__).parent.parent


def test_the_default_is_the_recipe_of_2019():
    expected = {
        **{"train_shards": (10, 500), "labels": "full", "min_images": 20, "image_size": 192},
        **{"augment": True, "erase": 0, "geometry": 0, "keep_aspect": False},
        **{"backbone": "resnet50", "weights": "imagenet", "pooling": "max", "neck": 0},
        **{"loss": "softmax", "class_weights": False, "batch_size": 64, "epochs": 1},
        **{"optimizer": "adam", "learning_rate": 2e-4, "schedule": "steps", "warm_up": 0},
        **{"backbone_rate": 1, "frozen_share": 0, "bfloat16": False, "seed": 0},
    }
    settings = Recipe().settings()
    assert {name: settings[name] for name in expected} == expected


def test_a_page_from_before_there_were_three_sets_of_labels_is_understood():
    assert Recipe.of({"clean": True}).data.labels == "clean"
    assert Recipe.of({"clean": False}).data.labels == "full"


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ({"training": {"clip_norm": 1.0}}, "clip_norm"),
        ({"gem_learnt": True, "pooling": "gem"}, "gem_learnt"),
        ({"loss": {"loss": "arcface", "confidence": "softmax"}}, "confidence"),
        ({"loss": {"loss": "arcface", "confidence": "cosine"}}, ""),
        ({"loss": {"loss": "softmax", "confidence": "softmax"}}, ""),
        ({"training": {"clip_norm": 0.0}, "network": {"gem_learnt": False}}, ""),
        (RECIPES["strong"].as_page(), ""),
    ],
)
def test_a_setting_of_before_is_named_where_it_shaped_the_run(page, name):
    assert find_given_up(page) == name


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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": "2"}, "epochs is '2', no int"),
        ({"epochs": 2.0}, "epochs is 2.0, no int"),
        ({"epochs": True}, "epochs is True, no int"),
        ({"training": {"epochs": None}}, "epochs is None, no int"),
        ({"learning_rate": "0.1"}, "learning_rate is '0.1', no float"),
        ({"augment": 1}, "augment is 1, no bool"),
        ({"optimizer": ["adam"]}, r"optimizer is \('adam',\), no str"),
        ({"train_shards": 3}, "train_shards is 3, no tuple"),
        ({"network": {"weights": {}}}, "weights is {}, no str"),
        ({"epochs": ["x" * 1000]}, r"epochs is \('x{38}, no int"),
        ("adam", "'adam', no table of settings"),
        ([1, 2], r"\[1, 2\], no table of settings"),
        (None, "None, no table of settings"),
    ],
)
def test_a_value_of_another_type_is_refused(values, message):
    with pytest.raises(ValueError, match=f"^recipe: {message}$"):
        Recipe.of(values)


def test_a_whole_number_is_taken_where_any_number_may_be():
    assert Recipe.of({"learning_rate": 1}).training.learning_rate == 1


# ------------------------------------------------------------------------------- learning rates


def rates_of(training, *positions):
    """Gives the learning rates of (mini-epoch, share of it) pairs of a run of 10 mini-epochs."""
    return [learning_rate_at(training, *position, 10) for position in positions]


def test_the_rate_grows_in_proportion_and_falls_as_a_cosine_to_0():
    training = Training(learning_rate=2.0, schedule="cosine", warm_up=0.2)
    found = rates_of(training, (0, 0.0), (0, 0.5), (1, 0.0), (1, 0.5), (2, 0.0))
    assert found == pytest.approx([0, 0.5, 1.0, 1.5, 2.0])
    # A quarter, a half, three quarters and all of the other 8: 1 + cos(45, 90, 135, 180 degrees)
    found = rates_of(training, (4, 0.0), (6, 0.0), (8, 0.0), (9, 1.0))
    assert found == pytest.approx([1.707107, 1.0, 0.292893, 0], abs=1e-6)


def test_without_a_warm_up_a_cosine_begins_at_the_highest_rate():
    training = Training(learning_rate=2.0, schedule="cosine")
    assert rates_of(training, (0, 0.0), (5, 0.0), (9, 1.0)) == pytest.approx([2, 1, 0])


def test_a_warm_up_as_long_as_the_run_ends_at_the_highest_rate():
    training = Training(learning_rate=2.0, schedule="cosine", warm_up=1.0)
    assert rates_of(training, (0, 0.0), (5, 0.0), (9, 1.0)) == pytest.approx([0, 1, 2])


def test_the_steps_follow_a_warm_up():
    training = Training(learning_rate=2.0, warm_up=0.05)
    assert rates_of(training, (0, 0.25), (0, 0.75), (4, 0.1)) == pytest.approx([1, 2, 1])


def test_the_steps_of_2019_do_not_look_at_where_in_a_mini_epoch_a_step_is():
    for mini_epoch, rate in enumerate([2, 2, 2, 2, 1, 1, 1, 0.4, 0.2, 0.2]):
        positions = [(mini_epoch, share) for share in (0.0, 0.3, 1.0)]
        assert rates_of(Training(learning_rate=2.0), *positions) == [rate] * 3


# ------------------------------------------------------------------------------ docs/recipes.md

PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


def test_the_page_of_the_recipes_lists_every_setting_once_in_its_group():
    for group in (Data, Network, Loss, Training):
        section = PAGE.partition(f"\n## Settings: {group.__name__.lower()}\n")[2]
        listed = re.findall(r"^\| `(\w+)` \|", section.partition("\n## ")[0], re.MULTILINE)
        assert listed == [field.name for field in dataclasses.fields(group)]


def test_the_page_of_the_recipes_tells_the_values_of_2019():
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", PAGE, re.MULTILINE))
    for name, value in Recipe().settings().items():
        if name == "train_shards":
            expected = "10:500"
        elif isinstance(value, bool):
            expected = "on" if value else "off"
        else:
            expected = f"{value:f}".rstrip("0").rstrip(".") if type(value) is float else str(value)
        assert told[name] == expected, name


# ResNet50 without top; of them the means and variances of its normalisations.
BACKBONE_WEIGHTS, NOT_TRAINED = 23_587_712, 53_120


@pytest.mark.parametrize("landmarks", [55_180, 81_313])
@pytest.mark.parametrize(
    ("told", "neck", "sub_centers"),
    [("2048, softmax", 0, 1), ("neck of 512, cosines", 512, 1),
     ("neck of 512, 3 sub-centers", 512, 3)],
)  # fmt: skip
def test_the_sizes_on_the_page_are_those_of_the_layers(landmarks, told, neck, sub_centers):
    if neck:
        trained = 2048 * neck + 2 * neck + neck * landmarks * sub_centers
        others = 2 * neck + 1  # the normalisation's, and the margin's share
    else:
        trained, others = 2048 * landmarks + landmarks, 0
    trained += BACKBONE_WEIGHTS - NOT_TRAINED
    weights = trained + others + NOT_TRAINED
    sizes = [4 * weights / 1e9, (4 * weights + 8 * trained) / 1e9, 4 * (weights + trained) / 1e9]
    cells = f"{weights / 1e6:.1f} M | " + " | ".join(f"{size:.3f}" for size in sizes)
    assert re.search(rf"^\| {landmarks:,} \| {told}[^|]* \| {cells} \|$", PAGE, re.MULTILINE)


def test_the_sizes_of_descriptors_on_the_page_are_those_of_their_values():
    rows = re.findall(r"^\| ([\d,]+) \w+ images?[^|]* \| (\d.*) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 5
    for count, cells in rows:
        sizes = [d * size for d in (2048, 512) for size in (4, 2)]
        expected = [f"{int(count.replace(',', '')) * size / 1e9:.2f}" for size in sizes]
        assert cells.split(" | ") == expected


def test_every_recipe_is_on_the_page():
    header = re.search(r"^\| \| (.*) \|$", PAGE, re.MULTILINE)[1].split(" | ")
    assert header[: len(RECIPES)] == list(RECIPES)
