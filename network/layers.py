"""Layers between backbone and loss, the losses of cosine heads, and their settings by class size;
batch normalisation as one operation.

All weights, powers, lengths and cosines are float32 under every precision policy: float16 has three
digits, too few for the softmax over thousands of cosines. Every layer is registered with Keras, so
that a .keras file with it opens in Keras' safe mode once this module is imported.
"""

import functools
import math

import numpy as np

from network.loading import loading_keras

with loading_keras():
    import keras
    from keras import ops

registered = keras.saving.register_keras_serializable(package="landmarks")

LEAST_FEATURE = 1e-6  # GeM raises what is below to it: no power of a negative number
LEAST_LENGTH = 1e-6  # shorter vectors have no direction
LEAST_SQUARED_SINE = 1e-12  # below the rounding of 1 - cos^2 in float32
LOSSES = ("softmax", "arcface", "cosface")


class _Float32Layer(keras.layers.Layer):
    """A layer that takes any float dtype and computes in float32 under every precision policy."""

    def __init__(self, **kwargs):
        super().__init__(**(kwargs | {"dtype": "float32"}))


@registered
class GeM(_Float32Layer):
    """Generalised mean over height and width: p = 1 is the average, p = infinity the maximum.

    (batch, height, width, channels) of any float dtype -> (batch, channels) float32. They are
    divided by their maximum before the power and multiplied with it afterwards, so that no p over-
    or underflows. A learnt p is a weight, which an earlier version trained.

    Source: Radenović et al., arXiv:1711.02512
    """

    def __init__(self, p=3.0, learnt=False, **kwargs):
        super().__init__(**kwargs)
        self.p, self.learnt = p, learnt

    def build(self, input_shape):
        constant = keras.initializers.Constant(self.p)
        self.exponent = self.add_weight((), constant, name="p") if self.learnt else self.p

    def call(self, features):
        features = ops.maximum(features, LEAST_FEATURE)
        largest = ops.stop_gradient(ops.max(features, axis=(1, 2), keepdims=True))
        means = ops.mean(ops.power(features / largest, self.exponent), axis=(1, 2))
        return ops.squeeze(largest, axis=(1, 2)) * ops.power(means, 1.0 / self.exponent)

    def get_config(self):
        return super().get_config() | {"p": self.p, "learnt": self.learnt}


@registered
class ClassToken(keras.layers.Layer):
    """The first token, which describes the whole image in a ViT: (batch, tokens, d) -> (batch, d).

    Source: Dosovitskiy et al., arXiv:2010.11929, section 3.1
    """

    def call(self, tokens):
        return tokens[:, 0]


@registered
class UnitLength(_Float32Layer):
    """Scales vectors along the last axis to length 1: (..., d) of any float dtype -> float32.

    Vectors shorter than 1e-6 become zero and pass a gradient of zero, where the gradient of a
    division by the length would grow without bound.
    """

    def call(self, vectors):
        return vectors * _inverse_length(vectors, axis=-1)


def _inverse_length(vectors, axis):
    """Gives 1 / length along an axis, which is kept; 0 for vectors shorter than LEAST_LENGTH."""
    least = LEAST_LENGTH**2
    squares = ops.sum(ops.square(vectors), axis=axis, keepdims=True)
    return ops.where(squares > least, ops.rsqrt(ops.maximum(squares, least)), 0.0)


@registered
class CosineHead(_Float32Layer):
    """Cosines between a descriptor and the classes: (batch, d) -> (batch, num_classes) float32.

    A class has one or more unit vectors (sub-centers), so that its easy, hard and mislabelled
    images need not agree on one; its cosine is the largest of theirs.

    Attributes:
        kernel: (d, num_classes * sub_centers) float32, of any length. Class c has the columns from
            c * sub_centers on, so that devices can share the head by classes.
        margin_share: () float32 from 0 to 1, not trained: the share of its margins that
            `MarginLoss` takes; as a weight JAX traces it as an input of the step.

    Source: Deng et al., Sub-center ArcFace, ECCV 2020
    """

    def __init__(self, num_classes, sub_centers=1, **kwargs):
        super().__init__(**kwargs)
        self.num_classes, self.sub_centers = num_classes, sub_centers

    def build(self, input_shape):
        # Uniform within 1 / sqrt(d), as in the 3rd place of 2020.
        uniform = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
        shape = (input_shape[-1], self.num_classes * self.sub_centers)
        self.kernel = self.add_weight(shape, uniform, name="kernel")
        self.margin_share = self.add_weight((), "ones", trainable=False, name="margin_share")

    def call(self, descriptors):
        units = descriptors * _inverse_length(descriptors, axis=-1)
        # The columns are scaled after the product: no second kernel in memory.
        cosines = ops.matmul(units, self.kernel) * _inverse_length(self.kernel, axis=0)
        if self.sub_centers > 1:
            of_classes = ops.reshape(cosines, (-1, self.num_classes, self.sub_centers))
            cosines = ops.max(of_classes, axis=-1)
        return ops.clip(cosines, -1.0, 1.0)

    def get_config(self):
        settings = {"num_classes": self.num_classes, "sub_centers": self.sub_centers}
        return super().get_config() | settings


def fuse_batch_norms(network):
    """Lets TensorFlow normalise a batch of images in one operation, where Keras writes a dozen.

    Training alone changes: the first step takes 0.6 of the time, later ones nine tenths. The
    formula is that of Keras; the last bits differ. What is saved stays as it is.
    """
    for layer in network.layers:
        if (
            isinstance(layer, keras.layers.BatchNormalization)
            and (layer.scale, layer.center, layer.synchronized) == (True, True, False)
            and layer.input_spec.ndim == 4
            and layer.axis in (-1, 3)
        ):
            layer.call = functools.partial(_normalise_batch, layer, layer.call)


