"""Tests of the optimizers: steps by hand, and against those of Keras."""

import keras
import numpy as np
import pytest

from network.optimizers import build_optimizer, set_rates
from recipes import Training

to_numpy = keras.ops.convert_to_numpy
IMAGES = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
VALUES = np.random.default_rng(1).normal(size=(8, 2)).astype(np.float32)
BACKBONE = ("body", "norm")


def small_network():
    """A backbone of a dense layer and a normalisation, and a head; the weights are always equal."""
    keras.utils.set_random_seed(0)
    vectors = keras.Input((4,))
    features = keras.layers.Dense(3, "tanh", name="body")(vectors)
    features = keras.layers.BatchNormalization(name="norm")(features)
    return keras.Model(vectors, keras.layers.Dense(2, dtype="float32", name="logits")(features))


def compiled(theirs=None, **settings):
    """Compiles the small network with an optimizer of Keras, or with that of these settings."""
    network = small_network()
    head = network.get_layer("logits").variables
    network.compile(theirs or build_optimizer(Training(**settings), head), "mse")
    network.optimizer.build(network.trainable_variables)
    return network


def weights_of(network, *names):
    """Copies the trained weights of some layers, or of all."""
    layers = [network.get_layer(name) for name in names or (*BACKBONE, "logits")]
    return [to_numpy(v).copy() for layer in layers for v in layer.trainable_variables]


def after(network, num_steps):
    """Trains so many steps; gives the trained weights."""
    for _ in range(num_steps):
        network.train_on_batch(IMAGES, VALUES)
    return weights_of(network)


def is_equal(ours, theirs):
    return all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))


def step(steps_of_gradients, **settings):
    """Takes steps of a kernel of 2 and a bias of 1, both in the head; gives the two after each."""
    kernel, bias = keras.Variable([[2.0]]), keras.Variable([1.0])
    optimizer = build_optimizer(Training(learning_rate=0.1, **settings), [kernel, bias])
    found = []
    for gradients in steps_of_gradients:
        of_kernel, of_bias = (keras.ops.convert_to_tensor(g, "float32") for g in gradients)
        optimizer.apply([keras.ops.reshape(of_kernel, (1, 1)), of_bias[None]], [kernel, bias])
        found.append((to_numpy(kernel).item(), to_numpy(bias).item()))
    return found


# ----------------------------------------------------------------------------- the three of them


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({}, lambda: keras.optimizers.Adam(0.01)),
        ({"weight_decay": 0.5}, lambda: keras.optimizers.Adam(0.01)),  # of the others alone
        ({"optimizer": "adamw"}, lambda: keras.optimizers.Adam(0.01)),
        ({"optimizer": "sgd"}, lambda: keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True)),
    ],
)
def test_with_nothing_else_on_steps_are_those_of_keras(settings, theirs):
    ours, other = compiled(learning_rate=0.01, **settings), compiled(theirs())
    for one, its_twin in zip(after(ours, 3), after(other, 3), strict=True):
        np.testing.assert_allclose(one, its_twin, rtol=1e-6, atol=1e-6)
    shapes = [[tuple(v.shape) for v in each.optimizer.variables] for each in (ours, other)]
    assert shapes[0] == shapes[1]  # 2019's checkpoints have no more variables than they had


def test_a_step_of_adamw_by_hand():
    # The first step of Adam is the learning rate, 0.1; the decay before it 0.1 x 0.5 x 2.
    ((kernel, bias),) = step([(3.0, -3.0)], optimizer="adamw", weight_decay=0.5)
    assert kernel == pytest.approx(2 - 0.1 - 0.1, abs=1e-6)
    assert bias == pytest.approx(1 + 0.1, abs=1e-6)


def test_adamw_decays_as_keras_does():
    theirs = keras.optimizers.AdamW(0.01, weight_decay=0.5)
    theirs.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    other = compiled(theirs)
    ours = compiled(optimizer="adamw", learning_rate=0.01, weight_decay=0.5)
    for one, its_twin in zip(after(ours, 5), after(other, 5), strict=True):
        np.testing.assert_allclose(one, its_twin, rtol=1e-5, atol=1e-6)


