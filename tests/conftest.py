"""What the tests share: a small data set, and networks small enough to train in seconds."""

import contextlib
import io
import os
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from synthetic import make_source

# Before Keras is loaded: on a GPU sums have no fixed order, and some tests compare every bit.
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture(autouse=True)
def same_weights_in_every_run():
    """Seeds what Keras draws the seeds of its initial weights from."""
    random.seed(0)


@pytest.fixture
def tiny_backbones():
    """Puts the tiny network in the place of every backbone; preprocessing stays as it is."""
    from tiny_network import in_place_of_backbones

    with in_place_of_backbones():
        yield


@pytest.fixture(scope="module")
def tiny_models():
    """Lets a whole module of tests open the model of `recognition_run`."""
    from tiny_network import in_place_of_backbones

    with in_place_of_backbones():
        yield


@pytest.fixture
def float32_afterwards():
    """Lets a test choose another precision."""
    import keras

    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def data_set(tmp_path_factory):
    """A synthetic data set that no test changes."""
    return make_source(tmp_path_factory.mktemp("data-set") / "source")


@dataclass(frozen=True)
class Run:
    """A finished run of a script.

    Attributes:
        output: folder of the results.
        arguments: list of str, its command line.
        stdout, stderr: what it wrote.
    """

    output: Path
    arguments: list
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def recognition_run(data_set, tmp_path_factory):
    """The whole of `recognition.py` on the synthetic data set, with a tiny network."""
    from tiny_network import in_place_of_backbones

    import recognition

    output = tmp_path_factory.mktemp("recognition") / "output"
    arguments = [
        *("--source", str(data_set.folder), "--output", str(output)),
        *("--train-shards", "1:4", "--valid-shards", "0:1", "--valid-every", "2"),
        *("--min-images", "5", "--backbone", "mobilenet_v2", "--weights", "none"),
        *("--image-size", "32", "--batch-size", "8", "--epochs", "2", "--no-augment"),
        *("--learning-rate", "0.03"),
    ]
    with (
        in_place_of_backbones(),
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
    ):
        recognition.main(arguments)
    return Run(output, arguments, stdout.getvalue(), stderr.getvalue())


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Kernels built once."""
    from built_kernels import build

    folder = tmp_path_factory.mktemp("built")
    build(folder)
    return folder


@pytest.fixture(scope="session")
def built_small(tmp_path_factory):
    """Kernels built with three in front that make the data set small."""
    from built_kernels import build

    folder = tmp_path_factory.mktemp("built-small")
    build(folder, "--shrink", "256", "--shrink-kernels", "3", "--no-internet")
    return folder


@pytest.fixture(scope="session")
def built_strong(tmp_path_factory):
    """Kernels of the longer chain, built once."""
    from built_kernels import build

    folder = tmp_path_factory.mktemp("built-strong")
    build(folder, "--recipe", "strong", "--nearest-args", "--labels full")
    return folder
