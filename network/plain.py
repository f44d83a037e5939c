"""A classifier of Keras' own layers alone, so that it opens wherever Keras is."""

import numpy as np

from network.loading import loading_keras

with loading_keras():
    import keras

    from network import layers

OPERATIONS = (layers.GeM, layers.UnitLength, layers.ClassToken)  # nothing but operations of Keras


def without_own_layers(classifier):
    """Builds a classifier again with Keras' own layers alone: the same outputs, to rounding."""
    twin = keras.models.clone_model(classifier, clone_function=_twin)
    for layer, other in zip(classifier.layers, twin.layers, strict=True):
        if isinstance(layer, layers.CosineHead):
            kernel = keras.ops.convert_to_numpy(layer.kernel)
            lengths = np.linalg.norm(kernel, axis=0, keepdims=True)
            other.set_weights([kernel / np.maximum(lengths, layers.LEAST_LENGTH)])
        elif other.weights:
            other.set_weights(layer.get_weights())
    return twin


def _twin(layer):
    """Gives a layer that computes what `layer` does; its weights are new."""
    if isinstance(layer, layers.CosineHead):
        descriptors = keras.Input(batch_shape=layer.input.shape)
        units = keras.layers.UnitNormalization()(descriptors)
        dense = keras.layers.Dense(layer.kernel.shape[1], use_bias=False, name="cosines")
        cosines = dense(units)
        if layer.sub_centers > 1:
            shape = (-1, layer.num_classes, layer.sub_centers)
            cosines = keras.ops.max(keras.ops.reshape(cosines, shape), axis=-1)
        return keras.Model(descriptors, cosines, name=layer.name)
    if isinstance(layer, OPERATIONS):
        values, name = keras.Input(batch_shape=layer.input.shape), layer.name
        if getattr(layer, "learnt", False):  # a weight cannot be part of an operation
            layer = layers.GeM(float(keras.ops.convert_to_numpy(layer.exponent)))
            layer.build(values.shape)
        return keras.Model(values, layer.call(values), name=name)
    return layer.__class__.from_config(layer.get_config())
