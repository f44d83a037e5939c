"""Tests of the backbones. Only the smallest are built; a vision transformer is tiny or absent."""

import re
import shutil
import sys
import warnings

import keras
import numpy as np
import pytest
from checks import one_line
from tiny_network import build_tiny, in_place_of_backbones

from data.landmarks import ClassTable
from model import build_classifier, build_network, load_recogniser, save_model, save_recogniser
from network import backbones, heads
from network.backbones import build, check, count_prefix_tokens
from recipes import BACKBONES, Loss, Recipe
from utils import ExpectedError, file_md5

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
PIXELS = IMAGES.astype(np.float32)


def image_input(image_size=32):
    return keras.Input((image_size, image_size, 3), dtype="uint8", name="images")


def error_of(name, image_size=32, weights="none"):
    """Gives the line that refuses to build a backbone."""
    with pytest.raises(ExpectedError) as caught:
        build(name, image_input(image_size), str(weights))
    return one_line(caught.value)


# ------------------------------------------------------------------------------------ the table


@pytest.mark.parametrize("name", BACKBONES)
def test_every_name_is_of_a_function_of_keras_and_of_pixels_that_we_know(name):
    assert callable(backbones.find_builder(name))
    assert BACKBONES[name].pixels in backbones.PIXELS
    assert BACKBONES[name].builder.lower().replace("_", "") == name.replace("_", "")


@pytest.mark.parametrize("name", ["xception", "inception_v3", "inception_resnet_v2", "resnet50"])
def test_images_that_are_too_small_are_refused(name):
    least = BACKBONES[name].least
    assert error_of(name, least - 1) == (
        f"backbone {name}: images of {least - 1} pixels; expected at least {least}; "
        "change --image-size"
    )
    check(name, least, "none")


def test_an_unknown_backbone_is_refused():
    line = error_of("alexnet")
    assert line.startswith("backbone alexnet: unknown; expected one of resnet50, resnet101, ")
    assert line.endswith("or hub:PRESET; change --backbone")


# --------------------------------------------------------------------------------------- pixels


def pixels_seen(monkeypatch, name):
    """Gives the pixels that a function of keras.applications gets for IMAGES, and its options."""
    calls = []

    def build_spy(include_top, weights, input_tensor, include_preprocessing=True):
        calls.append((input_tensor, include_preprocessing))
        return build_tiny(include_top, weights, input_tensor)

    monkeypatch.setattr(backbones, "find_builder", lambda name: build_spy)
    image_size = BACKBONES[name].least
    images = image_input(image_size)
    build(name, images, "none")
    ((pixels, include_preprocessing),) = calls
    assert pixels.dtype == "float32"
    padded = np.resize(IMAGES, (2, image_size, image_size, 3))
    return padded, keras.Model(images, pixels).predict_on_batch(padded), include_preprocessing


OWN_PREPROCESSING = {
    "resnet50": keras.applications.resnet,
    "resnet101": keras.applications.resnet,
    "resnet152": keras.applications.resnet,
    "resnet50_v2": keras.applications.resnet_v2,
    "resnet101_v2": keras.applications.resnet_v2,
    "resnet152_v2": keras.applications.resnet_v2,
    "densenet121": keras.applications.densenet,
    "densenet169": keras.applications.densenet,
    "densenet201": keras.applications.densenet,
    "mobilenet_v2": keras.applications.mobilenet_v2,
    "xception": keras.applications.xception,
    "inception_v3": keras.applications.inception_v3,
    "inception_resnet_v2": keras.applications.inception_resnet_v2,
}


@pytest.mark.parametrize(("name", "family"), OWN_PREPROCESSING.items(), ids=OWN_PREPROCESSING)
def test_a_backbone_sees_the_pixels_that_its_family_asks_for(monkeypatch, name, family):
    images, seen, _ = pixels_seen(monkeypatch, name)
    expected = family.preprocess_input(images.astype(np.float32))
    np.testing.assert_allclose(seen, expected, atol=1e-4)


def test_a_resnet_sees_blue_green_red_less_the_mean_of_imagenet(monkeypatch):
    _, seen, _ = pixels_seen(monkeypatch, "resnet50")
    red, green, blue = IMAGES[0, 0, 0].tolist()
    by_hand = [blue - 103.939, green - 116.779, red - 123.68]
    np.testing.assert_allclose(seen[0, 0, 0], by_hand, atol=1e-4)


