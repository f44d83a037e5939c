"""Which head for hundreds of landmarks? Margins and sub-centers on a frozen backbone's vectors.

    python -m demo --landmarks 300 --output FOLDER
    python benchmarks/margins.py --source FOLDER --weights FILE [--seeds 3] [--epochs 10]

The images of all three splits are described once; then every head is trained on the same vectors,
as `--recipe frozen` does, and scored. Fine-tuned networks are compared by ablation.py, which takes
minutes for each where this takes seconds.
"""

import argparse
import os
from pathlib import Path
from types import SimpleNamespace

import common
import numpy as np
from ablation import describe

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import model
from data.landmarks import format_image_id, read_train_labels
from data.sources import RECOGNITION_SOLUTION, RETRIEVAL_SOLUTION, TRAIN_CSV, Shard
from data.submissions import read_recognition_solution, read_retrieval_solution
from generators import Reading, ShardEnd, stream_batches
from metrics import global_average_precision, mean_average_precision
from network import heads
from network.devices import OneDevice
from recipes import RECIPES
from training import frozen
from utils import Stop

HEADS = {
    "softmax on the pooled vector (2019)": {"neck": 0, "loss": "softmax", "confidence": "softmax"},
    "neck, softmax": {"loss": "softmax", "confidence": "softmax"},
    "neck, cosines without a margin": {"loss": "cosine"},
    "neck, ArcFace 0.3 (frozen)": {},
    "neck, CosFace 0.3": {"loss": "cosface"},
    "neck, ArcFace, dynamic margins": {"dynamic_margin": True},
    "neck, ArcFace, 3 sub-centers": {"sub_centers": 3},
    "neck, ArcFace, both": {"dynamic_margin": True, "sub_centers": 3},
}
SCORES = ("accuracy", "GAP", "mAP@100")


class Folder:
    """A source whose shards lie in a folder: nothing is downloaded, nothing removed."""

    def __init__(self, folder):
        self.fetch_shard = lambda shard: folder / shard.path

    def require_space(self, shard):
        """They are there."""

    def discard_shard(self, shard):
        """They are kept."""


def describe_split(folder, describer, split):
    """Describes all images of a split: (image ids, vectors (n, views, channels) float16)."""
    num_shards = len(list((folder / split).glob("images_*.tar")))
    data = describer.recipe.data
    reading = Reading(data, 128, class_of=lambda image_id: 0)
    plan = [(0, Shard(split, number)) for number in range(num_shards)]
    ids, vectors = [], []
    for item in stream_batches(Folder(folder), plan, reading):
        if not isinstance(item, ShardEnd):
            ids.append(item.image_ids)
            vectors.append(describer.describe(OneDevice(), item))
    return np.concatenate(ids), np.concatenate(vectors)


def train_head(recipe, class_table, vectors):
    """Trains a head for all epochs; gives the network of its descriptors and confidences."""
    keras.utils.set_random_seed(recipe.training.seed)
    num_images, _, num_channels = vectors.values.shape
    num_steps = -(-num_images // recipe.training.batch_size) * recipe.training.epochs
    head = model.build_head(recipe, num_channels, len(class_table), num_steps)
    sizes = np.bincount(vectors.class_indices, minlength=len(class_table))
    model.compile_network(head, recipe, sizes)
    session = SimpleNamespace(stop=Stop())
    images = SimpleNamespace(class_table=class_table)
    run = frozen.HeadRun(session, recipe, images, OneDevice(), head, vectors, None)
    rows = []
    for _ in range(recipe.training.epochs):
        rows.append(run.train_epoch(rows, is_validated=False))
    classifier = model.build_classifier(head, recipe.loss)
    described = classifier.input  # without a neck, the pooled vector itself
    if recipe.network.neck:
        described = classifier.get_layer(heads.DESCRIPTOR).output
    return keras.Model(classifier.input, [described, classifier.output])


def score(network, class_table, splits, truths):
    """Scores a trained head.

    Args:
        network: vectors -> [descriptors, confidences of all classes].
        class_table: `ClassTable`.
        splits: dict, "index" and "test" -> (image ids, vectors).
        truths: (recognition, retrieval) solutions, of `submissions`.

    Returns:
        dict, name of `SCORES` -> float; the accuracy is that of the test images of known landmarks.
    """
    names, descriptors = {}, {}
    for split, (ids, vectors) in splits.items():
        outputs = network.predict(vectors[:, 0].astype(np.float32), 256, verbose=0)
        names[split] = [format_image_id(i) for i in ids.tolist()]
        descriptors[split] = keras.utils.normalize(outputs[0].astype(np.float64))
    confidences = outputs[1]  # of the test images, the last split
    best = class_table.landmark_ids[confidences.argmax(1)].tolist()
    made = zip(best, confidences.max(1).tolist(), strict=True)
    predictions = dict(zip(names["test"], made, strict=True))
    known = {name: truth.landmark_ids for name, truth in truths[0].items()}
    hits = [predictions[name][0] in landmarks for name, landmarks in known.items() if landmarks]
    order = np.argsort(-descriptors["test"] @ descriptors["index"].T, axis=1, kind="stable")
    found = np.array(names["index"])[order[:, :100]].tolist()
    relevant = {name: truth.image_ids for name, truth in truths[1].items()}
    retrieved = dict(zip(names["test"], found, strict=True))
    return {
        "accuracy": float(np.mean(hits)),
        "GAP": global_average_precision(predictions, known),
        "mAP@100": mean_average_precision(retrieved, relevant),
    }


def main():
    """Prints the table, as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="folder in the CVDF layout")
    parser.add_argument("--weights", required=True, help="the backbone's first weights")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    recipe = RECIPES["frozen"].changed(
        backbone=args.backbone, weights=args.weights, image_size=args.image_size, epochs=args.epochs
    )
    class_table, labels = read_train_labels(args.source / TRAIN_CSV)
    describer = frozen.Describer(recipe)
    splits = {s: describe_split(args.source, describer, s) for s in ("train", "index", "test")}
    ids, values = splits.pop("train")
    classes = [labels.find(image_id) for image_id in ids.tolist()]
    chosen = np.array([one is not None for one in classes])
    classes = np.array([one for one in classes if one is not None], np.int32)
    vectors = frozen.Vectors(values[chosen], ids[chosen], classes, 0, [], "")
    truths = (
        read_recognition_solution(args.source / RECOGNITION_SOLUTION),
        read_retrieval_solution(args.source / RETRIEVAL_SOLUTION),
    )
    scores = {head: [] for head in HEADS}
    for seed in range(args.seeds):
        for head, changes in HEADS.items():
            changed = recipe.changed(seed=seed, **changes)
            network = train_head(changed, class_table, vectors)
            scores[head].append(score(network, class_table, splits, truths))
            print(f"seed {seed}, {head}: {scores[head][-1]}", file=os.sys.stderr, flush=True)
    print(
        f"{args.backbone}, frozen, {args.image_size} pixels, {len(class_table)} landmarks, "
        f"{len(classes):,} train images, {args.epochs} epochs, {args.seeds} seeds: mean, and half "
        "the range behind it\n"
    )
    rows = [
        [head, *(describe([one[name] for one in of_seeds]) for name in SCORES)]
        for head, of_seeds in scores.items()
    ]
    common.print_table(("head", *SCORES), rows)


if __name__ == "__main__":
    main()
