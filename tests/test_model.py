"""Tests of the networks and their files. All but one are too small to be worth training."""

import io
import json
import os
import re
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from checks import one_line
from tiny_network import in_place_of_backbones

import model
from data.landmarks import ClassTable
from model import (
    Recogniser,
    build_classifier,
    build_network,
    build_predictor,
    compile_network,
    load_model,
    load_recogniser,
    save_model,
    save_recogniser,
    set_up_keras,
)
from recipes import Loss, Recipe, Training, learning_rate_at
from utils import ExpectedError

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
CLASSES = np.arange(8, dtype=np.int32) % 4
PAGE = {"landmark_ids": [5, 17, 402, 90_001]}


def recipe_of(backbone, **settings):
    common = {"weights": "none", "image_size": 32, "backbone": backbone}
    return Recipe.of(common | settings)


def tiny_network(num_steps=100, seed=0, name="mobilenet_v2"):
    """A compiled network of 4 classes; needs the fixture `tiny_backbones`."""
    keras.utils.set_random_seed(seed)
    recipe = recipe_of(name, learning_rate=0.01)
    network = build_network(recipe, 4, num_steps)
    compile_network(network, recipe, np.ones(4, int))
    return network


def arrays(variables):
    return [variable.numpy() for variable in variables]


def assert_same_arrays(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


# ------------------------------------------------------------------------------- learning rate

STEPS_OF_2 = Training(learning_rate=2.0)
# mini-epochs in a run -> the mini-epochs (from 0) that begin and end each step, and its factor
SCHEDULES = {
    1: [(0, 0, 1.0)],
    2: [(0, 0, 1.0), (1, 1, 0.2)],
    3: [(0, 0, 1.0), (1, 1, 0.5), (2, 2, 0.1)],
    10: [(0, 3, 1.0), (4, 6, 0.5), (7, 7, 0.2), (8, 9, 0.1)],
    100: [(0, 34, 1.0), (35, 69, 0.5), (70, 79, 0.2), (80, 99, 0.1)],
    490: [(0, 171, 1.0), (172, 342, 0.5), (343, 391, 0.2), (392, 489, 0.1)],
}


@pytest.mark.parametrize(("num_mini_epochs", "steps"), SCHEDULES.items())
def test_the_learning_rate_falls_in_steps_at_shares_of_the_run(num_mini_epochs, steps):
    for begin, end, factor in steps:
        assert learning_rate_at(STEPS_OF_2, begin, 0.5, num_mini_epochs) == 2.0 * factor
        assert learning_rate_at(STEPS_OF_2, end, 0.5, num_mini_epochs) == 2.0 * factor
    assert steps[-1][1] == num_mini_epochs - 1


def test_the_learning_rate_never_rises():
    for num_mini_epochs in range(1, 60):
        rates = [
            learning_rate_at(STEPS_OF_2, i, 0.5, num_mini_epochs)
            for i in range(num_mini_epochs + 2)
        ]
        assert rates == sorted(rates, reverse=True)
        assert rates[-1] == 0.2


# ------------------------------------------------------------------------------------ networks


def test_a_network_goes_from_bytes_of_pixels_to_a_logit_for_each_landmark(tiny_backbones):
    network = tiny_network()
    assert network.input.shape == (None, 32, 32, 3)
    assert network.input.dtype == "uint8"
    assert network.output.shape == (None, 4)
    assert network.get_layer("descriptor").output.shape == (None, 16)


def test_the_first_loss_is_that_of_knowing_nothing(tiny_backbones):
    loss, _ = tiny_network().test_on_batch(IMAGES, CLASSES)
    assert loss == pytest.approx(np.log(4), abs=0.1)


def test_the_same_seed_builds_the_same_network(tiny_backbones):
    def weights(seed):
        assert set_up_keras(seed) == "float32"
        return build_network(recipe_of("resnet50"), 4, 100).get_weights()

    first = weights(3)
    assert_same_arrays(first, weights(3))
    assert not np.array_equal(first[0], weights(4)[0])


@pytest.mark.parametrize(("num_steps", "momentum"), [(10, 0.9), (1000, 0.98), (100_000, 0.99)])
def test_batch_normalisation_forgets_its_first_statistics_within_a_short_run(
    tiny_backbones, num_steps, momentum
):
    layer = tiny_network(num_steps).get_layer("tiny_1_bn")  # Keras' own momentum is 0.99
    assert layer.momentum == pytest.approx(momentum)


def test_the_softmax_stays_in_float32_under_mixed_precision(tiny_backbones, float32_afterwards):
    keras.config.set_dtype_policy("mixed_float16")
    network = build_network(recipe_of("resnet50"), 4, 100)
    classifier = build_classifier(network, Loss())
    predictor = build_predictor(classifier, flipped_too=True)
    assert network.get_layer("tiny_1_conv").compute_dtype == "float16"
    assert network.get_layer("logits").compute_dtype == "float32"
    assert network.output.dtype == classifier.output.dtype == "float32"
    assert [output.dtype for output in predictor.output] == ["int32", "float32", "float32"]
    probabilities = classifier.predict_on_batch(IMAGES)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [
        ("average", lambda patches: patches.mean(axis=1)),
        ("max", lambda patches: patches.max(axis=1)),
        ("gem", lambda patches: np.cbrt((patches**3).mean(axis=1))),
        ("token", lambda patches: np.full((8, 6), 9.0)),
    ],
    ids=["average", "max", "gem", "token"],
)
def test_a_vision_transformer_is_pooled_over_its_patches_or_by_its_first_token(
    pooling, pool, monkeypatch, tmp_path
):
    def build(name, images, *others):  # 5 tokens, then 2 x 2 patches
        pixels = keras.ops.cast(images, "float32") / 255
        patches = keras.layers.Conv2D(6, 16, 16, activation="relu", name="patches")(pixels)
        tokens = keras.layers.Reshape((4, 6), name="tokens")(patches)
        return keras.ops.pad(tokens, [[0, 0], [5, 0], [0, 0]], constant_values=9.0)

    monkeypatch.setattr(model.backbones, "build", build)
    network = build_network(recipe_of("hub:dinov2_with_registers_tiny", pooling=pooling), 4, 100)
    save_model(build_classifier(network, Loss()), tmp_path / "model.keras", PAGE)
    classifier = load_recogniser(tmp_path / "model.keras").classifier
    patches = keras.Model(network.input, network.get_layer("tokens").output)
    expected = pool(patches.predict_on_batch(IMAGES))
    found = build_predictor(classifier).predict_on_batch(IMAGES)[2]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_neck_forgets_its_first_statistics_as_the_backbone_does(tiny_backbones):
    network = build_network(recipe_of("resnet50", neck=8), 4, 10)
    assert [network.get_layer(name).momentum for name in ("tiny_1_bn", "neck_norm")] == [0.9, 0.9]


