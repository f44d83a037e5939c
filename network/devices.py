"""One network on several devices, of one machine or of several: every batch is split over them.

The only place that speaks to TensorFlow or JAX itself; on one device nothing is done.
"""

import atexit
import contextlib
import dataclasses
import json
import os
import signal
from dataclasses import dataclass
from itertools import chain

import numpy as np

from cluster.machines import Machines, open_door, require_name
from generators import Batch, ShardEnd
from network.loading import loading_keras, muted_stderr, stdout_to_stderr
from utils import ExpectedError, StoppedError, say

with loading_keras():
    import keras

FLOAT16 = "mixed_float16"  # the precision policy of GPUs
BFLOAT16 = "mixed_bfloat16"  # ... and of TPU cores
JAX_PATIENCE_S = 600  # longer than that of `Machines`, who say it in one line
LOST_SHOWS_S = 3.0  # until a machine is known to be gone, after a step has failed
AXIS = "batch"  # the one axis of the devices: images are split along it, and so are the classes
HEAD = r"(.*[/_])?logits[/_]"  # of a path: the head's weights, `logits/kernel`, and their moments


def list_gpus():
    """Lists the GPUs that the Keras backend sees, e.g. `["gpu:0", "gpu:1"]`."""
    return _list_devices("gpu")


def precision_here():
    """Gives the precision policy of the devices here: float16 on GPUs, bfloat16 on TPU cores."""
    if list_gpus():
        return FLOAT16
    return BFLOAT16 if _list_devices("tpu") else "float32"


def _list_devices(kind=None):
    """Lists the devices of a kind that the Keras backend sees; None is the best kind."""
    try:
        with muted_stderr():
            return keras.distribution.list_devices(kind)
    except (RuntimeError, ValueError, NotImplementedError):  # JAX raises where there is none
        return []
    except AttributeError:  # PyTorch, for which Keras has no list
        return []


def make_metrics(network, images, class_indices):
    """Makes the metrics' variables: TensorFlow traces a step that makes some itself twice."""
    logits = np.zeros((len(images), network.output.shape[-1]), np.float32)
    network.compute_metrics(images, class_indices, logits)


class OneDevice:
    """Runs batches on the one device that Keras chooses.

    Attributes:
        num_machines: that train together; each has a shard of its own.
        is_first: whether this machine writes what is kept.
    """

    num_machines = 1
    is_first = True

    def scope(self):
        """Gives the context in which networks must be built and loaded."""
        return contextlib.nullcontext()

    def train_on_batch(self, network, images, class_indices):
        """Trains on one batch; gives (loss, accuracy) as floats."""
        if network.train_function is None:
            make_metrics(network, images, class_indices)
        # Keras before 3.14 gave the mean since the last reset (keras-team/keras#22617).
        network.reset_metrics()
        return network.train_on_batch(images, class_indices)

    def predict_on_batch(self, network, images):
        """Gives the network's outputs as a list of NumPy arrays."""
        outputs = network.predict_on_batch(images)
        return outputs if isinstance(outputs, list) else [outputs]

    def settle(self, network):
        """Brings the variables of a network up to date that was trained on."""

    def follow_first(self, network, rows, facts):
        """Takes weights and rows of the history from the first machine; gives the rows.

        Args:
            network: compiled keras.Model.
            rows: of the history, as far as this machine knows it.
            facts: dict that must be equal on all machines.
        """
        return rows

    def keep_step(self, stream, plan, reading):
        """Gives a stream with as many batches for each group of shards as other machines have.

        Args:
            stream: function, (plan, `Reading`) -> iterator of `Batch` and `ShardEnd`.
            plan: list of (epoch, `Shard`), those of all machines.
            reading: `Reading` of batches as the recipe has them.
        """
        return stream(plan, reading)

    def common(self, stop):
        """Gives a `Stop` that all machines follow together."""
        return stop

    def collect(self, row, num_shards):
        """Gives the rows of a group of shards, which were trained together, in their order.

        Args:
            row: of the history, what this machine knows of its shard.
            num_shards: of the group.
        """
        return [row]


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


@dataclass(frozen=True)
class Placed:
    """Where the value of a Keras variable is.

    Attributes:
        variable: keras.Variable.
        resting: its own value, as it was when it was placed; another one was assigned since.
        array: jax.Array on the devices, its split axis padded to a multiple of their number.
        is_newer: a step changed it.
    """

    variable: object
    resting: object
    array: object
    is_newer: bool = False


