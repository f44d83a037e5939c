"""Several devices share each batch; two logical CPUs stand for two GPUs, eight for JAX."""

import importlib.util
import os
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
from network.devices import OneDevice, MirroredDevices

rng = np.random.default_rng(0)
images = rng.integers(0, 256, (6, 8, 16, 16, 3), np.uint8)
classes = rng.integers(0, 3, (6, 8)).astype(np.int32)


def run(devices):
    # No batch normalisation: it works within a share, so that two shares differ from one batch.
    with devices.scope():
        model.set_up_keras(0)
        inputs = keras.Input((16, 16, 3), dtype="uint8")
        pixels = keras.layers.Rescaling(1 / 255)(inputs)
        features = keras.layers.Conv2D(4, 3, activation="relu")(pixels)
        pooled = keras.layers.GlobalMaxPooling2D(name="descriptor")(features)
        network = keras.Model(inputs, keras.layers.Dense(3, name="logits")(pooled))
        model.compile_network(network, Recipe(training=Training(learning_rate=0.01)), [1, 1, 1])
        network.optimizer.build(network.trainable_variables)
        losses = [devices.train_on_batch(network, x, y) for x, y in zip(images, classes)]
        predictor = model.build_predictor(model.build_classifier(network, Loss()))
        outputs = devices.predict_on_batch(predictor, images[0])
        network.reset_metrics()
        valid = network.test_on_batch(images[1], classes[1])
    return np.array(losses), outputs, np.array(valid)


one = run(OneDevice())
two = run(MirroredDevices(["CPU:0", "CPU:1"]))
np.testing.assert_allclose(two[0], one[0], rtol=2e-3, atol=2e-4)
np.testing.assert_allclose(two[2], one[2], rtol=2e-3, atol=2e-4)
assert one[1][0].tolist() == two[1][0].tolist()
np.testing.assert_allclose(two[1][2], one[1][2], rtol=2e-2, atol=1e-3)
print("equal")
"""


def test_two_devices_train_and_predict_as_one_does():
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
    network = keras.Model(inputs, keras.layers.Dense(3, kernel_initializer="zeros")(inputs))
    model.compile_network(network, Recipe(training=Training(learning_rate=0.01)), [1, 1, 1])
    network.optimizer.build(network.trainable_variables)
    traced = []
    step = network.train_step
    monkeypatch.setattr(network, "train_step", lambda data: traced.append(1) or step(data))
    images, classes = np.ones((8, 4), np.float32), np.array([0, 1, 2, 0, 1, 2, 0, 1], np.int32)
    losses = [OneDevice().train_on_batch(network, images, classes)[0] for _ in range(3)]
    assert len(traced) == 1
    # A class has four weights and a bias. Adam's first step moves each by 0.01, the second almost.
    for loss, logit in zip(losses, (0, 0.05, 0.1), strict=True):
        exps = np.exp([logit, logit, -logit])  # two classes have more than a third of the images
        expected = np.log(exps.sum()) - (3 * logit + 3 * logit - 2 * logit) / 8
        assert loss == pytest.approx(expected, abs=2e-4)


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
from network.devices import OneDevice, MirroredDevices
from training.loop import Pace

STRONG = {{
    **{{"image_size": 32, "weights": "none", "pooling": "gem"}},
    **{{"loss": "arcface", "sub_centers": 2, "dynamic_margin": True, "margin_ramp": 0.5}},
    **{{"class_weights": True, "schedule": "cosine", "warm_up": 0.1, "weight_decay": 0.1}},
    **{{"backbone_rate": 0.5, "frozen_share": 0.2}},
}}


# No batch normalisation: it works within a share.
def build_small(include_top, weights, input_tensor):
    features = keras.layers.Conv2D(6, 3, 2, activation="relu")(input_tensor)
    return keras.Model(keras.utils.get_source_inputs(input_tensor), features)


backbones.find_builder = lambda name: build_small
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (6, 8, 32, 32, 3), np.uint8)
classes = rng.integers(0, 3, (6, 8)).astype(np.int32)


def run(devices, precision, optimizer):
    recipe = Recipe.of(STRONG | {{"optimizer": optimizer, "learning_rate": 0.01}})
    with devices.scope():
        model.set_up_keras(0)
        keras.config.set_dtype_policy(precision)
        network = model.build_network(recipe, 3, 100)
        model.compile_network(network, recipe, [5, 10, 40])
        network.optimizer.build(network.trainable_variables)
    losses = []
    for step in range(6):
        Pace(recipe, network, step // 2, 3, 2).set_for(step % 2)
        losses.append(devices.train_on_batch(network, images[step], classes[step]))
    moments = [v for v in network.optimizer.variables if "moment" in v.path]
    assert len(moments) >= 3
    return np.array(losses), [v.numpy() for v in (*network.variables, *moments)]


both = OneDevice(), MirroredDevices(["CPU:0", "CPU:1"])
for settings in (("float32", "sgd"), ("mixed_float16", "adamw")):
    one, two = (run(devices, *settings) for devices in both)
    least = 1e-6 if settings[0] == "float32" else 1e-2
    np.testing.assert_allclose(two[0], one[0], rtol=1e-4)
    for ours, theirs in zip(one[1], two[1], strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=least * np.abs(ours).max())
print("equal")
"""


