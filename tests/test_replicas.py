"""Two replicas of a network share each batch; two logical CPUs stand for two GPUs."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TWO_CPUS = """
import sys
import numpy as np
import tensorflow as tf

sys.path[:0] = [{root!r}, {tests!r}]
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

import keras
import model
from recipes import Loss, Recipe, Training
from network.devices import OneDevice, TensorFlowReplicas

rng = np.random.default_rng(0)
images = rng.integers(0, 256, (6, 8, 16, 16, 3), np.uint8)
classes = rng.integers(0, 3, (6, 8)).astype(np.int32)


def run(replicas):
    # No batch normalisation: it works within a share, so that two shares differ from one batch.
    with replicas.scope():
        model.set_up_keras(0)
        inputs = keras.Input((16, 16, 3), dtype="uint8")
        pixels = keras.layers.Rescaling(1 / 255)(inputs)
        features = keras.layers.Conv2D(4, 3, activation="relu")(pixels)
        pooled = keras.layers.GlobalMaxPooling2D(name="descriptor")(features)
        network = keras.Model(inputs, keras.layers.Dense(3, name="logits")(pooled))
        model.compile_network(network, Recipe(training=Training(learning_rate=0.01)), [1, 1, 1])
        network.optimizer.build(network.trainable_variables)
        losses = [replicas.train_on_batch(network, x, y) for x, y in zip(images, classes)]
        predictor = model.build_predictor(model.build_classifier(network, Loss()))
        outputs = replicas.predict_on_batch(predictor, images[0])
        network.reset_metrics()
        valid = network.test_on_batch(images[1], classes[1])
    return np.array(losses), outputs, np.array(valid)


one = run(OneDevice())
two = run(TensorFlowReplicas(["CPU:0", "CPU:1"]))
np.testing.assert_allclose(two[0], one[0], rtol=2e-3, atol=2e-4)
np.testing.assert_allclose(two[2], one[2], rtol=2e-3, atol=2e-4)
assert one[1][0].tolist() == two[1][0].tolist()
np.testing.assert_allclose(two[1][2], one[1][2], rtol=2e-2, atol=1e-3)
print("equal")
"""


def test_two_replicas_train_and_predict_as_one_device_does():
    tests = Path(__file__).resolve().parent
    code = TWO_CPUS.format(root=str(tests.parent), tests=str(tests))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


def test_a_step_is_traced_once(monkeypatch):
    import keras

    import model
    from network.devices import OneDevice
    from recipes import Recipe, Training

    inputs = keras.Input((4,))
    network = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    model.compile_network(network, Recipe(training=Training(learning_rate=0.01)), [1, 1, 1])
    network.optimizer.build(network.trainable_variables)
    traced = []
    step = network.train_step
    monkeypatch.setattr(network, "train_step", lambda data: traced.append(1) or step(data))
    images, classes = np.ones((8, 4), np.float32), np.array([0, 1, 2, 0, 1, 2, 0, 1], np.int32)
    losses = [OneDevice().train_on_batch(network, images, classes)[0] for _ in range(3)]
    assert len(traced) == 1
    assert losses[2] < losses[1] < losses[0]


def test_images_that_fill_up_a_batch_do_not_count_as_accurate():
    import keras

    import model
    from recipes import Recipe, Training

    inputs = keras.Input((3,))
    network = keras.Model(inputs, keras.layers.Dense(3, use_bias=False)(inputs))
    network.set_weights([np.eye(3, dtype=np.float32)])
    model.compile_network(network, Recipe(training=Training(learning_rate=0.01)), [1, 1, 1])
    images, classes = np.eye(3, dtype=np.float32)[[0, 1, 2, 2]], np.array([0, 0, 2, 2], np.int32)
    logs = network.train_on_batch(images, classes, np.array([2, 2, 0, 0], np.float32))
    assert logs[1] == 0.5  # one of the two that count


STRONG_ON_TWO_CPUS = """
import sys
import numpy as np
import tensorflow as tf

sys.path[:0] = [{root!r}]
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

import keras
from network import backbones
import model
from recipes import Recipe
from network.devices import OneDevice, TensorFlowReplicas
from training.loop import Pace

STRONG = {{
    **{{"image_size": 32, "weights": "none", "pooling": "gem", "gem_learnt": True}},
    **{{"loss": "arcface", "sub_centers": 2, "dynamic_margin": True, "margin_ramp": 0.5}},
    **{{"class_weights": True, "schedule": "cosine", "warm_up": 0.1, "weight_decay": 0.1}},
    **{{"clip_norm": 0.05, "backbone_rate": 0.5, "frozen_share": 0.2}},
}}


