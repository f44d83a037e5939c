"""Tests of GAP and mAP@100: hand-worked values, published values, a slow oracle, the command."""

import os
import random
import subprocess
import sys

import pytest

import metrics
from metrics import (
    average_precision,
    format_scores,
    global_average_precision,
    mean_average_precision,
    score_file,
)
from runs.command_line import run_command_line

# ---------------------------------------------------------------------------------------- GAP


def test_gap_of_perfect_predictions_is_1():
    solution = {"a": {1}, "b": {2}, "c": set()}
    assert global_average_precision({"a": (1, 0.9), "b": (2, 0.1)}, solution) == 1.0


def test_gap_of_wrong_or_missing_predictions_is_0():
    solution = {"a": {1}, "b": {2}, "c": set()}
    assert global_average_precision({}, solution) == 0.0
    assert global_average_precision({"a": None, "b": None}, solution) == 0.0
    assert global_average_precision({"a": (2, 0.9), "b": (1, 0.1)}, solution) == 0.0


def test_gap_ranks_by_confidence():
    solution = {"a": {1}, "b": {2}, "c": {3}}
    predictions = {"a": (1, 0.2), "b": (9, 0.5), "c": (3, 0.7)}
    # c is right at rank 1 (1/1), b is wrong, a is right at rank 3 (2/3); three landmark images.
    assert global_average_precision(predictions, solution) == pytest.approx((1 + 2 / 3) / 3)


def test_a_landmark_image_without_prediction_lowers_gap():
    solution = {"a": {1}, "b": {2}}
    assert global_average_precision({"a": (1, 0.9)}, solution) == 0.5
    assert global_average_precision({"a": (1, 0.9), "b": None}, solution) == 0.5


def test_a_confident_prediction_for_a_non_landmark_lowers_gap():
    solution = {"a": {1}, "b": {2}, "c": set()}
    right = {"a": (1, 0.9), "b": (2, 0.8)}
    assert global_average_precision(right | {"c": (1, 1.0)}, solution) == pytest.approx(
        (1 / 2 + 2 / 3) / 2
    )
    assert global_average_precision(right | {"c": (1, 0.85)}, solution) == pytest.approx(
        (1 + 2 / 3) / 2
    )
    assert (
        global_average_precision(right | {"c": (1, 0.1)}, solution) == 1.0
    )  # after the last right


def test_any_of_several_true_landmarks_is_right():
    solution = {"a": {1, 12}, "b": {2}}
    for landmark_id in (1, 12):
        assert global_average_precision({"a": (landmark_id, 0.9)}, solution) == 0.5


def test_equal_confidences_are_ranked_by_image_id():
    solution = {"a": {1}, "b": {2}}
    # a before b, whatever the order of the rows: a is wrong, b right at rank 2.
    predictions = {"b": (2, 0.5), "a": (9, 0.5)}
    assert global_average_precision(predictions, solution) == 0.25
    # And here a is right at rank 1.
    assert global_average_precision({"b": (9, 0.5), "a": (1, 0.5)}, solution) == 0.5


def test_gap_depends_on_the_rank_of_confidences_alone():
    solution = {"a": {1}, "b": {2}, "c": set()}
    small = {"a": (1, 2e-30), "b": (2, 1e-30), "c": (3, 1.5e-30)}
    large = {"a": (1, 300.0), "b": (2, -5.0), "c": (3, 0.0)}
    assert global_average_precision(small, solution) == global_average_precision(large, solution)


def test_gap_has_the_published_value():
    # The case of tensorflow/models' metrics_test.py: of three landmark images one is predicted
    # rightly, at rank 2 behind a confident prediction for a non-landmark. (1/2) / 3.
    solution = {"1": {0, 12}, "2": {100, 200, 300}, "3": {1}, "4": set(), "5": set()}
    predictions = {"2": (0, 0.01), "3": (1, 10.0), "4": (150, 15.0)}
    assert global_average_precision(predictions, solution) == pytest.approx(0.166667, abs=1e-6)


def test_gap_refuses_what_has_no_answer():
    with pytest.raises(ValueError, match="no image of the solution shows a landmark"):
        global_average_precision({}, {"a": set()})
    with pytest.raises(ValueError, match="1 predicted images are not in the solution"):
        global_average_precision({"b": (1, 0.5)}, {"a": {1}})