def test_margins_weights_and_two_rates_are_on_two_devices_as_on_one():
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
from network.devices import MirroredDevices

devices = MirroredDevices(["CPU:0", "CPU:1"])
keras.config.set_dtype_policy("mixed_float16")
with devices.scope():
    inputs = keras.Input((4,), dtype="float32")
    network = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    model.compile_network(network, Recipe(training=Training(learning_rate=0.01)), [1, 1, 1])
    network.optimizer.build(network.trainable_variables)


small, large = np.ones((2, 4), np.float32), np.full((2, 4), 1e9, np.float32)
classes = np.zeros(4, np.int32)
devices.train_on_batch(network, np.concatenate([small, small]), classes)
before, scale = network.get_weights(), float(network.optimizer.dynamic_scale.numpy())
assert network.optimizer.iterations.numpy() == 1
for shares in ([small, large], [large, small]):
    devices.train_on_batch(network, np.concatenate(shares), classes)
    for was, now in zip(before, network.get_weights()):
        np.testing.assert_array_equal(was, now)
assert network.optimizer.dynamic_scale.numpy() == scale / 4
devices.train_on_batch(network, np.concatenate([small, small]), classes)
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
        devices.choose_devices(33)


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
from recipes import Recipe
from network.devices import SplitDevices, OneDevice, choose_devices
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
    **{{"weight_decay": 0.1, "schedule": "cosine", "warm_up": 0.1}},
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


eight = choose_devices(24)
assert type(eight) is SplitDevices and eight.num_devices == 8
three = SplitDevices(keras.distribution.list_devices()[:3])
with in_place_of_backbones():
    compare(SOFTMAX, images, eight, three)
head = compare(STRONG, vectors, three, eight)

# No collective of the compiled step is as large as the head: features cross, not its gradients.
placed = eight.place(head)
state = [[v.place() for v in group] for group in placed.state]
batch = (*(jax.device_put(x, placed._layout(x)) for x in (vectors[0], classes[0])), None)
text = placed.train_step.lower(state, batch).compile().as_text()
lines = [line for line in text.splitlines() if "all-gather(" in line or "all-reduce(" in line]
assert lines
sizes = [np.prod(list(map(int, shape.split(",")))) for line in lines
         for shape in re.findall(r"f32\\[([\\d,]+)\\]", line)]  # fmt: skip
kernel = head.get_layer("logits").kernel
assert max(sizes) < 64 * 13 * 3 == np.prod(kernel.shape), sizes
(array,) = (v.array for v in placed.state[0] if v.variable is kernel)
shard = array.addressable_shards[0].data
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