def test_a_mobilenet_sees_red_green_blue_from_minus_one_to_one(monkeypatch):
    _, seen, _ = pixels_seen(monkeypatch, "mobilenet_v2")
    np.testing.assert_allclose(seen[0, 0, 0], IMAGES[0, 0, 0] / 127.5 - 1, atol=1e-6)


class FirstLayerReached(Exception):  # noqa: N818 - it is no error
    """Carries what comes to the first layer with weights, so that no more is built."""


class FirstLayer:
    """Stands for a layer or a Sequential, and stops the building where it is called."""

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, pixels):
        raise FirstLayerReached(pixels)


def pixels_that_keras_would_make(monkeypatch, name):
    """Gives what the builder's own preprocessing makes of RGB 0..255, by its first layer."""
    images = keras.Input((32, 32, 3))
    first = "src.layers.Conv2D"
    if name.startswith("convnext"):
        first = "src.applications.convnext.Sequential"
    with monkeypatch.context() as patch, pytest.raises(FirstLayerReached) as caught:
        patch.setattr(f"keras.{first}", FirstLayer)
        backbones.find_builder(name)(include_top=False, weights=None, input_tensor=images)
    return keras.Model(images, caught.value.args[0]).predict_on_batch(PIXELS)


WITH_PREPROCESSING_INSIDE = [
    name for name in BACKBONES if name.startswith(("efficientnet_v2", "convnext", "mobilenet_v3"))
]


@pytest.mark.parametrize("name", WITH_PREPROCESSING_INSIDE)
def test_we_preprocess_in_place_of_keras_exactly_once(monkeypatch, name):
    expected = pixels_that_keras_would_make(monkeypatch, name)
    _, seen, include_preprocessing = pixels_seen(monkeypatch, name)
    assert not include_preprocessing
    np.testing.assert_allclose(seen, expected, atol=2e-5)
    assert np.abs(expected).max() < 3


def test_an_efficientnet_gets_bytes_since_its_own_layers_scale_them(monkeypatch):
    names = [name for name in BACKBONES if BACKBONES[name].pixels == "included"]
    assert names == [f"efficientnet_b{number}" for number in range(8)]
    for name in names:
        _, seen, _ = pixels_seen(monkeypatch, name)
        np.testing.assert_array_equal(seen, PIXELS)


def test_the_weights_of_an_efficientnet_see_the_same_pixels_from_a_file_as_from_keras():
    """Keras' weights hold the deviation as the variance, and a last layer mends that."""
    images = image_input()
    scaled = keras.layers.Rescaling(1 / 255)(backbones.preprocess(images, "included, from a file"))
    mean, deviation = zip(*backbones.IMAGENET, strict=True)
    stored = keras.layers.Normalization(mean=mean, variance=deviation)
    seen = keras.Model(images, stored(scaled)).predict_on_batch(IMAGES)
    expected = keras.applications.densenet.preprocess_input(PIXELS.copy())  # mean and deviation
    np.testing.assert_allclose(seen, expected, atol=1e-5)


def test_an_efficientnet_scales_a_file_of_weights_by_the_layer_that_keras_leaves_out(tmp_path):
    path = tmp_path / "b0.weights.h5"
    builder = backbones.find_builder("efficientnet_b0")
    builder(include_top=False, weights=None, input_shape=(32, 32, 3)).save_weights(path)
    # As it does for weights that follow from a checkpoint or model file, and began as ImageNet's.
    for weights, restored in ((str(path), None), (str(path), ""), ("imagenet", "")):
        images = image_input()
        network = keras.Model(images, build("efficientnet_b0", images, weights, restored))
        rescalings = [one for one in network.layers if isinstance(one, keras.layers.Rescaling)]
        assert np.shape(rescalings[0].scale) == (3,)
        assert [one.scale for one in rescalings[1:]] == [1 / 255]


def test_a_network_whose_weights_follow_needs_no_file_of_first_weights(tiny_backbones):
    build("resnet50", image_input(), "/nowhere/resnet50.h5", restored="")


