"""A network small enough to compile in a second, where MobileNetV2 takes twenty."""

import contextlib
from unittest import mock

import keras
from keras import layers

from network import backbones


def build_tiny(include_top, weights, input_tensor):
    """Stands for a function of keras.applications: 16 channels at a quarter of the size."""
    features = input_tensor
    for number, width in enumerate((8, 16), start=1):
        name = f"tiny_{number}"
        conv = layers.Conv2D(width, 3, 2, "same", use_bias=False, name=f"{name}_conv")
        features = layers.BatchNormalization(name=f"{name}_bn")(conv(features))
        features = layers.ReLU(name=f"{name}_relu")(features)
    return keras.Model(keras.utils.get_source_inputs(input_tensor), features)


@contextlib.contextmanager
def in_place_of_backbones():
    """Puts the tiny network in the place of every backbone; preprocessing stays as it is."""
    with mock.patch.object(backbones, "find_builder", lambda name: build_tiny):
        yield
