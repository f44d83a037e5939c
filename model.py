"""The recogniser: a recipe's network built, compiled, saved with its landmarks, and loaded.

Every network takes uint8 RGB images (batch, image_size, image_size, 3). Files are read without
running any code that is in them.
"""

import contextlib
import hashlib
import json
import math
import re
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from data.arrays import require_true_sizes
from data.landmarks import ClassTable
from network import backbones
from network.loading import loading_keras, muted_stderr
from recipes import HUB, Recipe, find_given_up
from utils import ExpectedError, atomic_write, os_errors_as

with loading_keras():
    import keras

    from network import heads
    from network.devices import list_gpus, precision_here
    from network.layers import fuse_batch_norms
    from network.optimizers import build_optimizer

to_numpy = keras.ops.convert_to_numpy  # of a variable, on every backend
LANDMARKS_MEMBER = "landmarks.json"  # our page in the .keras file, which is a zip archive
# ... and Keras' own members.
CONFIG_MEMBER, METADATA_MEMBER, WEIGHTS_MEMBER = "config.json", "metadata.json", "model.weights.h5"
WHOLE = "a whole .keras file"
POOLING = (keras.layers.GlobalMaxPooling2D, keras.layers.GlobalAveragePooling2D)


def set_up_keras(seed, bfloat16=False):
    """Seeds Keras and chooses the precision, see `precision_here`; gives the policy's name."""
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(precision_here(bfloat16))
    return precision()


def precision():
    """Gives the name of the precision policy that networks are built with."""
    return keras.config.dtype_policy().name


def build_network(recipe, num_classes, num_steps, restored=None):
    """Builds the network to train: images -> descriptor -> logits, or cosines.

    Args:
        num_steps: training steps to come.
        restored: of a network whose values follow, see `backbones.build`, which raises errors.

    Returns:
        keras.Model, images -> (batch, num_classes) float32. Its layer "descriptor" gives (batch,
        d): the neck's values, or 2048 of ResNet50.
    """
    pooled = build_pooled(recipe, restored)
    network = _put_head_on(pooled.input, pooled.output, recipe, num_classes)
    shorten_batch_norm_memory(network, num_steps)
    return network


def build_pooled(recipe, restored=None):
    """Builds what is below neck and head: images -> the pooled vector (batch, channels)."""
    size, weights = recipe.data.image_size, recipe.network.weights
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    features = backbones.build(recipe.network.backbone, images, weights, restored)
    if weights == "none" and restored is None:
        start_blocks_as_identity(keras.Model(images, features))
    return keras.Model(images, heads.pool(recipe.network, features), name="pooled")


def build_views(pooled, mirrored_too):
    """Builds the network that describes with a frozen backbone, of `build_pooled`.

    Images -> (batch, views, channels) float32: the vector of the image, then that of its mirror
    image if asked for.
    """
    images = keras.Input(pooled.input.shape[1:], dtype="uint8", name="images")
    views = [images, keras.ops.flip(images, axis=2)] if mirrored_too else [images]
    vectors = [keras.ops.cast(pooled(view), "float32") for view in views]
    return keras.Model(images, keras.ops.stack(vectors, axis=1), name="views")


def build_head(recipe, num_channels, num_classes, num_steps, restored=None):
    """Builds neck and head alone: vectors (batch, channels) float32 -> as `build_network`."""
    vectors = keras.Input((num_channels,), dtype="float32", name="vectors")
    head = _put_head_on(vectors, vectors, recipe, num_classes)
    shorten_batch_norm_memory(head, num_steps)
    return head


def join_head(pooled, head, recipe):
    """Joins a trained head with a network of `build_pooled`; gives what `build_network` does."""
    network = _put_head_on(pooled.input, pooled.output, recipe, head.output.shape[-1])
    for layer in head.layers:
        if layer.weights:
            network.get_layer(layer.name).set_weights(layer.get_weights())
    return network


def _put_head_on(inputs, pooled, recipe, num_classes):
    """Builds a network from its inputs and the vectors that follow from them: neck and head."""
    outputs = heads.add_head(recipe, pooled, num_classes)
    return keras.Model(inputs, outputs, name=re.sub(r"\W+", "_", recipe.network.backbone))


def shorten_batch_norm_memory(network, num_steps):
    """Lets batch normalisation forget its first statistics within a run, however short.

    Its moving averages remember 100 steps (ResNet) or 1,000 (MobileNetV2). In a run of a few
    hundred steps they would lag behind the weights, and prediction would differ from training. The
    tens of thousands of steps of the full data set change nothing here.
    """
    longest_memory = max(10, num_steps / 20)
    for layer in network.layers:
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


