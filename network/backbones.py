"""The backbones: networks of keras.applications and of keras-hub without their tops.

All take uint8 RGB images. What the published weights expect of the pixels is done inside, in
float32, so that no caller has to know it.
"""

import inspect
import json
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from network.loading import loading_keras
from recipes import BACKBONES, HUB
from utils import ExpectedError, file_md5, say

with loading_keras():
    import keras

# Mean and standard deviation of ImageNet's red, green and blue, of pixels 0..1.
IMAGENET = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))

# How the first layer changes RGB 0..255: scale and offset.
PIXELS = {
    "caffe": (1.0, [-123.68, -116.779, -103.939]),  # less ImageNet's mean, and turned to BGR
    "torch": ([1 / (255 * dev) for _, dev in IMAGENET], [-mean / dev for mean, dev in IMAGENET]),
    "tf": (1 / 127.5, -1.0),
    "tf128": (1 / 128, -1.0),
    "included": (1.0, 0.0),  # the network's own layers do it
    # EfficientNet divides by the root of the deviation; keras.applications adds the layer that
    # divides by the other root for weights="imagenet" alone, not for the same weights from a file.
    "included, from a file": (
        [dev**-0.5 for _, dev in IMAGENET],
        [255 * mean * (1 - dev**-0.5) for mean, dev in IMAGENET],
    ),
}

# md5 of the published ImageNet weights without top that people pass as a file.
KNOWN_WEIGHTS = {
    "4d473c1dd8becc155b73f8504c6f6626": "ResNet50, ImageNet, Keras 3",
    "88cf7a10940856eca736dc7b7e228a21": "ResNet101, ImageNet, Keras 3",
}
KERAS_2_WEIGHTS_MD5 = "a268eb855778b3df3c7506639542a6af"


class HubFamily(NamedTuple):
    """Vision transformers of keras-hub that are built and fed in the same way."""

    backbone: str  # the class in keras_hub.models
    input_name: str | None  # of the images in the dict that it takes; None where it takes no dict
    pixels: str  # of `PIXELS`
    num_prefix_tokens: int  # tokens before those of the patches: the class, then the registers
    # side of a patch, in pixels, of which the images' is a multiple; None where each preset takes
    # images of one size alone, as in vit_base_patch16_224_imagenet
    patch_size: int | None


# By the beginning of a preset's name, longer ones first. Pixels: image_mean and image_std of the
# original checkpoints, which keras-hub's image converters take over; 0.5 and 0.5 are "tf". The
# DINOv3 presets that end in sat493m are of satellite images, and expect other pixels.
# Source: keras-team/keras-hub, tools/checkpoint_conversion/convert_*_checkpoints.py
HUB_FAMILIES = {
    "dinov2_with_registers": HubFamily("DINOV2Backbone", "images", "torch", 5, 14),
    "dinov2": HubFamily("DINOV2Backbone", "images", "torch", 1, 14),
    "dinov3": HubFamily("DINOV3Backbone", "pixel_values", "torch", 5, 16),
    "siglip": HubFamily("SigLIPBackbone", "images", "tf", 1, None),
    "vit": HubFamily("ViTBackbone", None, "tf", 1, None),
}


