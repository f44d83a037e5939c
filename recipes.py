"""The recipes as data: everything that shapes the trained weights, each number with its source.

A recipe travels inside the checkpoint and model.keras. The default of every field is the recipe of
2019, so that a file from before a field existed means what it was trained with.

Source of "2019": mayukh18/Google-Landmark-Recognition-Retrieval-2019, README.md and recognition.py
"""

import dataclasses
import math
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

MAX_BATCH_SIZE = 8192  # 0.9 GB at 192 pixels


class Backbone(NamedTuple):
    """A network below the pooling."""

    builder: str  # its function in keras.applications
    pixels: str  # what its ImageNet weights expect of them, see `backbones.PIXELS`
    least: int = 32  # side of the smallest images that it takes, in pixels


# Left out: VGG and MobileNet (v1), which the others beat at a fraction of the cost, and NASNet,
# the slowest of all for its accuracy.
BACKBONES = {
    **{f"resnet{n}": Backbone(f"ResNet{n}", "caffe") for n in (50, 101, 152)},
    **{f"resnet{n}_v2": Backbone(f"ResNet{n}V2", "tf") for n in (50, 101, 152)},
    **{f"efficientnet_b{n}": Backbone(f"EfficientNetB{n}", "included") for n in range(8)},
    **{f"efficientnet_v2_b{n}": Backbone(f"EfficientNetV2B{n}", "torch") for n in range(4)},
    **{f"efficientnet_v2_{n.lower()}": Backbone(f"EfficientNetV2{n}", "tf128") for n in "SML"},
    **{
        f"convnext_{n.lower()}": Backbone(f"ConvNeXt{n}", "torch")
        for n in ("Tiny", "Small", "Base", "Large")
    },
    "mobilenet_v2": Backbone("MobileNetV2", "tf"),
    **{f"mobilenet_v3_{n.lower()}": Backbone(f"MobileNetV3{n}", "tf") for n in ("Small", "Large")},
    **{f"densenet{n}": Backbone(f"DenseNet{n}", "torch") for n in (121, 169, 201)},
    "xception": Backbone("Xception", "tf", least=71),
    "inception_v3": Backbone("InceptionV3", "tf", least=75),
    "inception_resnet_v2": Backbone("InceptionResNetV2", "tf", least=75),
}
LABELS = ("full", "clean", "all-of-clean")  # train.csv, train_clean.csv, see Data.labels
HUB = "hub:"  # and the name of a preset of keras-hub: one of those too


def setting(default, help, **limits):  # noqa: A002 - the word of argparse
    """Declares a field: its 2019 value, a few words for --help, and the values that it may take.

    Limits are `least` and `most` of a number, `metavar`; of a word `choices`, and `prefix`, after
    which any other word is taken too.
    """
    return field(default=default, metadata={"help": help, **limits})


share = partial(setting, least=0, most=1, metavar="SHARE")  # a field that is a share


@dataclass(frozen=True)
class Data:
    """Which images are trained on, and how they reach the network."""

    train_shards: tuple = setting((10, 500), "shards to train on; STOP is not among them")
    # 4,132,914 images of 203,094 landmarks; 1,580,470 of 81,313; 3,223,078 of the same 81,313.
    labels: str = setting(
        "full", "train.csv, train_clean.csv, or all images of the landmarks in train_clean.csv",
        choices=LABELS,
    )  # fmt: skip
    # ~55k of 203,094 landmarks are left.
    min_images: int = setting(20, "leave out landmarks with fewer train images", least=1)
    image_size: int = setting(192, "side of the square images", least=32, metavar="PIXELS")
    # Not in 2019: mirror and crop.
    augment: bool = setting(True, "mirror and crop the train images at random")
    # The third place of 2020: erase 0.5, geometry 0.7; see images.py.
    erase: float = share(0.0, "share of the train images with one box erased")
    geometry: float = share(0.0, "share of the train images turned, shifted and scaled a little")
    keep_aspect: bool = setting(False, "fit pictures into the square instead of squashing them")


