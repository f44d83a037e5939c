"""Tests of the Kaggle side: the real `kaggle` client against a stand-in for Kaggle on loopback."""

import ast
import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import pytest
from checks import one_line
from kaggle_mock import IDS, RESULTS, KaggleMock, Outcome

import kernels
from command_line import explain
from on_kaggle import chain, client, packing
from utils import ExpectedError

ROOT = Path(kernels.__file__).parent
USER = "someone"
RECOGNITION = "landmark-recognition"
PARTS = [f"landmark-retrieval-part-{part}" for part in range(6)]
MERGE = "landmark-retrieval-merge"
UNFINISHED = {"checkpoint/training.npz": "weights", "history.csv": "mini_epoch\n1\n"}


def client_problem():
    """Says why the real client cannot be used here, or nothing."""
    command = Path(sys.executable).with_name("kaggle")
    if not command.is_file():
        return "the kaggle client is not installed (pip install kaggle six)"
    done = subprocess.run([command, "--version"], capture_output=True, text=True)
    return f"the kaggle client does not start: {done.stderr[-200:]}" if done.returncode else ""


PROBLEM = client_problem()
needs_client = pytest.mark.skipif(bool(PROBLEM), reason=PROBLEM)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(client, "RETRY_PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(chain, "POLL_S", 0.001)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Kernels built once."""
    folder = tmp_path_factory.mktemp("built")
    build(folder)
    return folder


@pytest.fixture
def mock(monkeypatch, tmp_path):
    """Kaggle on loopback, with the client in a process of its own for each call."""
    home = tmp_path / "home"
    home.mkdir()
    with KaggleMock() as server:
        for name, value in server.environment(home).items():
            monkeypatch.setenv(name, value)
        for name in ("KAGGLE_API_TOKEN", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield server


@pytest.fixture
def kaggle(monkeypatch, mock):
    """Kaggle on loopback, with the client's own code called in this process: quicker."""
    cli = importlib.import_module("kaggle.cli")
    lock, run_apart = threading.Lock(), subprocess.run

    def run(command, **kwargs):
        if Path(command[0]).name != "kaggle":
            return run_apart(command, **kwargs)
        out, err, code = io.StringIO(), io.StringIO(), 0
        with lock, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            monkeypatch.setattr(sys, "argv", command)
            try:
                cli.main()
            except SystemExit as stop:
                code = stop.code
            except Exception:
                traceback.print_exc()
                code = 1
        return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())

    monkeypatch.setattr(client.subprocess, "run", run)
    return mock


def build(folder, *arguments):
    kernels.main(["build", "--user", USER, "--kernels", str(folder), *arguments])


def command(name, folder, *arguments):
    """Runs a command on built kernels."""
    kernels.main([name, "--kernels", str(folder), *arguments])


def run(folder, output, *arguments):
    command("run", folder, "--output", str(output), *arguments)


def refusal(name, folder, *arguments):
    """Runs a command that is expected to fail, and gives its one line."""
    with pytest.raises(ExpectedError) as caught:
        command(name, folder, *arguments)
    return one_line(caught.value)


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ----------------------------------------------------------------------------------------- build


def test_the_same_source_builds_the_same_bytes_at_any_time_and_place(built, tmp_path):
    os.environ["TZ"], zone = "Asia/Tokyo", os.environ.get("TZ")
    try:
        build(tmp_path)
    finally:
        os.environ.pop("TZ") if zone is None else os.environ.update(TZ=zone)
    assert files_of(tmp_path) == files_of(built)
    assert len(files_of(built)) == 17


def test_the_metadata_is_what_kaggle_expects(built):
    metadata = {
        name: json.loads((built / name / "kernel-metadata.json").read_text())
        for name in packing.KERNELS
    }
    recognition, part, merge = metadata["recognition"], metadata["part-3"], metadata["merge"]
    for name, page in metadata.items():
        assert page["id"] == f"someone/{page['title'].lower().replace(' ', '-')}"
        assert len(page["title"]) >= 5 and (built / name / page["code_file"]).is_file()
        assert (page["language"], page["kernel_type"]) == ("python", "script")
        assert page["is_private"] is True and page["enable_internet"] is True
        assert page["dataset_sources"] == page["competition_sources"] == []
        assert page["enable_gpu"] is (name != "merge")
        assert page.get("machine_shape") == (None if name == "merge" else "NvidiaTeslaT4")
    assert recognition["kernel_sources"] == [recognition["id"]]
    assert part["kernel_sources"] == [recognition["id"], part["id"]]
    assert merge["kernel_sources"] == [metadata[f"part-{k}"]["id"] for k in range(6)]


def facts_of(folder, name):
    (script,) = (folder / name).glob("*.py")
    return ast.literal_eval(re.search(r"^FACTS = (\{.*?^\})", script.read_text(), re.M | re.S)[1])


def test_each_kernel_does_its_share(built, tmp_path):
    assert facts_of(built, "recognition")["arguments"] == ["--max-hours", "11"]
    assert facts_of(built, "part-3")["arguments"] == [
        *("--part", "3", "--parts", "6", "--max-hours", "11")
    ]  # fmt: skip
    assert facts_of(built, "merge")["arguments"] == ["merge"]
    build(
        tmp_path, "--recognition-args", "--labels clean --image-size 224", "--max-hours", "8.5",
        "--retrieval-args", "--rerank-divisor 2", "--dataset", "a/data", "--no-internet",
    )  # fmt: skip
    assert facts_of(tmp_path, "recognition")["arguments"] == [
        *("--max-hours", "8.5", "--labels", "clean", "--image-size", "224")
    ]
    assert facts_of(tmp_path, "merge")["arguments"] == ["merge", "--rerank-divisor", "2"]
    page = json.loads((tmp_path / "merge" / "kernel-metadata.json").read_text())
    assert page["dataset_sources"] == ["a/data"] and page["enable_internet"] is False


def test_a_build_has_another_name_when_arguments_or_sources_change(built, tmp_path, monkeypatch):
    before = facts_of(built, "recognition")
    build(tmp_path, "--recognition-args", "--labels clean")
    assert facts_of(tmp_path, "recognition")["source"] == before["source"]
    assert facts_of(tmp_path, "recognition")["build"] != before["build"]
    assert facts_of(tmp_path, "merge") == facts_of(built, "merge")
    modules = packing.find_modules("recognition") | {"utils.py": b"changed"}
    monkeypatch.setattr(packing, "find_modules", lambda entry, with_demo: modules)
    build(tmp_path)
    after = facts_of(tmp_path, "recognition")
    assert after["source"] != before["source"] and after["build"] != before["build"]


NEEDED = {  # script -> what it alone or with others needs, in turn
    "recognition": {"recognition.py", "training.py", "frozen.py", "describe.py"},
    "nearest": {"nearest.py", "voting.py", "gallery_parts.py", "parts.py", "describe.py"},
    "retrieval": {"retrieval.py", "merging.py", "naming.py", "parts.py", "describe.py"},
    "shrink": {"shrink.py", "shrinking.py"},
}


@pytest.mark.parametrize("entry", NEEDED)
def test_all_modules_that_a_script_needs_are_packed_and_no_other_script(entry):
    modules = packing.find_modules(entry).keys()
    assert NEEDED[entry] | {"command_line.py", "utils.py", "on_kaggle/kernel.py"} <= modules
    scripts = {f"{name}.py" for name in (*packing.ENTRIES, "kernels")}
    assert modules & scripts == {f"{entry}.py"}
    assert not {"on_kaggle/packing.py", "demo/world.py"} & modules
    for other in {"training.py", "shrinking.py", "voting.py", "merging.py"} - NEEDED[entry]:
        assert other not in modules
    assert {"demo/__init__.py", "demo/art.py"} <= packing.find_modules(entry, True).keys()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--recognition-args", "--clan"],
            "recognition.py: unrecognized arguments: --clan; expected",
        ),
        (["--recognition-args", "--image-size 3"], "'3'; expected a number from 32 up"),
        (["--retrieval-args", "--parts=3"], "--parts=3 is set for each kernel"),
        (["--retrieval-args", "merge"], "merge is set for each kernel"),
        (["--shrink", "256", "--shrink-args", "--pixels 9"], "--pixels is set for each kernel"),
        (["--shrink", "256", "--shrink-args", "--split test"], "--split is set for each kernel"),
        (
            [
                "--shrink",
                "256",
                "--shrink-args",
                "--labels clean",
                "--recognition-args",
                "--seed 1",
            ],
            "recognition.py: labels full, but shrink.py keeps clean ones alone",
        ),
        (["--shrink", "256", "--shrink-args", "--quality 99"], "'99'; expected a number from 1"),
        (
            ["--recipe", "strong", "--recognition-args", "--recipe frozen"],
            "recipe frozen; expected",
        ),
        (["--recipe", "strong", "--nearest-args", "vote"], "vote is set for each kernel"),
        (["--recipe", "strong", "--nearest-args", "--parts 3"], "--parts is set for each kernel"),
        (
            ["--recipe", "strong", "--retrieval-args", "--no-normalise"],
            "--names compares descriptors of length 1",
        ),
        (
            [
                *("--shrink", "256", "--shrink-args", "--labels clean", "--recipe", "strong"),
                *("--nearest-args", "--labels full"),
            ],
            "nearest.py: labels full, but shrink.py keeps clean ones alone",
        ),
        (["--retrieval-args", "--top 500"], "argument --top: 500; expected at most 100"),
        (["--recognition-args", "--output /tmp/z"], "--output is set for each kernel"),
        (["--recognition-args", "--train-shards 0:2"], "--valid-shards overlap --train-shards"),
        (["--retrieval-args", "'"], "No closing quotation"),
        (["--user", "a/b"], "--user a/b; expected a name"),
        (["--dataset", "../../etc"], "--dataset ../../etc; expected owner/slug"),
        (["--dataset", "a/data", "--dataset", "data"], "--dataset data; expected owner/slug"),
        (["--dataset", "a/b/c"], "--dataset a/b/c; expected owner/slug"),
    ],
)
def test_wrong_arguments_for_a_kernel_are_refused_before_anything_is_written(
    tmp_path, arguments, told
):
    with pytest.raises(ExpectedError) as caught:
        kernels.main(["build", "--user", USER, "--kernels", str(tmp_path / "built"), *arguments])
    message = one_line(caught.value)
    assert told in message
    if arguments[-2].endswith("-args"):
        assert message.endswith(f"; change {arguments[-2]}")
    assert not (tmp_path / "built").exists()