def test_a_layer_within_the_backbone_is_not_the_heads_whatever_its_name():
    vectors = keras.Input((4,))
    inner = keras.Model(vectors, keras.layers.Dense(4, name="logits")(vectors), name="backbone")
    network = keras.Model(vectors, keras.layers.Dense(4, name="logits")(inner(vectors)))
    settings = {"backbone_rate": 0.0, "learning_rate": 0.1}
    compile_network(network, Recipe.of(settings), np.ones(4, int))
    before = network.get_weights()
    network.train_on_batch(np.ones((8, 4), np.float32), CLASSES)
    is_equal = [np.array_equal(*pair) for pair in zip(before, network.get_weights(), strict=True)]
    assert is_equal == [True, True, False, False]


# ----------------------------------------------------------------------------------- predictor


@pytest.fixture(scope="module")
def classifier():
    """A tiny classifier whose answers differ between images and from the mirrored ones."""
    with in_place_of_backbones():
        network = tiny_network()
    for _ in range(5):
        network.train_on_batch(IMAGES, CLASSES)
    return build_classifier(network, Loss())


def test_the_predictor_gives_the_best_class_its_probability_and_the_pooled_layer(classifier):
    best, confidences, descriptors = build_predictor(classifier).predict_on_batch(IMAGES)
    probabilities = classifier.predict_on_batch(IMAGES)
    pooled = keras.Model(classifier.input, classifier.get_layer("descriptor").output)
    assert len(set(best.tolist())) > 1
    assert (best.dtype, confidences.dtype, descriptors.dtype) == ("int32", "float32", "float32")
    assert best.tolist() == probabilities.argmax(axis=1).tolist()
    np.testing.assert_allclose(confidences, probabilities.max(axis=1), rtol=1e-6)
    np.testing.assert_allclose(descriptors, pooled.predict_on_batch(IMAGES), rtol=1e-6)
    features = classifier.get_layer("tiny_2_relu").output
    maxima = keras.Model(classifier.input, features).predict_on_batch(IMAGES).max(axis=(1, 2))
    np.testing.assert_allclose(descriptors, maxima, rtol=1e-6)


