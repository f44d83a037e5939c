"""Names the landmark of single photos with a trained recogniser, and finds pictures near them.

Imports Keras, via `model`.
"""

import numpy as np

import model
from data.images import PHOTO_FORMATS, decode_image
from data.landmarks import name_of_category, read_2019_classes, read_categories
from data.sources import CATEGORY_CSV, TRAIN_CSV
from model import load_recogniser
from report.photos import Answer, Guess, Near, find_nearest, of_model
from report.threshold import load_calibration
from runs.session import CALIBRATION, CATEGORIES
from utils import ExpectedError, say

NUM_GUESSES = 4  # the best one and the runners-up
NUM_UNTRACED = 12  # photos; tracing MobileNetV2 takes as long as 18, and a traced photo a sixth


class PhotoNamer:
    """A recogniser that answers for one photo after another; the session's source may be None."""

    def __init__(self, session, model_path, described, num_nearest):
        self.model = load_recogniser(model_path, lambda: _classes_of_2019(session.source))
        self.network = model.build_with_descriptor(self.model.classifier)
        folders = (model_path.parent, session.output)
        self.calibration = find_calibration(folders, self.model.fingerprint)
        self.categories = find_categories(folders, session.source)
        self.described = of_model(described, self.model.fingerprint)
        self.num_nearest, self.num_photos = num_nearest, 0

    def name(self, path, data):
        """Names the landmark of a file and its bytes: `Answer`; raises BadImageError."""
        fitted = self.model.image_size, self.model.recipe.data.keep_aspect
        pixels = decode_image(data, *fitted, formats=PHOTO_FORMATS)
        outputs = self._forward(pixels[None])
        confidences, descriptor = (model.to_numpy(output)[0] for output in outputs)
        guesses = []
        for place in np.argsort(-confidences, kind="stable")[:NUM_GUESSES].tolist():
            one = int(self.model.class_table.landmark_ids[place])
            about = name_landmark(one, self.categories), self.categories.get(one)
            guesses.append(Guess(one, *about, float(confidences[place])))
        is_landmark = None
        if self.calibration:
            is_landmark = bool(confidences.max() >= self.calibration.threshold)
        nearest = find_nearest(self.described, descriptor, self.num_nearest)
        nearest = [Near(*near, name_landmark(near[-1], self.categories)) for near in nearest]
        return Answer(path, tuple(guesses), is_landmark, tuple(nearest))

    def _forward(self, images):
        """Calls the network layer by layer for the first photos: tracing it would take longer."""
        self.num_photos += 1
        if self.num_photos <= NUM_UNTRACED:
            return self.network(images, training=False)
        return self.network.predict_on_batch(images)


def name_landmark(landmark_id, categories):
    """Gives the name in the address of a landmark's category; of a dict of them, maybe empty."""
    return name_of_category(categories.get(landmark_id, "")) or f"landmark {landmark_id}"


def _classes_of_2019(source):
    if source is None:
        what = "the model published in 2019 does not hold its landmarks"
        raise ExpectedError(f"{what}; expected a source with its {TRAIN_CSV}", "source")
    return read_2019_classes(source.fetch(TRAIN_CSV))


def find_calibration(folders, fingerprint):
    """Finds the `Calibration` of a model of this fingerprint in some folders, or gives None."""
    for path in dict.fromkeys(folder / CALIBRATION for folder in folders):
        if path.is_file():
            calibration = load_calibration(path)
            if calibration.model == fingerprint:
                return calibration
            say(f"{path}: of another model, not used")
    return None


def find_categories(folders, source):
    """Finds the landmarks' categories on Commons: dict, landmark id -> address; may be empty."""
    for path in dict.fromkeys(folder / CATEGORIES for folder in folders):
        if path.is_file():
            return read_categories(path)
    if source is not None and source.exists(CATEGORY_CSV):
        return read_categories(source.fetch(CATEGORY_CSV))
    return {}
