"""Tests of `recognition.py` as a person uses it: files, lines on stdout, wrong uses, exit codes."""

import csv
import json
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from synthetic import LANDMARKS, make_source

import recognition
from data.arrays import load_arrays
from data.connections import Connections
from data.sources import RECOGNITION_SOLUTION, TEST_CSV, TRAIN_CSV, Shard
from data.submissions import read_recognition_submission
from demo.server import serve
from descriptors.descriptions import load_descriptions
from metrics import format_scores, score_file
from recipes import Recipe
from report import write
from runs.command_line import run_command_line

ROOT = Path(recognition.__file__).parent


def run(*arguments):
    """Runs the command line in this process; gives its exit code."""
    try:
        run_command_line(lambda: recognition.main([str(argument) for argument in arguments]))
    except SystemExit as end:
        return end.code
    return 0


def small(data_set, output, *more):
    """The options of a run of three mini-epochs on the synthetic data set."""
    source = [] if "--source" in more else ["--source", data_set.folder]  # two would be joined
    return [
        *(*source, "--output", output),
        *("--train-shards", "1:4", "--valid-shards", "0:1", "--min-images", 5),
        *("--backbone", "mobilenet_v2", "--weights", "none", "--image-size", 32),
        *("--batch-size", 8, "--learning-rate", 0.01, *more),
    ]


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    """Draws no report, since tests/test_report.py does."""
    monkeypatch.setattr(write, "render", lambda all_facts: "")


# -------------------------------------------------------------------------------- the whole job


def test_a_run_writes_every_file_that_is_promised_and_no_other(recognition_run):
    assert set(files_of(recognition_run.output)) == {
        "model.keras",
        "history.csv",
        "history.png",
        "checkpoint/training.npz",
        "checkpoint/previous-training.npz",
        "recognition_submission.csv",
        "queries.npz",
        "calibration.json",
        "landmarks.csv",
        "report.json",
        "report.html",
    }


def test_stdout_has_the_paths_and_the_score_and_nothing_else(data_set, recognition_run):
    output = recognition_run.output
    submission = output / "recognition_submission.csv"
    scores = score_file("recognition", submission, data_set.folder / RECOGNITION_SOLUTION)
    assert set(scores) == {"Public", "Private", "all"}
    assert recognition_run.stdout.splitlines() == [
        str(output / "model.keras"),
        str(submission),
        format_scores("GAP", scores),
        str(output / "report.html"),
    ]


def test_stderr_tells_of_the_data_of_every_mini_epoch_and_of_every_test_shard(
    data_set, recognition_run
):
    lines = recognition_run.stderr.splitlines()
    assert lines[0] == f"{data_set.folder}: 80 train images of 4 landmarks"
    assert "mobilenet_v2, float32, 32 pixels, 4 landmarks" in lines
    told = [
        re.match(r"mini-epoch (\d)/6 \(train shard 00(\d)\): 20 images, loss", x) for x in lines
    ]
    assert [match.groups() for match in told if match] == list(zip("123456", "123123", strict=True))
    assert any(line.startswith("test/images_000.tar: 9 images described (1/2), ") for line in lines)
    assert any(line.startswith("test/images_001.tar: 9 images described (2/2), ") for line in lines)
    assert lines[-1] == "18 of 18 test images named"


def test_the_submission_has_every_test_image_once_with_a_known_landmark(data_set, recognition_run):
    rows = read_rows(recognition_run.output / "recognition_submission.csv")
    assert [row["id"] for row in rows] == data_set.of_split("test")
    predictions = read_recognition_submission(recognition_run.output / "recognition_submission.csv")
    assert {landmark_id for landmark_id, _ in predictions.values()} <= set(LANDMARKS)
    assert all(0.25 <= confidence <= 1 for _, confidence in predictions.values())


def test_the_descriptors_of_the_test_images_are_kept(data_set, recognition_run):
    queries, _ = load_descriptions(recognition_run.output / "queries.npz")
    assert [f"{i:016x}" for i in queries.image_ids.tolist()] == sorted(data_set.of_split("test"))
    assert queries.descriptors.shape == (18, 16)
    predictions = read_recognition_submission(recognition_run.output / "recognition_submission.csv")
    told = {int(image_id, 16): made for image_id, made in predictions.items()}
    for image_id, landmark_id, confidence in zip(
        queries.image_ids.tolist(), queries.landmark_ids, queries.confidences, strict=True
    ):
        assert told[image_id][0] == landmark_id
        assert np.float32(told[image_id][1]) == confidence