@dataclass(frozen=True)
class Network:
    """What is trained."""

    backbone: str = setting(
        "resnet50",
        f"network below the pooling: {', '.join(BACKBONES)}, or {HUB}PRESET of keras-hub",
        choices=tuple(BACKBONES), prefix=HUB, metavar="NAME",
    )  # fmt: skip
    weights: str = setting(
        "imagenet",
        "the backbone's first weights: imagenet (of a preset: its own), none (random), or a file "
        "without top",
    )
    # Not in 2019: see frozen.py.
    frozen_backbone: bool = setting(
        False, "describe the train images once, and their mirror images where the recipe augments, "
        "and train only what is above the pooling"
    )  # fmt: skip
    pooling: str = setting(
        "max", "over the image: max, average, gem, or a ViT's class token",
        choices=("max", "average", "gem", "token"),
    )  # fmt: skip
    gem_p: float = setting(3.0, "exponent of gem", least=1, most=20, metavar="P")
    neck: int = setting(
        0, "values of the descriptor behind the pooling; 0 = the pooled vector itself", least=0,
        most=8192, metavar="VALUES",
    )  # fmt: skip
    kept: int = setting(
        0, "principal components of a frozen backbone's pooled vector, which the descriptor has "
        "beside the neck's values", least=0, most=8192, metavar="VALUES",
    )  # fmt: skip


@dataclass(frozen=True)
class Loss:
    """What the network is trained for."""

    # 2019: binary cross-entropy on the softmax; here cross-entropy.
    loss: str = setting(
        "softmax", "softmax of a dense layer, or a cosine head: cosine, arcface, cosface",
        choices=("softmax", "cosine", "arcface", "cosface"),
    )  # fmt: skip
    # Zhang et al., arXiv:1905.00292: sqrt(2) ln(classes - 1), 16.0 for 81,313.
    scale: float = setting(0.0, "of cosines; 0 = the AdaCos constant", least=0, metavar="S")
    margin: float = setting(0.3, "of arcface (radians) or cosface", least=0, most=1.5, metavar="M")
    # haqishen 2020: from 0.05 (large landmarks) to 0.5 (small ones), instead of one margin.
    dynamic_margin: bool = setting(False, "a margin for each landmark, larger for fewer images")
    margin_ramp: float = share(0.0, "share of the run in which the margin grows to its full size")
    # Deng et al., ECCV 2020; haqishen 2020: 3.
    sub_centers: int = setting(1, "unit vectors for a landmark; the best counts", least=1, most=16)
    class_weights: bool = setting(False, "weigh landmarks by 1 / log(images)")


