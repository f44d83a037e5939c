"""Tests of `identify.py`: a person's photos, whatever they are, get an answer each."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from checks import one_line
from PIL import Image
from synthetic import LANDMARKS, draw, encode

import identify
import recognition
import retrieval
from data import images
from data.arrays import save_table
from data.images import BadImageError
from data.landmarks import ClassTable, format_image_id
from data.sources import Shard, Source
from data.tars import list_members
from descriptors.descriptions import Descriptions, unit_length
from recipes import RECIPES
from report import photos
from report.threshold import Calibration, save_calibration
from runs.command_line import explain
from runs.pictures import draw_picture
from runs.session import CALIBRATION, DESCRIPTORS, Session
from utils import ExpectedError

pytestmark = pytest.mark.usefixtures("tiny_models")


@pytest.fixture(scope="module")
def output(recognition_run, data_set, tmp_path_factory):
    """What recognition.py and retrieval.py left, besides the checkpoints."""
    folder = tmp_path_factory.mktemp("identify") / "output"
    keep_out = shutil.ignore_patterns("checkpoint", "scratch")
    shutil.copytree(recognition_run.output, folder, ignore=keep_out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "draw", lambda *_: [])
        retrieval.main([
            *("--source", str(data_set.folder), "--output", str(folder)),
            *("--parts", "1", "--batch-size", "8"),
        ])  # fmt: skip
    return folder


@pytest.fixture
def photo(tmp_path):
    """A photo of the green rectangle."""
    path = tmp_path / "photos" / "green.jpg"
    path.parent.mkdir()
    path.write_bytes(encode(draw(17, np.random.default_rng(3)), quality=95))
    return path


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Draws nothing, since that takes longer than all the rest."""
    monkeypatch.setattr(identify, "draw_picture", lambda *_, **__: False)


def ask(capsys, *words):
    """Runs identify.py --json; gives the answers."""
    capsys.readouterr()
    identify.main([*map(str, words), "--json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# ------------------------------------------------------------------------------------ the answer


def test_an_answer_has_all_that_a_program_wants(output, photo, capsys):
    (answer,) = ask(capsys, photo, "--output", output)
    assert list(answer) == [
        "file", "landmark_id", "name", "category", "confidence", "is_landmark", "runners_up",
        "nearest",
    ]  # fmt: skip
    assert answer["file"] == str(photo)
    everything = [answer, *answer["runners_up"]]
    assert {one["landmark_id"] for one in everything} == set(LANDMARKS)
    assert all(one["name"] == f"No {one['landmark_id']}" for one in everything)
    confidences = [one["confidence"] for one in everything]
    assert confidences == sorted(confidences, reverse=True)
    assert sum(confidences) == pytest.approx(1, abs=1e-4)
    assert answer["category"] == f"http://x/Category:No_{answer['landmark_id']}"
    assert len(answer["nearest"]) == 5


def test_a_photo_is_named_as_the_test_set_is_predicted(output, data_set, tmp_path, capsys):
    from data.submissions import read_recognition_submission

    members = list_members(data_set.folder / Shard("test", 0).path)[:4]
    tar = (data_set.folder / Shard("test", 0).path).read_bytes()
    for member in members:
        path = tmp_path / f"{format_image_id(member.image_id)}.jpg"
        path.write_bytes(tar[member.offset : member.offset + member.size])
    predicted = read_recognition_submission(output / "recognition_submission.csv")
    for answer in ask(capsys, tmp_path, "--output", output):
        landmark_id, confidence = predicted[Path(answer["file"]).stem]
        assert answer["landmark_id"] == landmark_id
        assert answer["confidence"] == pytest.approx(confidence, abs=1e-5)


def test_a_picture_of_the_index_is_nearest_to_itself(output, data_set, tmp_path, capsys):
    member = list_members(data_set.folder / Shard("index", 0).path)[3]
    tar = (data_set.folder / Shard("index", 0).path).read_bytes()
    (tmp_path / "same.jpg").write_bytes(tar[member.offset : member.offset + member.size])
    (answer,) = ask(capsys, tmp_path / "same.jpg", "--output", output, "--nearest", 2)
    assert len(answer["nearest"]) == 2
    first = answer["nearest"][0]
    assert (first["image_id"], first["split"]) == (format_image_id(member.image_id), "index")
    assert first["distance"] == pytest.approx(0, abs=1e-6)


def test_without_descriptors_there_is_nothing_near(output, photo, tmp_path, capsys):
    (answer,) = ask(capsys, photo, "--output", tmp_path / "new", "--model", output / "model.keras")
    assert answer["nearest"] == []
    assert answer["name"] == f"No {answer['landmark_id']}"  # what lies beside the model is taken


def test_a_model_of_landmarks_without_names_names_its_photos_all_the_same(
    output, photo, data_set, tmp_path, capsys
):
    session = Session(tmp_path, Source(str(data_set.folder), tmp_path), None)
    recognition.keep_for_photos(session, ClassTable(np.array([7, 8])), None)
    (answer,) = ask(capsys, photo, "--output", tmp_path, "--model", output / "model.keras")
    assert answer["name"].startswith("No ")
    assert not (tmp_path / "landmarks.csv").exists()  # nothing would be in it


@pytest.mark.parametrize(("threshold", "is_landmark"), [(0.0, True), (1.1, False)])
def test_the_threshold_decides_what_is_called_a_landmark(
    output, photo, capsys, tmp_path, threshold, is_landmark
):
    import model

    fingerprint = model.load_recogniser(output / "model.keras").fingerprint
    calibration = Calibration(fingerprint, threshold, 1, 1, 1.0, 1.0)
    save_calibration(tmp_path / CALIBRATION, calibration)
    for name in ("model.keras", "landmarks.csv"):
        shutil.copy(output / name, tmp_path)
    words = [photo, "--output", tmp_path]
    assert ask(capsys, *words)[0]["is_landmark"] is is_landmark
    identify.main(list(map(str, words)))
    assert ("probably no landmark" in capsys.readouterr().out) is not is_landmark


def test_a_threshold_of_another_model_is_not_taken(output, photo, capsys, tmp_path):
    save_calibration(tmp_path / CALIBRATION, Calibration("other", 1.1, 1, 1, 1.0, 1.0))
    shutil.copy(output / "model.keras", tmp_path)
    identify.main([str(photo), "--output", str(tmp_path), "--json"])
    told = capsys.readouterr()
    assert json.loads(told.out)["is_landmark"] is None
    assert f"{tmp_path / CALIBRATION}: of another model, not used" in told.err.splitlines()


# ------------------------------------------------------------------------------------ the photos


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "PPM"])
def test_a_photo_may_be_of_any_format_that_pillow_reads(output, tmp_path, capsys, image_format):
    path = tmp_path / f"photo.{image_format.lower()}"
    path.write_bytes(encode(draw(17, np.random.default_rng(3)), image_format))
    assert len(ask(capsys, path, "--output", output, "--nearest", 0)) == 1


