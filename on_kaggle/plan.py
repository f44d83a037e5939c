"""The kernels of a chain: what each runs, reads and leaves, and on which machine."""

import math
from dataclasses import dataclass, replace

from runs import session
from runs.kernel import MAX_OUTPUT_GB

NUM_PARTS = 6
# Neither output nor time asks for more: docs/kaggle.md has both. Two GPU sessions run at once, and
# each part needs its start-up.
NUM_GALLERY_PARTS = 2
# Of Google Landmarks v2, from its page; "clean" are the train images of train_clean.csv.
NUM_IMAGES = {"full": 4_132_914, "clean": 1_580_470, "index": 761_757, "test": 117_577}
PICTURE_KB = 30.0  # of 256 pixels in quality 85: photographs 26, drawn ones 36 (benchmarks)
PIXELS_EXPONENT, QUALITY_GROWTH = 1.67, 1.04  # measured, from 224 to 256 and for a step of quality
TABLES_GB = 0.6  # metadata and ground truth, in each output
ROOM_TO_SPARE = 0.95  # of an output
MACHINES = {  # what kernel-metadata.json says of each
    "cpu": {"enable_gpu": False},
    "gpu": {"enable_gpu": True, "machine_shape": "NvidiaTeslaT4"},  # two of them
    "tpu": {"enable_gpu": False, "enable_tpu": True, "machine_shape": "TpuV5E8"},
}
MAX_TPU_HOURS = 8.0  # Kaggle is said to cut a TPU session after 9 hours


@dataclass(frozen=True)
class Kernel:
    """One kernel of the chain."""

    name: str  # short name on our command line
    title: str  # Kaggle's title; the slug follows from it
    entry: str  # script to run
    arguments: tuple  # what makes the script do this kernel's share
    result: str  # the output file that a finished session has, and an unfinished one has not
    # tuple of the kernels whose outputs it reads. With itself among them, a session continues the
    # one before.
    inputs: tuple
    machine: str = "gpu"  # one of MACHINES
    downloads: bool = False  # whether it has internet even where the others are built without

    @property
    def slug(self):
        return self.title.lower().replace(" ", "-")

    @property
    def has_gpu(self):
        return self.machine == "gpu"


def _in_parts(name, entry, num_parts, result_name, before=(), after=(), inputs=(), **options):
    """Gives the kernels that share a job: dict, name -> `Kernel`; each continues itself."""
    parts = {}
    for part in range(num_parts):
        arguments = (*before, "--part", str(part), "--parts", str(num_parts), *after)
        parts[f"{name}-{part}"] = Kernel(
            f"{name}-{part}", f"Landmark {'retrieval' if name == 'part' else name} part {part}",
            entry, arguments, result_name(part, num_parts), (*inputs, f"{name}-{part}"), **options,
        )  # fmt: skip
    return parts


PARTS = _in_parts("part", "retrieval", NUM_PARTS, session.part_name, inputs=("recognition",))
KERNELS = {  # in the order to push
    "recognition": Kernel(
        "recognition", "Landmark recognition", "recognition", (), session.RECOGNITION_SUBMISSION,
        inputs=("recognition",),
    ),
    **PARTS,
    "merge": Kernel(
        "merge", "Landmark retrieval merge", "retrieval", ("merge",), session.RETRIEVAL_SUBMISSION,
        inputs=tuple(PARTS), machine="cpu",
    ),
}  # fmt: skip
GALLERY = tuple(f"gallery-{part}" for part in range(NUM_GALLERY_PARTS))


def name_by_gallery(recipe, described_as):
    """Puts kernels behind recognition that name test and index images by the train images.

    All kernels that read queries.npz share `described_as`: it is of no use to another batch size.
    """
    first = replace(KERNELS["recognition"], arguments=("--recipe", recipe))
    galleries = _in_parts(
        "gallery", "nearest", NUM_GALLERY_PARTS, session.gallery_part_name,
        after=described_as, inputs=("recognition",),
    )  # fmt: skip
    vote = Kernel(
        "vote", "Landmark vote", "nearest",
        ("vote", "--parts", str(NUM_GALLERY_PARTS), *described_as), session.RECOGNITION_SUBMISSION,
        inputs=("recognition", *GALLERY, "vote"), machine="cpu",
    )  # fmt: skip
    chain = {"recognition": first, **galleries, "vote": vote}
    for name in PARTS:
        # Without --names a gallery that is missing would go unnoticed.
        arguments = (*KERNELS[name].arguments, "--names", "both", *described_as)
        inputs = ("recognition", *GALLERY, name)
        chain[name] = replace(KERNELS[name], arguments=arguments, inputs=inputs)
    return chain | {"merge": KERNELS["merge"]}


def shrink_first(kernels, words, num_parts):
    """Puts so many kernels without a GPU in front that make the data set small for the others.

    The words are arguments of shrink.py.
    """
    in_front = _in_parts(
        "shrink", "shrink", num_parts, session.shrunk_name,
        before=words, after=("--copy-earlier",), machine="cpu", downloads=True,
    )  # fmt: skip
    chain = dict(in_front)
    for name, kernel in kernels.items():
        arguments = (*kernel.arguments, "--source", "inputs")
        chain[name] = replace(kernel, arguments=arguments, inputs=(*in_front, *kernel.inputs))
    return chain


def count_shrink_kernels(settings):
    """Gives how many kernels must share the data set so that none has too large an output."""
    if settings.demo or settings.source:  # a world of a few MB, or nobody knows what
        return 2
    if settings.images or settings.landmarks:  # it ends where all are found, if it has all shards
        return 1
    splits = {"train": settings.labels, "index": "index", "test": "test"}
    wanted = splits.values() if settings.split == "all" else [splits[settings.split]]
    picture_kb = PICTURE_KB * (settings.pixels / 256) ** PIXELS_EXPONENT
    picture_kb *= QUALITY_GROWTH ** (settings.quality - 85)
    total_gb = sum(NUM_IMAGES[name] for name in wanted) * picture_kb / 1e6
    return math.ceil(total_gb / (ROOM_TO_SPARE * MAX_OUTPUT_GB - TABLES_GB))