def test_a_folder_that_cannot_be_written_is_told_with_its_flag(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ExpectedError) as caught:
        kernels.main(["build", "--user", USER, "--kernels", str(tmp_path / "file")])
    assert explain(caught.value).endswith("; change --kernels")


def test_arguments_of_the_demo_are_checked_with_its_defaults(capsys):
    assert packing.parse_arguments("recognition", "--demo --epochs 1") == [
        "--demo",
        "--epochs",
        "1",
    ]
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------------- the generated script


@pytest.fixture
def trivial(tmp_path, monkeypatch):
    """Builds kernels of a script that leaves a result and says where its source is."""

    def make(body):
        source = f"import sys\nimport utils\ndef main(argv):\n{body}".encode()
        modules = packing.find_modules("recognition") | {"recognition.py": source}
        monkeypatch.setattr(packing, "find_modules", lambda entry, with_demo: modules)
        build(tmp_path / "built")
        working = tmp_path / "working"
        working.mkdir()
        script = tmp_path / "built" / "recognition" / f"{RECOGNITION}.py"
        done = subprocess.run([sys.executable, script], cwd=working, capture_output=True, text=True)
        return done, working

    return make


def test_a_kernel_unpacks_outside_of_its_output_runs_the_script_and_reports(trivial):
    done, working = trivial(
        "    open('recognition_submission.csv', 'w').write('id')\n    print(utils.__file__, argv)\n"
    )
    assert done.returncode == 0, done.stderr
    place, _, argv = done.stdout.strip().partition(" ")
    assert working not in Path(place).parents and ROOT not in Path(place).parents
    assert not Path(place).exists()
    assert argv == "['--max-hours', '11']"
    assert sorted(files_of(working)) == ["kernel.json", "recognition_submission.csv"]
    report = json.loads((working / "kernel.json").read_text())
    assert report["finished"] is True and report["files"] == {"recognition_submission.csv": 2}
    assert report["started"] <= report["ended"]
    assert re.search(
        r"^kernel recognition, source \S+, build [0-9a-f]{12}: recognition.py --max-hours 11$",
        done.stderr, re.M,
    )  # fmt: skip