def _normalise_batch(layer, otherwise, images, training=None, mask=None):
    """Does what `layer.call` does; `otherwise`, which Keras wrote, does all but training."""
    import tensorflow as tf

    if not (training and layer.trainable) or mask is not None:
        return otherwise(images, training=training, mask=mask)
    fused = tf.raw_ops.FusedBatchNormV3(
        x=images,
        scale=layer.gamma.value,
        offset=layer.beta.value,
        mean=[],
        variance=[],
        epsilon=layer.epsilon,
    )
    num_values = tf.size(images) // images.shape[-1]  # of a channel
    share = tf.cast(num_values - 1, "float32") / tf.cast(num_values, "float32")
    # It divides by one less than the number of values, and Keras by their number.
    batch = (
        (layer.moving_mean, fused.batch_mean),
        (layer.moving_variance, fused.batch_variance * share),
    )
    for moving, value in batch:
        moving.assign(moving * layer.momentum + value * (1.0 - layer.momentum))
    return fused.y


class MarginLoss(keras.losses.Loss):
    """Cross-entropy of scaled cosines, after a margin has made the right class's cosine smaller.

    Takes class indices (batch,) int and cosines (batch, num_classes) float32.

    - softmax: no margin.
    - arcface: cos(theta) -> cos(theta + m), or cos(theta) - m sin(m) where theta + m is above pi
      and the cosine would rise again.
    - cosface: cos(theta) -> cos(theta) - m.

    The loss of an image is multiplied with its class's weight and then averaged over the batch. It
    is not divided by the batch's sum of weights, which would depend on the other images and on how
    devices share a batch; `class_weights` has a mean of 1 over the images instead.

    Args:
        kind: one of LOSSES.
        scale: number, what cosines are multiplied with.
        margins: float, or (num_classes,) floats; radians for arcface.
        head: `CosineHead` whose margin_share the margins are multiplied with; None for the full
            margins.
        class_weights: (num_classes,) floats, or None for 1.

    Source: Deng et al., arXiv:1801.07698 (arcface, beyond pi as in insightface); Wang et al.,
        arXiv:1801.09414 (cosface)
    """

    def __init__(self, kind, scale, margins=0.0, head=None, class_weights=None, **kwargs):
        super().__init__(**(kwargs | {"dtype": "float32"}))
        self.kind, self.scale, self.head = kind, float(scale), head
        self.margins = np.asarray(margins, np.float32)
        self.class_weights = np.asarray(1.0 if class_weights is None else class_weights, np.float32)

    def call(self, y_true, y_pred):
        labels = ops.reshape(ops.cast(y_true, "int32"), (-1,))
        is_right = ops.equal(labels[:, None], ops.arange(y_pred.shape[-1], dtype="int32"))
        # A sum instead of a gather: cheap too where devices share the classes.
        right = ops.sum(ops.where(is_right, y_pred, 0.0), axis=-1)
        reduced = self._with_margin(right, _of_labels(self.margins, labels))
        logits = self.scale * ops.where(is_right, reduced[:, None], y_pred)
        losses = ops.logsumexp(logits, axis=-1) - self.scale * reduced
        return losses * _of_labels(self.class_weights, labels)

    def _with_margin(self, cosines, margins):
        """Applies the margins to the cosines of the right classes: (batch,) float32 each."""
        if self.kind == "softmax":
            return cosines
        if self.head is not None:
            margins = margins * self.head.margin_share
        if self.kind == "cosface":
            return cosines - margins
        # No arccos: its gradient is infinite at 1 and -1.
        squared_sines = ops.maximum((1.0 - cosines) * (1.0 + cosines), LEAST_SQUARED_SINE)
        moved = cosines * ops.cos(margins) - ops.sqrt(squared_sines) * ops.sin(margins)
        is_below_pi = cosines > -ops.cos(margins)
        return ops.where(is_below_pi, moved, cosines - margins * ops.sin(margins))


def _of_labels(values, labels):
    """Gives the value of each image's class: () or (num_classes,) -> () or (batch,) float32."""
    values = ops.convert_to_tensor(values)
    return ops.take(values, labels) if values.ndim else values


def adacos_scale(num_classes):
    """Computes the scale at which a cosine softmax over so many classes learns: sqrt(2) ln(C - 1).

    1 and 2 classes, for which this is no number above 0, count as 3.

    Source: Zhang et al., AdaCos, arXiv:1905.00292
    """
    return math.sqrt(2) * math.log(max(num_classes, 3) - 1)


def dynamic_margins(class_sizes, low=0.05, high=0.5):
    """Gives rare classes a large margin: linear in n^(-1/4), `low` for the most frequent class.

    (num_classes,) int, where 0 counts as 1 -> (num_classes,) float32; halfway between the two where
    all classes have one size.

    Source: Ha et al., arXiv:2010.05350 (3rd place of 2020)
    """
    rarities = np.maximum(class_sizes, 1.0) ** -0.25
    spread = np.ptp(rarities)
    if spread == 0:
        return np.full(len(rarities), (low + high) / 2, np.float32)
    return (low + (high - low) * (rarities - rarities.min()) / spread).astype(np.float32)


def class_weights(class_sizes):
    """Lets images of frequent classes count less: 1 / ln(1 + n), float32, with a mean of 1.

    The mean is over the train images, not the classes: the learning rate means the same with and
    without weights. In `class_sizes`, (num_classes,) int, 0 counts as 1.

    Source: psinger/kaggle-landmark-recognition-2020-1st-place, src/train.py
    """
    weights = 1 / np.log1p(np.maximum(class_sizes, 1.0))
    return (weights / np.average(weights, weights=class_sizes)).astype(np.float32)