def test_flipped_too_averages_with_the_mirrored_image(classifier):
    best, confidences, descriptors = build_predictor(classifier, True).predict_on_batch(IMAGES)
    mirrored = IMAGES[:, :, ::-1]
    probabilities = (
        classifier.predict_on_batch(IMAGES) + classifier.predict_on_batch(mirrored)
    ) / 2
    plain = build_predictor(classifier)
    expected = (plain.predict_on_batch(IMAGES)[2] + plain.predict_on_batch(mirrored)[2]) / 2
    assert best.tolist() == probabilities.argmax(axis=1).tolist()
    np.testing.assert_allclose(confidences, probabilities.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(descriptors, expected, rtol=1e-5)
    assert not np.allclose(descriptors, plain.predict_on_batch(IMAGES)[2])


# --------------------------------------------------------------------------------------- files


@pytest.fixture
def model_file(classifier, tmp_path):
    """A whole model.keras in a folder of its own."""
    path = tmp_path / "model.keras"
    save_model(classifier, path, PAGE)
    return path


def test_a_recogniser_knows_its_landmarks_and_its_image_size(classifier, model_file):
    recogniser = load_recogniser(model_file)
    assert isinstance(recogniser, Recogniser)
    assert recogniser.class_table.landmark_ids.tolist() == PAGE["landmark_ids"]
    assert recogniser.class_table.landmark_ids.dtype == np.int64
    assert recogniser.image_size == 32
    assert re.fullmatch("[0-9a-f]{32}", recogniser.fingerprint)
    expected = classifier.predict_on_batch(IMAGES)
    np.testing.assert_array_equal(recogniser.classifier.predict_on_batch(IMAGES), expected)


def test_saving_leaves_nothing_beside_the_file(model_file):
    assert [path.name for path in model_file.parent.iterdir()] == ["model.keras"]


def test_keras_alone_opens_a_model_without_our_code(tiny_backbones, tmp_path):
    classifier = build_classifier(tiny_network(name="resnet50"), Loss())
    save_model(classifier, tmp_path / "model.keras", PAGE)
    np.save(tmp_path / "images.npy", IMAGES)
    program = (
        "import keras, numpy as np\n"
        "model = keras.models.load_model('model.keras')\n"
        "np.save('probabilities.npy', model.predict_on_batch(np.load('images.npy')))\n"
    )
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=clean, check=True)
    np.testing.assert_allclose(
        np.load(tmp_path / "probabilities.npy"), classifier.predict_on_batch(IMAGES), rtol=1e-5
    )