def test_a_kernel_that_stopped_in_time_reports_that_it_is_not_finished(trivial):
    done, working = trivial("    open('history.csv', 'w').write('row')\n    sys.exit(0)\n")
    assert done.returncode == 0
    report = json.loads((working / "kernel.json").read_text())
    assert report["finished"] is False and report["files"] == {"history.csv": 3}


def test_a_kernel_that_fails_ends_with_one_line_and_no_report(trivial):
    done, working = trivial("    raise utils.ExpectedError('a; expected b; do c')\n")
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == ["error: a; expected b; do c"]
    assert files_of(working) == {}


@pytest.mark.parametrize("kept", ["checkpoint/training.npz", "penalised-part-0-of-2.npz"])
def test_a_kernel_that_fails_with_work_to_go_on_from_keeps_it_and_reports_the_error(trivial, kept):
    done, working = trivial(
        "    import os\n    os.mkdir('checkpoint') if 'checkpoint' in '" + kept + "' else None\n"
        f"    open({kept!r}, 'w').write('half')\n"
        "    raise utils.ExpectedError('a; expected b; do c')\n"
    )
    assert done.returncode == 0
    assert done.stderr.splitlines()[1:] == ["error: a; expected b; do c"]
    report = json.loads((working / "kernel.json").read_text())
    assert (report["finished"], report["error"]) == (False, "a; expected b; do c")


def test_an_error_after_the_result_is_not_finished(trivial):
    done, working = trivial(
        "    import os\n    os.mkdir('checkpoint')\n"
        "    open('checkpoint/training.npz', 'w').write('whole')\n"
        "    open('recognition_submission.csv', 'w').write('id')\n"
        "    raise utils.ExpectedError('a; expected b; do c')\n"
    )
    assert done.returncode == 0
    report = json.loads((working / "kernel.json").read_text())
    assert "recognition_submission.csv" in report["files"]
    assert (report["finished"], report["error"]) == (False, "a; expected b; do c")


def test_wrong_use_of_a_kernel_fails_whatever_it_has_done(trivial):
    done, working = trivial("    import os\n    os.mkdir('checkpoint')\n    sys.exit(2)\n")
    assert done.returncode == 2
    assert files_of(working) == {}


def test_a_bug_in_a_kernel_fails_whatever_it_has_done(trivial):
    done, working = trivial("    import os\n    os.mkdir('checkpoint')\n    1 / 0\n")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert files_of(working) == {}


def test_a_built_kernel_starts_the_real_script(built, tmp_path):
    text = (built / "merge" / f"{MERGE}.py").read_text()
    (tmp_path / "script.py").write_text(text.replace("['merge']", "['merge', '--parts', '0']"))
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == [
        "error: argument --parts: '0'; expected a number from 1 up; see retrieval.py --help"
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["script.py"]


# ------------------------------------------------------------------------------- shrink first


SHRINKS = [f"landmark-shrink-part-{part}" for part in range(3)]


@pytest.fixture(scope="module")
def built_small(tmp_path_factory):
    """Kernels built with three in front that make the data set small."""
    folder = tmp_path_factory.mktemp("built-small")
    build(folder, "--shrink", "256", "--shrink-kernels", "3", "--no-internet")
    return folder


def metadata_of(folder, name):
    return json.loads((folder / name / "kernel-metadata.json").read_text())


def test_the_kernels_in_front_make_a_part_each_small_without_a_gpu(built_small):
    facts, page = facts_of(built_small, "shrink-1"), metadata_of(built_small, "shrink-1")
    assert facts["entry"] == "shrink" and facts["result"] == "shrunk-1-of-3.json"
    assert facts["arguments"] == [
        *("--pixels", "256", "--part", "1", "--parts", "3", "--copy-earlier")
    ]  # fmt: skip
    assert page["enable_gpu"] is False and "machine_shape" not in page
    assert page["enable_internet"] is True  # it downloads, whatever the others may
    assert page["kernel_sources"] == [page["id"]] == [f"someone/{SHRINKS[1]}"]
    modules = packing.find_modules("shrink")
    assert {"shrink.py", "shrinking.py", "tars.py"} <= modules.keys()


@pytest.mark.parametrize("name", packing.KERNELS)
def test_the_others_read_what_those_made_and_need_no_internet(built_small, built, name):
    page, before = metadata_of(built_small, name), metadata_of(built, name)
    assert page["kernel_sources"] == [
        *(f"someone/{slug}" for slug in SHRINKS),
        *before["kernel_sources"],
    ]
    assert page["enable_internet"] is False
    words = facts_of(built_small, name)["arguments"]
    place = words.index("--source")
    assert words[place + 1] == "inputs"
    assert words[:place] + words[place + 2 :] == facts_of(built, name)["arguments"]


def test_a_build_without_them_is_the_chain_that_counts(tmp_path):
    build(tmp_path, "--shrink", "256", "--shrink-kernels", "3")
    assert list(chain.read_built(tmp_path)) == [
        "shrink-0",
        "shrink-1",
        "shrink-2",
        *packing.KERNELS,
    ]
    build(tmp_path)
    assert list(chain.read_built(tmp_path)) == list(packing.KERNELS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", 9),  # (4.13 + 0.76 + 0.12) M pictures of 30 KB = 150 GB, in outputs of 18.4
        ("--labels clean", 5),  # 2.46 M = 74 GB
        ("--split index", 2),  # 22.9 GB
        ("--split test", 1),
        ("--quality 90", 10),  # 183 GB
        ("--demo", 2),
        ("--source inputs", 2),
    ],
)
def test_as_many_kernels_share_the_data_set_as_their_outputs_need(words, expected):
    settings = packing.read_settings("shrink", ["--pixels", "256", *words.split()])
    assert packing.count_shrink_kernels(settings) == expected