@pytest.fixture
def finished(recognition_run, tmp_path):
    """A copy of the finished run that a test may change: (output, arguments)."""
    output = tmp_path / "output"
    shutil.copytree(recognition_run.output, output)
    arguments = [str(output) if a == str(recognition_run.output) else a for a in
                 recognition_run.arguments]  # fmt: skip
    return output, arguments


def test_the_model_knows_the_recipe_that_it_was_trained_with(recognition_run):
    with zipfile.ZipFile(recognition_run.output / "model.keras") as archive:
        page = json.loads(archive.read("landmarks.json"))
    assert Recipe.of(page["recipe"]) == Recipe.of(
        {
            **{"train_shards": (1, 4), "min_images": 5, "backbone": "mobilenet_v2"},
            **{"weights": "none", "image_size": 32, "batch_size": 8, "epochs": 2},
            **{"augment": False, "learning_rate": 0.03},
        }
    )


def test_running_again_trains_nothing_and_predicts_the_same(
    finished, tiny_backbones, monkeypatch, capsys
):
    from training import loop

    monkeypatch.setattr(loop, "stream_batches", lambda *_: pytest.fail("trains again"))
    output, arguments = finished
    before = files_of(output)
    assert run(*arguments) == 0
    after = files_of(output)
    assert after.keys() == before.keys()
    for name in ("history.csv", "checkpoint/training.npz", "recognition_submission.csv"):
        assert after[name] == before[name]
    captured = capsys.readouterr()
    assert "training is complete: 6 mini-epochs" in captured.err.splitlines()
    assert captured.out.splitlines()[:2] == [
        str(output / "model.keras"),
        str(output / "recognition_submission.csv"),
    ]


def test_running_again_gives_no_model_whose_descriptors_would_have_to_be_made_again(
    finished, tiny_backbones
):
    import keras

    import model

    output, arguments = finished
    fingerprints = set()
    for _ in range(2):
        keras.utils.clear_session()  # as in a process of its own
        assert run("train", *arguments) == 0
        fingerprints.add(model.load_recogniser(output / "model.keras").fingerprint)
    assert len(fingerprints) == 1


@pytest.mark.slow
def test_a_real_mobilenet_does_the_whole_job(data_set, tmp_path, capsys):
    assert run(*small(data_set, tmp_path, "--train-shards", "1:2")) == 0
    queries, _ = load_descriptions(tmp_path / "queries.npz")
    assert queries.descriptors.shape == (18, 1280)
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"GAP: Public 0\.\d{4}  Private 0\.\d{4}  all 0\.\d{4}", lines[-2])


# ---------------------------------------------------------------------------- prediction alone


@pytest.fixture
def predict(recognition_run, data_set, tmp_path, tiny_backbones):
    """Function that predicts with the trained model: options -> (exit code, output folder)."""

    def predict(*options, source=data_set.folder):
        output = tmp_path / "predicted"
        code = run(
            "predict",
            *("--model", recognition_run.output / "model.keras", "--output", output),
            *("--source", source, "--batch-size", 8, *options),
        )
        return code, output

    return predict


@pytest.mark.usefixtures("tiny_backbones")
def test_prediction_over_http_from_a_model_elsewhere_is_the_same(
    predict, data_set, recognition_run, capsys
):
    with serve(data_set.folder) as address:
        code, output = predict(source=address)
    assert code == 0
    same = ("recognition_submission.csv", "calibration.json", "landmarks.csv")
    assert set(files_of(output)) == {*same, "queries.npz", "report.json", "report.html"}
    for name in same:
        assert (output / name).read_bytes() == (recognition_run.output / name).read_bytes()
    assert capsys.readouterr().out.splitlines() == [
        str(output / "recognition_submission.csv"),
        recognition_run.stdout.splitlines()[-2],
        str(output / "report.html"),
    ]


@pytest.mark.usefixtures("tiny_backbones")
def test_flipped_too_gives_other_confidences(predict, data_set, recognition_run):
    code, output = predict("--flipped-too")
    assert code == 0
    plain, flipped = (
        read_recognition_submission(folder / "recognition_submission.csv")
        for folder in (recognition_run.output, output)
    )
    assert plain.keys() == flipped.keys()
    assert plain != flipped


