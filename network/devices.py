"""One network on several devices: every batch is split over them.

The only place beside `optimizers.Adam` and `layers.fuse_batch_norms` that speaks to TensorFlow or
JAX itself; on one device nothing is done. Under JAX the devices may be those of several machines,
see `cluster.machines`.
"""

import contextlib
from itertools import chain

import numpy as np

from network.loading import loading_keras, muted_stderr
from utils import ExpectedError, say

with loading_keras():
    import keras

FLOAT16 = "mixed_float16"  # the precision policy of GPUs
BFLOAT16 = "mixed_bfloat16"  # ... and of TPU cores
AXIS = "batch"  # the one axis of the devices: images are split along it, and so are the classes
HEAD = r"(.*[/_])?logits[/_]"  # of a path: the head's weights, `logits/kernel`, and their moments


def list_gpus():
    """Lists the GPUs that the Keras backend sees, e.g. `["gpu:0", "gpu:1"]`."""
    return _list_devices("gpu")


def precision_here(bfloat16=False):
    """Gives the precision policy: float16 on GPUs, bfloat16 on TPU cores or wherever asked for."""
    if not bfloat16 and list_gpus():
        return FLOAT16
    return BFLOAT16 if bfloat16 or _list_devices("tpu") else "float32"


def _list_devices(kind=None):
    """Lists the devices of a kind that the Keras backend sees; None is the best kind."""
    try:
        with muted_stderr():
            return keras.distribution.list_devices(kind)
    except (RuntimeError, ValueError, NotImplementedError, AttributeError):
        return []  # JAX raises where there is none; for PyTorch Keras has no list


def make_metrics(network, images, class_indices):
    """Makes the metrics' variables: TensorFlow traces a step that makes some itself twice."""
    logits = np.zeros((len(images), network.output.shape[-1]), np.float32)
    network.compute_metrics(images, class_indices, logits)


class OneDevice:
    """Runs batches on the one device that Keras chooses."""

    def scope(self):
        """Gives the context in which networks must be built and loaded."""
        return contextlib.nullcontext()

    def train_on_batch(self, network, images, class_indices, weight=None):
        """Trains on a batch, or this machine's share of it; gives (loss, accuracy) as floats.

        Where several machines train together, each image has a weight in the loss.
        """
        if network.train_function is None:
            make_metrics(network, images, class_indices)
        # Keras before 3.14 gave the mean since the last reset (keras-team/keras#22617).
        network.reset_metrics()
        return network.train_on_batch(images, class_indices)

    def predict_on_batch(self, network, images):
        """Gives the network's outputs for a whole batch as a list of NumPy arrays."""
        outputs = network.predict_on_batch(images)
        return outputs if isinstance(outputs, list) else [outputs]

    def settle(self, network):
        """Brings the variables of a network up to date that was trained on."""


class MirroredDevices(OneDevice):
    """Mirrors networks on TensorFlow devices, given by name; each takes its share of a batch.

    Gradients are summed. Batch normalisation works within a share.
    """

    def __init__(self, devices):
        import tensorflow as tf

        self.num_devices = len(devices)
        self.strategy = tf.distribute.MirroredStrategy(devices)

    def scope(self):
        return self.strategy.scope()

    def train_on_batch(self, network, images, class_indices, weight=None):
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


class SplitDevices(OneDevice):
    """Splits every batch over JAX devices, and the head by classes over the same devices.

    Losses, gradients and batch normalisation are of the whole batch, as on one device. Each device
    has all weights but those of the head, of which it has the columns of its share of the classes:
    features cross between devices, which are small, instead of the head's gradients. Keras and the
    checkpoint know the variables as they are on one device: those rest in the machine's memory and
    are up to date after `settle`.

    Source: An et al., Partial FC, arXiv:2203.15565, for the head.
    """

    def __init__(self, devices):
        mesh = keras.distribution.DeviceMesh((len(devices),), [AXIS], devices)
        layouts = keras.distribution.LayoutMap(mesh)
        layouts[f"{HEAD}kernel(_.*)?"] = (None, AXIS)
        layouts[f"{HEAD}bias(_.*)?"] = (AXIS,)
        layouts[r"(.*/)?logits/output"] = (None, AXIS)
        layouts[r"(.*/)?descriptor/output"] = (None, None)  # what crosses between the devices
        self.distribution = keras.distribution.ModelParallel(
            layout_map=layouts, batch_dim_name=AXIS, auto_shard_dataset=False
        )
        self.num_devices = len(devices)
        self.everywhere = keras.distribution.TensorLayout([], mesh).backend_layout
        self._placed = {}  # keras.Model -> SplitNetwork

    def train_on_batch(self, network, images, class_indices, weight=None):
        if network not in self._placed:
            make_metrics(network, images, class_indices)
        weights = None if weight is None else np.full(len(images), weight, np.float32)
        logs = self.place(network).train((images, class_indices, weights))
        return float(logs["loss"]), float(logs["sparse_categorical_accuracy"])

    def predict_on_batch(self, network, images):
        outputs = self.place(network).predict(images)
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        return [np.asarray(output) for output in outputs]

    def settle(self, network):
        self.place(network).settle()

    def place(self, network):
        """Gives the `SplitNetwork` of a network."""
        if network not in self._placed:
            self._placed[network] = SplitNetwork(self, network)
        return self._placed[network]


