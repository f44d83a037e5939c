"""The optimizers of the recipes, where backbone and head may have learning rates of their own."""

from network.loading import loading_keras

with loading_keras():
    import keras

    from network.devices import agree_on_overflow, once_for_each_shape

MOMENTUM = 0.9  # of sgd


@keras.saving.register_keras_serializable(package="landmarks")
class Adam(keras.optimizers.Adam):
    """Keras' Adam, equal in every bit, with what all variables share computed once a step.

    Keras writes it into the graph for each of ResNet50's 214 variables, as it does the rest of the
    step, which is here once for each shape: all of it is half of what the first step takes.
    """

    _rate = _factor = None  # of the step that is being taken

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._move = once_for_each_shape(self._move)

    def apply(self, grads, trainable_variables=None):
        try:
            return super().apply(grads, trainable_variables)
        finally:
            self._rate = self._factor = None  # of a graph that is whole now

    def update_step(self, gradient, variable, learning_rate):
        if self._rate is not learning_rate:  # the backbone's differs from the head's
            self._rate, self._factor = learning_rate, self._factor_of(learning_rate)
        place = self._get_variable_index(variable)
        mean, square = self._momentums[place], self._velocities[place]
        self._move(variable, mean, square, gradient, self._factor)

    def _move(self, variable, mean, square, gradient, factor):
        gradient = keras.ops.cast(gradient, variable.dtype)
        self.assign_add(mean, (gradient - mean) * (1 - self.beta_1))
        self.assign_add(square, (keras.ops.square(gradient) - square) * (1 - self.beta_2))
        size = keras.ops.sqrt(square) + self.epsilon
        self.assign_sub(variable, mean * keras.ops.cast(factor, variable.dtype) / size)

    def _factor_of(self, learning_rate):
        """Gives the learning rate, corrected for averages that began at zero."""
        rate, step = (keras.ops.cast(x, "float32") for x in (learning_rate, self.iterations + 1))
        of_mean, of_square = (
            1 - keras.ops.power(keras.ops.cast(beta, "float32"), step)
            for beta in (self.beta_1, self.beta_2)
        )
        return rate * keras.ops.sqrt(of_square) / of_mean


# Under PyTorch Keras has an Adam that takes all variables at once, which subclasses do not get.
ADAM = keras.optimizers.Adam if keras.backend.backend() == "torch" else Adam
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