# No batch normalisation: it works within a share.
def build_small(include_top, weights, input_tensor):
    features = keras.layers.Conv2D(6, 3, 2, activation="relu")(input_tensor)
    return keras.Model(keras.utils.get_source_inputs(input_tensor), features)


backbones.find_builder = lambda name: build_small
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (6, 8, 32, 32, 3), np.uint8)
classes = rng.integers(0, 3, (6, 8)).astype(np.int32)


def run(replicas, precision, optimizer, learning_rate):
    recipe = Recipe.of(STRONG | {{"optimizer": optimizer, "learning_rate": learning_rate}})
    with replicas.scope():
        model.set_up_keras(0)
        keras.config.set_dtype_policy(precision)
        network = model.build_network(recipe, 3, 100)
        model.compile_network(network, recipe, [5, 10, 40])
        network.optimizer.build(network.trainable_variables)
    losses = []
    for step in range(6):
        Pace(recipe, network, step // 2, 3, 2).set_for(step % 2)
        losses.append(replicas.train_on_batch(network, images[step], classes[step]))
    moments = [v for v in network.optimizer.variables if "moment" in v.path]
    assert len(moments) >= 4
    return np.array(losses), [v.numpy() for v in (*network.variables, *moments)]


both = OneDevice(), TensorFlowReplicas(["CPU:0", "CPU:1"])
for settings in (("float32", "sgd", 1.0), ("mixed_float16", "adamw", 0.01)):
    one, two = (run(replicas, *settings) for replicas in both)
    least = 1e-6 if settings[0] == "float32" else 1e-2
    np.testing.assert_allclose(two[0], one[0], rtol=1e-4)
    for ours, theirs in zip(one[1], two[1], strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=least * np.abs(ours).max())
print("equal")
"""


def test_margins_weights_clipping_and_two_rates_are_on_two_devices_as_on_one():
    code = STRONG_ON_TWO_CPUS.format(root=str(Path(__file__).resolve().parent.parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


OVERFLOW = """
import sys
sys.path[:0] = [{root!r}]
import keras
import numpy as np
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
import model
from recipes import Loss, Recipe, Training
from network.devices import TensorFlowReplicas

replicas = TensorFlowReplicas(["CPU:0", "CPU:1"])
keras.config.set_dtype_policy("mixed_float16")
with replicas.scope():
    inputs = keras.Input((4,), dtype="float32")
    network = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    model.compile_network(network, Recipe(training=Training(learning_rate=0.01)), [1, 1, 1])
    network.optimizer.build(network.trainable_variables)


small, large = np.ones((2, 4), np.float32), np.full((2, 4), 1e9, np.float32)
classes = np.zeros(4, np.int32)
replicas.train_on_batch(network, np.concatenate([small, small]), classes)
before, scale = network.get_weights(), float(network.optimizer.dynamic_scale.numpy())
assert network.optimizer.iterations.numpy() == 1
for shares in ([small, large], [large, small]):
    replicas.train_on_batch(network, np.concatenate(shares), classes)
    for was, now in zip(before, network.get_weights()):
        np.testing.assert_array_equal(was, now)
assert network.optimizer.dynamic_scale.numpy() == scale / 4
replicas.train_on_batch(network, np.concatenate([small, small]), classes)
assert network.optimizer.iterations.numpy() == 2
assert all(np.isfinite(weights).all() for weights in network.get_weights())
print("skipped")
"""


def test_an_overflow_on_either_device_skips_the_step_on_both():
    code = OVERFLOW.format(root=str(Path(__file__).resolve().parent.parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "skipped", done.stderr[-2000:]


def test_a_batch_that_two_gpus_cannot_share_is_refused(monkeypatch):
    from network import devices
    from utils import ExpectedError

    monkeypatch.setattr(devices, "list_gpus", lambda: ["gpu:0", "gpu:1"])
    with pytest.raises(ExpectedError, match="batches of 33 images: 2 GPUs here"):
        devices.set_up_replicas(33)


# ------------------------------------------------------------------------------------------ JAX

needs_jax = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="JAX is optional: requirements-cluster.txt"
)
ROOT = Path(__file__).resolve().parent.parent

ON_JAX_DEVICES = """
import sys

sys.path[:0] = [{root!r}, {tests!r}]
import jax
import keras
import numpy as np

import model
from network import devices
from recipes import Recipe
from network.devices import JaxDevices, OneDevice, set_up_replicas
from tiny_network import in_place_of_backbones
from training.loop import Pace

NUM_CLASSES = 13  # neither 8 nor 3 divides it
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (4, 24, 32, 32, 3), np.uint8)
vectors = rng.standard_normal((4, 24, 16), np.float32)
classes = rng.integers(0, NUM_CLASSES, (4, 24)).astype(np.int32)
SOFTMAX = {{"image_size": 32, "weights": "none", "learning_rate": 0.01}}
STRONG = {{
    **{{"neck": 64, "loss": "arcface", "sub_centers": 3, "dynamic_margin": True}},
    **{{"margin_ramp": 0.5, "class_weights": True, "optimizer": "adamw", "learning_rate": 0.01}},
    **{{"weight_decay": 0.1, "clip_norm": 0.05, "schedule": "cosine", "warm_up": 0.1}},
}}


