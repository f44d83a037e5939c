"""The networks: backbone, pooling and head, with preprocessing inside; saved with their landmarks.

Every network takes uint8 RGB images (batch, image_size, image_size, 3).
"""

import hashlib
import json
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from landmarks import ClassTable
from utils import ExpectedError, atomic_write, file_md5, loading_keras, muted_stderr, say

with loading_keras():
    import keras

    from replicas import FLOAT16, agree_on_overflow, list_gpus

LANDMARKS_MEMBER = "landmarks.json"  # our page in the .keras file, which is a zip archive
CAFFE_MEAN_RGB = (123.68, 116.779, 103.939)  # of ImageNet, as ResNet's published weights expect


@dataclass(frozen=True)
class Backbone:
    """A network of keras.applications and the pixels that its ImageNet weights expect."""

    build: callable
    preprocess: callable


def _caffe(images):
    """RGB 0..255 -> BGR minus the ImageNet mean."""
    centred = keras.layers.Rescaling(1.0, [-mean for mean in CAFFE_MEAN_RGB], dtype="float32")
    return keras.ops.flip(centred(images), axis=-1)


def _signed_unit(images):
    """RGB 0..255 -> RGB -1..1."""
    return keras.layers.Rescaling(1 / 127.5, -1.0, dtype="float32")(images)


BACKBONES = {
    "resnet50": Backbone(keras.applications.ResNet50, _caffe),
    "resnet101": Backbone(keras.applications.ResNet101, _caffe),
    "mobilenet_v2": Backbone(keras.applications.MobileNetV2, _signed_unit),
}

to_numpy = keras.ops.convert_to_numpy  # of a variable, on every backend
POOLING = (keras.layers.GlobalMaxPooling2D, keras.layers.GlobalAveragePooling2D)

# md5 of the published ImageNet weights without top that people pass as a file.
KNOWN_WEIGHTS = {
    "4d473c1dd8becc155b73f8504c6f6626": "ResNet50, ImageNet, Keras 3",
    "88cf7a10940856eca736dc7b7e228a21": "ResNet101, ImageNet, Keras 3",
}
KERAS_2_WEIGHTS_MD5 = "a268eb855778b3df3c7506639542a6af"

# About the 2019 steps (x1 for shards 10-179, x0.5 to 339, x0.2 to 389, x0.1 to 499), as shares of a
# run.
LEARNING_RATE_STEPS = ((0.35, 1.0), (0.70, 0.5), (0.80, 0.2), (1.0, 0.1))


def learning_rate_at(mini_epoch, num_mini_epochs, first_rate):
    """Gives the learning rate of a mini-epoch (counted from 0)."""
    for end, factor in LEARNING_RATE_STEPS:
        if mini_epoch < max(1, round(end * num_mini_epochs)):
            return first_rate * factor
    return first_rate * LEARNING_RATE_STEPS[-1][1]


def set_up_keras(seed, bfloat16=False):
    """Seeds Keras and chooses the precision: mixed float16 on a GPU, float32 elsewhere.

    Args:
        seed: int.
        bfloat16: mixed bfloat16 instead, which not every processor or GPU has.

    Returns:
        The name of the precision policy.
    """
    keras.utils.set_random_seed(seed)
    policy = FLOAT16 if list_gpus() else "float32"
    policy = "mixed_bfloat16" if bfloat16 else policy
    keras.mixed_precision.set_global_policy(policy)
    return policy


def precision():
    """Gives the name of the precision policy that networks are built with."""
    return keras.config.dtype_policy().name


# ------------------------------------------------------------------------------------- networks


def build_network(num_classes, image_size, backbone, weights, num_steps):
    """Builds the network to train: images -> pooled descriptor -> logits.

    Args:
        num_classes: size of the class table.
        image_size: side of the square images, in pixels.
        backbone: a key of `BACKBONES`.
        weights: "imagenet" (Keras' cache, or its download), "none" (random), or a file's path.
        num_steps: training steps to come.

    Returns:
        keras.Model, (batch, image_size, image_size, 3) uint8 RGB -> (batch, num_classes) float32.
        Its layer "descriptor" gives (batch, 2048) (MobileNetV2: 1280).

    Raises:
        ExpectedError: the weights are not to be had or do not fit.
    """
    images = keras.Input((image_size, image_size, 3), dtype="uint8", name="images")
    features = _build_backbone(BACKBONES[backbone], images, weights)
    _limit_memory(keras.Model(images, features), num_steps)
    if weights == "none":
        _close_branches(keras.Model(images, features))
    descriptors = keras.layers.GlobalMaxPooling2D(name="descriptor")(features)
    # float32 under mixed precision too: 55k logits in float16 would round the softmax away.
    # The maxima of 2048 channels are large: small first weights keep the first loss at ln(classes).
    small = keras.initializers.RandomNormal(stddev=0.01)
    head = keras.layers.Dense(num_classes, kernel_initializer=small, dtype="float32", name="logits")
    logits = head(descriptors)
    return keras.Model(images, logits, name=backbone)