def test_keras_opens_a_strong_model_once_our_layers_are_imported(tiny_backbones, tmp_path):
    settings = {"pooling": "gem", "neck": 8, "sub_centers": 2}
    recipe = recipe_of("resnet50", loss="arcface", **settings)
    save_model(
        build_classifier(build_network(recipe, 4, 100), recipe.loss), tmp_path / "model.keras", PAGE
    )
    expected = load_recogniser(tmp_path / "model.keras").classifier.predict_on_batch(IMAGES)
    np.save(tmp_path / "images.npy", IMAGES)
    program = (
        f"import sys; sys.path.insert(0, {os.path.dirname(model.__file__)!r})\n"
        "import keras, numpy as np, network.layers\n"
        "model = keras.models.load_model('model.keras')\n"
        "np.save('probabilities.npy', model.predict_on_batch(np.load('images.npy')))\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "probabilities.npy"), expected, rtol=1e-5)


def zip_of(members, path):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path.read_bytes()


def with_page(data, path, page):
    """Gives a model's bytes another page of facts, or none for None."""
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    del members[model.LANDMARKS_MEMBER]
    return zip_of(members if page is None else members | {model.LANDMARKS_MEMBER: page}, path)


def with_other_config(data, path, old, new):
    """Changes the network's description in a model's bytes."""
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert old in members["config.json"]
    return zip_of(members | {"config.json": members["config.json"].replace(old, new)}, path)


def with_damage(data, path):
    """Changes a byte of the weights, in the middle of the file."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


NOT_WHOLE = r".+; expected a whole \.keras file; take another copy, or train again"
NO_TABLE = r"no class table in it; expected a model written by recognition\.py, .+; check --model"

WRONG_FILES = {
    "empty": (lambda data, path: b"", NOT_WHOLE),
    "cut in half": (lambda data, path: data[: len(data) // 2], NOT_WHOLE),
    "cut by a byte": (lambda data, path: data[:-1], NOT_WHOLE),
    "damaged": (with_damage, NOT_WHOLE),
    "text": (lambda data, path: b"not a model\n", NOT_WHOLE),
    "without a class table": (lambda data, path: with_page(data, path, None), NO_TABLE),
    "a class table cut short": (
        lambda data, path: with_page(data, path, '{"landmark_ids": [1, 2'),
        NOT_WHOLE,
    ),
    "a class table of another size": (
        lambda data, path: with_page(data, path, '{"landmark_ids": [1, 2, 3]}'),
        r"4 outputs; expected 3, one for each of the landmarks in the file; take the model of this "
        r"source, or train again",
    ),
    "a network of layers that Keras does not know": (
        lambda data, path: with_other_config(data, path, b'"ReLU"', b'"ReLV"'),
        NOT_WHOLE,
    ),
    "a page without landmarks": (lambda data, path: with_page(data, path, "{}"), NO_TABLE),
    "a class table and no network": (
        lambda data, path: zip_of({model.LANDMARKS_MEMBER: json.dumps(PAGE)}, path),
        NOT_WHOLE,
    ),
}


@pytest.mark.parametrize(("damage", "message"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_file_that_is_no_whole_model_is_refused_in_one_line(model_file, damage, message):
    path = model_file.with_name("wrong.keras")
    path.write_bytes(damage(model_file.read_bytes(), path))
    with pytest.raises(ExpectedError) as caught:
        load_recogniser(path)
    assert re.fullmatch(f"{re.escape(str(path))}: {message}", one_line(caught.value)), caught.value


@pytest.mark.parametrize("name", ["nothing.keras", "."])
def test_a_model_that_is_not_there_is_refused_in_one_line(tmp_path, name):
    with pytest.raises(ExpectedError) as caught:
        load_recogniser(tmp_path / name)
    assert one_line(caught.value) == (
        f"{tmp_path / name}: no such file; expected a model written by recognition.py; "
        "check --model"
    )


WRONG_TABLES = {
    '["a"]': 'has "a"',
    "null": "has null",
    "[1, null]": "has null",
    '"12"': 'has "12"',
    '{"1": 2}': 'has {"1": 2}',
    "[1180591620717411303424]": "has 1180591620717411303424",
    "[9223372036854775808]": "has 9223372036854775808",
    "[1.5, 2, 3, 4]": "has 1.5",
    "[true]": "has true",
    "[1, 2, 3, -1]": "has -1",
    "[[1, 2], [3, 4]]": r"has \[1, 2\]",
    "[1, 2, 3, 1]": "names a landmark twice",
}


@pytest.mark.parametrize(("table", "told"), WRONG_TABLES.items(), ids=WRONG_TABLES)
def test_a_class_table_of_anything_but_landmark_ids_is_refused(model_file, table, told):
    page = f'{{"landmark_ids": {table}}}'
    model_file.write_bytes(with_page(model_file.read_bytes(), model_file, page))
    with pytest.raises(ExpectedError, match=f"its class table {told}; expected landmark ids from"):
        load_model(model_file)


@pytest.mark.parametrize("page", ["[]", "null", "3", '"landmark_ids"', '["landmark_ids"]'])
def test_a_page_that_is_no_table_is_refused(model_file, page):
    model_file.write_bytes(with_page(model_file.read_bytes(), model_file, page))
    with pytest.raises(ExpectedError) as caught:
        load_model(model_file)
    assert re.fullmatch(f"{re.escape(str(model_file))}: {NO_TABLE}", one_line(caught.value))


ODD_RECIPES = {
    "3": "3, no table of settings",
    "null": "None, no table of settings",
    '["arcface"]': "['arcface'], no table of settings",
    '{"epochs": "two"}': "epochs is 'two', no int",
    '{"data": {"keep_aspect": 1}}': "keep_aspect is 1, no bool",
    '{"loss": {"scale": "16"}}': "scale is '16', no float",
}


@pytest.mark.parametrize(("recipe", "told"), ODD_RECIPES.items(), ids=ODD_RECIPES)
def test_a_page_of_an_odd_recipe_is_refused_in_one_line(model_file, recipe, told):
    page = f'{{"landmark_ids": [5, 17, 402, 90001], "recipe": {recipe}}}'
    model_file.write_bytes(with_page(model_file.read_bytes(), model_file, page))
    with pytest.raises(ExpectedError) as caught:
        load_recogniser(model_file)
    assert one_line(caught.value) == (
        f"{model_file}: recipe: {told}; expected a model written by recognition.py; check --model"
    )


def test_a_model_of_keras_hub_without_keras_hub_is_refused_in_one_line(model_file, monkeypatch):
    data = with_other_config(
        model_file.read_bytes(), model_file, b'"keras.layers"', b'"keras_hub.layers"'
    )
    model_file.write_bytes(data)
    monkeypatch.setitem(sys.modules, "keras_hub", None)  # as if it were not installed
    with pytest.raises(ExpectedError) as caught:
        load_recogniser(model_file)
    assert one_line(caught.value) == (
        f"{model_file}: import of keras_hub halted; None in sys.modules; expected the optional "
        "package keras-hub (requirements-hub.txt), whose layers this model has; install it, or "
        "take another model; check --model"
    )


# ---------------------------------------------------------------- files of other versions of Keras


STRONG = recipe_of("resnet50", pooling="gem", neck=8, loss="arcface")


@pytest.fixture
def strong_file(tiny_backbones, tmp_path):
    """A model.keras with its recipe, and what it says of IMAGES."""
    keras.utils.set_random_seed(1)
    network = build_network(STRONG, 4, 100)
    path = tmp_path / "model.keras"
    save_recogniser(network, path, ClassTable(np.array(PAGE["landmark_ids"])), STRONG)
    return path, network.predict_on_batch(IMAGES)


def by_another_keras(path, version="3.99.0"):
    """Changes a file as if a later version had written it, with an option that this one refuses."""
    data = with_other_config(path.read_bytes(), path, b'"filters"', b'"option": 1, "filters"')
    path.write_bytes(data)
    written = json.dumps({"keras_version": version, "date_saved": ""})
    path.write_bytes(with_member(path, "metadata.json", written))


def with_member(path, name, content):
    with zipfile.ZipFile(path) as archive:
        members = {one: archive.read(one) for one in archive.namelist()}
    return zip_of(members | {name: content}, path)


def test_a_recipes_network_opens_whatever_the_version_that_described_it(strong_file):
    path, expected = strong_file
    by_another_keras(path)
    with pytest.raises(TypeError, match="option"):
        keras.models.load_model(path)
    classifier = load_recogniser(path).classifier
    np.testing.assert_array_equal(classifier.predict_on_batch(IMAGES), expected)


def test_another_network_of_another_version_is_refused_with_both_and_the_cause(model_file):
    by_another_keras(model_file)
    with pytest.raises(ExpectedError) as caught:
        load_recogniser(model_file)
    assert re.fullmatch(
        rf"{re.escape(str(model_file))}: .*'option'.* \(written by Keras 3\.99\.0, read by "
        rf"{re.escape(keras.__version__)}\); expected a whole \.keras file; open it with Keras "
        r"3\.99\.0, take another copy, or train again",
        one_line(caught.value),
    )


def test_our_layers_are_found_by_their_names_wherever_their_module_lies(strong_file):
    path, expected = strong_file
    config = json.loads(zipfile.ZipFile(path).read("config.json"))
    modules = {one["module"] for one in config["config"]["layers"]} - {"keras.layers"}
    (module,) = [one for one in modules if one and not one.startswith("keras")]
    old, new = f'"module": "{module}"'.encode(), b'"module": "moved.away"'
    path.write_bytes(with_other_config(path.read_bytes(), path, old, new))
    loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(loaded.predict_on_batch(IMAGES), expected)


def drop(file):
    del file["layers/dense/vars/0"]


def link(file):
    file["elsewhere"] = file["layers/dense/vars/0"][()]
    drop(file)
    file["layers/dense/vars/0"] = h5py.SoftLink("/elsewhere")


def point_outside(file):
    drop(file)
    file.create_dataset(
        "layers/dense/vars/0", (16, 8), "float32", external=[("/etc/passwd", 0, 512)]
    )


def reshape(file):
    drop(file)
    file["layers/dense/vars/0"] = np.zeros((16, 9), np.float32)


def add(file):
    file["layers/dense_1/vars/0"] = np.zeros((3, 2), np.float32)


WRONG_WEIGHTS = {
    "missing": (drop, r"dense/vars/0 is missing in the file, and has the shape \(16, 8\) in the"),
    "elsewhere": (link, "dense/vars/0 is missing in the file, and has the shape .*"),
    "another file": (point_outside, "dense/vars/0 is no array of numbers in this file"),
    "shape": (reshape, r"dense/vars/0 has the shape \(16, 9\) in the file, and has the shape .*"),
    "extra": (add, r"dense_1/vars/0 has the shape \(3, 2\) in the file, and is missing in the"),
}


@pytest.mark.parametrize(("change", "told"), WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
def test_weights_that_are_not_the_recipes_are_told_by_their_path(strong_file, change, told):
    path, _ = strong_file
    weights = io.BytesIO(zipfile.ZipFile(path).read("model.weights.h5"))
    with h5py.File(weights, "r+") as file:
        change(file)
    path.write_bytes(with_member(path, "model.weights.h5", weights.getvalue()))
    with pytest.raises(
        ExpectedError, match=f"^{re.escape(str(path))}: weight (elsewhere|layers/{told})"
    ):
        load_recogniser(path)


def test_a_preset_that_a_file_only_names_is_not_looked_for(model_file, monkeypatch):
    recipe = recipe_of("hub:dinov2_tiny").as_page()
    page = json.dumps(PAGE | {"recipe": recipe, "backbone": ""})
    model_file.write_bytes(with_page(model_file.read_bytes(), model_file, page))
    monkeypatch.setattr(model.backbones, "build", lambda *args: pytest.fail("looked for"))
    load_recogniser(model_file)


def test_a_file_is_opened_in_the_precision_of_the_machine(strong_file, monkeypatch):
    monkeypatch.setattr(model, "precision_here", lambda _: "mixed_float16")
    classifier = load_recogniser(strong_file[0]).classifier
    assert classifier.get_layer("tiny_1_conv").compute_dtype == "float16"
    assert model.precision() == "float32"


def test_a_fingerprint_is_of_the_weights_and_not_of_a_seed_of_random_numbers():
    def fingerprint(seed):
        images = keras.Input((32, 32, 3))
        network = keras.Model(images, keras.layers.Dropout(0.5, seed=seed)(images))
        return Recogniser(network, ClassTable(np.arange(3))).fingerprint

    assert fingerprint(1) == fingerprint(2)


def pooled(images, **options):
    return keras.layers.GlobalAveragePooling2D(**options)(images)


def of_shape(*shape):
    images = keras.Input(shape)
    return keras.Model(images, keras.layers.Dense(4)(pooled(images)))


def two_outputs():
    images = keras.Input((32, 32, 3))
    return keras.Model(images, [keras.layers.Dense(4)(pooled(images)) for _ in range(2)])


def two_inputs():
    images = [keras.Input((32, 32, 3)) for _ in range(2)]
    return keras.Model(images, keras.layers.Dense(4)(pooled(images[0] + images[1])))


def ending_in(layer, **options):
    images = keras.Input((32, 32, 3))
    return keras.Model(images, layer(pooled(images, **options)))


def flat():
    images = keras.Input((8, 8, 3))
    return keras.Model(images, keras.layers.Dense(4)(keras.layers.Flatten()(images)))


def sequential():
    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalMaxPooling2D()])


OTHER_NETWORKS = {
    "images of the shape (None, None, 3)": lambda: of_shape(None, None, 3),
    "images of the shape (32, 16, 3)": lambda: of_shape(32, 16, 3),
    "images of the shape (32, 32, 1)": lambda: of_shape(32, 32, 1),
    "a network of 1 inputs and 2 outputs": two_outputs,
    "a network of 2 inputs and 1 outputs": two_inputs,
    "outputs of the shape (3, 1)": lambda: ending_in(keras.layers.Reshape((3, 1))),
    "without a layer that describes": flat,
    "without a layer that describes the image": lambda: ending_in(
        keras.layers.Flatten(), keepdims=True
    ),
    "a Sequential network": sequential,
}


@pytest.mark.parametrize(("told", "make"), OTHER_NETWORKS.items(), ids=OTHER_NETWORKS)
def test_a_network_that_is_no_recogniser_is_refused(tmp_path, told, make):
    save_model(make(), tmp_path / "model.keras", PAGE)
    with pytest.raises(ExpectedError) as caught:
        load_recogniser(tmp_path / "model.keras")
    message = one_line(caught.value)
    assert told in message
    assert message.endswith("written by recognition.py; check --model")


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_model_that_carries_code_is_never_loaded(tmp_path, name):
    network = ending_in(keras.layers.Lambda(lambda values: values * 2))
    if name == "model.keras":
        save_model(network, tmp_path / name, PAGE)
    else:
        network.save(tmp_path / name)
    with pytest.raises(ExpectedError) as caught:
        load_recogniser(tmp_path / name, lambda: pytest.fail("loaded"))
    assert one_line(caught.value) == (
        f"{tmp_path / name}: it carries code (a Lambda layer or the like), so it is never loaded; "
        "expected nothing but Keras' own layers; take another model, or train one"
    )


def test_half_of_the_hdf5_file_of_2019_is_refused_in_one_line(tmp_path):
    path = tmp_path / "2019.model"
    with h5py.File(path, "w") as file:
        file["weights"] = np.zeros(1000)
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(ExpectedError) as caught:
        load_recogniser(path, lambda: pytest.fail("loaded"))
    message = one_line(caught.value)
    assert message.startswith(f"{path}: cannot be read (")
    assert "truncated file" in message
    assert message.endswith("; expected a whole model saved by Keras 2; take another copy")


def test_a_model_that_would_fill_the_memory_is_refused_unread(model_file, monkeypatch):
    with zipfile.ZipFile(model_file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1 << 20))
    load_model(model_file)
    monkeypatch.setattr("data.arrays.MAX_COMPRESSED_BYTES", 1 << 16)
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda archive: pytest.fail("read"))
    with pytest.raises(
        ExpectedError, match=r"0\.\d MB that claim to hold 1\.\d MB; expected a whole"
    ):
        load_model(model_file)


@pytest.mark.slow
def test_a_random_resnet50_starts_its_blocks_as_the_identity_and_survives_its_file(tmp_path):
    keras.utils.set_random_seed(0)
    network = build_network(recipe_of("resnet50"), 4, 100)
    last_of_blocks = [layer for layer in network.layers if layer.name.endswith("_3_bn")]
    assert len(last_of_blocks) == 3 + 4 + 6 + 3
    assert all(np.all(layer.gamma.numpy() == 0) for layer in last_of_blocks)
    others = [
        layer
        for layer in network.layers
        if isinstance(layer, keras.layers.BatchNormalization) and layer not in last_of_blocks
    ]
    assert all(np.all(layer.gamma.numpy() == 1) for layer in others)
    classifier = build_classifier(network, Loss())
    save_model(classifier, tmp_path / "model.keras", PAGE)
    recogniser = load_recogniser(tmp_path / "model.keras")
    best, confidences, descriptors = build_predictor(recogniser.classifier).predict_on_batch(IMAGES)
    assert descriptors.shape == (8, 2048)
    probabilities = classifier.predict_on_batch(IMAGES)
    assert best.tolist() == probabilities.argmax(axis=1).tolist()
    np.testing.assert_allclose(confidences, probabilities.max(axis=1), rtol=1e-5)
