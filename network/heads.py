"""What is put on a backbone: pooling, neck, logits or cosines, and the loss they are trained on.

backbone -> features -> pooled vector -> descriptor -> logits; the layers bear the names below.
"""

import math

from network import backbones
from network.loading import loading_keras

with loading_keras():
    import keras

    from network import layers

DESCRIPTOR, LOGITS = "descriptor", "logits"  # the layers that give them
KEPT = "kept"  # projects a frozen backbone's pooled vector; set once, see `training.frozen`
HEAD_LAYERS = ("pooling", "neck", "neck_norm", KEPT, DESCRIPTOR, LOGITS)


def pool(network, features):
    """Pools features or tokens to (batch, channels); without a neck that is the descriptor."""
    name = "pooling" if network.neck else DESCRIPTOR
    if network.pooling != "token" and len(features.shape) == 3:
        features = _lay_out(features, backbones.count_prefix_tokens(network.backbone))
    make = {
        "max": keras.layers.GlobalMaxPooling2D,
        "average": keras.layers.GlobalAveragePooling2D,
        "gem": lambda name: layers.GeM(network.gem_p, name=name),
        "token": layers.ClassToken,
    }[network.pooling]
    return make(name=name)(features)


def _lay_out(tokens, num_prefix_tokens):
    """Gives the patches of a vision transformer as a map: (batch, rows, rows, channels)."""
    rows = math.isqrt(tokens.shape[1] - num_prefix_tokens)
    return keras.ops.reshape(tokens[:, num_prefix_tokens:], (-1, rows, rows, tokens.shape[2]))


def add_head(recipe, pooled, num_classes):
    """Puts neck and last layer on pooled vectors: (batch, num_classes) float32, no confidences."""
    values = pooled
    if recipe.network.neck:
        values = keras.layers.Dense(recipe.network.neck, use_bias=False, name="neck")(pooled)
        values = keras.layers.BatchNormalization(name="neck_norm")(values)
        if kept := count_kept(recipe.network, pooled.shape[-1]):
            # Half of a cosine is of the neck's values, half of the pooled vector's.
            dense = keras.layers.Dense(kept, trainable=False, dtype="float32", name=KEPT)
            sides = enumerate((values, dense(pooled)))
            units = [layers.UnitLength(name=f"side_{n}")(side) for n, side in sides]
            values = keras.layers.Concatenate(name="beside")(units)
        values = layers.UnitLength(name=DESCRIPTOR)(values)
        if kept:
            values = values[:, : recipe.network.neck]  # the head knows nothing of the rest
    if recipe.loss.loss != "softmax":
        return layers.CosineHead(num_classes, recipe.loss.sub_centers, name=LOGITS)(values)
    # float32 under mixed precision too: 55k logits in float16 would round the softmax away.
    # The maxima of 2048 channels are large: small first weights keep the first loss at ln(classes).
    small = keras.initializers.RandomNormal(stddev=0.01)
    dense = keras.layers.Dense(num_classes, kernel_initializer=small, dtype="float32", name=LOGITS)
    return dense(values)


def count_kept(network, num_channels):
    """Counts the values of the pooled vector that a descriptor has beside the neck's."""
    return min(network.kept, num_channels) if network.neck and network.frozen_backbone else 0


def build_loss(loss, network, class_sizes):
    """Builds what a network is trained on; `class_sizes`: the train images of each landmark."""
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