class JaxDevices(OneDevice):
    """Splits every batch over JAX devices, and the head by classes over the same devices.

    Losses, gradients and batch normalisation are of the whole batch, as on one device. Each device
    has all weights but those of the head, of which it has the columns of its share of the classes:
    features cross between devices, which are small, instead of the head's gradients. Where the
    devices do not divide the columns, zeros are added on the devices, and nowhere else: Keras and
    the checkpoint know the variables as they are on one device. Those rest in the machine's memory
    and are up to date after `settle`.

    Args:
        devices: list of Keras' names of JAX devices.

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
        self._placed = {}  # id of a variable -> Placed
        self._steps = {}  # (id of a network, what it does) -> (network, function)

    def train_on_batch(self, network, images, class_indices):
        return self._train(network, (images, class_indices, None))

    def predict_on_batch(self, network, images):
        step = self._step(network, "predict", self._make_predict_step)
        groups = (network.trainable_variables, network.non_trainable_variables)
        outputs = step([[self._place(v) for v in group] for group in groups], self._split(images))
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        return [np.asarray(output) for output in outputs]

    def settle(self, network):
        for variable in [*network.variables, *network.optimizer.variables]:
            placed = self._placed.get(id(variable))
            if placed and placed.is_newer:
                value = self._whole(placed.array)[tuple(map(slice, variable.shape))]
                self._rest(variable, value, placed.array)

    # ----------------------------------------------------------------------------- the steps

    def _train(self, network, batch):
        """Trains on (images, class indices, weights of the images or None)."""
        if (id(network), "train") not in self._steps:
            make_metrics(network, *batch[:2])
        step = self._step(network, "train", self._make_train_step)
        groups = _state_of(network)
        state = [[self._place(variable) for variable in group] for group in groups]
        logs, state = step(state, [None if x is None else self._split(x) for x in batch])
        for variable, array in zip(chain(*groups), chain(*state), strict=True):
            self._placed[id(variable)] = Placed(variable, variable.value, array, is_newer=True)
        return float(logs["loss"]), float(logs["sparse_categorical_accuracy"])

    def _make_train_step(self, network):
        import jax

        groups = _state_of(network)

        def step(state, batch):
            state = [self._cut(*pair) for pair in zip(state, groups, strict=True)]
            metrics = [jax.numpy.zeros(v.shape, v.dtype) for v in network.metrics_variables]
            with self.distribution.scope():
                logs, (*state, _) = network.train_step((*state, metrics), tuple(batch))
            return logs, [self._pad(*pair) for pair in zip(state, groups, strict=True)]

        layouts = [[self._layout(variable) for variable in group] for group in groups]
        return jax.jit(step, donate_argnums=0, out_shardings=(self._everywhere(), layouts))

    def _make_predict_step(self, network):
        import jax

        groups = (network.trainable_variables, network.non_trainable_variables)

        def step(state, images):
            state = [self._cut(*pair) for pair in zip(state, groups, strict=True)]
            with self.distribution.scope():
                return network.stateless_call(*state, images, training=False)[0]

        return jax.jit(step, out_shardings=self._everywhere())

    def _step(self, network, kind, make):
        if (id(network), kind) not in self._steps:
            self._steps[id(network), kind] = network, make(network)
        return self._steps[id(network), kind][1]

    # ------------------------------------------------------------------------- the placement

    def _place(self, variable):
        """Gives a variable's value on the devices."""
        placed = self._placed.get(id(variable))
        if placed is None or placed.resting is not variable.value:
            import jax

            value = keras.ops.convert_to_numpy(variable.value)
            padded = np.pad(value, self._padding(variable)) if value.ndim else value
            array = jax.make_array_from_callback(
                padded.shape, self._layout(variable), lambda index: padded[index]
            )
            placed = self._rest(variable, value, array)
        return placed.array

    def _rest(self, variable, value, array):
        """Keeps a variable's own value where it takes no memory of the devices."""
        import jax

        variable.assign(jax.device_put(value, jax.local_devices(backend="cpu")[0]))
        placed = Placed(variable, variable.value, array)
        self._placed[id(variable)] = placed
        return placed

    def _layout(self, variable):
        return self.distribution.get_variable_layout(variable).backend_layout

    def _everywhere(self):
        return keras.distribution.TensorLayout([], self.distribution.device_mesh).backend_layout

    def _padding(self, variable):
        """Gives what is to be added at the end of each axis: ((0, n), ...)."""
        axes = self.distribution.get_variable_layout(variable).axes
        sizes = zip(variable.shape, axes, strict=True)
        return [(0, -size % self.num_devices if axis else 0) for size, axis in sizes]

    def _pad(self, values, variables):
        return [
            keras.ops.pad(value, self._padding(variable)) if variable.shape else value
            for value, variable in zip(values, variables, strict=True)
        ]

    def _cut(self, values, variables):
        """Gives the values of variables without what was added to them."""
        cut = [
            value[tuple(map(slice, variable.shape))]
            for value, variable in zip(values, variables, strict=True)
        ]
        # Told, or the compiler would gather the whole head on every device to cut it.
        layouts = map(self._layout, variables)
        return list(map(keras.distribution.distribute_tensor, cut, layouts))

    def _split(self, batch):
        """Gives each device its share of a batch."""
        import jax

        layout = self.distribution.get_data_layout(batch.shape).backend_layout
        return jax.make_array_from_process_local_data(layout, batch)

    def _whole(self, array):
        """Gives an array of the devices as NumPy has it."""
        return np.asarray(array)


