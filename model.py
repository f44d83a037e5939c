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
from utils import (
    ExpectedError,
    atomic_write,
    file_md5,
    loading_keras,
    muted_stderr,
    require_true_sizes,
    say,
)

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
DESCRIPTOR = "descriptor"  # the layer that gives it
POOLING = (keras.layers.GlobalMaxPooling2D, keras.layers.GlobalAveragePooling2D)

# md5 of the published ImageNet weights without top that people pass as a file.
KNOWN_WEIGHTS = {
    "4d473c1dd8becc155b73f8504c6f6626": "ResNet50, ImageNet, Keras 3",
    "88cf7a10940856eca736dc7b7e228a21": "ResNet101, ImageNet, Keras 3",
}
KERAS_2_WEIGHTS_MD5 = "a268eb855778b3df3c7506639542a6af"


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


def build_network(network, image_size, num_classes, num_steps):
    """Builds the network to train: images -> pooled descriptor -> logits.

    Args:
        network: `recipes.Network`.
        image_size: side of the square images, in pixels.
        num_classes: size of the class table.
        num_steps: training steps to come.

    Returns:
        keras.Model, (batch, image_size, image_size, 3) uint8 RGB -> (batch, num_classes) float32.
        Its layer "descriptor" gives (batch, 2048) (MobileNetV2: 1280).

    Raises:
        ExpectedError: the weights cannot be loaded or do not match.
    """
    images = keras.Input((image_size, image_size, 3), dtype="uint8", name="images")
    features = _build_backbone(BACKBONES[network.backbone], images, network.weights)
    backbone = keras.Model(images, features)
    shorten_batch_norm_memory(backbone, num_steps)
    if network.weights == "none":
        start_blocks_as_identity(backbone)
    descriptors = keras.layers.GlobalMaxPooling2D(name=DESCRIPTOR)(features)
    # float32 under mixed precision too: 55k logits in float16 would round the softmax away.
    # The maxima of 2048 channels are large: small first weights keep the first loss at ln(classes).
    small = keras.initializers.RandomNormal(stddev=0.01)
    head = keras.layers.Dense(num_classes, kernel_initializer=small, dtype="float32", name="logits")
    return keras.Model(images, head(descriptors), name=network.backbone)


def _build_backbone(backbone, images, weights):
    pixels = backbone.preprocess(images)
    source = None if weights == "none" else weights
    if source not in (None, "imagenet"):
        say(f"weights: {source}, md5 {check_weights(source)}")
    try:
        with warnings.catch_warnings(action="ignore"):  # Keras warns of each layer before it fails
            return backbone.build(include_top=False, weights=source, input_tensor=pixels).output
    except Exception as error:  # Keras raises Exception itself when a download fails
        if source is None:
            raise
        reason = str(error).splitlines()[0][:160]
        raise ExpectedError(
            f"weights {weights}: {reason}; expected weights without top of this backbone, or "
            "none for random ones",
            setting="weights",
        ) from error


def check_weights(weights):
    """Checks a file of weights as far as its md5 tells, since Keras itself checks nothing.

    Args:
        weights: "imagenet", "none", or a file's path.

    Returns:
        The file's md5, and which file that is; empty where there is none to check.

    Raises:
        ExpectedError: no such file, or one of Keras 2.
    """
    if weights in ("imagenet", "none"):
        return ""
    if not Path(weights).is_file():
        raise ExpectedError(
            f"weights {weights}: no such file; expected imagenet, none, or a file of weights",
            setting="weights",
        )
    md5 = file_md5(weights)
    if md5 == KERAS_2_WEIGHTS_MD5:
        raise ExpectedError(
            f"weights {weights}: this is the ResNet50 file of Keras 2.2.4; expected Keras 3's "
            "(md5 4d473c1d...), whose layers differ",
            setting="weights",
        )
    return f"{md5} ({KNOWN_WEIGHTS.get(md5, 'not a file we know')})"


def shorten_batch_norm_memory(backbone, num_steps):
    """Lets batch normalisation forget its first statistics within a run, however short.

    Its moving averages remember 100 steps (ResNet) or 1,000 (MobileNetV2). In a run of a few
    hundred steps they would lag behind the weights, and prediction would differ from training. The
    tens of thousands of steps of the full data set change nothing here.
    """
    longest_memory = max(10, num_steps / 20)
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = min(layer.momentum, 1 - 1 / longest_memory)


def start_blocks_as_identity(backbone):
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
    both = keras.Model(classifier.input, [classifier.output, _find_descriptor(classifier).output])
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


def _find_descriptor(classifier):
    """Finds the layer that describes by its name, or by its type in the model of 2019; or None."""
    named = [layer for layer in classifier.layers if layer.name == DESCRIPTOR]
    pooling = [layer for layer in classifier.layers if isinstance(layer, POOLING)]
    return (named or pooling or [None])[-1]


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


