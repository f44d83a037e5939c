"""Files across versions of Keras: what each writes, each reads; equal predictions to 1e-5.

Descriptors of random weights may be large: where the largest value is above 1, a difference is a
share of it.

    python benchmarks/keras_versions.py PYTHON[:BACKEND] ...

PYTHON is that of an environment with one version of Keras, and perhaps keras-hub; BACKEND is
tensorflow, where it is not given, or jax or torch. A checkpoint takes one more step of training
where it is read, and must then predict what its writer predicts after that step.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
CLASSES, TOLERANCE = 4, 1e-5
SMALL = {"weights": "none", "image_size": 56, "min_images": 1, "batch_size": 8}
STRONG = {"neck": 8, "sub_centers": 2, "dynamic_margin": True}
HUB = {"backbone": "hub:dinov2_tiny", "weights": "imagenet"}
SETTINGS = {  # file -> (recipe, its settings)
    "2019": ("2019", {}),
    "strong": ("strong", STRONG | {"optimizer": "adamw", "weight_decay": 0.01}),
    "frozen": ("frozen", {"neck": 8}),
    "mobilenet": ("2019", {"backbone": "mobilenet_v3_small"}),
    "hub": ("frozen", HUB | {"neck": 8}),
}
CHECKPOINTS = ("2019", "strong")


def recipe_of(name):
    from recipes import RECIPES

    recipe, settings = SETTINGS[name]
    return RECIPES[recipe].changed(**(SMALL | settings))


def pictures():
    import numpy as np

    return np.random.default_rng(1).integers(0, 256, (8, 56, 56, 3), np.uint8)


def predict(classifier):
    """Gives confidences and descriptors of some pictures, as one list of arrays."""
    import model

    return model.build_with_descriptor(classifier).predict_on_batch(pictures())


def images_of_checkpoint():
    import numpy as np

    from data.landmarks import ClassTable

    labels = SimpleNamespace(fingerprint="labels")
    sizes = np.array([1, 5, 20, 80])
    return SimpleNamespace(class_table=ClassTable(np.arange(4)), labels=labels, class_sizes=sizes)


def train_one_step(network):
    import numpy as np

    from network.devices import OneDevice

    OneDevice().train_on_batch(network, pictures(), np.arange(8, dtype=np.int32) % CLASSES)


def backbones_of(name):
    """Gives the context in which a file's backbone is built: a tiny one, or its own."""
    from tiny_network import in_place_of_backbones

    return nullcontext() if name in ("mobilenet", "hub") else in_place_of_backbones()


def make_network(name, recipe):
    """Builds a network as its training does, of random values."""
    import numpy as np

    import model

    if recipe.network.frozen_backbone:
        pooled = model.build_pooled(recipe)
        head = model.build_head(recipe, pooled.output.shape[-1], CLASSES, 100)
        network = model.join_head(pooled, head, recipe)
    else:
        network = model.build_network(recipe, CLASSES, 100)
    rng = np.random.default_rng(0)
    for variable in network.weights:
        if "position_embeddings" in variable.path:
            continue  # keras-hub saves the preset's, see `backbones._build_hub`
        variable.assign(variable + rng.uniform(0, 0.1, variable.shape))
    return network


def write(folder):
    """Writes a model of each recipe, checkpoints of some, and what they predict."""
    import numpy as np

    import model
    from data.landmarks import ClassTable
    from runs.session import Session
    from training.checkpoints import save_checkpoint

    os.chdir(tempfile.mkdtemp())  # where the preset is, which no reader sees
    names = list(SETTINGS)
    if importlib.util.find_spec("keras_hub"):
        import keras_hub

        keras_hub.models.DINOV2Backbone(
            patch_size=14, num_layers=1, hidden_dim=16, num_heads=2, intermediate_dim=32,
            image_shape=(56, 56, 3), position_embedding_shape=(56, 56),
        ).save_to_preset("dinov2_tiny")  # fmt: skip
    else:
        names.remove("hub")
    for name in names:
        recipe = recipe_of(name)
        model.set_up_keras(0)
        with backbones_of(name):
            network = make_network(name, recipe)
        table = ClassTable(np.arange(CLASSES))
        model.save_recogniser(network, folder / f"{name}.keras", table, recipe)
        expected = predict(model.build_classifier(network, recipe.loss))
        if name in CHECKPOINTS:
            model.compile_network(network, recipe, images_of_checkpoint().class_sizes)
            train_one_step(network)
            session = Session(folder / name, None, None)
            save_checkpoint(session, network, recipe, images_of_checkpoint(), [])
            train_one_step(network)
            expected += predict(model.build_classifier(network, recipe.loss))
        np.savez(folder / f"{name}.npz", *expected)


def read(folder):
    """Reads what `write` wrote: dict of file -> largest difference, or what went wrong."""
    import numpy as np

    import model
    from runs.session import Session
    from training import loop

    found = {}
    for path in sorted(folder.glob("*.keras")):
        name, recipe = path.stem, recipe_of(path.stem)
        model.set_up_keras(1)
        with backbones_of(name), np.load(folder / f"{name}.npz") as file:
            expected = [file[one] for one in file.files]
            try:
                outputs = predict(model.load_recogniser(path).classifier)
                if name in CHECKPOINTS:
                    session = Session(folder / name, None, None)
                    images = images_of_checkpoint()
                    build = partial(model.build_network, recipe, len(images.class_table), 100)
                    network, _ = loop.begin(session, recipe, images, build)
                    train_one_step(network)
                    outputs += predict(model.build_classifier(network, recipe.loss))
                differences = [
                    float(np.abs(one - other).max() / max(1.0, np.abs(other).max()))
                    for one, other in zip(outputs, expected, strict=True)
                ]
                found[name] = max(differences[:2])
                if name in CHECKPOINTS:
                    found[f"{name}, checkpoint"] = max(differences[2:])
            except Exception as error:
                found[name] = f"{type(error).__name__}: {error}"
    return found


def run(environment, step, folder):
    """Runs a step of this script in an environment; gives what it prints last."""
    python, _, backend = environment.partition(":")
    settings = {"KERAS_BACKEND": backend or "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    code = f"import keras_versions as k; from pathlib import Path; p = Path({str(folder)!r})\n"
    code += {"write": "k.write(p)", "read": "print(k.json.dumps(k.read(p)))"}[step]
    code += "\nimport keras; print(keras.__version__, keras.backend.backend())"
    done = subprocess.run(
        [python, "-c", code], cwd=Path(__file__).parent, env=os.environ | settings,
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{environment}, {step}: {done.stderr[-2000:]}")
    return done.stdout.splitlines()[-2:]


def main(environments):
    from common import print_table

    with tempfile.TemporaryDirectory() as folder:
        folders, rows, named = {}, [], {}
        for number, environment in enumerate(environments):
            folders[environment] = Path(folder, str(number))
            folders[environment].mkdir()
            named[environment] = run(environment, "write", folders[environment])[-1]
        for writer in environments:
            cells = []
            for reader in environments:
                found = json.loads(run(reader, "read", folders[writer])[0])
                for name, value in found.items():
                    print(f"{named[writer]} -> {named[reader]}: {name}: {value}", file=sys.stderr)
                wrong = [one for one, v in found.items() if isinstance(v, str) or v > TOLERANCE]
                worst = "not " + ", ".join(wrong) if wrong else f"{max(found.values()):.1g}"
                cells.append(f"{len(found) - len(wrong)} of {len(found)}: {worst}")
            rows.append([named[writer], *cells])
        print_table(["written by, read by", *named.values()], rows)


if __name__ == "__main__":
    main(sys.argv[1:])
