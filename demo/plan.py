"""What is in every picture of the world: which landmarks, in which split, under which id."""

import hashlib
import itertools
from dataclasses import dataclass

import numpy as np

from data.sources import SPLITS, Shard
from demo import art
from demo.generated import MOST, generate_landmarks
from utils import ExpectedError

NUM_LANDMARK_IDS = 203_094  # the full data set's; ids of the world lie below it
NUM_DRAWN = len(art.LANDMARKS) + len(art.UNKNOWN_LANDMARKS)


@dataclass(frozen=True)
class WorldSize:
    """How much there is in the world; ranges are (least, most) photographs per landmark."""

    num_landmarks: int = art.NUM_FREQUENT  # with enough photographs to be a class
    num_rare: int = len(art.LANDMARKS) - art.NUM_FREQUENT
    num_unknown: int = len(art.UNKNOWN_LANDMARKS)  # in the index and the test set only
    train_images: tuple = (65, 90)
    index_images: tuple = (14, 20)
    test_images: tuple = (7, 10)
    rare_train_images: tuple = (5, 15)
    rare_index_images: tuple = (3, 5)
    rare_test_images: tuple = (0, 1)
    unknown_index_images: tuple = (3, 5)
    unknown_test_images: tuple = (2, 3)
    index_distractors: int = 100
    test_non_landmarks: int = 80
    two_landmark_queries: int = 8
    ignored_queries: int = 4
    train_shards: int = 5
    index_shards: int = 12
    test_shards: int = 2
    hard_share: float = 0.2  # share of photographs far, cut off, at night, in fog, behind trees ...
    wrong_share: float = 0.05  # share of train photographs that do not show their landmark

    def num_shards(self, split):
        """Gives the number of tars of "train", "index" or "test"."""
        counts = {"train": self.train_shards, "index": self.index_shards, "test": self.test_shards}
        return counts[split]

    @property
    def num_generated(self):
        """How many of the landmarks are made up by the seed."""
        return max(0, self.num_landmarks - art.NUM_FREQUENT)

    @classmethod
    def of(cls, num_landmarks):
        """Gives the demo's size, or a world of more landmarks with fewer photographs of each.

        Raises:
            ExpectedError: fewer landmarks than the demo has, or more than can be made up.
        """
        most = art.NUM_FREQUENT + MOST
        if not art.NUM_FREQUENT <= num_landmarks <= most:
            raise ExpectedError(
                f"{num_landmarks:,} landmarks; expected {art.NUM_FREQUENT} (the demo) to {most:,}; "
                "change --landmarks"
            )
        if num_landmarks == art.NUM_FREQUENT:
            return cls()
        return cls(
            num_landmarks=num_landmarks,
            train_images=(20, 50),  # all are classes
            index_images=(3, 5),
            test_images=(2, 3),
            index_distractors=num_landmarks,
            test_non_landmarks=num_landmarks,
            train_shards=10,
        )


@dataclass(frozen=True)
class PlannedPicture:
    """What is known of a picture before it is drawn.

    Attributes:
        split: "train", "index" or "test".
        number: from 0 within the split; with the world's seed it decides every pixel.
        image_id: 16 hexadecimal digits.
        labels: positions in `World.places` of the landmarks that the data set says are in it.
        shown: positions in `World.places` of the landmarks that are in it.
        usage: "Public" or "Private".
    """

    split: str
    number: int
    image_id: str
    labels: tuple
    shown: tuple
    usage: str

    @property
    def member(self):
        """Its name in the tar."""
        return "/".join([*self.image_id[:3], f"{self.image_id}.jpg"])


@dataclass(frozen=True)
class World:
    """The plan of a world: all that is known before the first picture is drawn.

    Attributes:
        seed: what everything random starts from.
        size: a WorldSize.
        places: tuple of art.Landmarks: the drawn ones, then those that the seed makes up.
        landmark_ids: dict, position in `places` -> landmark id, known landmarks only.
        shards: dict, Shard -> tuple of PlannedPictures in the order of the tar.
        ignored: frozenset of test image ids that the recognition score leaves out.
    """

    seed: int
    size: WorldSize
    places: tuple
    landmark_ids: dict
    shards: dict
    ignored: frozenset

    def pictures(self, split):
        """Lists the pictures of one split, sorted by image id."""
        chosen = [row for shard, row in self.shards.items() if shard.split == split]
        return sorted(itertools.chain(*chosen), key=lambda picture: picture.image_id)