def test_a_photo_is_turned_as_its_exif_says(output, tmp_path, capsys):
    upright = draw(402, np.random.default_rng(5))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    (tmp_path / "turned.png").write_bytes(encode(turned, "PNG", exif=exif))
    (tmp_path / "upright.png").write_bytes(encode(upright, "PNG"))
    first, second = ask(capsys, tmp_path, "--output", output, "--nearest", 0)
    assert first["confidence"] == pytest.approx(second["confidence"], abs=1e-6)
    assert first["landmark_id"] == second["landmark_id"]


def test_folders_and_patterns_are_searched_and_each_photo_is_asked_once(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt", "deep/c.webp"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    found = photos.find_photos([tmp_path, tmp_path / "*.jpg", tmp_path / "b.jpg"])
    assert found == [tmp_path / "a.PNG", tmp_path / "b.jpg", tmp_path / "deep/c.webp"]
    assert photos.find_photos([tmp_path / "none.jpg"]) == [tmp_path / "none.jpg"]


def test_a_photo_is_fitted_as_the_images_that_the_model_was_trained_on(monkeypatch):
    from report import photo_answer

    read, recipe = [], RECIPES["2019"].changed(keep_aspect=True)
    recogniser = SimpleNamespace(
        classifier=None, class_table=ClassTable(np.array([7])), image_size=48, recipe=recipe,
        fingerprint="a",
    )  # fmt: skip

    def decode(data, image_size, keeps_aspect=False, **options):
        read.append((image_size, keeps_aspect))
        raise BadImageError("enough")

    monkeypatch.setattr(photo_answer, "load_recogniser", lambda *args: recogniser)
    monkeypatch.setattr(photo_answer.model, "build_with_descriptor", lambda network: None)
    monkeypatch.setattr(photo_answer, "decode_image", decode)
    session = Session(Path("nowhere"), source=None, stop=None)
    namer = photo_answer.PhotoNamer(session, Path("nowhere/model.keras"), [], 0)
    with pytest.raises(BadImageError, match="enough"):
        namer.name("x", b"")
    assert read == [(48, True)]


def test_hidden_files_and_other_documents_of_a_folder_are_left_alone(tmp_path):
    for name in ("a.jpg", "b.HEIC", "._a.jpg", ".trash/c.jpg", "d.pdf", "e.eps"):
        path = tmp_path / ".photos" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"")
    folder = tmp_path / ".photos"
    assert photos.find_photos([folder]) == [folder / "a.jpg", folder / "b.HEIC"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with a name here")
def test_a_pipe_is_no_photo(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(BadImageError, match="not a file"):
        images.read_photo(tmp_path / "pipe.jpg")


def test_photos_of_which_none_can_be_read_are_told_before_keras_is_loaded(
    output, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(identify, "identify", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    with pytest.raises(ExpectedError, match="1 of 1 photos could not be read"):
        identify.main([str(tmp_path), "--output", str(output)])
    told = capsys.readouterr().err
    assert told.startswith(f"{tmp_path / 'a.heic'}: HEIC, which takes pip install pillow-heif; ")


def test_the_picture_has_so_many_photos_and_no_more(output, photo, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(photos, "MAX_DRAWN", 2)
    monkeypatch.setattr(photos, "draw_answers", lambda rows: drawn.append(len(rows)))
    monkeypatch.setattr(identify, "draw_picture", lambda path, draw, **_: draw())
    copies = [shutil.copy(photo, tmp_path / f"{number}.jpg") for number in range(3)]
    assert len(ask(capsys, *copies, "--output", output, "--nearest", 0)) == 3
    assert drawn == [2]


def test_a_picture_that_cannot_be_drawn_does_not_cost_the_answers(
    output, photo, capsys, monkeypatch
):
    monkeypatch.undo()
    monkeypatch.setattr(photos, "draw_answers", lambda rows: 1 / 0)
    identify.main([str(photo), "--output", str(output), "--nearest", "0"])
    told = capsys.readouterr()
    assert told.out.startswith(f"{photo}: No ")
    assert "identify.png: not drawn: ZeroDivisionError: " in told.err


@pytest.mark.parametrize("word", ["", "*.jpg"])
def test_a_folder_or_pattern_without_a_picture_is_told(tmp_path, word):
    with pytest.raises(ExpectedError) as caught:
        photos.find_photos([tmp_path / word])
    one_line(caught.value)


def test_a_bad_photo_is_told_in_a_line_and_the_others_are_done(output, photo, tmp_path, capsys):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not a picture")
    words = [bad, tmp_path / "none.jpg", photo, "--output", output, "--nearest", 0]
    with pytest.raises(ExpectedError) as caught:
        identify.main(list(map(str, words)))
    assert one_line(caught.value).startswith("2 of 3 photos could not be read; ")
    told = capsys.readouterr()
    assert told.out.startswith(f"{photo}: No ")
    lines = told.err.splitlines()
    assert any(line.startswith(f"{bad}: not an image; ") for line in lines)
    assert any(line.startswith(f"{tmp_path / 'none.jpg'}: No such file") for line in lines)


@pytest.mark.parametrize("words", [[], ["--json"], ["x.jpg", "--nearest", "21"], [""]])
def test_wrong_use_ends_with_code_2(words):
    with pytest.raises(SystemExit) as caught:
        identify.parse_arguments(words)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("words", "folder"), [(["x.jpg"], "output"), (["--demo"], "output/demo"),
                          (["--demo", "--output", "here"], "here")],
)  # fmt: skip
def test_the_demo_has_an_output_of_its_own(words, folder):
    assert identify.parse_arguments(words).output == Path(folder)


# ----------------------------------------------------------------------------------- the gallery


def make_gallery(tmp_path, num_shards, rng):
    """Writes the descriptors of some shards; gives (session, all ids, all descriptors)."""
    ids, rows = rng.permutation(60).astype(np.uint64), rng.normal(size=(60, 8)).astype(np.float32)
    rows[1] = 2 * rows[0]  # a tie, once scaled to length 1
    for number, chosen in enumerate(np.array_split(np.arange(60), num_shards)):
        n = len(chosen)
        descriptions = Descriptions(
            ids[chosen], np.full(n, 17), np.ones(n, np.float32), rows[chosen],
            np.full(n, number, np.int16), np.zeros((n, 2), np.int64),
        )  # fmt: skip
        split = "train" if number % 2 else "index"
        path = tmp_path / DESCRIPTORS / f"{split}_{number:03d}.npz"
        save_table(path, descriptions, {"model": "ours"})
    return Session(tmp_path, None, None), ids, rows


@pytest.mark.parametrize("num_shards", [1, 4])
def test_the_nearest_are_those_of_brute_force_however_many_the_shards(tmp_path, num_shards):
    rng = np.random.default_rng(0)
    session, ids, rows = make_gallery(tmp_path, num_shards, rng)
    files = photos.of_model(photos.load_described(session), "ours")
    query = 3 * rows[0] + rng.normal(size=8).astype(np.float32) / 10
    scaled = unit_length(rows).astype(np.float64)
    wanted = query.astype(np.float64) / np.linalg.norm(query)
    distances = ((scaled - wanted) ** 2).sum(axis=1)
    expected = np.lexsort((ids, distances.astype(np.float32)))[:7]
    found = photos.find_nearest(files, query, 7)
    assert [one[0].image_id for one in found] == [format_image_id(i) for i in ids[expected]]
    assert [one[1] for one in found] == pytest.approx(distances[expected], abs=1e-5)


def test_descriptors_of_other_models_and_damaged_files_are_told_and_left_out(tmp_path, capsys):
    session, *_ = make_gallery(tmp_path, 3, np.random.default_rng(0))
    (tmp_path / DESCRIPTORS / "index_009.npz").write_bytes(b"damaged")
    loaded = photos.load_described(session)
    assert len(loaded) == 3 and photos.of_model(loaded, "theirs") == []
    assert photos.find_nearest([], np.ones(8), 7) == []
    told = capsys.readouterr().err
    assert "index_009.npz: " in told and "3 files of descriptors/ are of another model" in told


# ----------------------------------------------------------------------------------- the picture


def test_the_picture_has_a_row_for_each_photo():
    image = Image.new("RGB", (40, 30), "red")
    picture = SimpleNamespace(image_id="0" * 16, shard=Shard("index", 1))
    near = photos.Near(picture, 0.25, 17, "No 17")
    guess = photos.Guess(17, "A very long name of a landmark, longer than its place", None, 0.5)
    answers = [
        photos.Answer(Path("a.jpg"), (guess, guess), True, (near, near)),
        photos.Answer(Path("b.jpg"), (guess,), False, ()),
    ]
    figure = photos.draw_answers([(answers[0], image, [(near, image)]), (answers[1], image, [])])
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "probably no landmark" in texts and "a.jpg" in texts
    assert sum(bool(axes.images) for axes in figure.axes) == 3


NASTY = "a\n\x1b[31m\u202e\udcff $\\bad{$.jpg"  # a file may be called so


def test_a_name_can_neither_break_the_line_nor_steer_the_terminal_nor_stop_the_picture(tmp_path):
    answer = photos.Answer(Path(NASTY), (photos.Guess(17, NASTY, NASTY, 0.5),), True, ())
    (line,) = answer.as_text().splitlines()
    assert line.isprintable()
    assert line.startswith(r"a\n\x1b[31m\u202e\udcff $\bad{$.jpg: a\n")
    page = json.loads(json.dumps(answer.as_page()))
    assert (page["file"], page["name"]) == (NASTY, NASTY)
    rows = [(answer, Image.new("RGB", (40, 30)), [])]
    assert draw_picture(tmp_path / "drawn.png", lambda: photos.draw_answers(rows), dpi=20)


def test_a_file_that_is_too_large_for_a_photo_is_not_read_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "large.jpg"
    data = encode(draw(17, np.random.default_rng(3)))
    monkeypatch.setattr(images, "MAX_PHOTO_BYTES", len(data))
    path.write_bytes(data)
    assert images.read_photo(path) == data
    path.write_bytes(data + b"6")
    with pytest.raises(BadImageError, match="more than"):
        images.read_photo(path)


def test_an_output_that_cannot_be_made_names_the_flag_that_there_is(output, photo, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    words = [photo, "--output", tmp_path / "file", "--model", output / "model.keras"]
    with pytest.raises(ExpectedError) as caught:
        identify.main(list(map(str, words)))
    assert explain(caught.value).endswith("; choose another --output")


@pytest.mark.parametrize("with_source", [True, False])
def test_pictures_near_a_photo_are_drawn_where_the_source_is_known(
    output, photo, data_set, monkeypatch, with_source
):
    drawn = []
    monkeypatch.undo()
    monkeypatch.setattr(photos, "draw_answers", lambda rows: drawn.extend(rows) or Blank())
    words = [photo, "--output", output, *(["--source", data_set.folder] if with_source else [])]
    identify.main(list(map(str, words)))
    ((_, thumbnail, nearest),) = drawn
    assert thumbnail.size == (48, 36)
    assert len(nearest) == (5 if with_source else 0)
    assert (output / "identify.png").read_bytes() == b"PNG"


class Blank:
    """Stands for a figure."""

    def savefig(self, path, **_):
        path.write_bytes(b"PNG")
