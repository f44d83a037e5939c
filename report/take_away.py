"""A folder to take along: model, names, threshold, an example with Keras alone, and a card."""

import json
from pathlib import Path

from data.landmarks import name_landmark
from data.tables import write_table
from model import load_recogniser
from network.plain import without_own_layers
from report.photo_answer import find_told
from report.write import of_model, read_facts
from utils import ExpectedError, atomic_write

MARKER = "name_photo.py"  # is in every folder of this kind
EXAMPLE = '''\
"""Names the landmark of a photo; needs Keras, NumPy and Pillow: python name_photo.py PHOTO"""
import csv, json, sys, keras, numpy as np
from PIL import Image, ImageOps
facts = json.load(open("settings.json"))
names = [row["name"] for row in csv.DictReader(open("landmarks.csv", encoding="utf-8"))]
size, model = (facts["image_size"],) * 2, keras.models.load_model("model.keras")
photo = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")
fit = ImageOps.pad if facts["keep_aspect"] else Image.Image.resize
confidences = keras.ops.convert_to_numpy(model(np.asarray(fit(photo, size))[None]))[0]
best = int(confidences.argmax())
is_known = facts["threshold"] is None or confidences[best] >= facts["threshold"]
print(f"{names[best]} {confidences[best]:.3f}" if is_known else "probably no landmark")
'''
CARD = """\
# A recogniser of {num_landmarks:,} landmarks

`python name_photo.py PHOTO` names the landmark of a photo. It needs Keras {keras} or newer with any
of its backends, NumPy and Pillow, and nothing else.

| file | what it is |
|---|---|
| model.keras | {backbone}, {image_size} x {image_size} RGB (uint8) -> {kind} of each landmark |
| landmarks.csv | id and name of each output, in their order |
| settings.json | side of the pictures; below which confidence a photo shows no landmark |
| name_photo.py | an example |

## Data and licence

Trained on {source}. {licence}

## Scores

{scores}

## Limits

- It knows {num_landmarks:,} landmarks. Below the threshold it says "probably no landmark".
{threshold}- Its confidences hold for photographs like those that it was trained on.
"""
GOOGLE = (
    "The photographs of Google Landmarks Dataset v2 are of Wikimedia Commons. The train images are "
    "under CC-BY licences; metadata/train_attribution.csv of that data set names their authors."
)
OWN = "Write here whose photographs these are, and under which licence the model may be used."


def write_take_away(session, model_path, folder):
    """Writes the folder; what is there of an earlier one is replaced.

    Raises:
        ExpectedError: the network has layers that Keras alone does not open, or the folder holds
            something else, which would be overwritten.
    """
    import pandas as pd

    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise ExpectedError(
            f"{folder}: it holds {min(path.name for path in folder.iterdir())}; expected a new "
            "folder, or an earlier one of this kind; choose another --take-away"
        )

    recogniser = load_recogniser(model_path)
    recipe = recogniser.recipe
    if recipe.network.backbone.startswith("hub:"):
        what = f"{model_path}: its backbone is of keras-hub"
        expected = "one of Keras, which opens wherever Keras is"
        raise ExpectedError(f"{what}; expected {expected}; take the model as it is")
    calibration, categories = find_told(session, model_path, recogniser.fingerprint)
    ids = recogniser.class_table.landmark_ids.tolist()
    table = {"landmark_id": ids, "name": [name_landmark(one, categories) for one in ids]}
    threshold = calibration.threshold if calibration else None
    settings = {"image_size": recogniser.image_size, "keep_aspect": recipe.data.keep_aspect,
                "threshold": threshold}  # fmt: skip
    with atomic_write(folder / "model.keras") as temporary:
        without_own_layers(recogniser.classifier).save(temporary)
    write_table(folder / "landmarks.csv", pd.DataFrame(table))
    texts = {
        "settings.json": json.dumps(settings, indent=1) + "\n",
        MARKER: EXAMPLE,
        "README.md": write_card(session, recogniser, calibration),
    }
    for name, text in texts.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def write_card(session, recogniser, calibration):
    """Writes the card from what the report knows of the run."""
    import keras

    found, recipe = of_model(read_facts(session), recogniser.fingerprint), recogniser.recipe
    facts = found.get("recognition", {})
    source = str(facts.get("run", {}).get("source", "photographs that nobody noted"))
    is_google = "google-landmark" in source
    if "://" not in source:  # where its folder lies is nobody's business
        source = f"the photographs of {Path(source).name}"
    scores, threshold = [], ""
    for one in (one for script in found.values() for one in script.get("scores", [])):
        values = (f"{usage} {value:.3f}" for usage, value in one["usages"].items())
        scores.append(f"- {one['name']}: {', '.join(values)}")
    if calibration:
        threshold = (
            f"- At that threshold {calibration.kept:.0%} of the test photographs that were named "
            f"rightly keep their name,\n  and {calibration.refused:.0%} of those without one are "
            f"refused ({calibration.num_checked_on:,} photographs).\n"
        )
    # Earlier versions could make probabilities of a cosine head's values.
    ends = recogniser.classifier.output_names
    is_cosine = recipe.loss.loss != "softmax" and "probabilities" not in ends
    return CARD.format(
        num_landmarks=len(recogniser.class_table),
        keras=".".join(keras.__version__.split(".")[:2]),
        backbone=recipe.network.backbone,
        image_size=recogniser.image_size,
        kind="the cosine" if is_cosine else "the probability",
        source=source,
        licence=GOOGLE if is_google else OWN,
        scores="\n".join(scores) or "Nobody measured any.",
        threshold=threshold,
    )