def test_preprocessing_stays_in_float32_under_mixed_precision(monkeypatch, float32_afterwards):
    keras.config.set_dtype_policy("mixed_float16")
    for name in ("resnet50", "efficientnet_b0", "convnext_tiny", "densenet121"):
        pixels_seen(monkeypatch, name)  # checks the type


# ------------------------------------------------------------------------------------- features


def test_a_convolutional_backbone_gives_rows_columns_and_channels(tiny_backbones):
    assert build("densenet121", image_input(64), "none").shape == (None, 16, 16, 16)
    assert count_prefix_tokens("densenet121") == 0


def test_a_seed_gives_the_layers_and_first_weights_of_keras_itself():
    keras.utils.set_random_seed(5)
    images = image_input()
    ours = keras.Model(images, build("mobilenet_v2", images, "none"))
    keras.utils.set_random_seed(5)
    theirs = keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=(32, 32, 3)
    )
    layers = [[layer.name for layer in one.layers if layer.weights] for one in (ours, theirs)]
    assert layers[0] == layers[1]
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_tiny"])
def test_a_network_of_layers_of_its_own_survives_its_file(name, tmp_path):
    recipe = Recipe.of({"backbone": name, "weights": "none", "image_size": 32})
    classifier = build_classifier(build_network(recipe, 4, 100), Loss())
    save_model(classifier, tmp_path / "model.keras", {"landmark_ids": [1, 2, 3, 4]})
    again = load_recogniser(tmp_path / "model.keras").classifier
    expected = classifier.predict_on_batch(IMAGES)
    np.testing.assert_allclose(again.predict_on_batch(IMAGES), expected, rtol=1e-5)


# -------------------------------------------------------------------------------- first weights


@pytest.mark.parametrize("name", ["nothing.weights.h5", "."])
def test_weights_that_are_not_there_are_refused(tmp_path, name):
    assert error_of("mobilenet_v2", weights=tmp_path / name) == (
        f"weights {tmp_path / name}: no such file; expected imagenet, none, or a file of weights; "
        "change --weights"
    )


def test_the_weights_of_keras_2_are_refused_by_their_md5(tmp_path, monkeypatch):
    path = tmp_path / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    path.write_bytes(b"the Keras 2 file")
    monkeypatch.setattr(backbones, "file_md5", lambda path: "a268eb855778b3df3c7506639542a6af")
    assert error_of("resnet50", weights=path) == (
        f"weights {path}: this is the ResNet50 file of Keras 2.2.4; expected Keras 3's "
        "(md5 4d473c1d...), whose layers differ; change --weights"
    )


def save_tiny_weights(path):
    images = keras.Input((32, 32, 3))
    build_tiny(False, None, images).save_weights(path)


WRONG_WEIGHTS = {
    "text": ("x.weights.h5", lambda path: path.write_text("not weights")),
    "empty": ("x.weights.h5", lambda path: path.touch()),
    "of another network": ("x.weights.h5", save_tiny_weights),
    "of an unknown kind": ("x.npz", lambda path: path.write_bytes(b"PK")),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "write"), WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
def test_a_file_that_holds_no_fitting_weights_is_refused(tmp_path, name, write, capsys):
    write(tmp_path / name)
    assert re.fullmatch(
        rf"weights {re.escape(str(tmp_path / name))}: .+; expected weights without top of this "
        "backbone, or none for random ones; change --weights",
        error_of("mobilenet_v2", weights=tmp_path / name),
    )
    md5 = file_md5(tmp_path / name)
    assert f"weights: {tmp_path / name}, md5 {md5} (not a file we know)" in capsys.readouterr().err


def test_weights_that_do_not_fit_are_told_of_once(tmp_path):
    save_tiny_weights(tmp_path / "x.weights.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        line = error_of("mobilenet_v2", weights=tmp_path / "x.weights.h5")
    assert "could not be loaded" in line


@pytest.mark.filterwarnings("ignore:.input_shape. is undefined")
def test_a_download_of_weights_that_fails_is_an_error_of_one_line(monkeypatch):
    def refuse(*args, **kwargs):
        raise Exception("URL fetch failure on https://x: None -- no network\nmore lines")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", refuse)
    assert error_of("mobilenet_v2", weights="imagenet") == (
        "weights imagenet: URL fetch failure on https://x: None -- no network; expected weights "
        "without top of this backbone, or none for random ones; change --weights"
    )


def test_a_file_of_weights_is_loaded_into_the_backbone(tmp_path):
    path = tmp_path / "mobilenet.weights.h5"
    theirs = keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=(32, 32, 3)
    )
    theirs.save_weights(path)
    images = image_input()
    ours = keras.Model(images, build("mobilenet_v2", images, str(path)))
    assert len(ours.get_weights()) > 100
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