def _state_of(network):
    """Lists the variables that a step takes and gives, as Keras' `train_step` wants them."""
    return (
        network.trainable_variables,
        network.non_trainable_variables,
        network.optimizer.variables,
    )


class JaxMachines(JaxDevices):
    """Splits batch and head over the devices of several machines.

    Each machine streams every n-th shard and gives 1/n of each batch, so that n shards are trained
    on together; the first machine reads and writes the checkpoint.

    Args:
        machines: `Machines`, joined by `join_machines`.
    """

    def __init__(self, machines):
        super().__init__(_list_devices())
        self.machines, self.num_machines = machines, len(machines)
        self.is_first = machines.number == 0
        self.weight = 1.0  # of the images of this machine in the next step

    def train_on_batch(self, network, images, class_indices):
        weights = np.full(len(images), self.weight, np.float32)
        return self._train(network, (images, class_indices, weights))

    def predict_on_batch(self, network, images):
        # Every machine has the whole batch here, and predicts its share of it.
        share = np.split(images, self.num_machines)[self.machines.number]
        return super().predict_on_batch(network, share)

    def follow_first(self, network, rows, facts):
        import jax
        from jax.experimental import multihost_utils

        devices = jax.local_devices()
        kind = f"{len(devices)} {devices[0].platform}"
        self.require_equal(facts | {"the number and kind of devices": kind})
        for variable in [*network.variables, *network.optimizer.variables]:
            value = keras.ops.convert_to_numpy(variable.value)
            variable.assign(multihost_utils.broadcast_one_to_all(value))
        return self.machines.exchange(rows)[0]

    def require_equal(self, facts):
        """Raises ExpectedError unless all machines have the same facts."""
        facts = json.loads(json.dumps(facts))  # as others come
        for number, others in enumerate(self.machines.exchange(facts)):
            for name in facts:
                if others[name] != facts[name]:
                    raise ExpectedError(
                        f"{self.machines.name(number)}: {name} is {others[name]}, here it is "
                        f"{facts[name]}; expected the same command and data on all machines"
                    )

    def keep_step(self, stream, plan, reading):
        """Streams this machine's shards, and as many batches for each group as the others do.

        Where a shard ends before those of other machines, its last batch is repeated with a weight
        of 0: each image counts once.
        """
        own = plan[self.machines.number :: self.num_machines]
        size = reading.batch_size // self.num_machines
        items = stream(own, dataclasses.replace(reading, batch_size=size))
        pixels = np.zeros((size, reading.image_size, reading.image_size, 3), np.uint8)
        none = np.empty(0, np.uint64)
        filler = Batch(pixels, none, np.zeros(size, np.int32), none)
        for begin in range(0, len(plan), self.num_machines):
            # The last group may have no shard for this machine.
            is_over = begin + self.machines.number >= len(plan)
            end = ShardEnd(plan[begin][1], 0, ()) if is_over else None
            while True:
                item = end or next(items)
                end = item if isinstance(item, ShardEnd) else None
                num_active = sum(self.machines.exchange(end is None))
                if not num_active:
                    break
                self.weight = 0.0 if end else self.num_machines / num_active
                filler = filler if end or item is None else item
                yield filler if end else item
            yield end

    def common(self, stop):
        return CommonStop(stop, self.machines)

    def collect(self, row, num_shards):
        rows = self.machines.exchange(row)[:num_shards]
        times = ("waited_s", "seconds")
        return [
            row
            | {name: row[name] / num_shards for name in times}
            | {"images_per_s": row["images_per_s"] * num_shards}
            for row in rows
        ]

    def _whole(self, array):
        if not array.is_fully_replicated:
            import jax

            array = jax.jit(lambda values: values, out_shardings=self._everywhere())(array)
        return np.asarray(array)