def test_smaller_pictures_need_fewer_kernels():
    counts = [
        packing.count_shrink_kernels(packing.read_settings("shrink", ["--pixels", str(pixels)]))
        for pixels in (192, 224, 256, 320, 384)
    ]
    assert counts == [6, 7, 9, 12, 17]


@needs_client
def test_all_kernels_in_front_are_finished_before_a_gpu_is_asked_for(
    built_small, kaggle, tmp_path, capsys
):
    kaggle.cpu_sessions = 2
    kaggle.outcomes[SHRINKS[1]] = [Outcome(is_finished=False, files={"shrink.csv": "row"})]
    run(built_small, tmp_path, "--submit")
    pushes = kaggle.pushes()
    assert sorted(pushes[:4]) == sorted([*SHRINKS, SHRINKS[1]])  # one took two sessions
    assert pushes[4:] == [RECOGNITION, *PARTS, MERGE]
    assert (kaggle.most_cpus, kaggle.most_gpus) == (2, 2)
    assert capsys.readouterr().err.count("no session free") == 1
    ends = [one.ended for one in kaggle.sessions[:4]]
    assert all(one.started > max(ends) for one in kaggle.sessions[4:])
    assert kaggle.sessions[4].request["kernelDataSources"] == [
        *(f"someone/{slug}" for slug in SHRINKS), f"someone/{RECOGNITION}",
    ]  # fmt: skip
    assert len(kaggle.submissions) == 2


@needs_client
def test_one_in_front_is_pushed_again_by_its_name(built_small, built, kaggle):
    command("push", built_small, "shrink-2")
    assert kaggle.pushes() == [SHRINKS[2]]
    told = refusal("push", built, "shrink-2")
    assert told.startswith("shrink-2: not in ") and "expected one of recognition, part-0" in told


# ------------------------------------------------------------------------- the longer chain


GALLERY = [f"landmark-gallery-part-{part}" for part in range(2)]
VOTE = "landmark-vote"


@pytest.fixture(scope="module")
def built_strong(tmp_path_factory):
    """Kernels of the longer chain, built once."""
    folder = tmp_path_factory.mktemp("built-strong")
    build(folder, "--recipe", "strong", "--nearest-args", "--vote sum")
    return folder


def test_the_chain_of_2019_is_the_same_whether_its_recipe_is_named_or_not(built, tmp_path):
    build(tmp_path, "--recipe", "2019")
    assert files_of(tmp_path) == files_of(built)


def test_in_the_longer_chain_train_images_name_landmarks(built_strong):
    assert list(chain.read_built(built_strong)) == [
        *("recognition", "gallery-0", "gallery-1", "vote"),
        *(f"part-{part}" for part in range(6)),
        "merge",
    ]
    of = {name: facts_of(built_strong, name) for name in chain.read_built(built_strong)}
    assert of["recognition"]["arguments"] == ["--recipe", "strong", "--max-hours", "11"]
    same, time = ["--batch-size", "64"], ["--max-hours", "11"]
    assert of["gallery-1"]["arguments"] == [
        *("--part", "1", "--parts", "2"), *same, *time, "--vote", "sum",
    ]  # fmt: skip
    assert of["vote"]["arguments"] == ["vote", "--parts", "2", *same, "--vote", "sum"]
    assert of["part-3"]["arguments"] == [
        *("--part", "3", "--parts", "6", "--names", "both"), *same, *time
    ]  # fmt: skip
    assert of["merge"]["arguments"] == ["merge"]
    assert {of[name]["entry"] for name in ("gallery-0", "vote")} == {"nearest"}
    assert of["gallery-1"]["result"] == "gallery-part-1-of-2.npz"
    assert of["vote"]["result"] == of["recognition"]["result"] == "recognition_submission.csv"


def test_each_kernel_of_the_longer_chain_mounts_what_it_reads(built_strong):
    page = {name: metadata_of(built_strong, name) for name in chain.read_built(built_strong)}
    sources = {
        name: [one.removeprefix("someone/") for one in page[name]["kernel_sources"]]
        for name in page
    }
    assert sources["recognition"] == [RECOGNITION]
    assert sources["gallery-1"] == [RECOGNITION, GALLERY[1]]
    assert sources["vote"] == [RECOGNITION, *GALLERY, VOTE]
    assert sources["part-3"] == [RECOGNITION, *GALLERY, PARTS[3]]
    assert sources["merge"] == PARTS
    assert [name for name in page if not page[name]["enable_gpu"]] == ["vote", "merge"]


def test_non_landmarks_may_lie_in_a_data_set_that_is_mounted_there_alone(tmp_path):
    path = "/kaggle/input/datasets/someone/nothing/ids.csv"
    build(tmp_path, "--recipe", "strong", "--nearest-args", f"--non-landmarks {path}")
    assert facts_of(tmp_path, "vote")["arguments"][-1] == path


