"""A few test pictures of the world as files, named by what they show."""

import tarfile
from pathlib import Path

from demo.overview import read_world
from demo.world import PLACES, view_of
from utils import atomic_write

NUM_LANDMARKS, NUM_OTHERS = 4, 2  # pictures with a landmark, each another one, and without


def write_photos(world_folder, folder):
    """Writes the first test pictures of some landmarks, and the first ones without a landmark.

    Args:
        world_folder: a complete world.
        folder: where to, e.g. as `photos/Stone_Arch-1a2b3c.jpg`.

    Returns:
        list of paths.
    """
    world = read_world(Path(world_folder))
    chosen, num_left = {}, NUM_OTHERS
    shards = {shard: row for shard, row in world.shards.items() if shard.split == "test"}
    for shard, picture in ((shard, p) for shard, row in shards.items() for p in row):
        if view_of(world.seed, picture, world.size.hard_share)[2].hard:
            continue  # at night, in fog, behind trees ...: not what one would ask about first
        known = [place for place in picture.labels if place in world.landmark_ids]
        if not picture.labels and num_left:
            num_left -= 1
            chosen[f"no_landmark_{num_left}"] = shard, picture
        elif (
            len(picture.labels) == len(known) == 1
            and len(chosen) + num_left < NUM_LANDMARKS + NUM_OTHERS
        ):
            chosen.setdefault(PLACES[known[0]].name.replace(" ", "_"), (shard, picture))
    paths = []
    for name, (shard, picture) in chosen.items():
        path = Path(folder, f"{name.rstrip('_0123456789')}-{picture.image_id[:6]}.jpg")
        with tarfile.open(Path(world_folder, shard.path)) as tar, atomic_write(path) as temporary:
            temporary.write_bytes(tar.extractfile(picture.member).read())
        paths.append(path)
    return paths
