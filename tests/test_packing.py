"""Tests of the one script that a kernel is, and of the options that are packed with it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from built_kernels import MERGE, RECOGNITION, USER, build, facts_of, files_of
from checks import one_line

import kernels
from on_kaggle import packing, plan
from runs.command_line import explain
from utils import ExpectedError

ROOT = Path(kernels.__file__).parent


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
        for name in plan.KERNELS
    }
    recognition, part, merge = metadata["recognition"], metadata["part-3"], metadata["merge"]
    for name, page in metadata.items():
        assert page["id"] == f"someone/{page['title'].lower().replace(' ', '-')}"
        assert len(page["title"]) >= 5 and (built / name / page["code_file"]).is_file()
        assert (page["language"], page["kernel_type"]) == ("python", "script")
        assert page["is_private"] is True and page["enable_internet"] is True
        assert page["dataset_sources"] == page["competition_sources"] == []
        assert page["model_sources"] == []
        assert page["docker_image_pinning_type"] == "original"
        assert page["enable_gpu"] is (name != "merge")
        assert page.get("machine_shape") == (None if name == "merge" else "NvidiaTeslaT4")
    assert recognition["kernel_sources"] == [recognition["id"]]
    assert part["kernel_sources"] == [recognition["id"], part["id"]]
    assert merge["kernel_sources"] == [metadata[f"part-{k}"]["id"] for k in range(6)]


def test_a_tpu_is_for_recognition_alone(tmp_path):
    build(tmp_path, "--tpu", "--recipe", "strong", "--shrink", "256")
    pages = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("*/*.json")}
    wanted = {name for name, page in pages.items() if page.get("enable_tpu")}
    assert wanted == {"recognition"}
    assert pages["recognition"]["machine_shape"] == "TpuV5E8"
    assert pages["recognition"]["enable_gpu"] is False
    assert pages["part-0"]["machine_shape"] == "NvidiaTeslaT4"
    assert "device" not in facts_of(tmp_path, "part-0")


def test_each_kernel_does_its_share(built, tmp_path):
    assert facts_of(built, "recognition")["arguments"] == ["--max-hours", "11"]
    assert facts_of(built, "part-3")["arguments"] == [
        *("--part", "3", "--parts", "6", "--max-hours", "11")
    ]  # fmt: skip
    assert facts_of(built, "merge")["arguments"] == ["merge"]
    build(
        tmp_path, "--recognition-args", "--labels clean --image-size 224", "--max-hours", "8.5",
        "--retrieval-args", "--rerank-divisor 2", "--dataset", "a/data", "--no-internet",
        "--model-source", "keras/dinov2/keras/dinov2_base/1",
    )  # fmt: skip
    assert facts_of(tmp_path, "recognition")["arguments"] == [
        *("--max-hours", "8.5", "--labels", "clean", "--image-size", "224")
    ]
    assert facts_of(tmp_path, "merge")["arguments"] == ["merge", "--rerank-divisor", "2"]
    page = json.loads((tmp_path / "merge" / "kernel-metadata.json").read_text())
    assert page["dataset_sources"] == ["a/data"] and page["enable_internet"] is False
    assert page["model_sources"] == ["keras/dinov2/keras/dinov2_base/1"]


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


DESCRIBE = {"descriptors/describe.py"}
NEEDED = {  # script -> what it alone or with others needs, in turn
    "recognition": {"training/loop.py", "training/frozen.py"} | DESCRIBE,
    "nearest": {"search/voting.py", "search/gallery_parts.py", "search/parts.py"} | DESCRIBE,
    "retrieval": {"search/merging.py", "search/naming.py", "search/parts.py"} | DESCRIBE,
    "shrink": {"shrinking/small_shards.py"},
}


@pytest.mark.parametrize("entry", NEEDED)
def test_all_modules_that_a_script_needs_are_packed_and_no_other_script(entry):
    modules = packing.find_modules(entry).keys()
    assert (
        NEEDED[entry] | {f"{entry}.py", "runs/command_line.py", "utils.py", "runs/kernel.py"}
        <= modules
    )
    scripts = {f"{name}.py" for name in (*packing.ENTRIES, "kernels")}
    assert modules & scripts == {f"{entry}.py"}
    assert not {"on_kaggle/packing.py", "demo/world.py"} & modules
    others = {"training/loop.py", "shrinking/small_shards.py", "search/voting.py"}
    assert not (others - NEEDED[entry]) & modules
    assert {"demo/__init__.py", "demo/art.py"} <= packing.find_modules(entry, True).keys()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--recognition-args", "--clan"],
            "recognition.py: no option --clan (did you mean --scale?); expected",
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
        (["--retrieval-args", "--scheduler local:2"], "--scheduler needs other machines"),
        (["--recognition-args", "--machines=a:1,b:1"], "--machines=a:1,b:1 needs other machines"),
    ],
)
def test_wrong_arguments_for_a_kernel_are_refused_before_anything_is_written(
    tmp_path, arguments, told
):
    with pytest.raises(ExpectedError) as caught:
        kernels.main(["build", "--user", USER, "--kernels", str(tmp_path / "built"), *arguments])
    message = one_line(caught.value)
    assert told in message
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

    def make(body, *options):
        source = f"import sys\nimport utils\ndef main(argv):\n{body}".encode()
        modules = packing.find_modules("recognition") | {"recognition.py": source}
        monkeypatch.setattr(packing, "find_modules", lambda entry, with_demo: modules)
        build(tmp_path / "built", *options)
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


def test_a_kernel_that_fails_with_work_to_go_on_from_keeps_it_and_reports_the_error(trivial):
    done, working = trivial(
        "    import os\n    os.mkdir('checkpoint')\n"
        "    open('checkpoint/training.npz', 'w').write('half')\n"
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


@pytest.mark.parametrize("device", ["tpu", "cpu"])
def test_a_kernel_that_asked_for_a_tpu_runs_on_one_or_not_at_all(
    trivial, monkeypatch, device, tmp_path
):
    """JAX is another module here; Kaggle is said to give the image without a TPU now and then."""
    (tmp_path / "jax.py").write_text(f"def default_backend():\n    return {device!r}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done, working = trivial(
        "    import os\n    print(os.environ['KERAS_BACKEND'], argv)\n", "--tpu"
    )
    if device == "tpu":
        assert done.stdout == "jax ['--max-hours', '8']\n"
        return
    assert (done.returncode, done.stdout, files_of(working)) == (1, "", {})
    assert done.stderr.splitlines()[1:] == [
        "error: no TPU here (JAX: cpu); expected the TPU that this kernel asked for; choose it on "
        "the kernel's page, under Settings, Accelerator, and save a version there"
    ]


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
