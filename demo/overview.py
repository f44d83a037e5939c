"""demo.png: a contact sheet of the world, drawn from its tars."""

import io
import itertools
import tarfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from data.landmarks import MIN_IMAGES
from data.sources import SPLITS
from demo.plan import NUM_DRAWN, WorldSize, plan_world
from demo.world import MARKER, WORLD_VERSION, group_by_label, read_marker, view_of
from utils import ExpectedError, atomic_write

SHEET_WIDTH, MARGIN, TITLE_HEIGHT = 1600, 24, 100  # pixels, as all sizes here
COLUMNS, GAP = 4, 18  # tiles in a row, and between them
MOST_TILES = 48  # landmarks on a sheet
TILE_WIDTH = (SHEET_WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) // COLUMNS
PHOTOS, PHOTO_GAP = 3, 5  # photographs on a tile, and between them
PHOTO_WIDTH = (TILE_WIDTH - (PHOTOS - 1) * PHOTO_GAP) // PHOTOS
PHOTO_HEIGHT = PHOTO_WIDTH * 3 // 4
CAPTION_HEIGHT = 28
ROW_HEIGHT = CAPTION_HEIGHT + PHOTO_HEIGHT + 26
PAPER, INK, QUIET, WARNING, PANEL = "#fbf9f4", "#26313d", "#7b8590", "#c4611f", "#e6edf0"


def draw_overview(folder, path):
    """Draws the contact sheet of a world: every landmark, look-alikes side by side, and the rest.

    Args:
        folder: a complete world; the photographs are read back from its tars.
        path: of the PNG.

    Raises:
        ExpectedError: the folder holds no complete world.
    """
    world = read_world(Path(folder))
    shown = choose_shown(world)
    rows = arrange(world.places, shown)
    strips = choose_strips(
        world, free_columns=COLUMNS - sum(map(len, rows[-1])), num_rows=len(rows)
    )
    chosen = {place: choose_photos(world, place) for place in shown}
    wanted = [*chosen.values(), *(pictures for _, _, _, pictures in strips)]
    photos = read_photos(Path(folder), world, itertools.chain(*wanted))
    num_rows = max(row for _, row, _, _ in strips) + 1
    sheet = Image.new("RGB", (SHEET_WIDTH, TITLE_HEIGHT + num_rows * ROW_HEIGHT + 4), PAPER)
    draw_title(sheet, world, len(shown))
    for number, row in enumerate(rows):
        draw_tiles(sheet, TITLE_HEIGHT + number * ROW_HEIGHT, row, world, chosen, photos)
    for title, row, column, pictures in strips:
        draw_strip(sheet, title, row, column, [photos[p.image_id] for p in pictures])
    with atomic_write(path) as temporary:
        sheet.save(temporary, "PNG")


def read_world(folder):
    """Plans the world anew that a folder says it holds."""
    marker = read_marker(folder)
    if marker.get("version") != WORLD_VERSION:
        raise ExpectedError(
            f"{folder} holds no complete demo world; expected its {MARKER}; draw it first, with "
            "python -m demo"
        )
    size = {name: tuple(v) if isinstance(v, list) else v for name, v in marker["size"].items()}
    return plan_world(marker["seed"], WorldSize(**size))


