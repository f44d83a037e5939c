"""Tests of the kernels of a chain: in front, longer, what each is given."""

from pathlib import Path

import pytest
from built_kernels import (
    GALLERY,
    PARTS,
    RECOGNITION,
    SHRINKS,
    VOTE,
    build,
    facts_of,
    files_of,
    metadata_of,
)

import kernels
from on_kaggle import packing, plan, states

ROOT = Path(kernels.__file__).parent


# ------------------------------------------------------------------------------- shrink first


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
    assert {"shrink.py", "shrinking/small_shards.py", "data/tars.py"} <= modules.keys()


@pytest.mark.parametrize("name", plan.KERNELS)
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
    assert list(states.read_built(tmp_path)) == ["shrink-0", "shrink-1", "shrink-2", *plan.KERNELS]
    build(tmp_path)
    assert list(states.read_built(tmp_path)) == list(plan.KERNELS)


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
        ("--landmarks towers.txt", 1),
    ],
)
def test_as_many_kernels_share_the_data_set_as_their_outputs_need(words, expected):
    settings = packing.read_settings("shrink", ["--pixels", "256", *words.split()])
    assert plan.count_shrink_kernels(settings) == expected


def test_smaller_pictures_need_fewer_kernels():
    counts = [
        plan.count_shrink_kernels(packing.read_settings("shrink", ["--pixels", str(pixels)]))
        for pixels in (192, 224, 256, 320, 384)
    ]
    assert counts == [6, 7, 9, 12, 17]


# ------------------------------------------------------------------------- the longer chain


def test_the_chain_of_2019_is_the_same_whether_its_recipe_is_named_or_not(built, tmp_path):
    build(tmp_path, "--recipe", "2019")
    assert files_of(tmp_path) == files_of(built)


def test_in_the_longer_chain_train_images_name_landmarks(built_strong):
    assert list(states.read_built(built_strong)) == [
        *("recognition", "gallery-0", "gallery-1", "vote"),
        *(f"part-{part}" for part in range(6)),
        "merge",
    ]
    of = {name: facts_of(built_strong, name) for name in states.read_built(built_strong)}
    assert of["recognition"]["arguments"] == ["--recipe", "strong", "--max-hours", "11"]
    same, time = ["--batch-size", "64"], ["--max-hours", "11"]
    assert of["gallery-1"]["arguments"] == [
        *("--part", "1", "--parts", "2"), *same, *time, "--labels", "full",
    ]  # fmt: skip
    assert of["vote"]["arguments"] == ["vote", "--parts", "2", *same, "--labels", "full"]
    assert of["part-3"]["arguments"] == [
        *("--part", "3", "--parts", "6", "--names", "both"), *same, *time
    ]  # fmt: skip
    assert of["merge"]["arguments"] == ["merge"]
    assert {of[name]["entry"] for name in ("gallery-0", "vote")} == {"nearest"}
    assert of["gallery-1"]["result"] == "gallery-part-1-of-2.npz"
    assert of["vote"]["result"] == of["recognition"]["result"] == "recognition_submission.csv"


def test_each_kernel_of_the_longer_chain_mounts_what_it_reads(built_strong):
    page = {name: metadata_of(built_strong, name) for name in states.read_built(built_strong)}
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


def test_all_that_read_queries_describe_as_recognition_does(tmp_path):
    """Other test descriptors than the gallery's would be refused after hours."""
    build(tmp_path, "--recipe", "frozen", "--recognition-args", "--flipped-too")
    for name in ("gallery-0", "vote", "part-5"):
        kernel, facts = states.read_built(tmp_path)[name].kernel, facts_of(tmp_path, name)
        args = packing.read_settings(kernel.entry, facts["arguments"])
        assert (args.batch_size, args.flipped_too) == (128, True)


def test_the_longer_chain_behind_small_pictures_reads_the_labels_that_it_trains_on(tmp_path):
    build(tmp_path, "--recipe", "strong", "--shrink", "256")
    names = [f"shrink-{part}" for part in range(5)]  # as many as clean pictures need
    built = states.read_built(tmp_path)
    assert list(built)[:6] == [*names, "recognition"]
    assert "--labels clean" in " ".join(facts_of(tmp_path, "shrink-4")["arguments"])
    for name in ("recognition", "gallery-0", "vote", "part-0", "merge"):
        assert built[name].kernel.inputs[:5] == tuple(names)
        assert "--source inputs" in " ".join(facts_of(tmp_path, name)["arguments"])
    build(tmp_path, "--recipe", "strong", "--shrink", "256", "--nearest-args", "--labels full")
    assert len(states.read_built(tmp_path)) == 11 + 9