@pytest.fixture
def other_source(data_set, tmp_path):
    """A copy of the data set that a test may change."""
    return Path(shutil.copytree(data_set.folder, tmp_path / "other-source"))


@pytest.mark.usefixtures("tiny_backbones")
def test_without_a_ground_truth_there_is_no_score(predict, other_source, capsys):
    (other_source / RECOGNITION_SOLUTION).unlink()
    code, output = predict(source=other_source)
    captured = capsys.readouterr()
    assert code == 0
    assert captured.out.splitlines() == [
        str(output / "recognition_submission.csv"),
        str(output / "report.html"),
    ]
    assert not (output / "calibration.json").exists()
    assert captured.err.splitlines()[-1] == (
        f"{other_source}: no {RECOGNITION_SOLUTION}; the submission is not scored"
    )


@pytest.mark.usefixtures("tiny_backbones")
def test_an_unreadable_test_image_is_left_empty_and_named(predict, tmp_path, capsys):
    shard = Shard("test", 1)
    made = make_source(tmp_path / "source", replaced={(shard, 4): b"<html>"})
    code, output = predict(source=made.folder)
    assert code == 0
    bad = made.image_ids[shard][4]
    rows = read_rows(output / "recognition_submission.csv")
    assert [row["id"] for row in rows if not row["landmarks"]] == [bad]
    assert [row["id"] for row in rows] == made.of_split("test")
    lines = capsys.readouterr().err.splitlines()
    assert f"test/images_001.tar: image {bad} left empty: not an image" in lines
    assert "17 of 18 test images named" in lines


@pytest.mark.usefixtures("tiny_backbones")
def test_test_images_that_are_in_no_shard_are_left_empty(predict, other_source, capsys):
    (other_source / RECOGNITION_SOLUTION).unlink()
    with open(other_source / TEST_CSV, "a") as file:
        file.write("00000000000000aa\n")
    assert run_predicted(predict(source=other_source))[-1] == {
        "id": "00000000000000aa",
        "landmarks": "",
    }
    (other_source / TEST_CSV).write_text("id\n00000000000000aa\n00000000000000bb\n")
    assert predict(source=other_source)[0] == 1
    assert "none of the 2 test images" in capsys.readouterr().err.splitlines()[-1]


def run_predicted(answer):
    code, output = answer
    assert code == 0
    return read_rows(output / "recognition_submission.csv")


# ----------------------------------------------------------------------- training in its options


def test_fresh_starts_over_with_other_settings_where_continuing_is_refused(
    data_set, tmp_path, tiny_backbones, capsys
):
    output = tmp_path / "output"
    assert run("train", *small(data_set, output)) == 0
    assert capsys.readouterr().out.splitlines() == [str(output / "model.keras")]
    assert "recognition_submission.csv" not in files_of(output)
    before = files_of(output)

    others = small(data_set, output, "--labels", "clean", "--seed", 1)
    assert run("train", *others) == 1
    checkpoint = output / "checkpoint" / "training.npz"
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {checkpoint}: it has labels = full, now it is clean; expected the same settings "
        "to continue; give them again, or start over with --fresh"
    )
    assert files_of(output) == before

    assert run("train", *others, "--fresh") == 0
    _, page = load_arrays(checkpoint)
    settings = Recipe.of(page["recipe"]).settings()
    assert (settings["labels"], settings["seed"]) == ("clean", 1)
    assert len(page["history"]) == len(read_rows(output / "history.csv")) == 3


def test_a_run_that_has_no_time_stops_cleanly(data_set, tmp_path, tiny_backbones, capsys):
    assert run(*small(data_set, tmp_path / "output", "--max-hours", "1e-9")) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(
        r"stopped by the time limit: .+; run the same command again to continue",
        captured.err.splitlines()[-1],
    )


# ----------------------------------------------------------------------------------- wrong uses