# ------------------------------------------------------------------- keras-hub: by name, without it


@pytest.fixture
def any_hub(monkeypatch):
    """Lets the checks go on where keras-hub is not installed."""
    monkeypatch.setitem(sys.modules, "keras_hub", object())


PREFIX_TOKENS = {
    "hub:dinov2_base": 1,
    "hub:dinov2_with_registers_base": 5,
    "hub:dinov3_vit_small_lvd1689m": 5,
    "hub:vit_base_patch16_224_imagenet": 1,
    "hub:siglip2_base_patch16_224": 1,
    "hub:hf://facebook/dinov2-with-registers-base": 5,
    "hub:kaggle://keras/dinov2/keras/dinov2_with_registers_base/1": 5,
    "hub:/kaggle/input/dinov2/keras/dinov2_base/1": 1,
}


@pytest.mark.parametrize(("name", "number"), PREFIX_TOKENS.items(), ids=str)
def test_the_tokens_before_the_patches_are_known_by_the_preset(name, number):
    assert count_prefix_tokens(name) == number


@pytest.mark.parametrize("preset", ["resnet_50_imagenet", "/tmp/mine", "clip_vit_base_patch16"])
def test_a_preset_of_another_family_is_refused(preset):
    assert error_of(f"hub:{preset}", 224) == (
        f"backbone hub:{preset}: unknown; expected a preset of keras-hub, or a folder that holds "
        "one, whose name begins with one of dinov2_with_registers, dinov2, dinov3, siglip, vit; "
        "change --backbone"
    )


WRONG_SIZES = {
    "dinov2_base": (192, "a multiple of its patches of 14"),
    "dinov3_vit_base_lvd1689m": (200, "a multiple of its patches of 16"),
    "vit_base_patch16_224_imagenet": (192, "224, the preset's own size"),
    "siglip_so400m_patch14_384": (224, "384, the preset's own size"),
}


@pytest.mark.parametrize("preset", WRONG_SIZES)
def test_images_that_patches_do_not_fill_are_refused_before_keras_hub_is_loaded(preset):
    image_size, expected = WRONG_SIZES[preset]
    assert error_of(f"hub:{preset}", image_size) == (
        f"backbone hub:{preset}: images of {image_size} pixels; expected {expected}; "
        "change --image-size"
    )


@pytest.mark.parametrize(
    ("preset", "image_size"),
    [("dinov2_base", 224), ("dinov3_vit_base_lvd1689m", 192), ("siglip_so400m_patch14_384", 384)],
)
def test_images_that_fit_are_taken(any_hub, preset, image_size):
    check(f"hub:{preset}", image_size, "imagenet")


def test_without_keras_hub_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)  # as if it were not installed
    assert error_of("hub:dinov2_base", 224) == (
        "backbone hub:dinov2_base: import of keras_hub halted; None in sys.modules; expected the "
        "optional package keras-hub (requirements-hub.txt), or a backbone that needs none; "
        "change --backbone"
    )


# ------------------------------------------------------------------------- keras-hub: tiny presets

VIT = {"num_layers": 1, "hidden_dim": 16, "num_heads": 2}


def make_dinov2(hub, num_register_tokens=0):
    return hub.DINOV2Backbone(
        patch_size=14, intermediate_dim=32, image_shape=(56, 56, 3),
        position_embedding_shape=(56, 56), num_register_tokens=num_register_tokens, **VIT,
    )  # fmt: skip


def make_siglip(hub):
    images = hub.SigLIPVisionEncoder(
        patch_size=16, intermediate_dim=32, image_shape=(32, 32, 3), **VIT
    )
    text = hub.SigLIPTextEncoder(
        vocabulary_size=8, embedding_dim=16, intermediate_dim=32, max_sequence_length=4, **VIT
    )
    return hub.SigLIPBackbone(images, text)