def compile_network(network, recipe, class_sizes):
    """Makes a network trainable; `class_sizes`: (num_classes,) int, images of each landmark."""
    if keras.backend.backend() == "tensorflow":
        fuse_batch_norms(network)
    head = [layer for layer in network.layers if layer.name in heads.HEAD_LAYERS]
    network.compile(
        optimizer=build_optimizer(recipe.training, [v for layer in head for v in layer.variables]),
        loss=heads.build_loss(recipe.loss, network, class_sizes),
        weighted_metrics=["sparse_categorical_accuracy"],  # what fills up weighs nothing
        # XLA makes the step slower on a CPU (measured 0.62x under TensorFlow).
        jit_compile="auto" if list_gpus() or keras.backend.backend() != "tensorflow" else False,
    )


def build_classifier(network, loss):
    """Makes outputs confidences: cosines stay, logits become probabilities, float32."""
    outputs = network.output
    if loss.loss == "softmax":
        softmax = keras.layers.Activation("softmax", dtype="float32", name="probabilities")
        outputs = softmax(outputs)
    return keras.Model(network.input, outputs, name=network.name)


def build_with_descriptor(classifier):
    """Builds the network that gives all confidences, as `build_classifier` does, and descriptors.

    Descriptors are (batch, 2048) float32 of ResNet50 without a neck.
    """
    both = keras.Model(classifier.input, [classifier.output, find_descriptor(classifier).output])
    images = keras.Input(classifier.input.shape[1:], dtype="uint8", name="images")
    pixels = keras.ops.cast(images, classifier.input.dtype)  # the 2019 model takes float32
    confidences, descriptors = both(pixels)
    return keras.Model(images, [confidences, keras.ops.cast(descriptors, "float32")])


def build_predictor(classifier, flipped_too=False):
    """Builds the network that predicts and describes in one forward pass.

    Images -> [class indices (batch,) int32, confidences (batch,) float32, descriptors (batch, d)
    float32], averaged with those of the mirrored image if asked for. The best landmark is chosen on
    the device: 55k probabilities an image never leave it.
    """
    both = build_with_descriptor(classifier)
    images = keras.Input(classifier.input.shape[1:], dtype="uint8", name="images")
    probabilities, descriptors = both(images)
    if flipped_too:
        mirrored = both(keras.ops.flip(images, axis=2))
        probabilities = (probabilities + mirrored[0]) / 2
        descriptors = (descriptors + mirrored[1]) / 2
    class_indices = keras.ops.argmax(probabilities, axis=-1)
    confidences = keras.ops.max(probabilities, axis=-1)
    return keras.Model(images, [class_indices, confidences, descriptors], name="predictor")


def find_descriptor(classifier):
    """Finds the layer that describes by its name, or by its type in the model of 2019; or None."""
    named = [layer for layer in classifier.layers if layer.name == heads.DESCRIPTOR]
    pooling = [layer for layer in classifier.layers if isinstance(layer, POOLING)]
    return (named or pooling or [None])[-1]


def digest_of_variables(variables, words=""):
    """Gives 32 hex characters that differ for other values of Keras variables, or other words."""
    digest = hashlib.md5(words.encode(), usedforsecurity=False)
    for variable in variables:
        digest.update(np.ascontiguousarray(to_numpy(variable)))
    return digest.hexdigest()


@dataclass(frozen=True)
class Recogniser:
    """A trained classifier together with the landmarks that its outputs stand for."""

    classifier: keras.Model  # images -> confidences (batch, num_classes) float32
    class_table: ClassTable  # of num_classes landmarks
    recipe: Recipe = Recipe()  # that it was trained with; that of 2019 where the file does not say

    @property
    def fingerprint(self):
        """32 hex characters that differ for other weights or other landmarks."""
        return digest_of_variables(self.classifier.weights, self.class_table.fingerprint)

    @property
    def image_size(self):
        """Side of the square input images, in pixels."""
        return self.classifier.input.shape[1]


def save_recogniser(network, path, class_table, recipe):
    """Writes a trained network as a classifier, with its landmarks and its recipe."""
    page = {"landmark_ids": class_table.landmark_ids.tolist(), "recipe": recipe.as_page()}
    if architecture := backbones.architecture_of(network):
        page["backbone"] = architecture
    save_model(build_classifier(network, recipe.loss), path, page)


