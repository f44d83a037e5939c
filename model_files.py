"""Model files: a trained classifier with its landmarks and its recipe, in model.keras.

Files are read without running any code that is in them.
"""

import json
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from data.arrays import require_true_sizes
from data.landmarks import ClassTable
from model import build_classifier, digest_of_variables, find_descriptor
from recipes import Recipe
from utils import ExpectedError, atomic_write, loading_keras, muted_stderr

with loading_keras():
    import keras


LANDMARKS_MEMBER = "landmarks.json"  # our page in the .keras file, which is a zip archive


@dataclass(frozen=True)
class Recogniser:
    """A trained classifier together with the landmarks that its outputs stand for.

    Attributes:
        classifier: keras.Model, images -> probabilities (batch, num_classes) float32.
        class_table: `ClassTable` of num_classes landmarks.
        recipe: `Recipe` that it was trained with; that of 2019 where the file does not say.
    """

    classifier: keras.Model
    class_table: ClassTable
    recipe: Recipe = Recipe()

    @property
    def fingerprint(self):
        """32 hex characters that differ for other weights or other landmarks."""
        return digest_of_variables(self.classifier.variables, self.class_table.fingerprint)

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
    save_model(build_classifier(network, recipe.loss), path, page)


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
            config = archive.read("config.json") if "config.json" in archive.namelist() else b""
    except Exception as error:  # a damaged archive can fail anywhere
        raise ExpectedError(f"{path}: {_reason(error)}; expected {whole}") from error
    _check_page(path, page)
    if b'"keras_hub' in config:
        _require_hub(path)
    return _load_keras(path, whole), page


def _require_hub(path):
    """Raises ExpectedError unless keras-hub is there, whose layers a model has."""
    try:
        import keras_hub  # noqa: F401 - it registers them
    except ImportError as error:
        raise ExpectedError(
            f"{path}: {_reason(error)}; expected the optional package keras-hub "
            "(requirements-hub.txt), whose layers this model has; install it, or take another "
            "model",
            setting="model",
        ) from error


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
    recipe = Recipe()
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
        recipe = _read_recipe(path, page)
    if classifier.output.shape[-1] != len(class_table):
        raise ExpectedError(
            f"{path}: {classifier.output.shape[-1]} outputs; expected {len(class_table)}, one for "
            f"each of {origin}; take the model of this source, or train again"
        )
    return Recogniser(classifier, class_table, recipe)


def _read_recipe(path, page):
    """Reads the recipe of a model's page."""
    try:
        return Recipe.of(page.get("recipe", {}))
    except ValueError as error:
        raise ExpectedError(
            f"{path}: {error}; expected a model written by recognition.py", setting="model"
        ) from error


def _check_network(path, network):
    """Raises ExpectedError unless a network takes images and describes and classifies them."""
    ends = [getattr(network, name, None) or [] for name in ("inputs", "outputs")]
    num_inputs, num_outputs = map(len, ends)
    descriptor = find_descriptor(network)
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