WRONG_USES = {
    "an unknown option": (["--nonsense"], "no option --nonsense"),
    "an abbreviated option": (["--epoch=2"], "no option --epoch (did you mean --epochs?)"),
    "an unknown step": (["validate"], "argument step: invalid choice: 'validate'"),
    "a number for a range": (
        ["--train-shards", "5"],
        "argument --train-shards: '5' is no range of shards; expected FIRST:STOP with FIRST < STOP",
    ),
    "an empty range": (["--train-shards", "5:5"], "argument --train-shards: '5:5' is no range"),
    "a range backwards": (["--valid-shards", "9:3"], "argument --valid-shards: '9:3' is no range"),
    "a range of words": (["--valid-shards", "a:b"], "argument --valid-shards: 'a:b' is no range"),
    "an open range": (["--valid-shards", "3:"], "argument --valid-shards: '3:' is no range"),
    "a negative range": (["--train-shards=-1:3"], "argument --train-shards: '-1:3' is no range"),
    "validation within training": (
        ["--train-shards", "0:3", "--valid-shards", "2:4"],
        "--valid-shards overlap --train-shards; expected shards held out of training",
    ),
    "no epochs": (["--epochs", "0"], "argument --epochs: '0'; expected a number from 1 up"),
    "half an epoch": (["--epochs", "0.5"], "argument --epochs: '0.5'; expected a number from 1 up"),
    "no batch": (
        ["--batch-size", "0"],
        "argument --batch-size: '0'; expected a number from 1 to 8192",
    ),
    "tiny images": (["--image-size", "16"], "argument --image-size: '16'; expected a number from"),
    "a word for a rate": (["--learning-rate", "low"], "argument --learning-rate: 'low'; expected"),
    "a negative rate": (["--learning-rate=-1"], "argument --learning-rate: '-1'; expected"),
    "a rate that is no number": (["--learning-rate", "nan"], "argument --learning-rate: 'nan'"),
    "an infinite rate": (["--learning-rate", "inf"], "argument --learning-rate: 'inf'; expected"),
    "a negative seed": (
        ["--seed=-1"],
        "argument --seed: '-1'; expected a number from 0 to 4294967295",
    ),
    "a seed that Keras does not take": (["--seed", f"{2**32}"], f"argument --seed: '{2**32}'; "),
    "a number without end": (["--epochs", "inf"], "argument --epochs: 'inf'; expected a number"),
    "a number that no float holds": (["--seed", "1" * 400], "argument --seed: '111"),
    "more shards than memory": (["--train-shards", "1:3000000000"], "argument --train-shards: "),
    "no validation": (["--valid-every", "0"], "argument --valid-every: '0'; expected a number"),
    "no least images": (["--min-images", "0"], "argument --min-images: '0'; expected a number"),
    "no time": (["--max-hours", "0"], "argument --max-hours: 0.0 hours; expected more than 0"),
    "a time that is no number": (["--max-hours", "nan"], "argument --max-hours: nan hours"),
    "an unknown backbone": (
        ["--backbone", "resnet5"],
        "argument --backbone: 'resnet5'; expected one of resnet50, resnet101, ",
    ),
    "a preset without a name": (["--backbone", "hub:"], "argument --backbone: 'hub:'; expected "),
    "a model to train with": (
        ["train", "--model", "x.keras"],
        "--model goes with `recognition.py predict`; training writes its own",
    ),
    "an option without its value": (["--output"], "argument --output: expected one argument"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG_USES.values(), ids=WRONG_USES)
def test_a_wrong_use_is_answered_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"error: {message}"), line
    assert line.endswith("; see recognition.py --help")
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------- expected failures


def closed_port():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return closed.getsockname()[1]