def build(recipe):
    model.set_up_keras(0)
    if recipe.network.neck:
        network = model.build_head(recipe, 16, NUM_CLASSES, 100)
    else:
        network = model.build_network(recipe, NUM_CLASSES, 100)
    model.compile_network(network, recipe, np.arange(NUM_CLASSES) + 5)
    network.optimizer.build(network.trainable_variables)
    return network


def values_of(network):
    return [model.to_numpy(v) for v in (*network.variables, *network.optimizer.variables)]


def train(devices, recipe, network, steps, data):
    losses = []
    for step in steps:
        Pace(recipe, network, step // 2, 2, 2).set_for(step % 2)
        losses.append(devices.train_on_batch(network, data[step], classes[step]))
    devices.settle(network)
    return losses


def compare(settings, data, first, second):
    recipe = Recipe.of(settings)
    one, many = build(recipe), build(recipe)
    expected = train(OneDevice(), recipe, one, range(4), data)
    losses = train(first, recipe, many, range(2), data)
    saved, many = values_of(many), build(recipe)  # as a checkpoint does
    for variable, value in zip((*many.variables, *many.optimizer.variables), saved, strict=True):
        assert variable.shape == value.shape
        variable.assign(value)
    losses += train(second, recipe, many, range(2, 4), data)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)
    for theirs, ours in zip(values_of(one), values_of(many), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
    (outputs,), (expected,) = (d.predict_on_batch(n, data[0]) for d, n in
                               ((second, many), (OneDevice(), one)))  # fmt: skip
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-4)
    return many


eight = set_up_replicas(24)
assert type(eight) is JaxDevices and eight.num_devices == 8
three = JaxDevices(keras.distribution.list_devices()[:3])
with in_place_of_backbones():
    compare(SOFTMAX, images, eight, three)
head = compare(STRONG, vectors, three, eight)

# No collective of the compiled step is as large as the head: features cross, not its gradients.
state = [[eight._place(v) for v in group] for group in devices._state_of(head)]
batch = [eight._split(vectors[0]), eight._split(classes[0]), None]
text = eight._steps[id(head), "train"][1].lower(state, batch).compile().as_text()
lines = [line for line in text.splitlines() if "all-gather(" in line or "all-reduce(" in line]
assert lines
sizes = [np.prod(list(map(int, shape.split(",")))) for line in lines
         for shape in re.findall(r"f32\\[([\\d,]+)\\]", line)]  # fmt: skip
kernel = head.get_layer("logits").kernel
assert max(sizes) < 64 * 13 * 3 == np.prod(kernel.shape), sizes
shard = eight._place(kernel).addressable_shards[0].data
assert shard.shape == (64, 5)  # 39 columns, and one of zeros, on 8 devices
print("equal")
"""


@needs_jax
def test_jax_devices_train_as_one_and_a_run_goes_on_with_another_number():
    code = "import re\n" + ON_JAX_DEVICES.format(root=str(ROOT), tests=str(ROOT / "tests"))
    flags = {"KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | flags
    )
    assert done.stdout.strip() == "equal", done.stderr[-3000:]


MACHINE = """
import runpy, sys
sys.path[:0] = [{root!r}, {tests!r}]
sys.argv[0] = "recognition.py"
from tiny_network import in_place_of_backbones
with in_place_of_backbones():
    runpy.run_path({root!r} + "/recognition.py", run_name="__main__")