# name -> how it is made, the image size to build it for, its tokens
TINY_PRESETS = {
    "dinov2_tiny": (make_dinov2, 28, 1 + 4),
    "dinov2_with_registers_tiny": (lambda hub: make_dinov2(hub, 4), 42, 5 + 9),
    "dinov3_tiny": (
        lambda hub: hub.DINOV3Backbone(
            patch_size=16, intermediate_dim=32, image_shape=(64, 64, 3), **VIT
        ),
        48,
        5 + 9,
    ),
    "vit_tiny": (
        lambda hub: hub.ViTBackbone(patch_size=16, mlp_dim=32, image_shape=(32, 32, 3), **VIT),
        32,
        1 + 4,
    ),
    "siglip_tiny": (make_siglip, 32, 1 + 4),
}


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    """A folder of presets with random weights: name -> (folder, the backbone that is in it)."""
    hub = pytest.importorskip("keras_hub").models
    made, folder = {}, tmp_path_factory.mktemp("presets")
    for name, (make, _, _) in TINY_PRESETS.items():
        keras.utils.set_random_seed(3)
        made[name] = (folder / name, make(hub))
        made[name][1].save_to_preset(made[name][0])
    return made


@pytest.mark.parametrize("name", TINY_PRESETS)
def test_a_preset_gives_tokens_of_its_own_weights_and_survives_its_file(presets, name, tmp_path):
    folder, theirs = presets[name]
    _, image_size, num_tokens = TINY_PRESETS[name]
    images = image_input(image_size)
    tokens = build(f"hub:{folder}", images, "imagenet")
    assert tokens.shape == (None, num_tokens, 16)
    network = keras.Model(images, tokens)
    seen = np.random.default_rng(1).integers(0, 256, (2, image_size, image_size, 3), np.uint8)
    ours = network.predict_on_batch(seen)
    assert np.isfinite(ours).all() and np.abs(ours[0] - ours[1]).max() > 1e-4
    assert ours.shape == (2, num_tokens, 16)
    save_model(network, tmp_path / "model.keras", {"landmark_ids": []})
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict_on_batch(seen), ours)


@pytest.mark.parametrize("name", TINY_PRESETS)
def test_a_model_on_a_preset_opens_where_the_preset_is_not(presets, name, tmp_path):
    _, image_size, _ = TINY_PRESETS[name]
    shutil.copytree(presets[name][0], tmp_path / name)
    settings = {"backbone": f"hub:{tmp_path / name}", "image_size": image_size, "pooling": "token"}
    recipe, path = Recipe.of(settings), tmp_path / "model.keras"
    network = build_network(recipe, 4, 100)
    save_recogniser(network, path, ClassTable(np.arange(4)), recipe)
    shutil.rmtree(tmp_path / name)
    seen = np.random.default_rng(1).integers(0, 256, (2, image_size, image_size, 3), np.uint8)
    expected = build_classifier(network, recipe.loss).predict_on_batch(seen)
    again = load_recogniser(path).classifier
    np.testing.assert_array_equal(again.predict_on_batch(seen), expected)


