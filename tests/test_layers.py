"""Tests of pooling, cosine heads and margin losses, by hand and against NumPy in float64."""

import math

import keras
import numpy as np
import pytest

from network.layers import (
    LOSSES,
    ClassToken,
    CosineHead,
    GeM,
    MarginLoss,
    UnitLength,
    adacos_scale,
    class_weights,
    dynamic_margins,
    fuse_batch_norms,
)

RANDOM = np.random.default_rng(0)
to_numpy = keras.ops.convert_to_numpy


def run(layer, values):
    return to_numpy(layer(np.asarray(values, np.float32)))


def loss_of(loss, labels, cosines):
    """The loss of a batch: what a step of training reports."""
    return float(to_numpy(loss(np.asarray(labels), np.asarray(cosines, np.float32))))


def expected_losses(kind, scale, margins, labels, cosines):
    """The losses of a batch in float64, with an arccos: (batch,)."""
    cosines = np.array(cosines, np.float64)
    for row, label in enumerate(labels):
        margin = np.broadcast_to(margins, cosines.shape[1])[label]
        angle = math.acos(cosines[row, label])
        if kind == "cosface":
            cosines[row, label] -= margin
        elif kind == "arcface" and angle + margin < math.pi:
            cosines[row, label] = math.cos(angle + margin)
        elif kind == "arcface":
            cosines[row, label] -= margin * math.sin(margin)
    right = cosines[np.arange(len(labels)), labels]
    return np.log(np.exp(scale * cosines).sum(axis=1)) - scale * right


