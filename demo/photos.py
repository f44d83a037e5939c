"""A few test pictures of the world as files, named by what they show."""

import tarfile
from pathlib import Path

from demo import art
from demo.overview import read_world
from demo.world import view_of
from utils import atomic_write

NUM_LANDMARKS, NUM_OTHERS = 4, 2  # pictures with a landmark, each another one, and without


def write_photos(world_folder, folder):
    """Writes the first test pictures of some landmarks, and the first ones without a landmark.

    All are easy ones: by day, in clear weather, and of no slender tower.

    Args:
        world_folder: a complete world.
        folder: where to, e.g. as `photos/Stone_Arch-1a2b3c.jpg`.

    Returns:
        list of paths.
    """
    paths = []
    for name, shard, picture in choose_pictures(read_world(Path(world_folder))):
        path = Path(folder, f"{name}-{picture.image_id[:6]}.jpg")
        with tarfile.open(Path(world_folder, shard.path)) as tar, atomic_write(path) as temporary:
            temporary.write_bytes(tar.extractfile(picture.member).read())
        paths.append(path)
    return paths


def choose_pictures(world):
    """Lists (name of what it shows, Shard, PlannedPicture), the landmarks first."""
    landmarks, others = {}, []
    for shard, pictures in world.shards.items():
        for picture in pictures if shard.split == "test" else ():
            scene = view_of(world, picture)[2]
            if scene.hard or (scene.light, scene.weather) != ("day", "clear"):
                continue  # far, behind trees, at dusk, in snow ...: not what one would ask first
            known = [place for place in picture.labels if place in world.landmark_ids]
            if not picture.labels:
                others.append(("no_landmark", shard, picture))
            elif len(picture.labels) == len(known) == 1 and not art.is_slender(
                world.places[known[0]]
            ):
                name = world.places[known[0]].name.replace(" ", "_")
                landmarks.setdefault(name, (name, shard, picture))
    return [*list(landmarks.values())[:NUM_LANDMARKS], *others[:NUM_OTHERS]]