def test_dinov2_gives_what_it_gives_for_normalised_pixels(presets):
    folder, theirs = presets["dinov2_with_registers_tiny"]
    seen = np.random.default_rng(1).integers(0, 256, (2, 56, 56, 3), np.uint8)
    images = image_input(56)
    network = keras.Model(images, build(f"hub:{folder}", images, "imagenet"))
    pixels = (seen / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    expected = theirs.predict_on_batch({"images": pixels.astype(np.float32)})
    np.testing.assert_allclose(network.predict_on_batch(seen), expected, atol=1e-5)


def test_vit_gives_what_it_gives_for_pixels_from_minus_one_to_one(presets):
    folder, theirs = presets["vit_tiny"]
    images = image_input(32)
    network = keras.Model(images, build(f"hub:{folder}", images, "imagenet"))
    expected = theirs.predict_on_batch(PIXELS / 127.5 - 1)
    np.testing.assert_allclose(network.predict_on_batch(IMAGES), expected, atol=1e-5)


def test_siglip_puts_its_pooled_output_before_the_patches(presets):
    folder, theirs = presets["siglip_tiny"]
    images = image_input(32)
    network = keras.Model(images, build(f"hub:{folder}", images, "imagenet"))
    pooled = theirs.vision_encoder.predict_on_batch({"images": PIXELS / 127.5 - 1})
    np.testing.assert_allclose(network.predict_on_batch(IMAGES)[:, 0], pooled, atol=1e-5)


def test_a_preset_starts_at_random_or_from_a_file(presets, tmp_path):
    folder, theirs = presets["dinov2_tiny"]
    theirs.save_weights(tmp_path / "x.weights.h5")

    def kernel(weights):
        images = image_input(56)
        network = keras.Model(images, build(f"hub:{folder}", images, str(weights)))
        return next(one for one in network.weights if one.path.endswith("kernel")).numpy()

    expected = next(one for one in theirs.weights if one.path.endswith("kernel")).numpy()
    np.testing.assert_array_equal(kernel("imagenet"), expected)
    np.testing.assert_array_equal(kernel(tmp_path / "x.weights.h5"), expected)
    assert not np.array_equal(kernel("none"), expected)


@pytest.mark.filterwarnings("ignore")
def test_a_file_of_other_weights_is_refused_for_a_preset(presets, tmp_path):
    save_tiny_weights(tmp_path / "x.weights.h5")
    line = error_of(f"hub:{presets['dinov2_tiny'][0]}", 28, tmp_path / "x.weights.h5")
    assert line.endswith("or none for random ones; change --weights")


@pytest.mark.parametrize("name", ["vit_tiny", "siglip_tiny"])
def test_a_preset_of_one_size_refuses_others(presets, name):
    assert error_of(f"hub:{presets[name][0]}", 64) == (
        f"backbone hub:{presets[name][0]}: images of 64 pixels; expected 32, the preset's own "
        "size; change --image-size"
    )


def test_a_preset_in_a_folder_of_another_name_is_refused(presets, tmp_path):
    folder = tmp_path / "dinov2_tiny"
    folder.symlink_to(presets["dinov2_with_registers_tiny"][0])
    assert error_of(f"hub:{folder}", 28) == (
        f"backbone hub:{folder}: 9 tokens; expected 4 of patches after the first 1, as its name "
        "tells; change --backbone"
    )


@pytest.mark.parametrize("folder", ["dinov2_nothing", "dinov2_empty"])
def test_a_preset_that_cannot_be_loaded_is_an_error_of_one_line(folder, tmp_path):
    pytest.importorskip("keras_hub")
    (tmp_path / "dinov2_empty").mkdir()
    assert re.fullmatch(
        rf"backbone hub:{re.escape(str(tmp_path / folder))}: .+; expected a preset of keras-hub "
        "that can be downloaded, or a folder that holds one; change --backbone",
        error_of(f"hub:{tmp_path / folder}", 28),
    )


def test_a_preset_that_cannot_be_downloaded_is_an_error_of_one_line(monkeypatch):
    hub = pytest.importorskip("keras_hub").models

    def refuse(*args, **kwargs):
        raise OSError("Failed to resolve 'api.kaggle.com'\nmore lines")

    monkeypatch.setattr(hub.DINOV2Backbone, "from_preset", refuse)
    assert error_of("hub:dinov2_base", 224, "imagenet") == (
        "backbone hub:dinov2_base: Failed to resolve 'api.kaggle.com'; expected a preset of "
        "keras-hub that can be downloaded, or a folder that holds one; change --backbone"
    )


def test_the_tiny_network_of_the_other_tests_takes_the_place_of_every_backbone():
    with in_place_of_backbones():
        assert {backbones.find_builder(name) for name in BACKBONES} == {build_tiny}


def test_the_patches_of_tokens_are_laid_out_row_by_row_without_those_before_them():
    tokens = np.arange(6, dtype=np.float32).reshape(1, 6, 1)  # two, then 2 x 2 patches
    laid_out = keras.ops.convert_to_numpy(heads._lay_out(tokens, 2))
    assert laid_out[0, :, :, 0].tolist() == [[2, 3], [4, 5]]