@dataclass(frozen=True)
class Training:
    """How the weights change."""

    # 2019: 64 up to shard 339, then 48.
    batch_size: int = setting(
        64, "images in a step; prediction uses it too", least=1, most=MAX_BATCH_SIZE,
        metavar="IMAGES",
    )  # fmt: skip
    epochs: int = setting(1, "passes over all shards, or all vectors of a frozen backbone", least=1)
    optimizer: str = setting(
        "adam", "adam, adamw, or sgd with momentum", choices=("adam", "adamw", "sgd")
    )
    learning_rate: float = setting(2e-4, "its highest rate", least=0, metavar="RATE")
    schedule: str = setting(
        "steps", "x0.5, x0.2, x0.1 after 35%%, 70%%, 80%% of the mini-epochs, or a cosine to 0",
        choices=("steps", "cosine"),
    )  # fmt: skip
    warm_up: float = share(0.0, "share of the run in which the rate grows from 0")
    weight_decay: float = setting(0.0, "of adamw and sgd, a step's share", least=0, most=1)
    backbone_rate: float = share(1.0, "the backbone's learning rate as a share of the head's")
    frozen_share: float = share(0.0, "share of the run in which the backbone stays as it is")
    bfloat16: bool = setting(
        False, "train in bfloat16: faster on a processor that has it, at equal scores"
    )
    seed: int = setting(0, "of weights, order and augmentation", least=0, most=2**32 - 1)


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes the trained weights; it must not change when a run continues."""

    data: Data = Data()
    network: Network = Network()
    loss: Loss = Loss()
    training: Training = Training()

    @classmethod
    def of(cls, values):
        """Makes a recipe of settings by name, which are unique over all groups.

        Takes a dict as JSON may hold it, setting -> value, or group -> such a dict. What is missing
        is as in 2019, names that are no setting are left alone. ValueError for anything else.
        """
        flat = _flat(values)
        if flat.pop("clean", False):  # as it was called before there were three choices
            flat["labels"] = "clean"
        return cls(**{group.name: _fill(group.type, flat) for group in dataclasses.fields(cls)})

    def changed(self, **values):
        """Gives this recipe with some settings changed, by name."""
        return Recipe.of(self.settings() | values)

    def settings(self):
        """Lists all settings by name: dict, setting -> value."""
        groups = dataclasses.asdict(self).values()
        return {name: value for group in groups for name, value in group.items()}

    def as_page(self):
        """Gives the nested dict that JSON can hold, and `of` reads."""
        return dataclasses.asdict(self)


def find_given_up(values):
    """Names a setting of a page that shaped a run of an earlier version and is none now, or ""."""
    flat = _flat(values)
    unchanged = {"gem_learnt": False, "clip_norm": 0.0}
    if flat.get("loss", "softmax") != "softmax":
        unchanged["confidence"] = "cosine"  # what a cosine head always gives now
    given_up = (name for name, value in unchanged.items() if flat.get(name, value) != value)
    return next(given_up, "")


def _flat(values):
    if not isinstance(values, dict):
        raise ValueError(f"recipe: {values!r:.40}, no table of settings")
    flat = {}
    for name, value in values.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def _fill(group, flat):
    """Makes a group of settings of those values that are its own."""
    found = {}
    for one in dataclasses.fields(group):
        if one.name in flat:
            value = flat[one.name]
            value = tuple(value) if isinstance(value, list) else value
            kinds = (int, float) if one.type is float else (one.type,)
            if type(value) not in kinds:
                raise ValueError(f"recipe: {one.name} is {value!r:.40}, no {one.type.__name__}")
            found[one.name] = value
    return group(**found)


COSINE_HEADS, MARGINS = ("cosine", "arcface", "cosface"), ("arcface", "cosface")
# (setting, another one, the values of that beside which something looks at the setting)
ACTS_BESIDE = (
    ("gem_p", "pooling", ("gem",)),
    ("scale", "loss", COSINE_HEADS),
    ("sub_centers", "loss", COSINE_HEADS),
    ("margin", "loss", MARGINS),
    ("margin", "dynamic_margin", (False,)),
    ("margin_ramp", "loss", MARGINS),
    ("dynamic_margin", "loss", MARGINS),
    ("weight_decay", "optimizer", ("adamw", "sgd")),
    ("backbone_rate", "frozen_backbone", (False,)),
    ("frozen_share", "frozen_backbone", (False,)),
    ("kept", "frozen_backbone", (True,)),
)

# The 2019 schedule: x1 for shards 10-179, x0.5 to 339, x0.2 to 389, x0.1 to 499. Each step: the
# share of the mini-epochs after which it ends, its factor.
LEARNING_RATE_STEPS = ((0.35, 1.0), (0.70, 0.5), (0.80, 0.2), (1.0, 0.1))


def learning_rate_at(training, mini_epoch, share, num_mini_epochs):
    """Gives the learning rate of a step of a mini-epoch, which is counted from 0.

    A share of its steps is done, 0 to 1; the 2019 steps do not look at it.
    """
    rate, progress = training.learning_rate, (mini_epoch + share) / num_mini_epochs
    if training.warm_up and progress <= training.warm_up:
        return rate * progress / training.warm_up
    if training.schedule == "cosine":
        left = (progress - training.warm_up) / (1 - training.warm_up)
        return rate * (1 + math.cos(math.pi * left)) / 2
    ends = [max(1, round(end * num_mini_epochs)) for end, _ in LEARNING_RATE_STEPS]
    step = min(bisect_right(ends, mini_epoch), len(ends) - 1)
    return rate * LEARNING_RATE_STEPS[step][1]


RECIPES = {
    "2019": Recipe(),
    "strong": Recipe().changed(
        labels="clean", min_images=1, image_size=256, epochs=4,
        pooling="gem", neck=512, loss="arcface", scale=30.0, margin=0.3,
        learning_rate=6e-4, schedule="cosine", warm_up=0.05,
    ),
    "frozen": Recipe().changed(
        labels="clean", min_images=1, image_size=224, frozen_backbone=True,
        pooling="average", neck=512, kept=512,
        loss="arcface", scale=30.0, margin=0.3,
        batch_size=128, epochs=30, learning_rate=1e-3, schedule="cosine", warm_up=0.05,
    ),
}  # fmt: skip
# For some thousand photos and a laptop: `frozen` with a small network, see docs/own-photos.md.
RECIPES["small"] = RECIPES["frozen"].changed(backbone="mobilenet_v2", image_size=160)
