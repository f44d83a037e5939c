"""The optimizers of the recipes, where backbone and head may have learning rates of their own."""

from network.loading import loading_keras

with loading_keras():
    import keras

    from network.devices import agree_on_overflow

MOMENTUM = 0.9  # of sgd


@keras.saving.register_keras_serializable(package="landmarks")
class Adam(keras.optimizers.Adam):
    """Adam, each variable's step one operation of TensorFlow, where Keras writes twenty.

    With ResNet50's 214 variables that is half of what the first step takes. The formula is that of
    Keras; the last bits differ. A step begins when all gradients are there: beside the operations
    that compute them, each run would have other last bits.
    """

    _powers = None  # of beta_1 and beta_2, in the step that is being taken

    def apply(self, grads, trainable_variables=None):
        import tensorflow as tf

        if not self.built:
            self.build(trainable_variables)  # XLA takes no variables from under the wait
        # A variable that the loss does not know has none: DINOv2's mask token.
        there = [gradient for gradient in grads if gradient is not None]
        try:
            with tf.control_dependencies([tf.group(*there)]):
                return super().apply(grads, trainable_variables)
        finally:
            self._powers = None  # of a graph that is whole now

    def update_step(self, gradient, variable, learning_rate):
        import tensorflow as tf

        if self._powers is None:
            step = tf.cast(self.iterations + 1, "float32")
            self._powers = [tf.pow(beta, step) for beta in (self.beta_1, self.beta_2)]
        place, dtype = self._get_variable_index(variable), variable.dtype
        mean, square = self._momentums[place].value, self._velocities[place].value
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=mean.handle,
            v=square.handle,
            beta1_power=tf.cast(self._powers[0], dtype),
            beta2_power=tf.cast(self._powers[1], dtype),
            lr=tf.cast(learning_rate, dtype),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=tf.cast(gradient, dtype),
        )


ADAM = Adam if keras.backend.backend() == "tensorflow" else keras.optimizers.Adam
KINDS = {
    "adam": (ADAM, {}),
    "adamw": (ADAM, {}),  # its decay is below
    "sgd": (keras.optimizers.SGD, {"momentum": MOMENTUM, "nesterov": True}),
}


def build_optimizer(training, head):
    """Builds the optimizer of a recipe; what is not in `head` counts as the backbone's.

    On several TensorFlow devices in float16 it skips a step that overflows on any of them.
    """
    kind, options = KINDS[training.optimizer]
    options = options | {"learning_rate": training.learning_rate}
    weight_decay = 0.0 if training.optimizer == "adam" else training.weight_decay
    has_two_rates = training.backbone_rate < 1 or training.frozen_share > 0
    if weight_decay or has_two_rates:
        kind = _with_two_rates(kind)
        options |= {"head": head, "backbone_rate": training.backbone_rate, "decay": weight_decay}
    return agree_on_overflow(kind(**options))


def _with_two_rates(kind):
    """Gives the class of an optimizer whose backbone has a share of the learning rate."""

    class TwoRates(kind):
        def __init__(self, head, backbone_rate, decay, **options):
            super().__init__(name=kind.__name__.lower(), **options)
            self.head = {id(variable) for variable in head}
            self.first_rate, self.decay = backbone_rate, decay

        def build(self, variables):
            super().build(variables)
            self.is_of_head = [id(variable) in self.head for variable in variables]
            # Neither biases, which have two axes in attention layers, nor normalisations.
            self.is_decayed = [len(v.shape) > 1 and v.name != "bias" for v in variables]
            # A variable of the optimizer: JAX would freeze any other into the traced step.
            rate = keras.initializers.Constant(self.first_rate)
            self.backbone_rate = self.add_variable((), rate, "float32", name="backbone_rate")

        def update_step(self, gradient, variable, learning_rate):
            rate = keras.ops.cast(learning_rate, variable.dtype)
            place = self._get_variable_index(variable)  # TensorFlow passes its own variables here
            if not self.is_of_head[place]:
                rate = rate * keras.ops.cast(self.backbone_rate, variable.dtype)
            if self.decay and self.is_decayed[place]:
                self.assign_sub(variable, variable * (rate * self.decay))
            super().update_step(gradient, variable, rate)

    return TwoRates


def set_rates(optimizer, learning_rate, backbone_rate):
    """Sets the learning rate of the steps to come, and the backbone's as a share of it."""
    optimizer.learning_rate = learning_rate
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if hasattr(inner, "backbone_rate"):
        inner.backbone_rate.assign(backbone_rate)


def steps_taken(optimizer):
    """Counts the steps that an optimizer has taken; those that overflowed float16 were skipped."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return int(keras.ops.convert_to_numpy(inner.iterations))