def cosine_model(kernel, loss, sub_centers=1, learning_rate=0.0):
    """A compiled network that is a head alone, with this kernel."""
    kernel = np.asarray(kernel, np.float32)
    head = CosineHead(kernel.shape[1] // sub_centers, sub_centers)
    vectors = keras.Input((kernel.shape[0],))
    network = keras.Model(vectors, head(vectors))
    head.kernel.assign(kernel)
    loss.head = head
    network.compile(keras.optimizers.SGD(learning_rate), loss)
    return network, head


# --------------------------------------------------------------------------------------- pooling


def test_gem_by_hand():
    # (1 + 8 + 27 + 64) / 4 = 25, whose cube root is 2.9240; three zeros and a 2: (8 / 4)^(1/3)
    features = [[[[1, 0], [2, 0]], [[3, 2], [4, 0]]]]
    np.testing.assert_allclose(run(GeM(3.0), features), [[2.924018, 1.259921]], rtol=1e-6)


def test_a_learnt_p_begins_where_it_is_told():
    features = RANDOM.uniform(0, 50, (2, 4, 5, 3))
    np.testing.assert_array_equal(run(GeM(2.5, True), features), run(GeM(2.5), features))


def test_gem_is_the_average_for_p_1_and_nears_the_maximum_for_a_large_p():
    features = RANDOM.uniform(0, 50, (2, 4, 5, 3))
    np.testing.assert_allclose(run(GeM(1.0), features), features.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(run(GeM(500), features), features.max(axis=(1, 2)), rtol=0.01)
    powers = [run(GeM(p), features) for p in (1, 2, 3, 10, 100)]
    assert np.all(np.diff(powers, axis=0) > 0)


def test_gem_of_features_that_are_nowhere_positive_is_small_and_finite():
    for p in (1.0, 3.0, 20.0):
        np.testing.assert_allclose(run(GeM(p), np.full((1, 2, 2, 1), -3.0)), [[1e-6]], rtol=1e-5)


@pytest.mark.parametrize("learnt", [True, False])
def test_p_moves_only_when_it_is_learnt(learnt):
    features = keras.Input((3, 3, 2))
    network = keras.Model(features, GeM(3.0, learnt)(features))
    assert [weight.dtype for weight in network.trainable_weights] == ["float32"] * learnt
    values = RANDOM.uniform(0, 1, (4, 3, 3, 2)).astype(np.float32)
    values[0] = 0  # a dead image
    if learnt:
        network.compile(keras.optimizers.SGD(1.0), "mse")
        maxima = values.max(axis=(1, 2))
        losses = [float(network.train_on_batch(values, maxima)) for _ in range(20)]
        assert losses[-1] < losses[0]
        assert 3.0 < float(network.get_weights()[0]) < 100


def test_the_class_token_is_the_first():
    tokens = RANDOM.normal(size=(2, 5, 3)).astype(np.float32)
    np.testing.assert_array_equal(run(ClassToken(), tokens), tokens[:, 0])


def test_unit_length_by_hand():
    vectors = [[3, 4], [0, -0.002], [0, 0], [1e-7, 0], [6e18, -8e18]]
    expected = [[0.6, 0.8], [0, -1], [0, 0], [0, 0], [0.6, -0.8]]
    np.testing.assert_allclose(run(UnitLength(), vectors), expected, rtol=1e-6)


# --------------------------------------------------------------------------------------- cosines


def test_a_head_gives_cosines_whatever_the_lengths():
    kernel = [[1, 0, -2], [0, 5, -2]]
    _, head = cosine_model(kernel, MarginLoss("softmax", 1.0))
    half = math.sqrt(0.5)
    expected = [[0.6, 0.8, -1.4 * half], [-1, 0, half], [0, 0, 0]]
    np.testing.assert_allclose(
        run(head, [[3, 4], [-0.01, 0], [0, 0]]), expected, rtol=1e-6, atol=1e-7
    )


def test_cosines_stay_between_minus_1_and_1():
    vectors = RANDOM.normal(size=(500, 64)).astype(np.float32)
    _, head = cosine_model(np.concatenate([vectors, -vectors]).T, MarginLoss("softmax", 1.0))
    cosines = run(head, vectors)
    assert np.abs(cosines).max() == 1
    np.testing.assert_allclose(np.diagonal(cosines), 1, atol=1e-6)


def test_the_cosine_of_a_class_is_the_largest_of_its_neighboring_sub_centers():
    vectors, kernel = RANDOM.normal(size=(8, 5)), RANDOM.normal(size=(5, 4 * 3))
    _, head = cosine_model(kernel, MarginLoss("softmax", 1.0), sub_centers=3)
    cosines = vectors @ kernel
    cosines /= np.linalg.norm(vectors, axis=1, keepdims=True) * np.linalg.norm(kernel, axis=0)
    by_class = [cosines[:, 3 * c : 3 * c + 3].max(axis=1) for c in range(4)]
    np.testing.assert_allclose(run(head, vectors), np.transpose(by_class), atol=1e-6)


def test_equal_sub_centers_are_as_one():
    vectors, kernel = RANDOM.normal(size=(8, 5)), RANDOM.normal(size=(5, 4))
    _, one = cosine_model(kernel, MarginLoss("softmax", 1.0))
    _, three = cosine_model(np.repeat(kernel, 3, axis=1), MarginLoss("softmax", 1.0), 3)
    np.testing.assert_allclose(run(one, vectors), run(three, vectors), atol=1e-6)


# ---------------------------------------------------------------------------------------- losses

COSINES = [[0.6, 0.0, -0.8]]

# Scale 10. The right class's cosine, then ln(sum of e^(10 cos)) - 10 times it.
BY_HAND = {
    # e^6 + e^0 + e^-8 = 404.4291, ln = 6.002476
    "softmax": ("softmax", 0.5, 0, 0.002476),
    # 0.6 - 0.35 = 0.25; e^2.5 + e^0 + e^-8 = 13.18283, ln = 2.578915
    "cosface": ("cosface", 0.35, 0, 0.078915),
    # cos(0.9273 + 0.5) = 0.6 x 0.877583 - 0.8 x 0.479426 = 0.143009; ln(5.179411) = 1.644691
    "arcface": ("arcface", 0.5, 0, 0.214598),
    # 2.4981 + 0.7 is above pi: -0.8 - 0.7 sin(0.7) = -1.250952; ln(e^6 + e^0 + e^-12.5) = 6.002476
    "arcface beyond pi": ("arcface", 0.7, 2, 18.511999),
}


@pytest.mark.parametrize(("kind", "margin", "label", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_three_classes_by_hand(kind, margin, label, expected):
    assert loss_of(MarginLoss(kind, 10, margin), [label], COSINES) == pytest.approx(
        expected, abs=1e-5
    )


@pytest.mark.parametrize("kind", LOSSES)
def test_a_loss_agrees_with_float64_and_arccos(kind):
    cosines = RANDOM.uniform(-1, 1, (64, 7))
    labels = RANDOM.integers(0, 7, 64)
    margins = RANDOM.uniform(0, 0.9, 7)
    for of_classes in (0.3, margins):
        expected = expected_losses(kind, 30, of_classes, labels, cosines)
        loss = MarginLoss(kind, 30, of_classes)
        assert loss_of(loss, labels, cosines) == pytest.approx(expected.mean(), rel=1e-5)
        assert loss_of(loss, labels[:, None], cosines) == loss_of(loss, labels, cosines)


@pytest.mark.parametrize("kind", ["arcface", "cosface"])
def test_without_a_margin_every_loss_is_the_cosine_softmax(kind):
    cosines = RANDOM.uniform(-1, 1, (64, 7)).astype(np.float32)
    labels = RANDOM.integers(0, 7, 64)
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    expected = float(plain(labels, 16 * cosines))
    for loss in (MarginLoss(kind, 16), MarginLoss("softmax", 16, 0.4)):
        assert loss_of(loss, labels, cosines) == pytest.approx(expected, rel=1e-5)


def test_a_larger_angle_never_costs_less_beyond_pi_either():
    angles = np.linspace(0, math.pi, 1000)
    cosines = np.stack([np.cos(angles), np.zeros(1000)], axis=1)
    loss = MarginLoss("arcface", 8, 0.5, reduction="none")
    losses = to_numpy(loss(np.zeros(1000, int), cosines.astype(np.float32)))
    assert np.all(np.diff(losses) > -1e-5)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_step_of_training_follows_the_slope(kind):
    """The cosines are the weights of a Dense layer here: a step moves them by their gradient."""
    cosines = RANDOM.uniform(-0.9, 0.9, (4, 5))
    labels, margins = np.array([0, 4, 2, 2]), np.linspace(0.1, 0.5, 5)
    dense = keras.layers.Dense(5, use_bias=False)
    rows = keras.Input((4,))
    network = keras.Model(rows, dense(rows))
    dense.set_weights([cosines])
    network.compile(keras.optimizers.SGD(1.0), MarginLoss(kind, 5, margins))
    network.train_on_batch(np.eye(4, dtype=np.float32), labels)
    slope = np.zeros_like(cosines)
    for place in np.ndindex(cosines.shape):
        for sign in (1, -1):
            moved = cosines.copy()
            moved[place] += sign * 1e-6
            slope[place] += sign * expected_losses(kind, 5, margins, labels, moved).mean() / 2e-6
    np.testing.assert_allclose(cosines - dense.get_weights()[0], slope, atol=1e-5)


@pytest.mark.parametrize("kind", LOSSES)
def test_gradients_are_finite_at_cosines_of_1_and_minus_1_and_for_zero_vectors(kind):
    vectors = keras.Input((2,))
    neck, head = keras.layers.Dense(2, use_bias=False), CosineHead(3)
    network = keras.Model(vectors, head(UnitLength()(neck(vectors))))
    neck.set_weights([np.eye(2)])
    head.kernel.assign(np.array([[1, -1, 0], [0, 0, 0]], np.float32))
    network.compile(keras.optimizers.SGD(0.1), MarginLoss(kind, 30, 0.5, head))
    inputs = np.array([[1, 0], [1, 0], [0, 0], [2, 3], [2, 3]], np.float32)
    assert set(np.ravel(network.predict_on_batch(inputs[:3]))) == {1, -1, 0}
    for _ in range(2):
        loss = network.train_on_batch(inputs, np.array([0, 1, 2, 2, 0]))
        assert math.isfinite(loss)
    assert all(np.isfinite(weights).all() for weights in network.get_weights())
    assert not np.array_equal(neck.get_weights()[0], np.eye(2))
    assert np.abs(neck.get_weights()[0]).max() < 100


def test_an_image_counts_by_the_weight_of_its_class_whatever_is_in_its_batch():
    cosines = RANDOM.uniform(-1, 1, (4, 3))
    labels, weights = np.array([0, 2, 2, 1]), np.array([0.5, 1.0, 3.0])
    each = expected_losses("cosface", 10, 0.2, labels, cosines)
    loss = MarginLoss("cosface", 10, 0.2, class_weights=weights)
    assert loss_of(loss, labels, cosines) == pytest.approx(
        (each * weights[labels]).mean(), rel=1e-5
    )
    halves = [loss_of(loss, labels[part], cosines[part]) for part in ([0, 1], [2, 3])]
    assert np.mean(halves) == pytest.approx(loss_of(loss, labels, cosines), rel=1e-6)


@pytest.mark.parametrize("kind", ["arcface", "cosface"])
def test_the_share_of_the_margins_changes_the_steps_of_a_traced_model(kind, monkeypatch):
    traces = []
    call = MarginLoss.call
    monkeypatch.setattr(MarginLoss, "call", lambda *args: traces.append(1) or call(*args))
    vectors = RANDOM.normal(size=(16, 5)).astype(np.float32)
    labels, margins = RANDOM.integers(0, 4, 16), np.array([0.1, 0.2, 0.4, 0.6])
    loss = MarginLoss(kind, 20, margins)
    network, head = cosine_model(RANDOM.normal(size=(5, 4)), loss)
    cosines = network.predict_on_batch(vectors)
    assert float(to_numpy(head.margin_share)) == 1
    for step in (network.train_on_batch, network.test_on_batch):
        step(vectors, labels)
        num_traces = len(traces)
        for share in (1.0, 0.0, 0.5):
            head.margin_share.assign(share)
            network.reset_metrics()
            expected = expected_losses(kind, 20, share * margins, labels, cosines).mean()
            assert float(step(vectors, labels)) == pytest.approx(expected, rel=1e-5)
        assert len(traces) == num_traces or keras.backend.backend() == "torch"  # never traces
    assert [weight.name for weight in head.trainable_weights] == ["kernel"]


# ------------------------------------------------------------------------------- mixed precision


def whole_network(loss=None):
    """Images -> both poolings -> neck -> cosines of 4 classes: every layer of the module."""
    images = keras.Input((8, 8, 3))
    features = keras.layers.Conv2D(6, 3, 2, activation="relu")(images)
    tokens = keras.layers.Reshape((-1, 6))(features)
    both = keras.layers.Concatenate()([GeM(2.5, learnt=True)(features), ClassToken()(tokens)])
    head = CosineHead(4, 3)
    cosines = head(UnitLength(name="descriptor")(keras.layers.Dense(5)(both)))
    network = keras.Model(images, cosines)
    loss = loss or MarginLoss("arcface", 16, [0.1, 0.2, 0.3, 0.4], head, [1.0, 2.0, 0.5, 0.5])
    network.compile(keras.optimizers.Adam(0.01), loss)
    return network


IMAGES = RANDOM.normal(size=(8, 8, 8, 3)).astype(np.float32)
CLASSES = np.arange(8) % 4


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_lengths_and_cosines_are_float32_under_mixed_precision(policy, float32_afterwards):
    keras.config.set_dtype_policy(policy)
    network = whole_network()
    assert network.output.dtype == network.get_layer("descriptor").output.dtype == "float32"
    assert {weight.dtype for weight in network.weights} == {"float32"}
    assert network.layers[1].compute_dtype == policy.removeprefix("mixed_")
    parts = keras.Model(network.input, [network.get_layer("descriptor").output, network.output])
    descriptors, cosines = parts.predict_on_batch(IMAGES)
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1, atol=1e-6)
    kernel = to_numpy(network.layers[-1].kernel)
    expected = descriptors @ (kernel / np.linalg.norm(kernel, axis=0))
    expected = expected.reshape(8, 4, 3).max(axis=2)
    np.testing.assert_allclose(cosines, expected, atol=1e-6)
    assert not np.array_equal(cosines, cosines.astype(np.float16))
    for _ in range(3):
        assert math.isfinite(network.train_on_batch(IMAGES, CLASSES))
    assert all(np.isfinite(weights).all() for weights in network.get_weights())


# ---------------------------------------------------------------------------- batch normalisation

needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow alone has one operation for it"
)


def normalising(fused, shape, trainable=True):
    """A compiled network that normalises images and sums them up, fused or as Keras does it."""
    images = keras.Input(shape)
    norm = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, trainable=trainable)
    outputs = keras.layers.Dense(2, kernel_initializer="ones", dtype="float32")(norm(images))
    network = keras.Model(images, outputs)
    if fused:
        fuse_batch_norms(network)
    network.compile(keras.optimizers.SGD(0.1), "mse")
    return network


@needs_tensorflow
def test_a_fused_batch_norm_by_hand():
    network = normalising(True, (1, 2, 1))
    norm = network.layers[1]
    images = np.array([0, 4], np.float32).reshape(1, 1, 2, 1)  # mean 2, variance 4
    np.testing.assert_allclose(to_numpy(norm(images, training=True)).ravel(), [-1, 1], atol=1e-5)
    assert float(to_numpy(norm.moving_mean)[0]) == pytest.approx(0.9 * 0 + 0.1 * 2)
    assert float(to_numpy(norm.moving_variance)[0]) == pytest.approx(0.9 * 1 + 0.1 * 4)
    expected = (np.array([0, 4]) - 0.2) / math.sqrt(1.3)
    np.testing.assert_allclose(to_numpy(norm(images)).ravel(), expected, rtol=1e-4)


@needs_tensorflow
@pytest.mark.parametrize(
    ("policy", "trainable", "within"),
    [("float32", True, 1e-5), ("mixed_float16", True, 1e-2), ("float32", False, 0)],
)
def test_a_fused_batch_norm_learns_as_that_of_keras(policy, trainable, within, float32_afterwards):
    keras.config.set_dtype_policy(policy)
    images = np.random.default_rng(0).normal(2, 3, (4, 3, 5, 6)).astype(np.float32)
    values = np.random.default_rng(1).normal(size=(4, 3, 5, 2)).astype(np.float32)
    found = []
    for fused in (False, True):
        network = normalising(fused, images.shape[1:], trainable)
        losses = [network.train_on_batch(images, values) for _ in range(3)]
        found.append([*losses, *network.get_weights(), network.predict_on_batch(images)])
    for theirs, ours in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=within, atol=within)