def failure(capsys, *arguments):
    """Runs a command line that fails as expected; gives the last line on stderr."""
    assert run(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    line = captured.err.splitlines()[-1]
    assert re.fullmatch(r"error: [^;]+; expected [^;]+; .+", line), line
    return line


def test_a_model_that_is_missing(data_set, tmp_path, capsys):
    line = failure(
        capsys,
        *("predict", "--source", data_set.folder, "--output", tmp_path),
        *("--model", tmp_path / "no.keras"),
    )
    assert line == (
        f"error: {tmp_path / 'no.keras'}: no such file; expected a model written by "
        "recognition.py; check --model"
    )


def test_a_checkpoint_in_the_place_of_a_model(data_set, recognition_run, tmp_path, capsys):
    checkpoint = recognition_run.output / "checkpoint" / "training.npz"
    line = failure(
        capsys,
        *("predict", "--source", data_set.folder, "--output", tmp_path, "--model", checkpoint),
    )
    assert line == (
        f"error: {checkpoint}: no class table in it; expected a model written by recognition.py, "
        "which knows the landmark of each output; check --model"
    )


def test_prediction_before_training(data_set, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no demo has left a model
    line = failure(capsys, "predict", "--source", data_set.folder, "--output", tmp_path / "empty")
    assert line == (
        f"error: model.keras: not in {tmp_path / 'empty'}; expected it from recognition.py; "
        "run that first, or name the file with --model"
    )


@pytest.mark.parametrize("name", ["nothing", "file"])
def test_a_source_that_is_no_folder(data_set, tmp_path, capsys, name):
    (tmp_path / "file").write_text("x")
    arguments = small(data_set, tmp_path / "output", "--source", tmp_path / name)
    assert failure(capsys, *arguments) == (
        f"error: {tmp_path / name}: no such folder; expected a folder or http(s) address in the "
        "CVDF layout; check --source"
    )


def test_an_output_that_is_the_source_is_refused_and_stays_as_it_is(other_source, capsys):
    before = files_of(other_source)
    link = other_source.parent / "link"
    link.symlink_to(other_source)
    line = failure(capsys, "--source", other_source, "--output", link)
    assert line == (
        f"error: {link}: it is the source, too; expected a folder of its own for the results; "
        "choose another --output"
    )
    assert files_of(other_source) == before


def test_a_source_without_shards(data_set, tmp_path, capsys):
    (tmp_path / "bare").mkdir()
    arguments = small(data_set, tmp_path / "output", "--source", tmp_path / "bare")
    assert failure(capsys, *arguments) == (
        f"error: {tmp_path / 'bare'}: no train/images_000.tar; expected shards in the CVDF layout; "
        "check --source"
    )


def test_a_source_without_train_csv(data_set, other_source, tmp_path, capsys):
    (other_source / TRAIN_CSV).unlink()
    arguments = small(data_set, tmp_path / "output", "--source", other_source)
    assert failure(capsys, *arguments) == (
        f"error: {other_source / TRAIN_CSV}: no such file; expected the CVDF layout below "
        f"{other_source}; check --source"
    )


def test_a_test_set_that_is_missing_is_told_before_training(other_source, tmp_path, capsys):
    (other_source / TEST_CSV).write_text("id\n")
    assert run(*small(None, tmp_path / "output", "--source", other_source)) == 1
    told = capsys.readouterr().err
    assert f"{TEST_CSV}: no row after the header; " in told
    assert told.endswith("; check --source, or train alone with `recognition.py train`\n")
    assert not (tmp_path / "output" / "checkpoint").exists()


def test_a_host_that_cannot_be_reached(data_set, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Connections, "pause", lambda *_: None)
    address = f"http://127.0.0.1:{closed_port()}/"
    line = failure(capsys, *small(data_set, tmp_path / "output", "--source", address))
    assert line.startswith(f"error: {address}")
    assert "Connection refused" in line
    assert line.endswith(" over a working network; check --source")


def test_shards_beyond_those_of_the_source(data_set, tmp_path, capsys):
    arguments = small(data_set, tmp_path / "output", "--train-shards", "1:9")
    assert failure(capsys, *arguments) == (
        f"error: {data_set.folder}: train shards 1:9 asked for; expected a range within 0:4, which "
        "is what the source has; change --train-shards"
    )


def test_validation_shards_beyond_those_of_the_source_name_their_option(data_set, tmp_path, capsys):
    arguments = small(data_set, tmp_path / "output", "--valid-shards", "7:8")
    line = failure(capsys, *arguments)
    assert "train shards 7:8 asked for" in line
    assert line.endswith("change --valid-shards")


def test_more_least_images_than_any_landmark_has(data_set, tmp_path, capsys):
    arguments = small(data_set, tmp_path / "output", "--min-images", 21)
    assert failure(capsys, *arguments) == (
        f"error: {data_set.folder / TRAIN_CSV}: no landmark has 21 images (the most is 20); "
        "expected at least one class; lower --min-images"
    )


def test_a_single_landmark_has_nothing_to_be_told_from(data_set, other_source, tmp_path, capsys):
    lines = (data_set.folder / TRAIN_CSV).read_text().splitlines()
    chosen = [line for line in lines if line.endswith((",landmark_id", ",17"))]
    (other_source / TRAIN_CSV).write_text("\n".join(chosen) + "\n")
    assert failure(capsys, *small(data_set, tmp_path, "--source", other_source)) == (
        f"error: {other_source}: one landmark alone has 5 images or more; expected two landmarks "
        "to tell apart; lower --min-images"
    )


STRONG, FROZEN = ("--recipe", "strong"), ("--recipe", "frozen")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--margin", "0.5"),
            "--margin 0.5 changes nothing beside --loss softmax; expected --loss arcface or "
            "--loss cosface",
        ),
        (
            (*STRONG, "--dynamic-margin", "--margin", "0.5"),
            "--margin 0.5 changes nothing beside --dynamic-margin; expected --no-dynamic-margin",
        ),
        (
            (*STRONG, "--loss", "softmax", "--sub-centers", "3"),
            "--sub-centers 3 changes nothing beside --loss softmax; expected --loss cosine or "
            "--loss arcface or --loss cosface",
        ),
        (
            ("--gem-p", "4"),
            "--gem-p 4.0 changes nothing beside --pooling max; expected --pooling gem",
        ),
        (
            (*FROZEN, "--frozen-share", "0.5"),
            "--frozen-share 0.5 changes nothing beside --frozen-backbone; expected "
            "--no-frozen-backbone",
        ),
        (
            ("--weight-decay", "0.1"),
            "--weight-decay 0.1 changes nothing beside --optimizer adam; expected --optimizer "
            "adamw or --optimizer sgd",
        ),
        (
            (*FROZEN, "--neck", "0", "--kept", "64"),
            "--kept 64 changes nothing beside --neck 0; expected values of a neck, such as "
            "--neck 512",
        ),
        (
            (*STRONG, "--pooling", "token"),
            "argument --pooling: token, which resnet50 does not have; expected max, average or gem",
        ),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(arguments, message, capsys):
    assert run("train", *arguments) == 2
    assert capsys.readouterr().err == f"error: {message}; see recognition.py --help\n"


def test_what_a_recipe_brings_along_may_change_nothing():
    args = recognition.parse_arguments([*STRONG, "--loss", "softmax", "--pooling", "max"])
    assert (args.margin, args.scale) == (0.3, 30)


@pytest.mark.parametrize(
    "words",
    ["--loss cosine --scale 20", "--pooling gem --gem-p 4",
     "--loss cosface --margin 0.2", "--optimizer sgd --weight-decay 0.1"],
)  # fmt: skip
def test_a_setting_is_taken_beside_one_with_which_it_acts(words):
    recognition.parse_arguments(words.split())


def test_a_checkpoint_of_other_settings(recognition_run, capsys):
    before = files_of(recognition_run.output)
    line = failure(capsys, *recognition_run.arguments, "--learning-rate", "0.25")
    assert line == (
        f"error: {recognition_run.output / 'checkpoint' / 'training.npz'}: it has learning_rate = "
        "0.03, now it is 0.25; expected the same settings to continue; give them again, or start "
        "over with --fresh"
    )
    assert files_of(recognition_run.output) == before


def test_an_output_that_is_a_file(data_set, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    line = failure(capsys, *small(data_set, tmp_path / "file"))
    assert line.startswith(f"error: {tmp_path / 'file'}")
    assert line.endswith("; expected a writable folder; choose another --output")


# ------------------------------------------------------------------------------------ the help

HELP_PROGRAM = """
import contextlib, io, sys
import recognition
for arguments in (["--help"], ["--nonsense"], ["--train-shards", "5"], ["--max-hours", "0"]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            recognition.main(arguments)
        except SystemExit as end:
            code = end.code
    print(code, *{"keras", "tensorflow", "matplotlib", "faiss"} & set(sys.modules))
"""


def test_help_and_wrong_uses_are_answered_without_loading_keras():
    answer = subprocess.run(
        [sys.executable, "-c", HELP_PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == ["0", "2", "2", "2"]


@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_the_help_has_every_option_and_shows_its_default(capsys, flag):
    assert run(flag) == 0
    text = " ".join(capsys.readouterr().out.split())
    for action in recognition.make_parser()._actions:
        assert action.help, action.dest
        if action.option_strings:
            assert any(option in text for option in action.option_strings)
        if action.option_strings and action.default not in (None, False, True, "==SUPPRESS=="):
            is_range = isinstance(action.default, tuple)
            shown = ":".join(map(str, action.default)) if is_range else action.default
            explained = f"(default: {shown})" in text
            brief = flag == "--help" and f"{action.option_strings[0]} {shown}" in text
            assert explained or brief, action.dest
