"""The optimizers of the recipes, where backbone and head may have learning rates of their own."""

from utils import loading_keras

with loading_keras():
    import keras

    from replicas import agree_on_overflow

MOMENTUM = 0.9  # of sgd
KINDS = {
    "adam": (keras.optimizers.Adam, {}),
    "adamw": (keras.optimizers.Adam, {}),  # its decay is below
    "sgd": (keras.optimizers.SGD, {"momentum": MOMENTUM, "nesterov": True}),
}


def build_optimizer(training, is_of_head):
    """Builds the optimizer of a recipe.

    Args:
        training: `recipes.Training`.
        is_of_head: function, variable -> whether it belongs to the head rather than the backbone.

    Returns:
        keras.optimizers.Optimizer; on several TensorFlow devices in float16 one that skips a step
        that overflows on any of them.
    """
    kind, options = KINDS[training.optimizer]
    options = options | {"learning_rate": training.learning_rate}
    if training.clip_norm:
        options |= {"global_clipnorm": training.clip_norm}
    decays = training.optimizer != "adam" and training.weight_decay > 0
    if decays or training.backbone_rate < 1 or training.frozen_share:
        weight_decay = training.weight_decay if decays else 0.0
        return agree_on_overflow(_with_two_rates(kind)(is_of_head, weight_decay, **options))
    return agree_on_overflow(kind(**options))


def _with_two_rates(kind):
    """Gives the class of an optimizer whose backbone has a share of the learning rate."""

    class TwoRates(kind):
        def __init__(self, is_of_head, weight_decay, **options):
            super().__init__(name=kind.__name__.lower(), **options)
            self.is_of_head, self.decay = is_of_head, weight_decay

        def build(self, variables):
            super().build(variables)
            # A variable of the optimizer: JAX would freeze any other into the traced step.
            self.backbone_rate = self.add_variable((), "ones", "float32", name="backbone_rate")

        def update_step(self, gradient, variable, learning_rate):
            rate = keras.ops.cast(learning_rate, variable.dtype)
            if not self.is_of_head(variable):
                rate = rate * keras.ops.cast(self.backbone_rate, variable.dtype)
            if self.decay and len(variable.shape) > 1:  # neither biases nor normalisations
                self.assign_sub(variable, variable * (rate * self.decay))
            super().update_step(gradient, variable, rate)

    return TwoRates


def set_rates(optimizer, learning_rate, backbone_rate):
    """Sets the rates of the steps to come; `backbone_rate` is a share of the learning rate."""
    optimizer.learning_rate = learning_rate
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if hasattr(inner, "backbone_rate"):
        inner.backbone_rate.assign(backbone_rate)