def _build_backbone(backbone, images, weights):
    pixels = backbone.preprocess(images)
    source = None if weights == "none" else weights
    if source not in (None, "imagenet"):
        _name_weights(source)
    try:
        with warnings.catch_warnings(action="ignore"):  # Keras warns of each layer before it fails
            return backbone.build(include_top=False, weights=source, input_tensor=pixels).output
    except Exception as error:  # Keras raises Exception itself when a download fails
        if source is None:
            raise
        reason = str(error).splitlines()[0][:160]
        raise ExpectedError(
            f"--weights {weights}: {reason}; expected weights without top of this backbone; "
            "give a file that fits, or --weights none"
        ) from error


def _name_weights(path):
    """Says which file of weights is used, since `load_weights` itself checks nothing."""
    if not Path(path).is_file():
        raise ExpectedError(
            f"--weights {path}: no such file; expected imagenet, none, or a file of weights; "
            "check the path"
        )
    md5 = file_md5(path)
    if md5 == KERAS_2_WEIGHTS_MD5:
        raise ExpectedError(
            f"--weights {path}: this is the ResNet50 file of Keras 2.2.4; expected Keras 3's "
            "(md5 4d473c1d...), whose layers differ; give that file, or --weights imagenet"
        )
    say(f"weights: {path}, md5 {md5} ({KNOWN_WEIGHTS.get(md5, 'not a file we know')})")


def _limit_memory(backbone, num_steps):
    """Lets batch normalisation forget its first statistics within a run, however short.

    Its moving averages remember 100 steps (ResNet) or 1,000 (MobileNetV2). In a run of a few
    hundred steps they would lag behind the weights, and prediction would differ from training. The
    tens of thousands of steps of the full data set change nothing here.
    """
    longest_memory = max(10, num_steps / 20)
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = min(layer.momentum, 1 - 1 / longest_memory)


def _close_branches(backbone):
    """Starts each residual block of a random ResNet as the identity, which learns much faster.

    Source: Goyal et al., arXiv:1706.02677, section 5.1. Measured on the demo: after 3 epochs, 46%
    of the held-out images right instead of 26%.
    """
    for layer in backbone.layers:
        if layer.name.endswith("_3_bn"):  # the last of a bottleneck block
            layer.gamma.assign(np.zeros(layer.gamma.shape, np.float32))