def test_two_steps_of_sgd_by_hand():
    # Nesterov: the momentum m = 0.9 m - 0.1 g, the step 0.9 m - 0.1 g. m: -0.3, -0.57
    found = step([(3.0, 3.0)] * 2, optimizer="sgd")
    assert found[0] == pytest.approx((2 - 0.57, 1 - 0.57), abs=1e-6)
    assert found[1] == pytest.approx((2 - 0.57 - 0.813, 1 - 0.57 - 0.813), abs=1e-6)
    # The decay, 0.1 x 0.5 x 2, is no part of the momentum.
    found = step([(3.0, 3.0)], optimizer="sgd", weight_decay=0.5)
    assert found[0] == pytest.approx((2 - 0.1 - 0.57, 1 - 0.57), abs=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_decay_leaves_biases_and_normalisations_alone(optimizer):
    network = compiled(optimizer=optimizer, learning_rate=0.1, weight_decay=0.5)
    variables = network.trainable_variables
    before = [to_numpy(v).copy() for v in variables]
    network.optimizer.apply([keras.ops.zeros(v.shape) for v in variables], variables)
    for was, now in zip(before, map(to_numpy, variables), strict=True):
        expected = was * np.float32(0.95) if was.ndim > 1 else was
        np.testing.assert_allclose(now, expected, rtol=0 if was.ndim == 1 else 1e-6)


def test_the_biases_of_attention_have_two_axes_and_do_not_decay():
    layer = keras.layers.MultiHeadAttention(2, 3)
    layer.build((1, 4, 6), (1, 4, 6))
    biases = [v for v in layer.trainable_variables if v.name == "bias" and len(v.shape) == 2]
    assert len(biases) == 3
    for bias in biases:
        bias.assign(keras.ops.ones(bias.shape))
    optimizer = build_optimizer(Training(optimizer="adamw", weight_decay=0.5), [])
    optimizer.apply([keras.ops.zeros(v.shape) for v in biases], biases)
    for bias in biases:
        np.testing.assert_array_equal(to_numpy(bias), np.ones(bias.shape))


class WithUnusedWeight(keras.layers.Dense):
    """A layer like that of DINOv2, whose mask token is used in pretraining alone."""

    def build(self, input_shape):
        super().build(input_shape)
        self.unused = self.add_weight((1,), "ones", name="unused")


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_weight_that_the_loss_does_not_know_has_no_step(optimizer):
    vectors = keras.Input((4,))
    network = keras.Model(vectors, WithUnusedWeight(2, name="logits")(vectors))
    head = network.get_layer("logits")
    network.compile(build_optimizer(Training(optimizer=optimizer), head.variables), "mse")
    before = to_numpy(head.kernel).copy()
    network.train_on_batch(IMAGES, VALUES)
    assert to_numpy(head.unused).tolist() == [1.0]
    assert (to_numpy(head.kernel) != before).all()


# ------------------------------------------------------------------------------------- two rates


def test_the_backbone_goes_its_share_of_the_way():
    start = small_network()
    whole, tenth = (
        compiled(optimizer="sgd", learning_rate=0.1, backbone_rate=share) for share in (1.0, 0.1)
    )
    after(whole, 1)
    after(tenth, 1)
    for one, its_twin in zip(weights_of(tenth, "logits"), weights_of(whole, "logits"), strict=True):
        np.testing.assert_allclose(one, its_twin, rtol=1e-6)
    for was, all_the_way, some in zip(
        weights_of(start, *BACKBONE),
        weights_of(whole, *BACKBONE),
        weights_of(tenth, *BACKBONE),
        strict=True,
    ):
        np.testing.assert_allclose(some - was, (all_the_way - was) / 10, atol=1e-7)


def test_adam_too_leaves_a_backbone_that_is_frozen_for_a_share_of_the_run():
    network, start = compiled(frozen_share=0.5, learning_rate=0.1), small_network()
    set_rates(network.optimizer, 0.1, 0.0)
    after(network, 1)
    assert is_equal(weights_of(network, *BACKBONE), weights_of(start, *BACKBONE))
    assert not is_equal(weights_of(network, "logits"), weights_of(start, "logits"))


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_rates_act_on_a_step_that_was_traced_before(policy, optimizer, float32_afterwards):
    keras.config.set_dtype_policy(policy)
    on = {"weight_decay": 0.01, "frozen_share": 0.5}
    network = compiled(optimizer=optimizer, learning_rate=0.01, **on)
    assert (network.optimizer.name == "loss_scale_optimizer") == (policy != "float32")
    has_moved = []
    for rates in ((0.01, 0.0), (0.0, 1.0), (0.01, 0.0), (0.01, 1.0)):
        set_rates(network.optimizer, *rates)
        before = weights_of(network, *BACKBONE), weights_of(network, "logits")
        after(network, 1)
        now = weights_of(network, *BACKBONE), weights_of(network, "logits")
        has_moved.append(tuple(not is_equal(*pair) for pair in zip(before, now, strict=True)))
    # With a rate of 0, SGD goes on by its momentum.
    is_rolling = optimizer == "sgd"
    assert has_moved == [(False, True), (False, is_rolling), (False, True), (True, True)]
    assert int(network.optimizer.iterations) == 4


def test_a_step_that_overflows_float16_is_skipped(float32_afterwards):
    keras.config.set_dtype_policy("mixed_float16")
    on = {"weight_decay": 0.01, "backbone_rate": 0.1}
    network = compiled(optimizer="adamw", learning_rate=0.01, **on)
    after(network, 1)
    before = [to_numpy(v).copy() for v in network.optimizer.inner_optimizer.variables]
    weights, scale = weights_of(network), float(network.optimizer.dynamic_scale)
    network.train_on_batch(1e9 * IMAGES, VALUES)
    assert is_equal(weights_of(network), weights)
    assert is_equal(map(to_numpy, network.optimizer.inner_optimizer.variables), before)
    assert float(network.optimizer.dynamic_scale) == scale / 2


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="looks at TensorFlow's graph")
def test_a_step_of_each_variable_is_one_operation_of_the_graph():
    import tensorflow as tf

    network = compiled(optimizer="adam")
    optimizer, variables = network.optimizer, network.trainable_variables

    @tf.function
    def take_step():
        optimizer.apply([tf.ones(v.shape) for v in variables], variables)

    graph = take_step.get_concrete_function().graph
    kinds = [node.type for node in graph.get_operations()]
    assert len(variables) > 2 and kinds.count("Pow") == 2  # of the two betas
    assert kinds.count("ResourceApplyAdam") == len(variables)
    assert optimizer._powers is None  # nothing of the graph is kept


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="it is TensorFlow's Adam")
def test_xla_compiles_a_step_of_an_optimizer_that_was_not_built_before():
    losses = []
    for xla in (False, True):
        network = small_network()
        network.compile(build_optimizer(Training(), []), "mse", jit_compile=xla)
        losses.append([network.train_on_batch(IMAGES, VALUES) for _ in range(2)])
    np.testing.assert_allclose(*losses, rtol=1e-5)