"""

# The same global batches in one process: batch i of every machine's shard, one after another.
ONE_PROCESS = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
import numpy as np
import model
from training import loop
import recognition
from functools import partial
from generators import Batch, Reading, stream_batches
from data.landmarks import read_train_labels
from model import set_up_keras, to_numpy
from recipes import Recipe
from runs.session import Session
from data.sources import TRAIN_CSV, Source
from tiny_network import in_place_of_backbones
from data.arrays import save_arrays
from utils import Stop

args = recognition.parse_arguments(sys.argv[3:])
num_machines = int(sys.argv[2])
recipe, output = Recipe.of(vars(args)), Path(sys.argv[1])
source = Source(args.source, output)
table, labels = read_train_labels(source.fetch(TRAIN_CSV), recipe.data.min_images)
shards = source.select_shards("train", *recipe.data.train_shards)
images = loop.TrainImages(table, labels, shards, [])
session = Session(output, source, Stop())
set_up_keras(0)
with in_place_of_backbones():
    num_steps = loop.count_steps(session, recipe, images)
    build = partial(model.build_network, recipe, len(table), num_steps)
    network, _ = loop.begin(session, recipe, images, build)
size = recipe.training.batch_size // num_machines
reading = Reading(recipe.data, size, labels.find, is_training=True, seed=recipe.training.seed)
steps_of_shard = num_steps / len(shards)
losses, accuracies, last = [], [], {{}}
nothing = np.zeros((size, 32, 32, 3), np.uint8), np.zeros(size, np.int32)
for begin in range(0, len(shards), num_machines):
    group = shards[begin : begin + num_machines]
    streams = [list(stream_batches(source, [(0, shard)], reading)) for shard in group]
    batches = [[item for item in stream if isinstance(item, Batch)] for stream in streams]
    pace = loop.Pace(recipe, network, begin, len(shards), steps_of_shard, len(group))
    of_group = []
    for step in range(max(map(len, batches))):
        active = [k for k in range(len(group)) if step < len(batches[k])]
        for k in active:
            last[k] = batches[k][step].images, batches[k][step].class_indices
        parts = [last.get(k, nothing) for k in range(num_machines)]
        weights = [num_machines / len(active) if k in active else 0 for k in range(num_machines)]
        pace.set_for(step)
        x, y = map(np.concatenate, zip(*parts))
        weights = np.repeat(np.array(weights, np.float32), size)
        network.reset_metrics()
        of_group.append(list(map(float, network.train_on_batch(x, y, weights))))
    losses += [np.mean(of_group, axis=0)[0]] * len(group)
    accuracies += [np.mean(of_group, axis=0)[1]] * len(group)
variables = [*network.variables, *network.optimizer.variables]
arrays = {{f"v{{i:05d}}": to_numpy(v) for i, v in enumerate(variables)}}
save_arrays(output / "one.npz", {{"losses": losses, "accuracies": accuracies}}, **arrays)
"""


def start(code, *arguments):
    """Starts a Python process on JAX."""
    code = code.format(root=str(ROOT), tests=str(ROOT / "tests"))
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"KERAS_BACKEND": "jax"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def start_machines(number, arguments):
    """Starts the processes of machines on loopback."""
    from test_machines import free_addresses

    options = ("--machines", ",".join(free_addresses(number)), "--machine")
    return [start(MACHINE, *arguments, *options, k) for k in range(number)]


@needs_jax
@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_machines_train_as_one_process_with_the_same_batches(number, tmp_path):
    from synthetic import make_source

    from data.arrays import load_arrays

    made = make_source(tmp_path / "source", train_shards=5, per_train_shard=16)
    # Uneven: 16, 16, 16 and 16 + 3 images; three machines have a last group of one shard.
    output = tmp_path / "output"
    arguments = [
        *("train", "--source", made.folder, "--output", output, "--train-shards", "1:5"),
        *("--valid-shards", "0:1", "--min-images", 3, "--backbone", "mobilenet_v2"),
        *("--weights", "none", "--image-size", 32, "--batch-size", 12, "--learning-rate", 0.01),
    ]
    processes = start_machines(number, arguments)
    (tmp_path / "one").mkdir()
    one = start(ONE_PROCESS, tmp_path / "one", number, *arguments)
    said = [process.communicate(timeout=300) for process in (*processes, one)]
    assert [process.returncode for process in (*processes, one)] == [0] * (number + 1), said
    # Nothing of Gloo, which prints to stdout.
    assert [stdout for stdout, _ in said] == [f"{output / 'model.keras'}\n", *[""] * number]
    ours, page = load_arrays(output / "checkpoint" / "training.npz")
    theirs, oracle = load_arrays(tmp_path / "one" / "one.npz")
    rows = page["history"]
    assert [row["shard"] for row in rows] == [1, 2, 3, 4]
    assert [row["images"] for row in rows] == [16, 16, 16, 19]
    np.testing.assert_allclose([row["loss"] for row in rows], oracle["losses"], rtol=1e-4)
    accuracies = [row["accuracy"] for row in rows]
    np.testing.assert_allclose(accuracies, oracle["accuracies"], atol=1e-6)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        least = 1e-3 * np.abs(value).max() + 1e-6
        np.testing.assert_allclose(ours[name], value, rtol=1e-2, atol=least, err_msg=name)