@needs_tensorflow
def test_vectors_and_other_axes_are_normalised_by_keras():
    inputs = keras.Input((2, 3, 4))
    odd = keras.layers.BatchNormalization(axis=1)(inputs)
    vectors = keras.layers.BatchNormalization()(keras.layers.Flatten()(odd))
    network = keras.Model(inputs, vectors)
    fuse_batch_norms(network)
    assert not any("call" in vars(layer) for layer in network.layers)


# ----------------------------------------------------------------------------------------- files


def test_a_network_opens_in_safe_mode_with_equal_outputs(tmp_path):
    network = whole_network()
    network.layers[-1].margin_share.assign(0.25)
    for _ in range(3):
        network.train_on_batch(IMAGES, CLASSES)
    keras.Model(network.input, network.output).save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras", safe_mode=True)
    expected = network.predict_on_batch(IMAGES)
    np.testing.assert_array_equal(loaded.predict_on_batch(IMAGES), expected)
    assert float(to_numpy(loaded.layers[-1].margin_share)) == 0.25


# --------------------------------------------------------------------- settings by class size


def test_the_fixed_scale_of_a_cosine_softmax():
    # ln 81,312 = ln 8.1312 + 4 ln 10 = 11.30605; times 1.414214
    assert adacos_scale(81_313) == pytest.approx(15.98917, abs=1e-5)
    assert adacos_scale(3) == pytest.approx(0.980258, abs=1e-6)