def compile_network(network, learning_rate):
    """Makes a network trainable: Adam on the cross-entropy of integer class indices."""
    network.compile(
        optimizer=agree_on_overflow(keras.optimizers.Adam(learning_rate)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["sparse_categorical_accuracy"],
        # XLA makes the step slower on a CPU (measured 0.62x under TensorFlow).
        jit_compile="auto" if list_gpus() or keras.backend.backend() != "tensorflow" else False,
    )


def build_classifier(network):
    """Adds the softmax: images -> probabilities (batch, num_classes) float32."""
    softmax = keras.layers.Activation("softmax", dtype="float32", name="probabilities")
    return keras.Model(network.input, softmax(network.output), name=network.name)


def build_predictor(classifier, flipped_too=False):
    """Builds the network that predicts and describes in one forward pass.

    The best landmark is chosen on the device: 55k probabilities an image never leave it.

    Args:
        classifier: the network of a `Recogniser`.
        flipped_too: average with the mirrored image (test-time augmentation).

    Returns:
        keras.Model, images -> [class indices (batch,) int32, confidences (batch,) float32,
        descriptors (batch, 2048) float32].
    """
    pooling = [layer for layer in classifier.layers if isinstance(layer, POOLING)][-1]
    both = keras.Model(classifier.input, [classifier.output, pooling.output])
    images = keras.Input(classifier.input.shape[1:], dtype="uint8", name="images")
    pixels = keras.ops.cast(images, classifier.input.dtype)  # the 2019 model takes float32
    probabilities, descriptors = both(pixels)
    descriptors = keras.ops.cast(descriptors, "float32")
    if flipped_too:
        mirrored = both(keras.ops.flip(pixels, axis=2))
        probabilities = (probabilities + mirrored[0]) / 2
        descriptors = (descriptors + keras.ops.cast(mirrored[1], "float32")) / 2
    class_indices = keras.ops.argmax(probabilities, axis=-1)
    confidences = keras.ops.max(probabilities, axis=-1)
    return keras.Model(images, [class_indices, confidences, descriptors], name="predictor")


# --------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class Recogniser:
    """A trained classifier together with the landmarks that its outputs stand for.

    Attributes:
        classifier: keras.Model, images -> probabilities (batch, num_classes) float32.
        class_table: `ClassTable` of num_classes landmarks.
    """

    classifier: keras.Model
    class_table: ClassTable

    @property
    def fingerprint(self):
        """32 hex characters that differ for other weights or other landmarks."""
        digest = hashlib.md5(self.class_table.fingerprint.encode(), usedforsecurity=False)
        for variable in self.classifier.variables:
            digest.update(np.ascontiguousarray(to_numpy(variable)))
        return digest.hexdigest()

    @property
    def image_size(self):
        """Side of the square input images, in pixels."""
        return self.classifier.input.shape[1]


def save_model(model, path, page):
    """Writes a model and a page of facts about it as one atomic `.keras` file.

    Keras ignores the page, so that `keras.models.load_model` opens the file as it is.

    Args:
        model: keras.Model.
        path: the file, ending in .keras.
        page: dict that JSON can hold; `landmark_ids`, a list of int, is always in it.
    """
    with atomic_write(path) as temporary:
        model.save(temporary)
        with zipfile.ZipFile(temporary, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(LANDMARKS_MEMBER, json.dumps(page))


def load_model(path):
    """Reads what `save_model` wrote, after checking that it is whole.

    Returns:
        (keras.Model, page).

    Raises:
        ExpectedError: no such file, a damaged one, or one without its class table.
    """
    path = Path(path)
    if not path.is_file():
        raise ExpectedError(
            f"{path}: no such file; expected a model written by recognition.py; check --model"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} is damaged")
            has_page = LANDMARKS_MEMBER in archive.namelist()
            page = json.loads(archive.read(LANDMARKS_MEMBER)) if has_page else {}
        if "landmark_ids" not in page:
            raise ExpectedError(
                f"{path}: no class table in it; expected a model written by recognition.py, which "
                "knows the landmark of each output; check --model"
            )
        with muted_stderr():  # TensorFlow looks for a GPU here, and tells of it
            model = keras.models.load_model(path)
    except (zipfile.BadZipFile, ValueError, TypeError, KeyError, OSError) as error:
        raise ExpectedError(
            f"{path}: {str(error).splitlines()[0]}; expected a whole .keras file; "
            "take another copy, or train again"
        ) from error
    return model, page


def load_recogniser(path, read_2019_classes=None):
    """Reads a recogniser: model.keras, or the whole-model HDF5 file published in 2019.

    Args:
        path: the file.
        read_2019_classes: function without arguments that gives the `ClassTable` of 2019; asked for
            an HDF5 file alone, which does not hold its landmarks.

    Returns:
        `Recogniser`.

    Raises:
        ExpectedError: as `load_model` does; or the outputs are not those of the 2019 table.
    """
    if read_2019_classes and h5py.is_hdf5(path):
        classifier, class_table = _load_hdf5(path), read_2019_classes()
        origin = "the classes of 2019 in this source's train.csv"
    else:
        classifier, page = load_model(path)
        class_table = ClassTable(np.array(page["landmark_ids"], np.int64))
        origin = "the landmarks in the file"
    if classifier.output.shape[-1] != len(class_table):
        raise ExpectedError(
            f"{path}: {classifier.output.shape[-1]} outputs; expected {len(class_table)}, one for "
            f"each of {origin}; check --model and --source, or train again"
        )
    return Recogniser(classifier, class_table)


def _load_hdf5(path):
    """Loads a whole-model HDF5 file with its own graph, which takes raw RGB 0..255 as float32."""
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder, "model.h5")  # Keras goes by the name, and the file is a `.model`
        named.symlink_to(Path(path).resolve())
        try:
            with muted_stderr():
                loaded = keras.models.load_model(named, compile=False)
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise ExpectedError(
                f"{path}: {str(error).splitlines()[0]}; expected a whole model saved by Keras 2; "
                "take another copy"
            ) from error
    return keras.Model(loaded.inputs[0], loaded.outputs[0])  # Keras 2 put each into a list