class SplitNetwork:
    """A network on the devices of `SplitDevices`: its variables there, and its steps."""

    def __init__(self, devices, network):
        import jax

        self.devices, self.network, self.is_newer = devices, network, False
        groups = [network.trainable_variables, network.non_trainable_variables]
        if network.optimizer:
            groups.append(network.optimizer.variables)
        self.state = [[SplitVariable(devices, variable) for variable in g] for g in groups]
        out = (devices.everywhere, [[each.layout for each in group] for group in self.state])
        self.train_step = jax.jit(self._train, donate_argnums=0, out_shardings=out)
        self.predict_step = jax.jit(self._predict, out_shardings=devices.everywhere)

    def train(self, batch):
        """Trains on (images, class indices, weights of the images or None); gives the logs."""
        import jax

        # Each machine has its own share of the batch.
        batch = jax.tree.map(
            lambda part: jax.make_array_from_process_local_data(self._layout(part), part), batch
        )
        logs, arrays = self.train_step(self._each(SplitVariable.place), batch)
        self.is_newer = True
        for variable, array in zip(chain(*self.state), chain(*arrays), strict=True):
            variable.array = array
        return logs

    def predict(self, images):
        """Gives the outputs for a batch, of which every machine has the whole."""
        import jax

        images = jax.make_array_from_callback(
            images.shape, self._layout(images), images.__getitem__
        )
        return self.predict_step(self._each(SplitVariable.place)[:2], images)

    def settle(self):
        """Gives the variables the values that the steps gave the arrays."""
        if self.is_newer:
            self._each(SplitVariable.settle)
        self.is_newer = False

    def _train(self, state, batch):
        metrics = [keras.ops.zeros(v.shape, v.dtype) for v in self.network.metrics_variables]
        with self.devices.distribution.scope():
            logs, (*state, _) = self.network.train_step(
                (*self._each(SplitVariable.cut, state), metrics), batch
            )
        return logs, self._each(SplitVariable.pad, state)

    def _predict(self, state, images):
        with self.devices.distribution.scope():
            state = self._each(SplitVariable.cut, state)
            return self.network.stateless_call(*state, images, training=False)[0]

    def _each(self, do, *values):
        """Does something with each variable, and its value where one is given, in groups."""
        groups = zip(self.state, *values, strict=False)  # a prediction has no optimizer's
        return [[do(*both) for both in zip(*group, strict=True)] for group in groups]

    def _layout(self, batch):
        return self.devices.distribution.get_data_layout(batch.shape).backend_layout


class SplitVariable:
    """A variable of a network on the devices of `SplitDevices`.

    Where the devices do not divide the columns of the head, zeros are added to them on the devices,
    and nowhere else.
    """

    def __init__(self, devices, variable):
        layout = devices.distribution.get_variable_layout(variable)
        self.variable, self.everywhere = variable, devices.everywhere
        self.layout = layout.backend_layout
        sizes = zip(variable.shape, layout.axes, strict=True)
        self.padding = [(0, -size % devices.num_devices if axis else 0) for size, axis in sizes]
        self.array = None  # on the devices
        self.resting = None  # the variable's own value when it was placed

    def place(self):
        """Gives the array, anew where the variable was given a value since."""
        if self.resting is not self.variable.value:
            import jax

            value = keras.ops.convert_to_numpy(self.variable.value)
            padded = np.pad(value, self.padding) if value.ndim else value
            self.array = jax.make_array_from_callback(padded.shape, self.layout, padded.__getitem__)
            self._rest(value)
        return self.array

    def settle(self):
        """Gives the variable the array's value."""
        import jax

        whole = self.array
        if not whole.is_fully_replicated:
            whole = jax.jit(lambda array: array, out_shardings=self.everywhere)(whole)
        self._rest(np.asarray(whole)[tuple(map(slice, self.variable.shape))])

    def _rest(self, value):
        """Keeps the variable's own value where it takes no memory of the devices."""
        import jax

        self.variable.assign(jax.device_put(value, jax.local_devices(backend="cpu")[0]))
        self.resting = self.variable.value

    def pad(self, value):
        """Adds zeros to a value of the variable."""
        return keras.ops.pad(value, self.padding) if self.padding else value

    def cut(self, array):
        """Gives the value without what was added to it."""
        value = array[tuple(map(slice, self.variable.shape))]
        # Told, or the compiler would gather the whole head on every device to cut it.
        return keras.distribution.distribute_tensor(value, self.layout)


def choose_devices(batch_size):
    """Chooses the devices that batches run on: `OneDevice`, `MirroredDevices` or `SplitDevices`.

    Raises ExpectedError where they cannot split a batch evenly.
    """
    backend = keras.backend.backend()
    devices = {"tensorflow": list_gpus, "jax": _list_devices}.get(backend, list)()
    if len(devices) < 2:
        return OneDevice()
    kind = devices[0].partition(":")[0].upper()
    if batch_size % len(devices):
        problem = f"batches of {batch_size} images: {len(devices)} {kind}s here"
        raise ExpectedError(f"{problem}; expected a multiple of that", "batch_size")
    say(f"{len(devices)} {kind}s, each takes {batch_size // len(devices)} images of a batch")
    if backend == "tensorflow":
        return MirroredDevices([f"GPU:{number}" for number in range(len(devices))])
    return SplitDevices(devices)


def agree_on_overflow(optimizer):
    """Lets several TensorFlow devices skip a step together when one of them overflows float16.

    Keras takes the first device's word for all: its check comes before the gradients are summed, so
    that an overflow on the second would reach the weights. Gives the optimizer to compile with,
    within `scope()`; on one device the same one.
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