def test_all_that_read_queries_describe_as_recognition_does(tmp_path):
    """Other test descriptors than the gallery's would be refused after hours."""
    build(tmp_path, "--recipe", "frozen", "--recognition-args", "--flipped-too")
    for name in ("gallery-0", "vote", "part-5"):
        kernel, facts = chain.read_built(tmp_path)[name].kernel, facts_of(tmp_path, name)
        args = packing.read_settings(kernel.entry, facts["arguments"])
        assert (args.batch_size, args.flipped_too) == (128, True)


def test_the_longer_chain_behind_small_pictures_reads_the_labels_that_it_trains_on(tmp_path):
    build(tmp_path, "--recipe", "strong", "--shrink", "256")
    names = [f"shrink-{part}" for part in range(5)]  # as many as clean pictures need
    built = chain.read_built(tmp_path)
    assert list(built)[:6] == [*names, "recognition"]
    assert "--labels clean" in " ".join(facts_of(tmp_path, "shrink-4")["arguments"])
    for name in ("recognition", "gallery-0", "vote", "part-0", "merge"):
        assert built[name].kernel.inputs[:5] == tuple(names)
        assert "--source inputs" in " ".join(facts_of(tmp_path, name)["arguments"])
    build(tmp_path, "--recipe", "strong", "--shrink", "256", "--nearest-args", "--labels full")
    assert len(chain.read_built(tmp_path)) == 11 + 9


@needs_client
def test_the_longer_chain_runs_in_order_and_the_vote_is_submitted(built_strong, kaggle, tmp_path):
    head, voted = (f"id,landmarks\n{IDS[0]},{name} 0.5\n{IDS[1]},\n" for name in (17, 23))
    result = "recognition_submission.csv"
    kaggle.outcomes |= {
        RECOGNITION: [Outcome(files={result: head, "queries.npz": "arrays"})],
        GALLERY[1]: [Outcome(is_finished=False), Outcome()],
        VOTE: [
            Outcome(is_finished=False, files={"penalised-part-0-of-2.npz": "arrays"}),
            Outcome(files={result: voted, "names.npz": "arrays"}),
        ],
    }
    run(built_strong, tmp_path, "--submit")
    pushes = kaggle.pushes()
    assert pushes[:4] == [RECOGNITION, *GALLERY, GALLERY[1]]
    assert sorted(pushes[4:]) == sorted([VOTE, VOTE, *PARTS, MERGE])
    ended = {one.slug: one.ended for one in kaggle.sessions}
    for one in kaggle.sessions:
        if one.slug in (VOTE, *PARTS):
            assert one.started > max(ended[slug] for slug in (RECOGNITION, *GALLERY))
    (merged,) = (one for one in kaggle.sessions if one.slug == MERGE)
    assert merged.started > max(ended[slug] for slug in PARTS)
    assert kaggle.most_gpus == 2
    assert (tmp_path / "recognition" / result).read_text() == head  # stays available
    assert (tmp_path / "vote" / result).read_text() == voted
    assert [content.decode() for _, _, content in kaggle.submissions] == [
        voted, RESULTS["retrieval_submission.csv"],
    ]  # fmt: skip


@needs_client
def test_a_vote_that_is_older_than_the_gallery_is_made_again(built_strong, kaggle):
    finish(kaggle, built_strong, *("recognition", "gallery-0", "gallery-1", "vote", "gallery-1"))
    command("push", built_strong)
    assert kaggle.pushes()[5] == VOTE and kaggle.pushes().count(VOTE) == 2
    assert kaggle.pushes().count(GALLERY[0]) == 1


@needs_client
def test_one_of_the_gallery_is_pushed_again_by_its_name(built_strong, built, kaggle):
    assert "its input recognition is not finished" in refusal("push", built_strong, "gallery-1")
    assert refusal("push", built, "vote").startswith("vote: not in ")


# ----------------------------------------------------------------------------- the whole way


@needs_client
def test_run_does_it_all_and_never_more_than_two_gpu_sessions(built, kaggle, tmp_path, capsys):
    kaggle.outcomes[RECOGNITION] = [
        Outcome(is_finished=False, files=UNFINISHED),
        Outcome(files=UNFINISHED | {"model.keras": "network", "queries.npz": "arrays"}),
    ]
    output = tmp_path / "collected"
    run(built, output, "--submit")
    pushes = kaggle.pushes()
    assert pushes == [RECOGNITION, RECOGNITION, *PARTS, MERGE]
    assert (kaggle.most_gpus, kaggle.num_refused) == (2, 0)
    first, second = kaggle.sessions[0].request, kaggle.sessions[1].request
    assert first["text"] == (built / "recognition" / f"{RECOGNITION}.py").read_text()
    assert first["slug"] == f"someone/{RECOGNITION}" and first["machineShape"] == "NvidiaTeslaT4"
    assert first["isPrivate"] and first["enableGpu"] and first["enableInternet"]
    assert second["kernelDataSources"] == [f"someone/{RECOGNITION}"]
    assert [one.started > kaggle.sessions[1].ended for one in kaggle.sessions[2:]] == [True] * 7
    assert kaggle.sessions[-1].started > max(one.ended for one in kaggle.sessions[:-1])
    collected = files_of(output)
    assert sorted(path for path in collected if not path.endswith("kernel.json")) == [
        "merge/retrieval_submission.csv",
        "recognition/history.csv",
        "recognition/model.keras",
        "recognition/recognition_submission.csv",
    ]
    assert [(name, content.decode()) for name, _, content in kaggle.submissions] == [
        ("landmark-recognition-2019", RESULTS["recognition_submission.csv"]),
        ("landmark-retrieval-2019", RESULTS["retrieval_submission.csv"]),
    ]
    out = capsys.readouterr().out
    assert f"{output}/merge/retrieval_submission.csv\n" in out
    assert "landmark-retrieval-2019: " in out


