"""The networks: backbone, pooling and head; saved with their landmarks.

Every network takes uint8 RGB images (batch, image_size, image_size, 3).
"""

import hashlib
import math
import re
from functools import partial

import numpy as np

from network import backbones
from utils import loading_keras

with loading_keras():
    import keras

    from network import layers
    from network.devices import list_gpus, precision_here
    from network.optimizers import build_optimizer

to_numpy = keras.ops.convert_to_numpy  # of a variable, on every backend
DESCRIPTOR, LOGITS = "descriptor", "logits"  # the layers that give them
HEAD_LAYERS = ("pooling", "neck", "neck_norm", DESCRIPTOR, LOGITS)
POOLING = (keras.layers.GlobalMaxPooling2D, keras.layers.GlobalAveragePooling2D)


def set_up_keras(seed, bfloat16=False):
    """Seeds Keras and chooses the precision, see `devices.precision_here`.

    Args:
        seed: int.
        bfloat16: mixed bfloat16 instead, which not every processor or GPU has.

    Returns:
        The name of the precision policy.
    """
    keras.utils.set_random_seed(seed)
    policy = "mixed_bfloat16" if bfloat16 else precision_here()
    keras.mixed_precision.set_global_policy(policy)
    return policy


def precision():
    """Gives the name of the precision policy that networks are built with."""
    return keras.config.dtype_policy().name


# ------------------------------------------------------------------------------------- networks


def build_network(recipe, num_classes, num_steps, weights=None):
    """Builds the network to train: images -> descriptor -> logits, or cosines.

    Args:
        recipe: `Recipe`.
        num_classes: size of the class table.
        num_steps: training steps to come.
        weights: of the backbone, instead of the recipe's.

    Returns:
        keras.Model, (batch, image_size, image_size, 3) uint8 RGB -> (batch, num_classes) float32.
        Its layer "descriptor" gives (batch, d): the neck's values, or 2048 of ResNet50.

    Raises:
        ExpectedError: as `backbones.build` does.
    """
    pooled = build_pooled(recipe, weights)
    network = _put_head_on(pooled.input, pooled.output, recipe, num_classes)
    shorten_batch_norm_memory(network, num_steps)
    return network


def build_pooled(recipe, weights=None):
    """Builds what is below neck and head: images -> the pooled vector (batch, channels).

    Args:
        recipe: `Recipe`.
        weights: of the backbone, instead of the recipe's.

    Raises:
        ExpectedError: as `backbones.build` does.
    """
    weights = weights or recipe.network.weights
    size = recipe.data.image_size
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    features = backbones.build(recipe.network.backbone, images, weights)
    if weights == "none":
        start_blocks_as_identity(keras.Model(images, features))
    return keras.Model(images, _pool(recipe.network, features), name="pooled")


def build_views(pooled, mirrored_too):
    """Builds the network that describes with a frozen backbone.

    Args:
        pooled: keras.Model of `build_pooled`.
        mirrored_too: describe the mirrored image as well.

    Returns:
        keras.Model, images -> (batch, views, channels) float32: the vector of the image, then that
        of its mirror image.
    """
    images = keras.Input(pooled.input.shape[1:], dtype="uint8", name="images")
    views = [images, keras.ops.flip(images, axis=2)] if mirrored_too else [images]
    vectors = [keras.ops.cast(pooled(view), "float32") for view in views]
    return keras.Model(images, keras.ops.stack(vectors, axis=1), name="views")


def build_head(recipe, num_channels, num_classes, num_steps):
    """Builds neck and head alone: pooled vectors (batch, channels) float32 -> as `build_network`.

    Args:
        recipe: `Recipe`.
        num_channels: of the pooled vector.
        num_classes: size of the class table.
        num_steps: training steps to come.
    """
    vectors = keras.Input((num_channels,), dtype="float32", name="vectors")
    head = _put_head_on(vectors, vectors, recipe, num_classes)
    shorten_batch_norm_memory(head, num_steps)
    return head


def join_head(pooled, head, recipe):
    """Joins a trained head with what is below it.

    Args:
        pooled: keras.Model of `build_pooled`.
        head: keras.Model of `build_head`, whose weights are copied.
        recipe: `Recipe` of both.

    Returns:
        keras.Model, as `build_network` gives it.
    """
    network = _put_head_on(pooled.input, pooled.output, recipe, head.output.shape[-1])
    for layer in head.layers:
        if layer.weights:
            network.get_layer(layer.name).set_weights(layer.get_weights())
    return network


def _put_head_on(inputs, pooled, recipe, num_classes):
    """Builds a network from its inputs and the vectors that follow from them: neck and head."""
    descriptors = _add_neck(recipe.network, pooled)
    outputs = _build_last_layer(recipe.loss, num_classes)(descriptors)
    name = re.sub(r"\W+", "_", recipe.network.backbone)
    return keras.Model(inputs, outputs, name=name)