def build(name, images, weights, restored=None):
    """Builds a backbone on top of the input.

    Args:
        name: of `recipes.BACKBONES`, or hub:PRESET.
        images: KerasTensor (batch, image_size, image_size, 3) uint8 RGB.
        weights: "imagenet" (of a keras-hub preset: its own), "none" for random ones, or a file.
        restored: what `architecture_of` told of a network whose values follow from a checkpoint or
            a model file, so that no others are loaded; "" where the name is enough.

    Returns:
        KerasTensor of features: (batch, rows, columns, channels); of a vision transformer (batch,
        tokens, channels), where `count_prefix_tokens` tokens precede those of the patches.
    """
    source = None if weights == "none" or restored is not None else weights
    if md5 := check(name, images.shape[1], source or "none"):
        say(f"weights: {source}, md5 {md5}")
    if name.startswith(HUB):
        return _build_hub(name, images, source, restored)
    pixels = BACKBONES[name].pixels
    if pixels == "included" and weights != "none" and source != "imagenet":
        pixels = "included, from a file"
    builder = find_builder(name)
    options = {"include_top": False, "input_tensor": preprocess(images, pixels)}
    if "include_preprocessing" in inspect.signature(builder).parameters:
        options["include_preprocessing"] = False  # it would run in float16 on a GPU
    try:
        with warnings.catch_warnings(action="ignore"):  # Keras warns of each layer before it fails
            return builder(weights=source, **options).output
    except Exception as error:  # Keras raises Exception itself when a download fails
        if source is None:
            raise
        raise _wrong_weights(weights, error) from error


def find_builder(name):
    """Finds the function of keras.applications that builds a backbone."""
    return getattr(keras.applications, BACKBONES[name].builder)


def preprocess(images, pixels):
    """Changes uint8 RGB to what published weights expect, of `PIXELS`: float32; BGR for "caffe"."""
    scale, offset = PIXELS[pixels]
    changed = keras.layers.Rescaling(scale, offset, dtype="float32")(images)
    return keras.ops.flip(changed, axis=-1) if pixels == "caffe" else changed


def check(name, image_size, weights):
    """Checks what can be known of a backbone before it is built; gives the md5 of a file in words.

    Raises:
        ExpectedError: an unknown backbone, images that it does not take, keras-hub is missing, or
            no such file of weights, or one of Keras 2.
    """
    if name.startswith(HUB):
        patch_size = _find_hub_family(name).patch_size
        own_size = re.search(r"patch\d+[_-](\d+)", name)
        if patch_size and image_size % patch_size:
            raise _wrong_size(name, image_size, f"a multiple of its patches of {patch_size}")
        if not patch_size and own_size and image_size != int(own_size[1]):
            raise _wrong_size(name, image_size, f"{own_size[1]}, the preset's own size")
        _import_hub(name)
    elif name not in BACKBONES:
        raise _unfit(name, f"unknown; expected one of {', '.join(BACKBONES)} or {HUB}PRESET")
    elif image_size < BACKBONES[name].least:
        raise _wrong_size(name, image_size, f"at least {BACKBONES[name].least}")
    return "" if weights in ("imagenet", "none") else _check_file(weights)


def _check_file(weights):
    """Checks a file as far as its md5 tells, since Keras checks nothing; gives the md5 in words."""
    if not Path(weights).is_file():
        expected = "expected imagenet, none, or a file of weights"
        raise ExpectedError(f"weights {weights}: no such file; {expected}", "weights")
    md5 = file_md5(weights)
    if md5 == KERAS_2_WEIGHTS_MD5:
        problem = f"weights {weights}: this is the ResNet50 file of Keras 2.2.4"
        expected = "expected Keras 3's (md5 4d473c1d...), whose layers differ"
        raise ExpectedError(f"{problem}; {expected}", "weights")
    return f"{md5} ({KNOWN_WEIGHTS.get(md5, 'not a file we know')})"


def _unfit(name, problem, setting="backbone"):
    return ExpectedError(f"backbone {name}: {problem}", setting=setting)


def _wrong_size(name, image_size, expected):
    return _unfit(name, f"images of {image_size} pixels; expected {expected}", "image_size")


def _wrong_weights(weights, error):
    expected = "expected weights without top of this backbone, or none for random ones"
    return ExpectedError(f"weights {weights}: {_first_line(error)}; {expected}", "weights")


def _first_line(error):
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:160].rstrip(".:")


