"""Which photos stay together, and which split and shard they go to.

A test photo that was taken a second after a train photo is no test. Photos of a landmark that look
alike, or that one camera took in a row, are a group; a group is never divided.
"""

import hashlib
import itertools

import numpy as np

from data.sources import Shard

MAX_BITS = 6  # of 64 in which the looks of near duplicates differ
ROW_S = 60.0  # between two photos that one camera took in a row
HELD_BACK = 0.15  # share of a landmark's photos for the test set, and as much for the index
SHARD_SIZE = {"train": 500, "index": 1000, "test": 1000}  # photos, about
NUM_SHARDS = {"train": (5, 500), "index": (6, 100), "test": (1, 20)}  # at least and at most


def group(photos):
    """Finds the groups of one landmark's photos; gives a list of lists of positions."""
    group_of = np.arange(len(photos))

    def join(one, other):
        if group_of[one] != group_of[other]:
            group_of[group_of == group_of[other]] = group_of[one]

    looks = np.array([photo.look for photo in photos], np.uint64)
    for one in range(len(photos)):
        for other in np.flatnonzero(np.bitwise_count(looks[:one] ^ looks[one]) <= MAX_BITS):
            join(one, other)
    timed = [i for i, photo in enumerate(photos) if photo.camera and photo.taken is not None]
    timed.sort(key=lambda i: (photos[i].camera, photos[i].taken))
    for one, other in zip(timed, timed[1:], strict=False):
        is_same = photos[one].camera == photos[other].camera
        if is_same and photos[other].taken - photos[one].taken <= ROW_S:
            join(one, other)
    groups = {}
    for one in range(len(photos)):
        groups.setdefault(group_of[one], []).append(one)
    return list(groups.values())


def split_groups(sizes, has_test, has_index):
    """Chooses the split of each group of a landmark, smallest first; most go to train.

    A landmark of one group is for training alone, one of two has no index photo.
    """
    splits, total, next_group = ["train"] * len(sizes), sum(sizes), 0
    for split, is_wanted in (("test", has_test), ("index", has_index)):
        held_back = 0
        while is_wanted and next_group < len(sizes) - 1:
            left = sum(sizes[next_group + 1 :])
            is_enough = held_back and held_back + sizes[next_group] > HELD_BACK * total
            if is_enough or left < sizes[next_group]:
                break
            splits[next_group] = split
            held_back += sizes[next_group]
            next_group += 1
    return splits


def divide(photos):
    """Sets the `shard` of all photos, a list of `folders.Photo` by ascending image id."""
    has_test, has_index = (
        all(photo.split != split for photo in photos) for split in ("test", "index")
    )
    by_landmark = {}
    for photo in photos:
        by_landmark.setdefault(photo.landmark, []).append(photo)
    dealt = {"train": [], "index": [], "test": []}  # groups, landmark by landmark
    for landmark, own in sorted(by_landmark.items()):
        free = [photo for photo in own if photo.split in (None, "train")]
        groups = [[free[i] for i in one] for one in group(free)]
        # By size, else in no order that means anything, but the same every time.
        groups.sort(key=lambda one: (len(one), hashlib.sha256(bytes.fromhex(one[0].id)).digest()))
        if landmark:
            chosen = split_groups([len(one) for one in groups], has_test, has_index)
        else:
            chosen = [("test", "index")[number % 2] for number in range(len(groups))]
        for split, one in zip(chosen, groups, strict=True):
            dealt[split].append(one)
        for photo in own:
            if photo.split in ("index", "test"):
                dealt[photo.split].append([photo])
    for split, groups in dealt.items():
        _deal(groups, split)


def _deal(groups, split):
    """Deals groups to shards."""
    # Shard 0 of train is held out from training: it never has the largest group of a landmark.
    lowest, highest = NUM_SHARDS[split]
    wanted = min(max(lowest, round(sum(map(len, groups)) / SHARD_SIZE[split])), highest)
    num_shards = max(1, min(wanted, len(groups)))
    is_train, turn = split == "train" and num_shards > 1, 0
    for _, own in itertools.groupby(groups, key=lambda one: one[0].landmark):
        for number, one in enumerate(sorted(own, key=len, reverse=True)):
            if is_train and not number and turn % num_shards == 0:
                turn += 1
            for photo in one:
                photo.shard = Shard(split, turn % num_shards)
            turn += 1