def slow_gap(predictions, solution):
    """GAP by its formula: each right prediction's precision, counted anew."""
    made = {image_id: made for image_id, made in predictions.items() if made}

    def is_right(image_id):
        return made[image_id][0] in solution[image_id]

    def not_after(other, image_id):
        if made[other][1] != made[image_id][1]:
            return made[other][1] > made[image_id][1]
        return other <= image_id

    total = 0.0
    for image_id in made:
        if is_right(image_id):
            before = [other for other in made if not_after(other, image_id)]
            total += sum(map(is_right, before)) / len(before)
    return total / sum(1 for truth in solution.values() if truth)


@pytest.mark.parametrize("seed", range(20))
def test_gap_is_that_of_a_slow_oracle(seed):
    rng = random.Random(seed)
    ids = [f"{rng.getrandbits(64):016x}" for _ in range(60)]
    solution = {key: set(rng.sample(range(4), rng.choice([0, 0, 1, 1, 2]))) for key in ids}
    solution[ids[0]] = {1}
    predictions = {
        key: (rng.randrange(4), rng.choice([0.1, 0.2, 0.3, rng.random()])) if roll > 0.2 else None
        for key in rng.sample(ids, 50)
        if (roll := rng.random()) > 0.1
    }
    expected = slow_gap(predictions, solution)
    assert global_average_precision(predictions, solution) == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------------------------- mAP@100


def test_average_precision_is_worked_by_hand():
    assert average_precision(["x", "y"], {"x", "y"}) == 1.0
    assert average_precision(["n", "x", "n", "y"], {"x", "y"}) == (1 / 2 + 2 / 4) / 2
    assert average_precision(["x"], {"x", "y"}) == 0.5
    assert average_precision([], {"x"}) == 0.0
    assert average_precision(["n"], {"x"}) == 0.0


def test_a_repeated_image_earns_nothing_and_costs_a_rank():
    assert average_precision(["x", "x", "y"], {"x", "y"}) == (1 + 2 / 3) / 2
    assert average_precision(["n", "n", "x"], {"x"}) == 1 / 3
    assert average_precision(["x"] * 100, {"x"}) == 1.0


def test_more_than_100_relevant_images_can_still_score_1():
    relevant = {str(number) for number in range(150)}
    assert average_precision([str(number) for number in range(100)], relevant) == 1.0
    assert average_precision([str(number) for number in range(50)], relevant) == 0.5


def test_images_after_the_100th_do_not_count():
    noise = [f"n{number}" for number in range(99)]
    assert average_precision([*noise, "x"], {"x"}) == 1 / 100
    assert average_precision([*noise, "n", "x"], {"x"}) == 0.0


def test_a_missing_query_counts_0():
    solution = {"a": {"x"}, "b": {"y"}}
    assert mean_average_precision({"a": ["x"]}, solution) == 0.5
    assert mean_average_precision({"a": ["x"], "b": []}, solution) == 0.5
    assert mean_average_precision({}, solution) == 0.0


def test_a_query_without_relevant_images_is_left_out():
    solution = {"a": {"x"}, "b": set()}
    assert mean_average_precision({"a": ["x"], "b": ["x"]}, solution) == 1.0


def test_map_has_the_published_value():
    # The case of tensorflow/models' metrics_test.py: a missing query, a find at rank 2, one of
    # three at rank 1, a find at rank 1 with noise behind: (0 + 1/2 + 1/3 + 1) / 4.
    solution = {"1": {"p", "q"}, "2": {"p"}, "3": {"r", "s", "t"}, "4": {"r"}}
    retrieved = {"2": ["o", "p"], "3": ["s"], "4": ["r", "s"]}
    assert mean_average_precision(retrieved, solution) == pytest.approx(0.458333, abs=1e-6)


def test_map_refuses_what_has_no_answer():
    with pytest.raises(ValueError, match="no query of the solution has a relevant image"):
        mean_average_precision({}, {"a": set()})
    with pytest.raises(ValueError, match="1 queries are not in the solution"):
        mean_average_precision({"b": ["x"]}, {"a": {"x"}})


def slow_map(retrieved, solution):
    """mAP@100 by its formula, with rel_q(k) and P_q(k) counted anew for each rank."""
    values = []
    for query, relevant in solution.items():
        if not relevant:
            continue
        row = retrieved.get(query, [])[:100]
        rel = [int(row[k] in relevant and row[k] not in row[:k]) for k in range(len(row))]
        precision = [sum(rel[: k + 1]) / (k + 1) for k in range(len(row))]
        total = sum(p * r for p, r in zip(precision, rel, strict=True))
        values.append(total / min(len(relevant), 100))
    return sum(values) / len(values)