def save_recogniser(network, path, class_table, recipe):
    """Writes a trained network as a classifier, with its landmarks and its recipe.

    Args:
        network: keras.Model, images -> logits.
        path: the file, ending in .keras.
        class_table: `ClassTable`.
        recipe: `Recipe`.
    """
    page = {"landmark_ids": class_table.landmark_ids.tolist(), "recipe": recipe.as_page()}
    save_model(build_classifier(network), path, page)


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
            f"{path}: no such file; expected a model written by recognition.py", setting="model"
        )
    whole = "a whole .keras file; take another copy, or train again"
    try:
        with zipfile.ZipFile(path) as archive:
            require_true_sizes(archive)
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} is damaged")
            has_page = LANDMARKS_MEMBER in archive.namelist()
            page = json.loads(archive.read(LANDMARKS_MEMBER)) if has_page else {}
    except Exception as error:  # a damaged archive can fail anywhere
        raise ExpectedError(f"{path}: {_reason(error)}; expected {whole}") from error
    _check_page(path, page)
    return _load_keras(path, whole), page


def _check_page(path, page):
    """Raises ExpectedError unless the page has a table of landmarks."""
    if not isinstance(page, dict) or "landmark_ids" not in page:
        raise ExpectedError(
            f"{path}: no class table in it; expected a model written by recognition.py, which "
            "knows the landmark of each output",
            setting="model",
        )
    ids = page["landmark_ids"]
    wrong = [ids] if not isinstance(ids, list) else [
        one for one in ids if type(one) is not int or not 0 <= one < 1 << 63
    ]  # fmt: skip
    if wrong or len(set(ids)) != len(ids):
        what = f"has {json.dumps(wrong[0])[:40]}" if wrong else "names a landmark twice"
        raise ExpectedError(
            f"{path}: its class table {what}; expected landmark ids from 0 up, each once; "
            "take another copy, or train again"
        )


def _load_keras(path, expected, file=None, **options):
    """Loads a model file by Keras, which never runs code from it.

    Args:
        path: the file, for the message.
        expected: what it should be, and what to do.
        file: where it is, if not at `path`.
        options: of `keras.models.load_model`.
    """
    try:
        with muted_stderr():  # TensorFlow looks for a GPU here, and tells of it
            return keras.models.load_model(file or path, **options)
    except Exception as error:  # a file of somebody else can fail anywhere in Keras
        reason = _reason(error)
        if "safe_mode" in str(error):  # Keras advises to pass safe_mode=False, which runs the code
            reason = "it carries code (a Lambda layer or the like), so it is never loaded"
            expected = "nothing but Keras' own layers; take another model, or train one"
        raise ExpectedError(f"{path}: {reason}; expected {expected}") from error


def _reason(error):
    return (str(error) or type(error).__name__).splitlines()[0]


def load_recogniser(path, read_2019_classes=None):
    """Reads a recogniser: model.keras, or the whole-model HDF5 file published in 2019.

    Args:
        path: the file.
        read_2019_classes: function without arguments that gives the `ClassTable` of 2019; asked for
            an HDF5 file alone, which does not hold its landmarks.

    Returns:
        `Recogniser`.

    Raises:
        ExpectedError: as `load_model` does; or the network is no recogniser; or the outputs are not
            those of the 2019 table.
    """
    if read_2019_classes and h5py.is_hdf5(path):
        classifier = _load_hdf5(path)
        _check_network(path, classifier)
        class_table = read_2019_classes()
        origin = "the classes of 2019 in this source's train.csv"
    else:
        classifier, page = load_model(path)
        _check_network(path, classifier)
        class_table = ClassTable(np.array(page["landmark_ids"], np.int64))
        origin = "the landmarks in the file"
    if classifier.output.shape[-1] != len(class_table):
        raise ExpectedError(
            f"{path}: {classifier.output.shape[-1]} outputs; expected {len(class_table)}, one for "
            f"each of {origin}; take the model of this source, or train again"
        )
    return Recogniser(classifier, class_table)


def _check_network(path, network):
    """Raises ExpectedError unless a network takes images and describes and classifies them."""
    ends = [getattr(network, name, None) or [] for name in ("inputs", "outputs")]
    num_inputs, num_outputs = map(len, ends)
    descriptor = _find_descriptor(network)
    if isinstance(network, keras.Sequential):
        problem = "a Sequential network"
    elif (num_inputs, num_outputs) != (1, 1):
        problem = f"a network of {num_inputs} inputs and {num_outputs} outputs"
    elif not _is_square_rgb(ends[0][0].shape):
        problem = f"a network of images of the shape {tuple(ends[0][0].shape[1:])}"
    elif len(ends[1][0].shape) != 2:
        problem = f"a network of outputs of the shape {tuple(ends[1][0].shape[1:])}"
    elif descriptor is None or len(descriptor.output.shape) != 2:
        problem = "a network without a layer that describes the image"
    else:
        return
    raise ExpectedError(
        f"{path}: {problem}; expected a recogniser, square RGB images to one probability for each "
        "landmark, written by recognition.py",
        setting="model",
    )


def _is_square_rgb(shape):
    return len(shape) == 4 and shape[1] is not None and tuple(shape[1:]) == (shape[1], shape[1], 3)


def _load_hdf5(path):
    """Loads a whole-model HDF5 file with its own graph, which takes raw RGB 0..255 as float32."""
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder, "model.h5")  # Keras goes by the name, and the file is a `.model`
        named.symlink_to(Path(path).resolve())
        expected = "a whole model saved by Keras 2; take another copy"
        loaded = _load_keras(path, expected, named, compile=False)
    inputs, outputs = getattr(loaded, "inputs", None), getattr(loaded, "outputs", None)
    if not (inputs and outputs and len(inputs) == len(outputs) == 1):
        return loaded
    return keras.Model(inputs[0], outputs[0])  # Keras 2 put each into a list