@needs_client
def test_each_question_reaches_kaggle_by_the_real_client_in_a_process(built, mock, tmp_path):
    """One of each kind; a client's start takes a second, so that the others call its code here."""
    one = chain.read_built(built)["recognition"]
    assert chain.push(one, chain.State("absent"))
    while (state := chain.look(one)).is_active:
        pass
    assert state.is_finished and state.build == one.build
    chain.collect({"recognition": one}, tmp_path)
    path = tmp_path / "recognition" / "recognition_submission.csv"
    assert path.read_text() == RESULTS["recognition_submission.csv"]
    chain.submit({"recognition": one}, tmp_path, ["recognition"])
    assert [name for name, _, _ in mock.submissions] == ["landmark-recognition-2019"]


@needs_client
def test_everything_finished_is_left_alone_and_submitted_only_once(built, kaggle, tmp_path, capsys):
    finish(kaggle, built, *packing.KERNELS)
    run(built, tmp_path, "--submit")
    num_pushes, downloads = len(kaggle.pushes()), kaggle.calls.count("ListKernelSessionOutput")
    kept = (tmp_path / "merge" / "retrieval_submission.csv").stat().st_mtime_ns
    capsys.readouterr()
    run(built, tmp_path, "--submit")
    assert len(kaggle.pushes()) == num_pushes == 8 and downloads
    assert (tmp_path / "merge" / "retrieval_submission.csv").stat().st_mtime_ns == kept
    assert len(kaggle.submissions) == 2
    assert "is submitted already" in capsys.readouterr().out