def plan_world(seed, size):
    """Decides what is in every picture, from the seed alone.

    Args:
        seed: integer >= 0.
        size: a WorldSize.

    Returns:
        A World.
    """
    rng = np.random.default_rng([seed, len(SPLITS)])
    generated = generate_landmarks(seed, size.num_generated)
    places = (*art.LANDMARKS, *art.UNKNOWN_LANDMARKS, *generated)
    frequent = list(range(min(size.num_landmarks, art.NUM_FREQUENT)))
    frequent += range(NUM_DRAWN, len(places))
    rare = [art.NUM_FREQUENT + i for i in range(size.num_rare)]
    unknown = [len(art.LANDMARKS) + i for i in range(size.num_unknown)]
    ids = rng.choice(NUM_LANDMARK_IDS, len(frequent) + len(rare), replace=False)
    landmark_ids = dict(zip(frequent + rare, ids.tolist(), strict=True))

    shown = choose_places(rng, size, places, (frequent, rare, unknown))
    shards = {}
    for split in SPLITS:
        pictures = [
            plan_picture(rng, seed, split, number, labels, size.wrong_share)
            for number, labels in enumerate(shown[split])
        ]
        order = rng.permutation(len(pictures))
        for number, part in enumerate(np.array_split(order, size.num_shards(split))):
            shards[Shard(split, number)] = tuple(pictures[i] for i in part)
    tests = [p for shard, row in shards.items() if shard.split == "test" for p in row]
    ignored = frozenset(picture.image_id for picture in tests[: size.ignored_queries])
    return World(seed, size, places, landmark_ids, shards, ignored)


def choose_places(rng, size, places, groups):
    """Decides how many pictures of which places there are.

    Args:
        rng: numpy Generator.
        size: a WorldSize.
        places: tuple of art.Landmarks.
        groups: (frequent, rare, unknown), lists of positions in `places`.

    Returns:
        Dict, split -> list with a tuple of positions in `World.places` for every picture.
    """
    frequent, rare, unknown = groups

    def several(chosen, least_most):
        return [
            (place,) for place in chosen for _ in range(rng.integers(*least_most, endpoint=True))
        ]

    def mostly_few(chosen, least_most):
        least, most = least_most
        extra = (most - least + 1) * rng.random(len(chosen)) ** 3
        counts = zip(chosen, (least + extra.astype(int)).tolist(), strict=True)
        return [(place,) for place, count in counts for _ in range(count)]

    # Of many landmarks, most have few photographs and few have many, as in the real data.
    of_frequent = mostly_few if size.num_generated else several
    pairs = rng.permutation(pairs_of_neighbors(places, frequent))[: size.two_landmark_queries]
    return {
        "train": of_frequent(frequent, size.train_images) + several(rare, size.rare_train_images),
        "index": several(frequent, size.index_images)
        + several(rare, size.rare_index_images)
        + several(unknown, size.unknown_index_images)
        + [()] * size.index_distractors,
        "test": several(frequent, size.test_images)
        + several(rare, size.rare_test_images)
        + several(unknown, size.unknown_test_images)
        + [tuple(pair) for pair in pairs.tolist()]
        + [()] * size.test_non_landmarks,
    }


def plan_picture(rng, seed, split, number, labels, wrong_share):
    """Decides the rest about a picture; some of the train pictures do not show their landmark."""
    image_id = hashlib.sha256(f"{seed} {split} {number}".encode()).hexdigest()[:16]
    is_wrong = split == "train" and rng.random() < wrong_share
    usage = "Public" if rng.random() < 1 / 3 else "Private"
    return PlannedPicture(split, number, image_id, labels, () if is_wrong else labels, usage)


def pairs_of_neighbors(places, chosen):
    """Lists the pairs of `chosen` positions whose places can stand in one photograph."""
    narrow = [i for i in chosen if not places[i].natural and art.extent(places[i])[0] < 0.75]
    return [
        (a, b)
        for a, b in itertools.combinations(narrow, 2)
        if set(places[a].settings) & set(places[b].settings)
    ]
