"""One network on several GPUs of a machine: every batch is split over them.

The only place that speaks to TensorFlow itself; on JAX, Keras' own distribution does the same, and
on one device nothing is done.
"""

import contextlib

import numpy as np

from utils import ExpectedError, loading_keras, muted_stderr, say

with loading_keras():
    import keras

FLOAT16 = "mixed_float16"  # the precision policy of GPUs


def list_gpus():
    """Lists the GPUs that the Keras backend sees, e.g. `["gpu:0", "gpu:1"]`."""
    try:
        with muted_stderr():
            return keras.distribution.list_devices("gpu")
    except (RuntimeError, ValueError, NotImplementedError):  # JAX raises where there is none
        return []
    except AttributeError:  # PyTorch, for which Keras has no list
        return []


class OneDevice:
    """Runs batches on the one device that Keras chooses."""

    def scope(self):
        """Gives the context in which networks must be built and loaded."""
        return contextlib.nullcontext()

    def train_on_batch(self, network, images, class_indices):
        """Trains on one batch; gives (loss, accuracy) as floats."""
        if network.train_function is None:
            # Makes the metrics' variables: TensorFlow traces a step that makes some itself twice.
            logits = np.zeros((len(images), network.output.shape[-1]), np.float32)
            network.compute_metrics(images, class_indices, logits)
        # Keras before 3.14 gave the mean since the last reset (keras-team/keras#22617).
        network.reset_metrics()
        return network.train_on_batch(images, class_indices)

    def predict_on_batch(self, network, images):
        """Gives the network's outputs as a list of NumPy arrays."""
        outputs = network.predict_on_batch(images)
        return outputs if isinstance(outputs, list) else [outputs]


class TensorFlowReplicas(OneDevice):
    """Mirrors networks on several devices; each takes its share of a batch, gradients are summed.

    Batch normalisation works within a share.

    Args:
        devices: list of TensorFlow device names.
    """

    def __init__(self, devices):
        import tensorflow as tf

        self.num_devices = len(devices)
        self.strategy = tf.distribute.MirroredStrategy(devices)

    def scope(self):
        return self.strategy.scope()

    def train_on_batch(self, network, images, class_indices):
        # Keras' own train_on_batch would give each device the whole batch.
        if network.train_function is None:
            network.test_on_batch(images, class_indices)  # makes the metrics' variables in time
            network.make_train_function()
        network.reset_metrics()
        shares = (self._split(images), self._split(class_indices))
        logs = network.train_function(iter([shares]))
        return float(logs["loss"]), float(logs["sparse_categorical_accuracy"])

    def predict_on_batch(self, network, images):
        network.make_predict_function()
        outputs = network.predict_function([(self._split(images),)])
        outputs = outputs if isinstance(outputs, list) else [outputs]
        return [np.asarray(output) for output in outputs]

    def _split(self, batch):
        shares = np.split(batch, self.num_devices)
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: keras.ops.convert_to_tensor(shares[context.replica_id_in_sync_group])
        )


def agree_on_overflow(optimizer):
    """Lets several TensorFlow devices skip a step together when one of them overflows float16.

    Keras takes the first device's word for all: its check comes before the gradients are summed, so
    that an overflow on the second would reach the weights. Nothing changes on one device.

    Args:
        optimizer: of a network that is compiled within `scope()`.

    Returns:
        The optimizer to compile with.
    """
    if keras.backend.backend() != "tensorflow" or keras.config.dtype_policy().name != FLOAT16:
        return optimizer
    import tensorflow as tf

    if not tf.distribute.has_strategy():
        return optimizer

    class AgreeingOptimizer(keras.optimizers.LossScaleOptimizer):
        def check_finite(self, grads):
            is_bad = tf.cast(tf.logical_not(super().check_finite(grads)), tf.float32)
            context = tf.distribute.get_replica_context()
            return context.all_reduce(tf.distribute.ReduceOp.SUM, is_bad) == 0

    return AgreeingOptimizer(optimizer, name="loss_scale_optimizer")


def count_devices():
    """Counts the TensorFlow devices that share a batch within `scope()`; 1 on other backends."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def mean_over_devices(gradients):
    """Averages the gradients of several TensorFlow devices; elsewhere they are left as they are.

    Keras sums them over the devices after it has clipped them, so that n devices that have the mean
    give the gradients of the whole batch.

    Args:
        gradients: list of tensors, those of a device's share of a batch.

    Returns:
        list of tensors, equal on all devices.
    """
    if count_devices() == 1:
        return gradients
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)


def set_up_replicas(batch_size):
    """Chooses how batches run here, and says so where there are several GPUs.

    Args:
        batch_size: images in a step, over all GPUs together.

    Returns:
        `OneDevice` or `TensorFlowReplicas`.

    Raises:
        ExpectedError: the batch cannot be split evenly.
    """
    gpus = list_gpus()
    if len(gpus) < 2 or keras.backend.backend() == "torch":
        return OneDevice()
    if batch_size % len(gpus):
        raise ExpectedError(
            f"batches of {batch_size} images: {len(gpus)} GPUs here; expected a multiple of that",
            setting="batch_size",
        )
    say(f"{len(gpus)} GPUs, each takes {batch_size // len(gpus)} images of a batch")
    if keras.backend.backend() == "jax":
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(auto_shard_dataset=False)
        )
        return OneDevice()
    return TensorFlowReplicas([f"GPU:{number}" for number in range(len(gpus))])