def _pool(network, features):
    """Pools the features; without a neck that is the descriptor."""
    name = "pooling" if network.neck else DESCRIPTOR
    if network.pooling != "token" and len(features.shape) == 3:
        features = _lay_out(features, backbones.count_prefix_tokens(network.backbone))
    pooling = {
        "max": partial(keras.layers.GlobalMaxPooling2D, name=name),
        "average": partial(keras.layers.GlobalAveragePooling2D, name=name),
        "gem": partial(layers.GeM, network.gem_p, network.gem_learnt, name=name),
        "token": partial(layers.ClassToken, name=name),
    }[network.pooling]
    return pooling()(features)


def _lay_out(tokens, num_prefix_tokens):
    """Gives the patches of a vision transformer as a map: (batch, rows, rows, channels)."""
    rows = math.isqrt(tokens.shape[1] - num_prefix_tokens)
    shape = (-1, rows, rows, tokens.shape[2])
    return keras.ops.reshape(tokens[:, num_prefix_tokens:], shape)


def _add_neck(network, pooled):
    """Puts the neck behind the pooling where there is one; gives the descriptor."""
    if not network.neck:
        return pooled
    values = keras.layers.Dense(network.neck, use_bias=False, name="neck")(pooled)
    values = keras.layers.BatchNormalization(name="neck_norm")(values)
    return layers.UnitLength(name=DESCRIPTOR)(values)


def _build_last_layer(loss, num_classes):
    """Gives the last layer: descriptors -> logits or cosines, float32."""
    if loss.loss != "softmax":
        return layers.CosineHead(num_classes, loss.sub_centers, name=LOGITS)
    # float32 under mixed precision too: 55k logits in float16 would round the softmax away.
    # The maxima of 2048 channels are large: small first weights keep the first loss at ln(classes).
    small = keras.initializers.RandomNormal(stddev=0.01)
    return keras.layers.Dense(num_classes, kernel_initializer=small, dtype="float32", name=LOGITS)


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
    """Makes a network trainable with the recipe's optimizer and loss.

    Args:
        network: keras.Model of `build_network`.
        recipe: `Recipe`.
        class_sizes: (num_classes,) int, the train images of each landmark.
    """
    head = [layer for layer in network.layers if layer.name in HEAD_LAYERS]
    network.compile(
        optimizer=build_optimizer(recipe.training, [v for layer in head for v in layer.variables]),
        loss=_build_loss(recipe.loss, network, class_sizes),
        weighted_metrics=["sparse_categorical_accuracy"],  # what fills up weighs nothing
        # XLA makes the step slower on a CPU (measured 0.62x under TensorFlow).
        jit_compile="auto" if list_gpus() or keras.backend.backend() != "tensorflow" else False,
    )


def _build_loss(loss, network, class_sizes):
    weights = layers.class_weights(class_sizes) if loss.class_weights else None
    if loss.loss == "softmax" and weights is None:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    kind = "softmax" if loss.loss in ("softmax", "cosine") else loss.loss
    margins = layers.dynamic_margins(class_sizes) if loss.dynamic_margin else loss.margin
    scale = scale_of(loss, len(class_sizes))
    return layers.MarginLoss(kind, scale, margins, network.get_layer(LOGITS), weights)


def scale_of(loss, num_classes):
    """Gives what the network's outputs are multiplied by before the softmax."""
    if loss.loss == "softmax":
        return 1.0
    return loss.scale or layers.adacos_scale(num_classes)


def build_classifier(network, loss):
    """Adds what makes outputs confidences: images -> (batch, num_classes) float32.

    Args:
        network: keras.Model of `build_network`.
        loss: `recipes.Loss`; its confidence is a probability or, of a cosine head, the cosine.
    """
    outputs = network.output
    if loss.loss != "softmax":
        if loss.confidence == "cosine":
            return keras.Model(network.input, outputs, name=network.name)
        scale = scale_of(loss, outputs.shape[-1])
        outputs = keras.layers.Rescaling(scale, dtype="float32", name="scale")(outputs)
    softmax = keras.layers.Activation("softmax", dtype="float32", name="probabilities")
    return keras.Model(network.input, softmax(outputs), name=network.name)


def build_with_descriptor(classifier):
    """Builds the network that gives all confidences and the descriptor.

    Args:
        classifier: the network of a `Recogniser`.

    Returns:
        keras.Model, images uint8 -> [confidences (batch, num_classes) float32, descriptors
        (batch, 2048) float32].
    """
    both = keras.Model(classifier.input, [classifier.output, find_descriptor(classifier).output])
    images = keras.Input(classifier.input.shape[1:], dtype="uint8", name="images")
    pixels = keras.ops.cast(images, classifier.input.dtype)  # the 2019 model takes float32
    confidences, descriptors = both(pixels)
    return keras.Model(images, [confidences, keras.ops.cast(descriptors, "float32")])


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
    named = [layer for layer in classifier.layers if layer.name == DESCRIPTOR]
    pooling = [layer for layer in classifier.layers if isinstance(layer, POOLING)]
    return (named or pooling or [None])[-1]


def digest_of_variables(variables, words=""):
    """Gives 32 hex characters that differ for other values of Keras variables, or other words."""
    digest = hashlib.md5(words.encode(), usedforsecurity=False)
    for variable in variables:
        digest.update(np.ascontiguousarray(to_numpy(variable)))
    return digest.hexdigest()