@needs_jax
@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_a_killed_machine_ends_the_run_and_fewer_continue_it(number, tmp_path):
    from synthetic import make_source

    from data.arrays import load_arrays

    made = make_source(tmp_path / "source", train_shards=1 + number, per_train_shard=16)
    output, num_epochs = tmp_path / "output", 48 // number
    arguments = [
        *("train", "--source", made.folder, "--output", output, "--valid-shards", "0:1"),
        *("--train-shards", f"1:{1 + number}", "--min-images", 3, "--backbone", "mobilenet_v2"),
        *("--weights", "none", "--image-size", 32, "--batch-size", 12, "--epochs", num_epochs),
    ]
    first, *others = start_machines(number, arguments)
    for line in first.stderr:
        if line.startswith("mini-epoch 6/"):
            break
    others[0].kill()
    said = [process.communicate(timeout=120)[1].splitlines()[-1] for process in (first, *others)]
    assert [first.returncode, *(other.returncode for other in others[1:])] == [1] * (number - 1)
    for last in (said[0], *said[2:]):
        expected = f"expected all {number} machines to the end"
        assert re.match(rf"error: machine 1 \(.*\) is gone; {expected}", last)
    checkpoint = output / "checkpoint" / "training.npz"
    num_done = len(load_arrays(checkpoint)[1]["history"])
    assert 6 <= num_done < 48 and num_done % number == 0
    fewer = start_machines(2, arguments) if number == 3 else [start(MACHINE, *arguments)]
    said = [process.communicate(timeout=300) for process in fewer]
    assert [stdout for stdout, _ in said] == [f"{output / 'model.keras'}\n", ""][: len(fewer)], said
    rows = load_arrays(checkpoint)[1]["history"]
    assert [row["mini_epoch"] for row in rows] == list(range(1, 49))
    assert [row["shard"] for row in rows] == list(range(1, 1 + number)) * num_epochs


@needs_jax
@pytest.mark.parametrize("name", ["margin", "the number and kind of devices"])
def test_machines_that_differ_are_refused(name):
    from types import SimpleNamespace

    from network import devices
    from utils import ExpectedError

    one = object.__new__(devices.JaxMachines)
    one.machines = SimpleNamespace(
        exchange=lambda facts: [facts, facts | {name: "another"}], name=lambda k: f"machine {k}"
    )
    with pytest.raises(ExpectedError, match=f"machine 1: {name} is another, here it is ") as caught:
        one.follow_first(None, [], {"margin": 0.3, "epochs": 1})
    assert str(caught.value).endswith("expected the same command and data on all machines")


@needs_jax
@pytest.mark.slow
def test_sigterm_on_one_machine_stops_all_after_the_same_step(tmp_path):
    from synthetic import make_source

    made = make_source(tmp_path / "source", train_shards=3, per_train_shard=16)
    arguments = [
        *("train", "--source", made.folder, "--output", tmp_path / "output", "--epochs", 400),
        *("--train-shards", "1:3", "--valid-shards", "0:1", "--min-images", 3, "--weights"),
        *("none", "--backbone", "mobilenet_v2", "--image-size", 32, "--batch-size", 4),
    ]
    first, second = start_machines(2, arguments)
    for line in first.stderr:
        if line.startswith("mini-epoch 2/"):
            break
    second.terminate()
    said = [process.communicate(timeout=120) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0]
    assert [stdout for stdout, _ in said] == ["", ""]
    ends = {stderr.splitlines()[-1] for _, stderr in said}
    assert len(ends) == 1 and "stopped by SIGTERM on machine 1: " in ends.pop()
