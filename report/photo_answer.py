"""Names the landmark of single photos with a trained recogniser, and finds pictures near them.

Imports Keras, via `model`.
"""

import numpy as np

import model
from data.images import PHOTO_FORMATS, decode_image
from data.landmarks import categories_of, name_landmark, read_2019_classes, read_categories
from data.sources import TRAIN_CSV
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
        told = find_told(session, model_path, self.model.fingerprint)
        self.calibration, self.categories = told
        self.described = of_model(described, self.model.fingerprint)
        self.num_nearest, self.num_photos = num_nearest, 0

    def name(self, path, data):
        """Names the landmark of a file and its bytes: `Answer`; raises BadImageError."""
        fitted = self.model.image_size, self.model.recipe.data.keep_aspect
        pixels = decode_image(data, *fitted, formats=PHOTO_FORMATS)
        self.num_photos += 1
        is_traced = self.num_photos > NUM_UNTRACED  # before, layer by layer takes less time
        outputs = (self.network.predict_on_batch if is_traced else self.network)(pixels[None])
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


def _classes_of_2019(source):
    if source is None:
        what = "the model published in 2019 does not hold its landmarks"
        raise ExpectedError(f"{what}; expected a source with its {TRAIN_CSV}", "source")
    return read_2019_classes(source.fetch(TRAIN_CSV))


def find_told(session, model_path, fingerprint):
    """Finds what is told beside a model of this fingerprint, or in the output.

    Gives its `Calibration` or None, and the landmarks' categories on Commons: dict, landmark id ->
    address, which may be empty.
    """
    folders, source = dict.fromkeys((model_path.parent, session.output)), session.source
    calibrations, tables = (
        [folder / name for folder in folders if (folder / name).is_file()]
        for name in (CALIBRATION, CATEGORIES)
    )
    categories = categories_of(source) if source and not tables else {}
    for path in tables[:1]:  # the model's own
        categories = read_categories(path)
    for path in calibrations:
        calibration = load_calibration(path)
        if calibration.model == fingerprint:
            return calibration, categories
        say(f"{path}: of another model, not used")
    return None, categories