def save_model(model, path, page):
    """Writes a model and a page of facts about it as one atomic `.keras` file.

    Keras ignores the page, so that `keras.models.load_model` opens the file as it is. The page is a
    dict that JSON can hold; `landmark_ids`, a list of int, is always in it.
    """
    with atomic_write(path) as temporary:
        model.save(temporary)
        with zipfile.ZipFile(temporary, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(LANDMARKS_MEMBER, json.dumps(page))


def load_model(path):
    """Reads what `save_model` wrote, after checking that it is whole.

    A file with a recipe is built by that, and takes its weights alone from the file: Keras refuses
    descriptions of networks by later versions, which have options that it does not know.

    Returns:
        (keras.Model, landmark ids, Recipe), or ExpectedError where it is not whole, or has other
        weights than the recipe asks for.
    """
    path = Path(path)
    if not path.is_file():
        raise ExpectedError(
            f"{path}: no such file; expected a model written by recognition.py", setting="model"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            require_true_sizes(archive)
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} is damaged")
            page = None
            if LANDMARKS_MEMBER in archive.namelist():  # else it is no model at all
                page = json.loads(archive.read(LANDMARKS_MEMBER))
                config = archive.read(CONFIG_MEMBER)
                writer = str(json.loads(archive.read(METADATA_MEMBER))["keras_version"])[:20]
    except Exception as error:  # a damaged archive can fail anywhere
        raise ExpectedError(
            f"{path}: {_reason(error)}; expected {WHOLE}; take another copy, or train again"
        ) from error
    _check_page(path, page)
    if b'"keras_hub' in config:
        _require_hub(path)
    try:
        recipe = Recipe.of(page.get("recipe", {}))
    except ValueError as error:
        problem = f"{path}: {error}; expected a model written by recognition.py"
        raise ExpectedError(problem, setting="model") from error
    with _explained(path, writer):
        # An older file names a preset of keras-hub and does not hold what it is, or was trained
        # with a setting that is none now.
        is_named_only = recipe.network.backbone.startswith(HUB) and not page.get("backbone")
        if "recipe" in page and not is_named_only and not find_given_up(page["recipe"]):
            return _rebuild(path, recipe, page), page["landmark_ids"], recipe
        return keras.models.load_model(path), page["landmark_ids"], recipe


def _rebuild(path, recipe, page):
    """Builds the classifier of a recipe in the precision of this machine, with a file's weights."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision_here(recipe.training.bfloat16))
    try:
        restored, num_classes = page.get("backbone", ""), len(page["landmark_ids"])
        network = build_network(recipe, num_classes, math.inf, restored)
        classifier = build_classifier(network, recipe.loss)
    finally:
        keras.config.set_dtype_policy(before)
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
        own = Path(folder, "own.weights.h5")
        classifier.save_weights(own)  # to know where Keras looks for each
        wanted = _shapes_of_weights(own)
        own.unlink()
        file = archive.extract(WEIGHTS_MEMBER, folder)
        found = _shapes_of_weights(file)
        for name in sorted(wanted.keys() | found.keys()):
            here, there = (
                f"has the shape {shapes[name]}" if name in shapes else "is missing"
                for shapes in (found, wanted)
            )
            if here != there:
                raise ValueError(
                    f"weight {name} {here} in the file, and {there} in the network of its recipe"
                )
        classifier.load_weights(file)
    return classifier


def _shapes_of_weights(path):
    """Lists the arrays of a file of weights: name -> shape; ValueError for a link or no numbers."""
    shapes = {}

    def note(name, item):
        if isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual or item.dtype.kind not in "fiub":
                raise ValueError(f"weight {name} is no array of numbers in this file")
            shapes[name] = item.shape

    with h5py.File(path) as file:
        file.visititems(note)
    return shapes


def _require_hub(path):
    """Raises ExpectedError unless keras-hub is there, whose layers a model has."""
    try:
        import keras_hub  # noqa: F401 - it registers them
    except ImportError as error:
        expected = "expected the optional package keras-hub (requirements-hub.txt)"
        remedy = "whose layers this model has; install it, or take another model"
        raise ExpectedError(f"{path}: {_reason(error)}; {expected}, {remedy}", "model") from error


def _check_page(path, page):
    """Raises ExpectedError unless the page has a table of landmarks."""
    if not isinstance(page, dict) or "landmark_ids" not in page:
        expected = "a model written by recognition.py, which knows the landmark of each output"
        raise ExpectedError(f"{path}: no class table in it; expected {expected}", "model")
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


@contextlib.contextmanager
def _explained(path, writer, expected=WHOLE):
    """Makes of all that goes wrong in the block an ExpectedError with both versions of Keras."""
    try:
        with muted_stderr():  # TensorFlow looks for a GPU here, and tells of it
            yield
    except Exception as error:  # a file of somebody else can fail anywhere in Keras
        if "safe_mode" in str(error):  # Keras advises to pass safe_mode=False, which runs the code
            problem = "it carries code (a Lambda layer or the like), so it is never loaded"
            expected = "nothing but Keras' own layers; take another model, or train one"
            raise ExpectedError(f"{path}: {problem}; expected {expected}") from error
        remedy = "" if writer == keras.__version__ else f"open it with Keras {writer}, "
        raise ExpectedError(
            f"{path}: {_reason(error)} (written by Keras {writer}, read by {keras.__version__}); "
            f"expected {expected}; {remedy}take another copy, or train again"
        ) from error


def _reason(error):
    """Gives the line of an error that says what is wrong, which is not Keras' first one."""
    text = str(error) or type(error).__name__
    if isinstance(error, ExpectedError):
        return text.partition("; ")[0]
    cause = text.rpartition("Exception encountered: ")[2]
    return cause.strip().splitlines()[0]


def load_recogniser(path, read_2019_classes=None):
    """Reads a `Recogniser`: model.keras, or the whole-model HDF5 file published in 2019.

    Args:
        path: the file.
        read_2019_classes: function without arguments that gives the `ClassTable` of 2019; asked for
            an HDF5 file alone, which does not hold its landmarks.

    Raises:
        ExpectedError: as `load_model` does; or the network is no recogniser; or the outputs are not
            those of the 2019 table.
    """
    is_of_2019 = read_2019_classes and h5py.is_hdf5(path)
    classifier, ids, recipe = (_load_hdf5(path), [], Recipe()) if is_of_2019 else load_model(path)
    _check_network(path, classifier)
    class_table, origin = ClassTable(np.array(ids, np.int64)), "the landmarks in the file"
    if is_of_2019:
        class_table, origin = read_2019_classes(), "the classes of 2019 in this source's train.csv"
    if classifier.output.shape[-1] != len(class_table):
        raise ExpectedError(
            f"{path}: {classifier.output.shape[-1]} outputs; expected {len(class_table)}, one for "
            f"each of {origin}; take the model of this source, or train again"
        )
    return Recogniser(classifier, class_table, recipe)


def _check_network(path, network):
    """Raises ExpectedError unless a network takes images and describes and classifies them."""
    inputs, outputs = (
        [tuple(end.shape[1:]) for end in getattr(network, name, None) or []]
        for name in ("inputs", "outputs")
    )
    descriptor = find_descriptor(network)
    if isinstance(network, keras.Sequential):
        problem = "a Sequential network"
    elif (len(inputs), len(outputs)) != (1, 1):
        problem = f"a network of {len(inputs)} inputs and {len(outputs)} outputs"
    elif None in inputs[0] or inputs[0] != (*inputs[0][:1] * 2, 3):  # square, RGB
        problem = f"a network of images of the shape {inputs[0]}"
    elif len(outputs[0]) != 1:
        problem = f"a network of outputs of the shape {outputs[0]}"
    elif descriptor is None or len(descriptor.output.shape) != 2:
        problem = "a network without a layer that describes the image"
    else:
        return
    expected = "a recogniser, square RGB images to one probability for each landmark, "
    expected += "written by recognition.py"
    raise ExpectedError(f"{path}: {problem}; expected {expected}", "model")


def _load_hdf5(path):
    """Loads a whole-model HDF5 file with its own graph, which takes raw RGB 0..255 as float32."""
    whole = "a whole model saved by Keras 2"
    with (
        os_errors_as(f"{path}: cannot be read", f"{whole}; take another copy"),
        h5py.File(path) as file,
    ):
        writer = file.attrs.get("keras_version", b"2")
        writer = writer.decode() if isinstance(writer, bytes) else str(writer)
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder, "model.h5")  # Keras goes by the name, and the file is a `.model`
        named.symlink_to(Path(path).resolve())
        with _explained(path, writer, whole):
            loaded = keras.models.load_model(named, compile=False)
    inputs, outputs = getattr(loaded, "inputs", None), getattr(loaded, "outputs", None)
    if inputs and outputs and len(inputs) == len(outputs) == 1:  # Keras 2 put each into a list
        return keras.Model(inputs[0], outputs[0])
    return loaded