@pytest.mark.parametrize("seed", range(20))
def test_map_is_that_of_a_slow_oracle(seed):
    rng = random.Random(seed)
    images = [str(number) for number in range(300)]
    solution = {
        str(query): set(rng.sample(images, rng.choice([0, 1, 5, 99, 100, 101, 200])))
        for query in range(15)
    }
    solution["0"] = set(rng.sample(images, 10))
    retrieved = {
        query: rng.choices(images, k=rng.choice([0, 1, 50, 100, 130]))  # with repetitions
        for query in rng.sample(sorted(solution), 12)
    }
    expected = slow_map(retrieved, solution)
    assert mean_average_precision(retrieved, solution) == pytest.approx(expected, rel=1e-12)


# ---------------------------------------------------------------------------- files and the command

A, B, C, D, E, X, Y, N = (digit * 16 for digit in "abcde123")
RECOGNITION = ["id,landmarks", f"{A},1 0.9", f"{B},9 0.8", f"{C},", f"{D},5 1.0", f"{E},5 2.0"]
# Public: a right at rank 2 behind d, b unseen there; Private: b wrong, c empty; e is ignored.
RECOGNITION_TRUTH = [
    "id,landmarks,Usage",
    f"{A},1 2,Public",
    f"{B},3,Private",
    f"{C},4,Private",
    f"{D},,Public",
    f"{E},5,Ignored",
]
RETRIEVAL = ["id,images", f"{A},{X} {N} {Y}", f"{B},{N} {X}", f"{C},{X}"]
RETRIEVAL_TRUTH = [
    "id,images,Usage",
    f"{A},{X} {Y},Public",
    f"{B},{X},Private",
    f"{C},None,Ignored",
    f"{D},{X},Public",
]


@pytest.fixture
def write(tmp_path):
    """Writes lines to a named CSV; gives its path as str."""

    def write(name, lines):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
        return str(tmp_path / name)

    return write


def test_recognition_is_scored_for_each_leaderboard(write):
    scores = score_file(
        "recognition", write("s.csv", RECOGNITION), write("t.csv", RECOGNITION_TRUTH)
    )
    # all: d wrong, a right at rank 2, b wrong; three landmark images.
    assert scores == {
        "Public": pytest.approx(1 / 2),
        "Private": 0.0,
        "all": pytest.approx((1 / 2) / 3),
    }


def test_retrieval_is_scored_for_each_leaderboard(write):
    scores = score_file("retrieval", write("s.csv", RETRIEVAL), write("t.csv", RETRIEVAL_TRUTH))
    a, b, d = (1 + 2 / 3) / 2, 1 / 2, 0
    assert scores == {
        "Public": pytest.approx((a + d) / 2),
        "Private": pytest.approx(b),
        "all": pytest.approx((a + b + d) / 3),
    }


def test_an_ignored_row_changes_no_score(write):
    truth = write("t.csv", RECOGNITION_TRUTH)
    with_it = score_file("recognition", write("s.csv", RECOGNITION), truth)
    assert score_file("recognition", write("s.csv", RECOGNITION[:-1]), truth) == with_it


def test_a_leaderboard_without_true_rows_has_no_score(write):
    truth = write("t.csv", [row for row in RECOGNITION_TRUTH if "Private" not in row])
    submission = write("s.csv", ["id,landmarks", f"{A},1 0.9"])
    assert score_file("recognition", submission, truth) == {"Public": 1.0, "all": 1.0}


def test_scores_are_written_in_one_line():
    scores = {"Public": 0.51234, "Private": 0.49866, "all": 0.5}
    assert format_scores("GAP", scores) == "GAP: Public 0.5123  Private 0.4987  all 0.5000"


def run(*argv):
    """Runs the command line in this process; gives its exit code."""
    try:
        run_command_line(lambda: metrics.main([str(word) for word in argv]))
    except SystemExit as end:
        return end.code
    return 0


def test_the_command_prints_one_line_for_recognition(write, capsys):
    files = write("s.csv", RECOGNITION), write("t.csv", RECOGNITION_TRUTH)
    assert run("recognition", *files) == 0
    assert capsys.readouterr() == ("GAP: Public 0.5000  Private 0.0000  all 0.1667\n", "")