class CommonStop:
    """A `Stop` of several machines: what stops one stops all, after the same step.

    Args:
        stop: `Stop` of this machine.
        machines: `Machines`.
    """

    def __init__(self, stop, machines):
        self.stop, self.machines = stop, machines
        self.said = ""

    @property
    def signal_number(self):
        return self.stop.signal_number

    def requested(self, needed_s=0.0):
        """Tells whether to stop now; all machines must ask together."""
        own = self.stop.reason() if self.stop.requested(needed_s) else ""
        reasons = self.machines.exchange(own)
        self.said = next((f"{r} on machine {k}" for k, r in enumerate(reasons) if r), "")
        return bool(self.said)

    def reason(self):
        """Names what asked for the stop, and where."""
        return self.said


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


_joined = None  # `Machines` of this process: JAX has one such state, too


@contextlib.contextmanager
def join_machines(addresses, number):
    """Joins the machines of a run, which then train as one.

    Args:
        addresses: list of str, `HOST:PORT` of each machine; None for this machine alone.
        number: of this machine.

    Raises:
        ExpectedError: Keras does not run on JAX, a machine did not come, or is gone.
    """
    global _joined
    if not addresses:
        yield
        return
    if keras.backend.backend() != "jax":
        raise ExpectedError(
            f"{len(addresses)} machines: Keras runs on {keras.backend.backend()}; expected JAX, "
            "which trains on several; set KERAS_BACKEND=jax"
        )
    import jax

    _joined = machines = Machines(addresses, number)
    try:
        # Keras' own `initialize` lets JAX guess the devices: under Slurm the first GPU alone.
        jax.distributed.initialize(
            open_door(addresses[0]) if number else addresses[0],
            len(addresses),
            number,
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=JAX_PATIENCE_S,
        )
        # JAX takes SIGTERM for itself, which then stops nothing; Slurm sends it ahead of the end.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        with stdout_to_stderr():  # Gloo says there that it is connected
            yield
        machines.finish()
        jax.distributed.shutdown()
    except BaseException as error:
        # JAX would wait for the others at the exit, which are gone.
        atexit.register(os._exit, getattr(error, "exit_code", 1))
        is_own = isinstance(error, StoppedError | ExpectedError | KeyboardInterrupt)
        is_lost = machines.is_lost(0.0 if is_own else LOST_SHOWS_S)
        machines.fail(str(error).partition("\n")[0] or type(error).__name__)
        if is_lost and not isinstance(error, StoppedError):
            raise ExpectedError(machines.lost) from error
        raise
    finally:
        _joined = None


def set_up_replicas(batch_size):
    """Chooses how batches run here, and says so where there are several devices.

    Args:
        batch_size: images in a step, over all devices together.

    Returns:
        `OneDevice`, `TensorFlowReplicas`, `JaxDevices` or `JaxMachines`.

    Raises:
        ExpectedError: the batch cannot be split evenly.
    """
    backend = keras.backend.backend()
    devices = {"tensorflow": list_gpus, "jax": _list_devices}.get(backend, list)()
    if len(devices) < 2:
        return OneDevice()
    kind = devices[0].partition(":")[0].upper()
    if _joined and kind == "CPU":
        require_name(_joined.addresses[_joined.number])
    if batch_size % len(devices):
        raise ExpectedError(
            f"batches of {batch_size} images: {len(devices)} {kind}s here; expected a multiple of "
            "that",
            setting="batch_size",
        )
    say(f"{len(devices)} {kind}s, each takes {batch_size // len(devices)} images of a batch")
    if backend == "tensorflow":
        return TensorFlowReplicas([f"GPU:{number}" for number in range(len(devices))])
    return JaxMachines(_joined) if _joined else JaxDevices(devices)