@needs_client
def test_a_run_that_was_stopped_in_the_middle_goes_on_from_what_kaggle_says(
    built, kaggle, tmp_path, monkeypatch
):
    """Stopped when two parts run; they go on meanwhile, and none is pushed twice."""
    sleep = chain.time.sleep

    def interrupt(seconds):
        if len(kaggle.pushes()) == 3:
            raise KeyboardInterrupt
        sleep(seconds)

    with monkeypatch.context() as patch:
        patch.setattr(chain.time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(built, tmp_path)
    assert kaggle.pushes() == [RECOGNITION, *PARTS[:2]]
    run(built, tmp_path)
    assert kaggle.pushes() == [RECOGNITION, *PARTS, MERGE]
    assert (kaggle.most_gpus, kaggle.num_refused) == (2, 0)


@needs_client
def test_push_waits_in_between_but_not_for_the_last(built, kaggle):
    command("push", built)
    assert kaggle.pushes() == [RECOGNITION, *PARTS, MERGE]
    assert kaggle.sessions[-1].ended is None


@needs_client
def test_status_shows_a_table(built, kaggle, capsys):
    kaggle.outcomes[RECOGNITION] = [Outcome(is_finished=False, files=UNFINISHED)]
    chain.push(chain.read_built(built)["recognition"], chain.State("absent"))
    capsys.readouterr()
    command("status", built)
    command("status", built)
    command("status", built)
    lines = capsys.readouterr().out.splitlines()
    name = facts_of(built, "recognition")["build"]
    assert lines[0].split() == ["kernel", "status", "build", "outputs"]
    assert lines[1].split() == ["recognition", "QUEUED"]
    assert lines[10].split() == ["recognition", "RUNNING"]
    assert lines[19].split() == [
        *("recognition", "UNFINISHED", name, "*"),
        *["history.csv", "0.0", "MB"],
    ]
    assert lines[26].split() == ["merge", "absent"]


# --------------------------------------------------------------------------- what can go wrong


def finish(kaggle, built, *names):
    """Lets kernels be finished already."""
    for name in names:
        one = chain.read_built(built)[name]
        assert chain.push(one, chain.State("absent"))
        session = kaggle.sessions[-1]
        session.looks, session.ended = 9, next(kaggle.clock)


@needs_client
def test_a_failed_part_stops_the_run_with_its_reason_and_is_pushed_again_by_name(
    built, kaggle, tmp_path
):
    finish(kaggle, built, "recognition")
    log = "kernel part-1, build x\nerror: a.tar: gone; expected a file; check it\n"
    kaggle.outcomes[PARTS[1]] = [Outcome("ERROR", log=log)]
    told = refusal("run", built)
    assert told.startswith(f"someone/{PARTS[1]}: ERROR (a.tar: gone; expected a file; check it)")
    assert told.endswith("push it again with: python kernels.py push part-1")
    assert refusal("run", built).startswith(f"someone/{PARTS[1]}: ERROR")  # not again by itself
    command("push", built, "part-1")
    run(built, tmp_path)
    assert kaggle.pushes().count(PARTS[1]) == 2 and kaggle.pushes()[-1] == MERGE


@needs_client
def test_what_failed_is_pushed_by_itself_once_it_is_mended_and_built_anew(built, kaggle, tmp_path):
    build(tmp_path / "faulty", "--recognition-args", "--batch-size 4096")
    name = facts_of(tmp_path / "faulty", "recognition")["build"]
    log = f"kernel recognition, source x, build {name}: recognition.py\nboom\n"
    kaggle.outcomes[RECOGNITION] = [Outcome("ERROR", log=log)]
    assert "ERROR (it failed)" in refusal("push", tmp_path / "faulty")
    command("push", built)
    assert kaggle.pushes() == [RECOGNITION, RECOGNITION, *PARTS, MERGE]


@needs_client
def test_a_push_that_kaggle_refuses_is_one_line_with_its_words(built, kaggle):
    kaggle.faults["SaveKernel"] = [{"error": "Weekly GPU quota is exhausted."}]
    told = refusal("run", built)
    assert "Kernel push error: Weekly GPU quota is exhausted." in told
    assert kaggle.pushes() == []


@needs_client
def test_a_dropped_source_is_an_error_but_for_the_first_push_of_recognition(built, kaggle):
    kaggle.outcomes[RECOGNITION] = [Outcome(is_finished=False, files=UNFINISHED)]
    kaggle.dropped.add(f"someone/{RECOGNITION}")
    told = refusal("run", built)
    assert (
        f"not valid kernel sources and could not be added to the kernel: ['someone/{RECOGNITION}']"
        in told
    )
    assert kaggle.pushes() == [RECOGNITION, RECOGNITION]  # the first was accepted


@needs_client
def test_a_part_without_the_model_is_an_error(built, kaggle):
    finish(kaggle, built, "recognition")
    kaggle.dropped.add(f"someone/{RECOGNITION}")
    assert "not valid kernel sources" in refusal("run", built)
    assert kaggle.pushes() == [RECOGNITION, PARTS[0]]


@needs_client
def test_gpu_sessions_of_somebody_else_are_waited_for(built, kaggle, capsys):
    kaggle.foreign_gpus = 3
    command("push", built)
    assert kaggle.pushes() == [RECOGNITION, *PARTS, MERGE]
    assert capsys.readouterr().err.count("no session free") == 1


@needs_client
def test_an_answer_that_tells_of_the_session_before_starts_no_third_session(built, kaggle):
    kaggle.outcomes[RECOGNITION] = [
        Outcome(is_finished=False, files=UNFINISHED, stale_looks=2),
        Outcome(stale_looks=3),
    ]
    command("push", built)
    assert kaggle.pushes() == [RECOGNITION, RECOGNITION, *PARTS, MERGE]


@needs_client
def test_training_that_never_ends_is_given_up(built, kaggle):
    kaggle.outcomes[RECOGNITION] = [Outcome(is_finished=False) for _ in range(9)]
    told = refusal("run", built)
    assert "not finished after 4 sessions" in told
    assert kaggle.pushes() == [RECOGNITION] * 4


@needs_client
def test_a_part_that_stopped_in_time_is_continued_but_a_merge_without_result_is_an_error(
    built, kaggle
):
    finish(kaggle, built, "recognition")
    kaggle.outcomes |= {PARTS[1]: [Outcome(is_finished=False)], MERGE: [Outcome(is_finished=False)]}
    assert "it stopped without retrieval_submission.csv" in refusal("run", built)
    assert [kaggle.pushes().count(slug) for slug in (*PARTS, MERGE)] == [1, 2, 1, 1, 1, 1, 1]


@needs_client
def test_a_session_that_failed_but_kept_its_work_is_continued_and_the_reason_told(
    built, kaggle, capsys
):
    finish(kaggle, built, "recognition")
    failed = Outcome(is_finished=False, error="shard 7: HTTP 503")
    kaggle.outcomes |= {PARTS[1]: [failed], PARTS[2]: [failed] * 4}
    assert "not finished after 4 sessions, the last: shard 7: HTTP 503; " in refusal("run", built)
    told = capsys.readouterr().err
    assert told.count("part-1: continued after a session that failed: shard 7: HTTP 503\n") == 1


@needs_client
def test_a_kernel_of_the_same_name_that_is_not_ours_is_not_overwritten(built, kaggle):
    kaggle.outcomes[RECOGNITION] = [Outcome(has_report=False, files={"kernel.json": "[1]"})]
    finish(kaggle, built, "recognition")
    assert "its output has no kernel.json" in refusal("run", built)
    assert len(kaggle.pushes()) == 1


@needs_client
def test_what_another_build_finished_is_neither_redone_nor_used_without_a_word(
    built, kaggle, tmp_path
):
    finish(kaggle, built, "recognition")
    build(tmp_path, "--recognition-args", "--labels clean")
    assert "finished by build" in refusal("push", tmp_path)
    command("push", tmp_path, "--any-build")
    assert kaggle.pushes() == [RECOGNITION, *PARTS, MERGE]


@needs_client
def test_parts_that_are_older_than_the_model_are_searched_again(built, kaggle):
    finish(kaggle, built, "recognition", "part-0", "recognition")
    command("push", built)
    assert kaggle.pushes() == [*(RECOGNITION, PARTS[0], RECOGNITION), *PARTS, MERGE]


@needs_client
def test_push_by_name_asks_for_finished_inputs_and_no_running_session(built, kaggle):
    assert "its input recognition is not finished" in refusal("push", built, "part-2")
    command("push", built, "recognition")
    assert "its session is QUEUED" in refusal("push", built, "recognition")
    assert kaggle.pushes() == [RECOGNITION]


@needs_client
@pytest.mark.parametrize("fault", [503, "drop"])
def test_a_failing_network_is_tried_again(built, kaggle, capsys, fault):
    kaggle.faults |= {
        "GetKernelSessionStatus": [fault, fault], "ListKernelSessionOutput": [fault],
        "SaveKernel": [fault],
    }  # fmt: skip
    command("push", built)
    assert kaggle.pushes() == [RECOGNITION, *PARTS, MERGE]
    assert "next try in" in capsys.readouterr().err


@needs_client
def test_a_network_that_stays_away_is_one_line(built, kaggle):
    kaggle.faults["GetKernelSessionStatus"] = [503] * 9
    told = refusal("run", built)
    assert told.startswith("kaggle kernels status: 503 Server Error")
    assert told.endswith("run the command again when the network is back")


@needs_client
def test_a_push_whose_answer_is_lost_is_not_repeated(built, kaggle):
    kaggle.outcomes[RECOGNITION] = [Outcome(looks=5)]
    kaggle.faults["SaveKernel"] = ["lose"]
    command("push", built)
    assert kaggle.pushes() == [RECOGNITION, *PARTS, MERGE]


# -------------------------------------------------------------------------- collect and submit


@needs_client
def test_collect_repeats_a_download_that_came_incomplete(built, kaggle, tmp_path, capsys):
    finish(kaggle, built, "recognition", "part-0")
    kaggle.faults["recognition_submission.csv"] = [503]
    capsys.readouterr()
    command("collect", built, "recognition", "part-0", "--output", str(tmp_path))
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/recognition/recognition_submission.csv",
        f"{tmp_path}/part-0/part-0-of-6.npz",
    ]
    path = tmp_path / "recognition" / "recognition_submission.csv"
    assert path.read_text() == RESULTS["recognition_submission.csv"]


