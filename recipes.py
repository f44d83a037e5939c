"""The recipes as data: everything that shapes the trained weights, each number with its source.

A recipe travels inside the checkpoint and model.keras. The default of every field is the recipe of
2019, so that a file from before a field existed means what it was trained with.

Source of "2019": mayukh18/Google-Landmark-Recognition-Retrieval-2019, README.md and recognition.py
"""

import dataclasses
from dataclasses import dataclass, field

MAX_BATCH_SIZE = 8192  # 0.9 GB at 192 pixels


def setting(default, help, **limits):  # noqa: A002 - the word of argparse
    """Declares a field: its 2019 value, what it is, and the values that it may take.

    Args:
        default: of the 2019 recipe.
        help: a few words for the command line.
        **limits: `least` and `most` of a number, `choices` of a word, `metavar`.
    """
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class Data:
    """Which images are trained on, and how they reach the network."""

    train_shards: tuple = setting((10, 500), "shards to train on; STOP is not among them")
    clean: bool = setting(False, "train on train_clean.csv instead of train.csv")
    # ~55k of 203,094 landmarks are left.
    min_images: int = setting(20, "leave out landmarks with fewer train images", least=1)
    image_size: int = setting(192, "side of the square images", least=32, metavar="PIXELS")
    # Not in 2019: mirror and crop.
    augment: bool = setting(True, "mirror and crop the train images at random")
    # The third place of 2020: erase 0.5, geometry 0.7; see images.py.
    erase: float = setting(
        0.0, "share of the train images with one box erased", least=0, most=1, metavar="SHARE"
    )
    geometry: float = setting(
        0.0, "share of the train images turned, shifted and scaled a little", least=0, most=1,
        metavar="SHARE",
    )  # fmt: skip
    keep_aspect: bool = setting(False, "fit pictures into the square instead of squashing them")


@dataclass(frozen=True)
class Network:
    """What is trained."""

    backbone: str = setting(
        "resnet50", "network below the pooling", choices=("resnet50", "resnet101", "mobilenet_v2")
    )
    weights: str = setting(
        "imagenet", "the backbone's first weights: imagenet, none (random), or a file without top"
    )


@dataclass(frozen=True)
class Training:
    """How the weights change."""

    # 2019: 64 up to shard 339, then 48.
    batch_size: int = setting(
        64, "images in a step; prediction uses it too", least=1, most=MAX_BATCH_SIZE,
        metavar="IMAGES",
    )  # fmt: skip
    epochs: int = setting(1, "passes over all shards", least=1)
    learning_rate: float = setting(
        2e-4, "Adam's first rate; x0.5, x0.2, x0.1 after 35%%, 70%%, 80%% of the mini-epochs",
        least=0, metavar="RATE",
    )  # fmt: skip
    bfloat16: bool = setting(
        False, "train in bfloat16: faster on a processor that has it, at equal scores"
    )
    seed: int = setting(0, "of weights, order and augmentation", least=0, most=2**32 - 1)


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes the trained weights; it must not change when a run continues."""

    data: Data = Data()
    network: Network = Network()
    training: Training = Training()

    @classmethod
    def of(cls, values):
        """Makes a recipe of settings by name, which are unique over all groups.

        Args:
            values: dict, setting -> value, or group -> such a dict, as JSON may hold it; what is
                missing is as in 2019, names that are no setting are left alone.
        """
        flat = {}
        for name, value in values.items():
            flat |= value if isinstance(value, dict) else {name: value}
        groups = {}
        for group in dataclasses.fields(cls):
            names = {one.name for one in dataclasses.fields(group.type)} & flat.keys()
            groups[group.name] = group.type(**{
                name: tuple(flat[name]) if isinstance(flat[name], list) else flat[name]
                for name in names
            })  # fmt: skip
        return cls(**groups)

    def settings(self):
        """Lists all settings by name: dict, setting -> value."""
        groups = dataclasses.asdict(self).values()
        return {name: value for group in groups for name, value in group.items()}

    def as_page(self):
        """Gives the nested dict that JSON can hold, and `of` reads."""
        return dataclasses.asdict(self)


# The 2019 schedule: x1 for shards 10-179, x0.5 to 339, x0.2 to 389, x0.1 to 499. Each step: the
# share of the mini-epochs after which it ends, its factor.
LEARNING_RATE_STEPS = ((0.35, 1.0), (0.70, 0.5), (0.80, 0.2), (1.0, 0.1))


def learning_rate_at(mini_epoch, num_mini_epochs, first_rate):
    """Gives the learning rate of a mini-epoch (counted from 0)."""
    for end, factor in LEARNING_RATE_STEPS:
        if mini_epoch < max(1, round(end * num_mini_epochs)):
            return first_rate * factor
    return first_rate * LEARNING_RATE_STEPS[-1][1]
