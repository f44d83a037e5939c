"""The first training step under TensorFlow: our Adam and batch normalisation against Keras'.

    python benchmarks/first_step.py [--rounds 5]

Each way runs in processes of its own, which compile anew. A later step is the median of 12.
"""

import os
import subprocess
import sys

import common
import numpy as np
from common import median, ratio

KERAS = "Keras: many operations for each variable and layer"
ADAM = "one for each variable (Adam)"
OURS = "and one for each batch normalisation: ours"
SIZE, BATCH, NUM_LANDMARKS = 48, 32, 36  # as in the demo
TARGET = 0.5


def take_steps(name):
    """Prints the seconds of the first step and of a later one; the work of a process."""
    import keras

    import model
    from network.devices import OneDevice
    from recipes import Recipe

    recipe = Recipe.of({"backbone": "resnet50", "weights": "none", "image_size": SIZE})
    network = model.build_network(recipe, NUM_LANDMARKS, 1000)
    if name != OURS:
        model.fuse_batch_norms = lambda network: None
    model.compile_network(network, recipe, np.ones(NUM_LANDMARKS))
    if name == KERAS:
        network.optimizer = keras.optimizers.Adam(recipe.training.learning_rate)
    network.optimizer.build(network.trainable_variables)
    images = np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)
    batch = network, images, np.arange(BATCH, dtype=np.int32)
    seconds = [common.timed(OneDevice().train_on_batch, *batch)[1] for _ in range(13)]
    print(seconds[0], np.median(seconds[1:]))


def main():
    """Prints the table, as the module's docstring says."""
    args = common.parse_arguments(__doc__, rounds=(5, "times that each way is measured"))
    common.print_machine("tensorflow", "keras")
    first, later = ({name: [] for name in (KERAS, ADAM, OURS)} for _ in range(2))
    env = os.environ | {"KERAS_BACKEND": "tensorflow"}
    for _ in range(args.rounds):
        for name in first:
            command = [sys.executable, __file__, "--way", name]
            printed = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout
            for found, seconds in zip((first, later), printed.split()[-2:], strict=True):
                found[name].append(float(seconds))
    rows = [
        (name, median(first, name), ratio(first, name, KERAS),
         median(later, name), ratio(later, name, KERAS))
        for name in first
    ]  # fmt: skip
    common.print_table(("way", "first step, s", "x Keras'", "later step, s", "x Keras'"), rows)
    share = ratio(first, OURS, KERAS)
    common.print_verdict(f"first step: at most {TARGET} x Keras'", share, share <= TARGET)


if __name__ == "__main__":
    take_steps(sys.argv[2]) if "--way" in sys.argv else main()