@needs_client
def test_collect_says_what_is_not_there_yet(built, kaggle, tmp_path):
    told = refusal("collect", built, "--output", str(tmp_path))
    assert told.startswith(f"someone/{RECOGNITION}: no output (absent)")


@needs_client
def test_there_is_nothing_to_collect_of_a_failed_session(built, kaggle, tmp_path):
    name = facts_of(built, "recognition")["build"]
    log = f"kernel recognition, source x, build {name}: recognition.py\nerror: a; b; c\n"
    kaggle.outcomes[RECOGNITION] = [Outcome("ERROR", log=log)]
    finish(kaggle, built, "recognition")
    told = refusal("collect", built, "--output", str(tmp_path))
    assert told.startswith(f"someone/{RECOGNITION}: no output (ERROR)")


def submission_files(folder, output):
    for challenge, names in chain.find_submitters(chain.read_built(folder)).items():
        for name in names:
            (output / name).mkdir()
            path = output / name / chain.CHALLENGES[challenge][0]
            path.write_text(RESULTS[path.name])


@needs_client
@pytest.mark.parametrize(
    ("kernel", "name", "content", "told"),
    [
        ("recognition", "recognition_submission.csv", f"id,landmarks\n{IDS[0]},x y\n", "has 'x y'"),
        ("merge", "retrieval_submission.csv", f"id,images\n{IDS[0]},\n", "1 missing ids"),
        ("merge", "retrieval_submission.csv", "busy", "no column 'id'"),
    ],
)
def test_nothing_is_submitted_unless_both_files_are_right(
    built, kaggle, tmp_path, kernel, name, content, told
):
    submission_files(built, tmp_path)
    (tmp_path / kernel / name).write_text(content)
    with pytest.raises(ExpectedError, match=re.escape(told)):
        command("submit", built, "--output", str(tmp_path))
    assert kaggle.submissions == []


@needs_client
def test_one_challenge_alone_can_be_submitted(built, kaggle, tmp_path):
    submission_files(built, tmp_path)
    command("submit", built, "retrieval", "--output", str(tmp_path))
    ((competition, words, content),) = kaggle.submissions
    assert competition == "landmark-retrieval-2019"
    assert re.fullmatch(r"landmarks [0-9a-f]{8}", words)
    assert content.decode() == RESULTS["retrieval_submission.csv"]


@needs_client
def test_a_refused_submission_is_one_line(built, kaggle, tmp_path):
    submission_files(built, tmp_path)
    kaggle.faults["CreateSubmission"] = [{"message": "Daily limit reached"}]
    with pytest.raises(ExpectedError, match="Daily limit reached; expected Kaggle to take"):
        command("submit", built, "--output", str(tmp_path))


# ------------------------------------------------------------------------------ without a client


def test_a_missing_client_is_one_line(built, monkeypatch, tmp_path):
    monkeypatch.setattr(client.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refusal("status", built) == (
        "no command `kaggle`; expected Kaggle's official client; install it with: "
        "pip install kaggle six"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("ModuleNotFoundError: No module named 'six'", "pip install kaggle six"),
        ("Authentication required to call the Kaggle API.", "log in with: kaggle auth login"),
        ("kaggle: error: unrecognized arguments: --file-pattern", "pip install --upgrade kaggle"),
    ],
)
def test_a_client_that_cannot_work_is_one_line(built, monkeypatch, tmp_path, words, told):
    command = tmp_path / "kaggle"
    command.write_text(f'#!/bin/sh\necho "{words}" >&2\nexit 1\n')
    command.chmod(0o755)
    monkeypatch.setattr(client.sys, "executable", str(tmp_path / "python"))
    assert refusal("status", built).endswith(told)


def test_kernels_that_are_not_built_are_one_line(tmp_path):
    assert refusal("status", tmp_path).endswith("python kernels.py build --user NAME")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["push", "part-9"], "'part-9'; expected one of recognition, part-0"),
        (["submit", "both"], "'both'; expected one of recognition, retrieval"),
        (["run", "--recognition-args", "--labels clean"], "options of a build go with --user"),
        (["run", "--shrink", "256"], "options of a build go with --user"),
        (["run", "--recipe", "strong"], "options of a build go with --user"),
        (["build", "--user", "a", "--nearest-args", "--vote sum"], "goes with --recipe strong"),
        (["build", "--user", "a", "--recipe", "weak"], "'weak'"),
        (["build", "--user", "a", "--shrink-kernels", "2"], "go with --shrink N"),
        (["build", "--user", "a", "--shrink", "8"], "'8'; expected a number from 32"),
        (["build", "--user", "a", "--max-hours", "12"], "12.0; expected more than 0, below 12"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(capsys, arguments, told):
    with pytest.raises(SystemExit) as caught:
        kernels.main(arguments)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


DOCUMENTATION = (ROOT / "docs" / "kaggle.md").read_text(encoding="utf-8").replace("\\\n", "")


@pytest.mark.parametrize(
    "line", re.findall("python kernels.py (.*?) *(?:#.*|`.*)?$", DOCUMENTATION, re.M)
)
def test_each_command_of_the_documentation_parses(line):
    args = kernels.parse_command_line(shlex.split(line))
    if args.command in ("build", "run"):
        for entry in packing.ENTRIES:
            packing.parse_arguments(entry, getattr(args, f"{entry}_args"))
