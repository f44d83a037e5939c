"""What the miniature world's network scores before its training, to compare. Loads Keras, faiss."""

import contextlib
import copy
import dataclasses
import io
import tempfile
from pathlib import Path

import model
from data.landmarks import format_image_id, read_image_ids
from data.sources import INDEX_CSV, TEST_CSV
from data.submissions import MAX_RETRIEVED
from descriptors import describe
from metrics import CHALLENGES, score_usages
from report.scores import FILES, rows_of
from search import exact
from utils import say


def score_untrained(session, describer):
    """Scores the network of a `Describer` as it was before its training.

    Gives a dict, "GAP" and "mAP@100" (descriptors of length 1, no rerank) -> scores of
    `score_usages`; empty for a network that began with weights from elsewhere.
    """
    recipe, source = describer.recipe, session.source
    if recipe.network.weights != "none":
        return {}
    say("describing the same images with the network as it was before its training, to compare")
    model.set_up_keras(recipe.training.seed)
    network = model.build_network(recipe, len(describer.class_table), 1)
    untrained = copy.copy(describer)
    untrained.predictor = model.build_predictor(model.build_classifier(network, recipe.loss))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        apart = dataclasses.replace(session, output=Path(folder))
        tests, index = (_describe(apart, untrained, table) for table in (TEST_CSV, INDEX_CSV))
    found, _ = exact.nearest(tests.descriptors, index.descriptors, MAX_RETRIEVED)
    index_ids = [format_image_id(image_id) for image_id in index.image_ids]
    queries = map(format_image_id, tests.image_ids)
    retrieved = {query: [index_ids[n] for n in row if n >= 0]
                 for query, row in zip(queries, found, strict=True)}  # fmt: skip
    rows, scores = {"recognition": rows_of(tests), "retrieval": retrieved}, {}
    for challenge, (_, solution_name) in FILES.items():
        _, read, metric, name = CHALLENGES[challenge]
        path = source.fetch(solution_name)
        scores[name] = score_usages(metric, rows[challenge], read(path), (session.output, path))
    return scores


def _describe(session, describer, table):
    shards = session.source.select_shards(Path(table).stem)
    image_ids = read_image_ids(session.source.fetch(table))
    files, _ = describe.describe_shards(session, describer, shards, image_ids)
    return describe.gather(files, describer, normalise=True)