def test_the_command_prints_one_line_for_retrieval_and_tells_a_missing_row(write, capsys):
    submission = write("s.csv", RETRIEVAL)
    assert run("retrieval", submission, write("t.csv", RETRIEVAL_TRUTH)) == 0
    assert capsys.readouterr() == (
        "mAP@100: Public 0.4167  Private 0.5000  all 0.4444\n",
        f"{submission}: 1 of 4 ids have no row, first {D!r}; they count as not answered, and "
        "Kaggle takes no such file\n",
    )


def test_a_submission_of_another_test_set_is_one_line(write, capsys):
    submission = write("s.csv", ["id,landmarks", f"{A},1 0.9", f"{Y},1 0.9", f"{X},"])
    truth = write("t.csv", RECOGNITION_TRUTH)
    assert run("recognition", submission, truth) == 1
    assert capsys.readouterr() == (
        "",
        f"error: {submission}: 2 ids, first {X!r}, are not in {truth}; expected ids of that test "
        "set; give the matching files\n",
    )


def test_a_truth_without_scored_rows_is_one_line(write, capsys):
    truth = write("t.csv", ["id,images,Usage", f"{A},None,Ignored", f"{B},None,Public"])
    assert run("retrieval", write("s.csv", ["id,images", f"{A},{X}"]), truth) == 1
    assert capsys.readouterr().err == (
        f"error: {truth}: no row with a true id and Usage Public or Private; expected the released "
        "ground truth; check the file\n"
    )


def test_files_in_the_wrong_order_are_one_line(write, capsys):
    submission, truth = write("s.csv", RECOGNITION), write("t.csv", RECOGNITION_TRUTH)
    assert run("recognition", truth, submission) == 1
    assert capsys.readouterr().err == (  # line 2, `1 2`, could be a prediction
        f"error: {truth}: line 3 has '3' as landmarks; expected `<landmark id> <confidence>` or "
        "an empty cell; check the file\n"
    )


def test_files_of_the_other_challenge_are_one_line(write, capsys):
    assert run("recognition", write("s.csv", RETRIEVAL), write("t.csv", RETRIEVAL_TRUTH)) == 1
    assert "no column 'landmarks' in 'id,images'; expected " in capsys.readouterr().err


def test_a_missing_file_is_one_line(write, tmp_path, capsys):
    assert run("recognition", tmp_path / "none.csv", write("t.csv", RECOGNITION_TRUTH)) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/none.csv: No such file or directory; expected a CSV with the columns "
        "id, landmarks; check the path\n"
    )


@pytest.mark.parametrize(
    "argv", [[], ["recognition"], ["recognition", "s.csv"], ["fame", "s.csv", "t.csv"]]
)
def test_wrong_use_is_one_line_and_exit_code_2(capsys, argv):
    assert run(*argv) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize("challenge", ["recognition", "retrieval"])
def test_files_that_would_score_0_in_silence_are_one_line(write, capsys, challenge):
    rows, truth_rows = {
        "recognition": (RECOGNITION, RECOGNITION_TRUTH),
        "retrieval": (RETRIEVAL, RETRIEVAL_TRUTH),
    }[challenge]
    truth = write("t.csv", truth_rows)
    for wrong, reason in (
        ([rows[0], *map(str.upper, rows[1:])], f"image id {A.upper()!r}; "),
        (rows[:1], "no row after the header; "),
    ):
        submission = write("s.csv", wrong)
        assert run(challenge, submission, truth) == 1
        out, error = capsys.readouterr()
        assert out == "" and error.startswith(f"error: {submission}: {reason}")
        assert error.count("\n") == 1
    truth = write("t.csv", truth_rows[:1])
    assert run(challenge, write("s.csv", rows), truth) == 1
    assert capsys.readouterr().err.startswith(f"error: {truth}: no row after the header; ")


@pytest.mark.parametrize("options", [(), ("-u",)])
def test_a_full_disk_behind_stdout_is_one_line(write, options):
    files = write("s.csv", RECOGNITION), write("t.csv", RECOGNITION_TRUTH)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, *options, metrics.__file__, "recognition", *files],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=120,
            env={key: os.environ[key] for key in os.environ.keys() - {"PYTHONUNBUFFERED"}},
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        "error: No space left on device; expected room for the results; free some space or send "
        "stdout elsewhere\n"
    )