def _find_hub_family(name):
    """Finds the `HubFamily` of a preset: a name, an address, or a folder behind hub:."""
    # The last fitting part counts: /kaggle/input/dinov2/keras/dinov2_base/1.
    for part in reversed(name.removeprefix(HUB).replace("-", "_").split("/")):
        for beginning, family in HUB_FAMILIES.items():
            if part.startswith(beginning):
                return family
    raise _unfit(
        name, "unknown; expected a preset of keras-hub, or a folder that holds one, whose name "
        f"begins with one of {', '.join(HUB_FAMILIES)}",
    )  # fmt: skip


def count_prefix_tokens(name):
    """Counts the tokens before those of the patches: the class token, then the registers."""
    return _find_hub_family(name).num_prefix_tokens if name.startswith(HUB) else 0


def _import_hub(name):
    try:
        import keras_hub
    except ImportError as error:
        problem = f"{_first_line(error)}; expected the optional package keras-hub"
        hint = "(requirements-hub.txt), or a backbone that needs none"
        raise _unfit(name, f"{problem} {hint}") from error
    return keras_hub


def architecture_of(network):
    """Gives JSON that builds a network's keras-hub backbone without its preset; "" for others."""
    return next((one.architecture for one in network.layers if hasattr(one, "architecture")), "")


def _build_hub(name, images, source, restored):
    """Builds a vision transformer of keras-hub, see `build`.

    Position embeddings of a DINOv2 survive a file only while they are frozen: keras-hub 0.26 saves
    the preset's in place of fine-tuned ones whose sum has grown, and resizes the others.
    """
    family, image_size = _find_hub_family(name), images.shape[1]
    is_siglip = family.backbone == "SigLIPBackbone"
    if restored:
        kind = "SigLIPVisionEncoder" if is_siglip else family.backbone
        encoder = getattr(_import_hub(name).models, kind).from_config(json.loads(restored))
    else:
        backbone = _load_preset(name, family, image_size, source)
        encoder = backbone.vision_encoder if is_siglip else backbone
    if encoder.image_shape[0] != image_size:
        raise _wrong_size(name, image_size, f"{encoder.image_shape[0]}, the preset's own size")
    network = _with_pooled_token(encoder) if is_siglip else encoder
    settings = encoder.get_config()
    settings.pop("dtype", None)  # that of the machine that builds it
    network.architecture = json.dumps(settings)
    pixels = preprocess(images, family.pixels)
    tokens = network({family.input_name: pixels} if family.input_name else pixels)
    rows = image_size // np.max(encoder.patch_size)  # an int or a pair
    if tokens.shape[1] != family.num_prefix_tokens + rows**2:
        expected = f"{rows**2} of patches after the first {family.num_prefix_tokens}"
        raise _unfit(name, f"{tokens.shape[1]} tokens; expected {expected}, as its name tells")
    return tokens


def _load_preset(name, family, image_size, source):
    """Loads a preset of keras-hub; with its own weights, those of a file, or None."""
    kind = getattr(_import_hub(name).models, family.backbone)
    options = {"image_shape": (image_size, image_size, 3)} if family.patch_size else {}
    options["load_weights"] = source == "imagenet"
    try:
        backbone = kind.from_preset(name.removeprefix(HUB), **options)
    except Exception as error:  # kagglehub, requests and Keras each raise their own
        expected = "a preset of keras-hub that can be downloaded, or a folder that holds one"
        raise _unfit(name, f"{_first_line(error)}; expected {expected}") from error
    if source not in (None, "imagenet"):
        try:
            backbone.load_weights(source)
        except Exception as error:  # h5py, zipfile and Keras each raise their own
            raise _wrong_weights(source, error) from error
    return backbone


def _with_pooled_token(siglip):
    """Gives SigLIP's image encoder, which has no class token, its pooled output as the first."""
    patches, num_patches = siglip.post_layer_norm.output, siglip.embedding.num_positions
    # Keras-hub 0.26 announces one token more than there are.
    patches = keras.ops.reshape(patches, (-1, num_patches, patches.shape[-1]))
    tokens = keras.ops.concatenate([siglip.output[:, None], patches], axis=1)
    return keras.Model(siglip.input, tokens, name="siglip_images")
