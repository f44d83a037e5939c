"""Tests of the Kaggle side: the real `kaggle` client against a stand-in for Kaggle on loopback."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from built_kernels import (
    GALLERY,
    MERGE,
    PARTS,
    RECOGNITION,
    SHRINKS,
    VOTE,
    build,
    facts_of,
    files_of,
)
from checks import one_line
from kaggle_mock import IDS, RESULTS, KaggleMock, Outcome

import kernels
from on_kaggle import chain, client, packing, plan, results, states
from runs.folders import hold_folder
from utils import ExpectedError

ROOT = Path(kernels.__file__).parent
UNFINISHED = {"checkpoint/training.npz": "weights", "history.csv": "mini_epoch\n1\n"}


MISSING = [name for name in ("kaggle", "six") if importlib.util.find_spec(name) is None]
needs_client = pytest.mark.skipif(bool(MISSING), reason=f"pip install {' '.join(MISSING)}")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(client, "RETRY_PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(chain, "POLL_S", 0.001)


@pytest.fixture
def kaggle(monkeypatch, tmp_path):
    """Kaggle on loopback, as the real client sees it."""
    home = tmp_path / "home"
    home.mkdir()
    with KaggleMock() as server:
        for name, value in server.environment(home).items():
            monkeypatch.setenv(name, value)
        for name in ("KAGGLE_API_TOKEN", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield server


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
def test_everything_finished_is_left_alone_and_submitted_only_once(built, kaggle, tmp_path, capsys):
    finish(kaggle, built, *plan.KERNELS)
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
    chain.push(states.read_built(built)["recognition"], states.State("absent"))
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


@needs_client
def test_the_longer_chain_runs_in_order_and_the_vote_is_submitted(built_strong, kaggle, tmp_path):
    head, voted = (f"id,landmarks\n{IDS[0]},{name} 0.5\n{IDS[1]},\n" for name in (17, 23))
    result = "recognition_submission.csv"
    kaggle.outcomes |= {
        RECOGNITION: [Outcome(files={result: head, "queries.npz": "arrays"})],
        GALLERY[1]: [Outcome(is_finished=False), Outcome()],
        VOTE: [Outcome(is_finished=False), Outcome(files={result: voted, "names.npz": "arrays"})],
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


# --------------------------------------------------------------------------- what can go wrong


def finish(kaggle, built, *names):
    """Lets kernels be finished already."""
    for name in names:
        one = states.read_built(built)[name]
        assert chain.push(one, states.State("absent"))
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
    assert f"pushed without someone/{RECOGNITION}, not valid sources to Kaggle; " in told
    assert kaggle.pushes() == [RECOGNITION, RECOGNITION]  # the first was accepted


@needs_client
def test_a_part_without_the_model_is_an_error(built, kaggle):
    finish(kaggle, built, "recognition")
    kaggle.dropped.add(f"someone/{RECOGNITION}")
    assert f"pushed without someone/{RECOGNITION}, not valid" in refusal("run", built)
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
def test_a_part_that_began_before_the_model_was_finished_is_searched_again(built, kaggle):
    finish(kaggle, built, "recognition", "part-0")
    kaggle.sessions[0].ended = kaggle.sessions[1].started + 0.5
    command("push", built)
    assert kaggle.pushes() == [RECOGNITION, PARTS[0], *PARTS, MERGE]


@needs_client
def test_two_runs_at_once_do_not_push_everything_twice(built, kaggle):
    with hold_folder(built, "kernels"):
        assert " in use by another run; " in refusal("run", built)
    assert kaggle.pushes() == []


def test_a_build_that_was_interrupted_is_none(built_strong, tmp_path, monkeypatch):
    """The kernels of two builds would be pushed as one chain."""
    folder, write = tmp_path / "built", packing.atomic_write
    shutil.copytree(built_strong, folder)

    def interrupt(path, setting):
        if path.parent.name == "part-0":
            raise KeyboardInterrupt
        return write(path, setting)

    monkeypatch.setattr(packing, "atomic_write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(folder)
    assert refusal("run", folder).endswith("python kernels.py build --user NAME")


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


# -------------------------------------------------------------------- what comes from a kernel


def leave_report(kaggle, built, changes):
    """Lets recognition be finished with a kernel.json that somebody changed."""
    report = {
        "build": facts_of(built, "recognition")["build"], "started": 1.0, "ended": 2.0,
        "finished": True, "error": "", "files": {},
    } | changes  # fmt: skip
    files = {"kernel.json": json.dumps(report), "a.csv": "id\n"}
    kaggle.outcomes[RECOGNITION] = [Outcome(has_report=False, files=files)]
    finish(kaggle, built, "recognition")


@needs_client
@pytest.mark.parametrize(
    "changes",
    [
        {"files": []},
        {"files": {"a.csv": "3"}},
        {"started": "1"},
        {"finished": "no"},
        {"error": None},
        {"build": "\x1b[2J"},
    ],
)
def test_a_report_that_is_not_as_kernels_leave_it_is_none(built, kaggle, tmp_path, capsys, changes):
    leave_report(kaggle, built, changes)
    assert "its output has no kernel.json" in refusal("push", built)
    assert "no output (COMPLETE); " in refusal("collect", built, "--output", str(tmp_path))
    capsys.readouterr()
    command("status", built)
    assert capsys.readouterr().out.splitlines()[1].split() == ["recognition", "COMPLETE"]


@needs_client
@pytest.mark.parametrize("name", ["../../a.csv", "..", ".", "", "x/../../../a.csv", "\x1b[2J"])
def test_names_that_lead_out_of_the_folder_are_refused(built, kaggle, tmp_path, name):
    """Of files that are there, in the size that is told."""
    (tmp_path / "a.csv").write_text("old")
    leave_report(kaggle, built, {"files": {name: 3}})
    told = refusal("collect", built, "recognition", "--output", str(tmp_path / "output"))
    assert told.startswith(f"someone/{RECOGNITION}: its kernel.json names {name!r}; ")
    assert told.isprintable()
    assert files_of(tmp_path) == {"a.csv": b"old"}


@needs_client
def test_a_report_among_its_own_files_is_collected_once(built, kaggle, tmp_path):
    leave_report(kaggle, built, {"files": {"a.csv": 3, "kernel.json": 1}})
    command("collect", built, "recognition", "--output", str(tmp_path))
    assert (tmp_path / "recognition" / "a.csv").read_text() == "id\n"


@needs_client
def test_a_collected_file_that_cannot_be_put_in_place_is_one_line(built, kaggle, tmp_path):
    leave_report(kaggle, built, {"files": {"a.csv": 3}})
    (tmp_path / "recognition" / "a.csv").mkdir(parents=True)
    told = refusal("collect", built, "recognition", "--output", str(tmp_path))
    assert told.startswith(f"{tmp_path}/recognition/a.csv: cannot be written (")


@needs_client
def test_absolute_names_and_links_are_refused(built, kaggle, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "output" / "recognition"
    folder.mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    for name in (f"{tmp_path}/a.csv", "link/a.csv"):
        kaggle.sessions.clear()
        leave_report(kaggle, built, {"files": {name: 3}})
        told = refusal("collect", built, "recognition", "--output", str(tmp_path / "output"))
        assert f"names '{name}'; expected files below {folder}, without links" in told
    assert files_of(tmp_path) == {}


@needs_client
@pytest.mark.parametrize("log", ["error: \x1b[2Jbad\r\n", "\x1b]0;title\x07\n", ""])
def test_what_a_kernel_says_steers_no_terminal(built, kaggle, capsys, log):
    failure = "" if log else "it\x1b[2J failed"
    kaggle.outcomes[RECOGNITION] = [Outcome("ERROR", log=log, failure=failure)]
    finish(kaggle, built, "recognition")
    assert refusal("push", built).isprintable()
    capsys.readouterr()
    command("status", built)
    row = capsys.readouterr().out.splitlines()[1]
    assert row.isprintable() and r"\x1b" in row


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
def test_what_is_missing_of_the_collected_files_is_fetched_again(built, kaggle, tmp_path):
    finish(kaggle, built, "recognition")
    for _ in range(2):
        command("collect", built, "recognition", "--output", str(tmp_path))
        path = tmp_path / "recognition" / "recognition_submission.csv"
        assert path.read_text() == RESULTS["recognition_submission.csv"]
        path.unlink()


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
    for challenge, names in results.find_submitters(states.read_built(folder)).items():
        for name in names:
            (output / name).mkdir()
            path = output / name / results.CHALLENGES[challenge][0]
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


@needs_client
def test_a_submission_whose_answer_is_lost_is_not_made_twice(built, kaggle, tmp_path, capsys):
    submission_files(built, tmp_path)
    kaggle.faults["CreateSubmission"] = ["lose"]
    command("submit", built, "retrieval", "--output", str(tmp_path))
    assert len(kaggle.submissions) == 1
    assert "is submitted already" in capsys.readouterr().out


# ------------------------------------------------------------------------------ without a client


def test_a_missing_client_is_one_line(built, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaggle.api.kaggle_api_extended", None)
    told = refusal("status", built)
    assert told.startswith("kaggle kernels status: ")
    assert told.endswith(
        "; expected Kaggle's official client; install it with: pip install kaggle six"
    )


@needs_client
def test_missing_credentials_are_one_line_without_the_clients_own_words(
    built, kaggle, monkeypatch, capfd
):
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    assert refusal("push", built) == (
        "kaggle kernels status: no credentials; expected an answer of Kaggle; log in with: kaggle "
        "auth login"
    )
    assert capfd.readouterr() == ("", "")


@needs_client
def test_credentials_that_kaggle_refuses_are_one_line(built, kaggle):
    kaggle.faults["SaveKernel"] = [401]
    assert refusal("push", built).endswith("log in with: kaggle auth login")


@needs_client
def test_a_kernel_that_kaggle_denies_access_to_is_one_that_is_not_there(built, kaggle):
    kaggle.faults["GetKernelSessionStatus"] = [403]
    command("push", built)
    assert kaggle.pushes() == [RECOGNITION, *PARTS, MERGE]


@needs_client
@pytest.mark.parametrize("word", ["COMPLETE", "complete"])
def test_a_state_is_known_in_large_and_small_letters(built, kaggle, word):
    finish(kaggle, built, "recognition")
    kaggle.faults["GetKernelSessionStatus"] = [{"status": word}]
    assert states.look(states.read_built(built)["recognition"]).is_finished


@needs_client
def test_a_state_that_the_client_does_not_know_is_one_line(built, kaggle):
    kaggle.faults["GetKernelSessionStatus"] = [{"status": "PAUSED"}]
    told = refusal("status", built)
    assert "PAUSED" in told and told.endswith("pip install --upgrade kaggle")


@needs_client
def test_an_answer_that_does_not_come_is_a_failure_of_the_network(built, kaggle):
    with pytest.raises(client.NetworkError, match="TimeoutError: no answer within 0 s; "):
        client.ask_once("kernels_status", f"someone/{RECOGNITION}", timeout_s=0)


def test_foreign_text_is_one_line_that_steers_no_terminal_and_holds_no_key():
    assert client.printable("a\n \x1b[31mb\u202e") == r"a \x1b[31mb\u202e"
    assert client.printable("403 for https://a.b/c?signature=key now") == (
        "403 for https://a.b/c?... now"
    )


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
        (["build", "--user", "a", "--nearest-args", "--labels full"], "goes with --recipe strong"),
        (["build", "--user", "a", "--recipe", "weak"], "'weak'"),
        (["build", "--user", "a", "--shrink-kernels", "2"], "go with --shrink N"),
        (["build", "--user", "a/b"], "argument --user: 'a/b'; expected a name on Kaggle"),
        (["build", "--user", "a b"], "argument --user: 'a b'; expected a name on Kaggle"),
        (["build", "--user", "a", "--dataset", "../../etc"], "'../../etc'; expected owner/slug"),
        (["run", "--user", "a", "--dataset", "a/b", "--dataset", "b"], "'b'; expected owner/slug"),
        (["build", "--user", "a", "--dataset", "a/b/c"], "'a/b/c'; expected owner/slug"),
        (["build", "--user", "a", "--model-source", "a/b"], "'a/b'; expected owner/model/fra"),
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