def choose_shown(world):
    """Chooses the landmarks of the sheet: all, or of many the first few of the first few kinds.

    Returns:
        List of positions in `World.places`.
    """
    known = list(world.landmark_ids)
    if len(known) <= MOST_TILES:
        return known
    kinds = {}
    for place in sorted(known):
        if place >= NUM_DRAWN:  # the others are on the sheet of the demo
            kinds.setdefault(world.places[place].look_alikes, []).append(place)
    rows = [kind[:COLUMNS] for kind in kinds.values()]
    return list(itertools.chain(*rows[: MOST_TILES // COLUMNS]))


def arrange(places, chosen):
    """Lays places out in rows of tiles; look-alikes stay together in one row.

    Args:
        places: tuple of art.Landmarks.
        chosen: positions in `places`.

    Returns:
        List of rows; a row is a list of groups; a group is a list of positions in `places`.
    """
    groups = {}
    for place in chosen:
        groups.setdefault(places[place].look_alikes or places[place].name, []).append(place)
    rows = []
    for group in sorted(groups.values(), key=lambda group: -len(group)):  # stable
        fitting = (row for row in rows if sum(map(len, row)) + len(group) <= COLUMNS)
        row = next(fitting, None)
        if row is None:
            rows.append(row := [])
        row.append(group)
    return rows


def choose_strips(world, free_columns, num_rows):
    """Picks test pictures that show no known landmark.

    Args:
        world: a World.
        free_columns: tiles left free in the last row of landmarks.
        num_rows: rows of landmarks.

    Returns:
        List of (title, row, first column, PlannedPictures).
    """
    test = world.pictures("test")
    unknown = [p for p in test if p.labels and not set(p.labels) & set(world.landmark_ids)]
    unknown.sort(key=lambda p: is_hard_to_see(view_of(world, p)[2]))
    others = [p for p in test if not p.labels]
    row, column = (num_rows - 1, COLUMNS - free_columns) if free_columns > 1 else (num_rows, 0)
    room = PHOTOS * (COLUMNS - column)
    return [
        ("Index and test only: landmarks nobody trains on", row, column, unknown[:room]),
        ("Index and test only: no landmark at all", row + 1, 0, others[: PHOTOS * COLUMNS]),
    ]


def choose_photos(world, place):
    """Picks photographs of one landmark under conditions as different as there are."""
    pictures = [p for p in world.pictures("train") if p.labels == p.shown == (place,)]
    scenes = {p: view_of(world, p)[2] for p in pictures}
    difficulties = (
        lambda scene: scene.light == "night" and scene.weather == "clear",
        lambda scene: scene.light == "day" and scene.weather == "snow",
        lambda scene: scene.light == "day" and scene.weather == "fog",
    )
    wishes = (
        lambda scene: not scene.hard and scene.light == "day" and scene.weather == "clear",
        lambda scene: scene.light in ("golden", "dusk") and scene.weather == "clear",
        difficulties[place % len(difficulties)],
    )

    def dislike(picture, wish):
        # Upright ones would lose their tops in the sheet's frames.
        scene = scenes[picture]
        return scene.portrait, not wish(scene), is_hard_to_see(scene), scene.hard

    chosen = []
    for wish in wishes:
        left = [picture for picture in pictures if picture not in chosen] or pictures
        chosen.append(min(left, key=lambda picture: dislike(picture, wish)))  # noqa: B023
    return chosen


def is_hard_to_see(scene):
    """Tells whether a photograph would show next to nothing on a tile."""
    return scene.light == "night" and scene.weather != "clear"


def read_photos(folder, world, wanted):
    """Reads photographs back from the tars.

    Returns:
        Dict, image id -> PIL image.
    """
    wanted = {picture.image_id for picture in wanted}
    photos = {}
    for shard, pictures in world.shards.items():
        members = [picture for picture in pictures if picture.image_id in wanted]
        if not members:
            continue
        with tarfile.open(folder / shard.path) as tar:
            for picture in members:
                jpeg = tar.extractfile(picture.member).read()
                photos[picture.image_id] = Image.open(io.BytesIO(jpeg)).convert("RGB")
    return photos


def draw_title(sheet, world, num_shown):
    """Writes what the world holds above the landmarks."""
    part = num_shown < len(world.landmark_ids)
    tinted = f"{num_shown} of them, look-alikes in a row" if part else "tinted: look-alikes"
    size, count = world.size, {split: len(world.pictures(split)) for split in SPLITS}
    write(sheet, (MARGIN, 16), "The miniature landmark world", 34, INK)
    text = (
        f"{count['train']:,} train, {count['index']:,} index and {count['test']:,} test pictures, "
        f"drawn by code   |   {size.num_landmarks} landmarks to learn, {size.num_rare} with fewer "
        f"than {MIN_IMAGES} photos   |   {tinted}"
    )
    write(sheet, (MARGIN, 60), text, 17, QUIET)


def draw_tiles(sheet, top, row, world, chosen, photos):
    """Draws one row of landmarks."""
    num_photos = group_by_label(world.pictures("train"))
    column = 0
    for group in row:
        left = column_left(column)
        if len(group) > 1:
            right = column_left(column + len(group)) - GAP
            frame = [left - 7, top - 6, right + 7, top + ROW_HEIGHT - 16]
            ImageDraw.Draw(sheet).rounded_rectangle(frame, 10, PANEL)
        for place in group:
            left, count = column_left(column), len(num_photos[place])
            note, color = f"{count} photos", QUIET
            if count < MIN_IMAGES:
                note, color = f"only {count} photos", WARNING
            write(sheet, (left, top), world.places[place].name, 17, INK)
            write(sheet, (left + TILE_WIDTH, top + 2), note, 14, color, anchor="ra")
            for i, picture in enumerate(chosen[place]):
                x = left + i * (PHOTO_WIDTH + PHOTO_GAP)
                paste_photo(sheet, photos[picture.image_id], x, top + CAPTION_HEIGHT)
            column += 1


def draw_strip(sheet, title, row, column, photos):
    """Draws a caption and photographs from a column to the right margin."""
    top = TITLE_HEIGHT + row * ROW_HEIGHT
    write(sheet, (column_left(column), top), title, 17, INK)
    for i, photo in enumerate(photos):
        left = column_left(column + i // PHOTOS) + i % PHOTOS * (PHOTO_WIDTH + PHOTO_GAP)
        paste_photo(sheet, photo, left, top + CAPTION_HEIGHT)


def column_left(column):
    """Gives the left edge of a tile."""
    return MARGIN + column * (TILE_WIDTH + GAP)


def write(sheet, place, text, size, color, anchor="la"):
    """Writes a line of text; `place` (x, y) is its upper left corner, or right with "ra"."""
    font = ImageFont.load_default(size)
    ImageDraw.Draw(sheet).text(place, text, color, font, anchor=anchor)


def paste_photo(sheet, photo, x, y):
    """Pastes a photograph, cut to the sheet's format, with rounded corners."""
    width, height = photo.size
    crop = min(height, round(width * PHOTO_HEIGHT / PHOTO_WIDTH))
    box = (0, (height - crop) // 3, width, (height - crop) // 3 + crop)
    size = (PHOTO_WIDTH, PHOTO_HEIGHT)
    mask = Image.new("L", (2 * PHOTO_WIDTH, 2 * PHOTO_HEIGHT))
    ImageDraw.Draw(mask).rounded_rectangle([0, 0, *(2 * side - 1 for side in size)], 12, 255)
    small = photo.resize(size, Image.Resampling.LANCZOS, box)
    sheet.paste(small, (x, y), mask.resize(size))
