"""Scores of what a run found, in memory, where the source has the ground truth."""

from data.landmarks import format_image_id
from data.sources import RECOGNITION_SOLUTION, RETRIEVAL_SOLUTION
from data.submissions import check_recognition_submission, write_recognition_submission
from metrics import CHALLENGES, format_scores, score_usages
from runs.session import RECOGNITION_SUBMISSION, RETRIEVAL_SUBMISSION
from utils import say

FILES = {
    "recognition": (RECOGNITION_SUBMISSION, RECOGNITION_SOLUTION),
    "retrieval": (RETRIEVAL_SUBMISSION, RETRIEVAL_SOLUTION),
}


def write_recognised(session, test_ids, found, class_table):
    """Writes the submission of named images, `Descriptions`, checks it, and prints its path.

    Args:
        test_ids: (n,) uint64, all test images.
    """
    path = session.path(RECOGNITION_SUBMISSION)
    columns = found.image_ids, found.landmark_ids, found.confidences
    write_recognition_submission(path, test_ids, *columns)
    num_named = check_recognition_submission(path, test_ids, class_table)
    say(f"{num_named:,} of {len(test_ids):,} test images named")
    print(path)


def score(session, challenge, submissions):
    """Scores submissions of one of `metrics.CHALLENGES`, and prints what they reach.

    `submissions` is a dict, name of the score -> the rows. Gives (dict, name -> scores; the ground
    truth), both empty where the source has none.
    """
    (submission_name, solution_name), source = FILES[challenge], session.source
    if not source.exists(solution_name):
        say(f"{source}: no {solution_name}; the submission is not scored")
        return {}, {}
    _, read, metric, _ = CHALLENGES[challenge]
    paths = session.path(submission_name), source.fetch(solution_name)
    solution, scores = read(paths[1]), {}
    for name, rows in submissions.items():
        scores[name] = score_usages(metric, rows, solution, paths)
        print(format_scores(name, scores[name]))
    return scores, solution


def rows_of(found):
    """Gives the rows of `Descriptions`: dict, image id -> (landmark id, confidence)."""
    names = zip(found.landmark_ids.tolist(), found.confidences.tolist(), strict=True)
    return dict(zip(map(format_image_id, found.image_ids), names, strict=True))