def test_fewer_than_three_classes_have_the_scale_of_three():
    assert adacos_scale(1) == adacos_scale(2) == adacos_scale(3)


def test_margins_fall_with_the_class_size_by_hand():
    # n^(-1/4) = 1/2, 1/4, 1/10, 1: shares 4/9, 1/6, 0, 1 of the way from 0.05 to 0.5
    margins = dynamic_margins(np.array([16, 256, 10_000, 1]))
    assert margins.dtype == np.float32
    np.testing.assert_allclose(margins, [0.25, 0.125, 0.05, 0.5], rtol=1e-6)
    np.testing.assert_allclose(dynamic_margins([16, 256], 0.1, 0.3), [0.3, 0.1], rtol=1e-6)
    np.testing.assert_allclose(dynamic_margins([0, 1, 16]), [0.5, 0.5, 0.05], rtol=1e-6)


def test_margins_of_classes_of_one_size_are_halfway():
    np.testing.assert_allclose(dynamic_margins([7, 7, 7]), [0.275] * 3, rtol=1e-6)


def test_weights_fall_with_the_class_size_and_are_1_on_average_over_the_images():
    # 1 / ln 2, ln 4, ln 8 is 1, 1/2, 1/3 of 1 / ln 2; over 11 images (1 + 3/2 + 7/3) / 11 = 29/66
    weights = class_weights(np.array([1, 3, 7]))
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, [66 / 29, 33 / 29, 22 / 29], rtol=1e-6)
    sizes = RANDOM.integers(1, 5000, 300)
    assert np.average(class_weights(sizes), weights=sizes) == pytest.approx(1, rel=1e-6)
    assert np.isfinite(class_weights([0, 5])).all()
