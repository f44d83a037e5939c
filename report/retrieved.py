"""What the report says of a retrieval: facts that JSON can hold."""

import numpy as np

from report.chance import map_by_chance
from report.run import count_usages, encode_pictures

NUM_BINS = 20


def gather(session, facts, fingerprint, solution, scored, rows):
    """Gathers the facts of a merge that is written: a dict, with those that the merge knows.

    The others are what the parts share, and of `read_retrieval_solution`, `score_queries`,
    `choose_rows`.
    """
    length = "length 1" if fingerprint["normalise"] else "raw"
    details = [
        *facts["details"],
        ["descriptors", f"{length}, {fingerprint['descriptor_dtype']}"],
        ["images for a query", fingerprint["top"]],
    ]
    facts = facts | {"title": "Retrieval", "model": fingerprint.get("model"), "details": details}
    if solution:
        facts["usages"] = count_usages(solution)
        facts["chance"] = {"mAP@100": map_by_chance(solution, facts["num_indexed"])}
        edges = np.linspace(0, 1, NUM_BINS + 1)
        counts = np.histogram([precision for precision, *_ in scored], edges)[0]
        facts["spread"] = {"edges": edges.tolist(), "counts": counts.tolist()}
    pictures = {one.image_id: one for row in rows for one in (row.query, *row.nearest)}
    facts["pictures"] = encode_pictures(session.source, pictures.values())
    facts["rows"] = [
        {"title": row.title, "query": _facts(row.query), "nearest": list(map(_facts, row.nearest))}
        for row in rows
    ]
    return facts


def _facts(picture):
    lines = picture.caption.split("\n")
    return {"picture": picture.image_id, "caption": lines, "is_right": picture.is_right}
