"""Searches in parts, here or on a scheduler's workers: what retrieval.py and nearest.py share.

Such a script has, besides the name `SPLIT` of what it searches, three functions of a `Session` and
the parsed command line, which workers import: `open_images` gives a `Describer` and the ids of the
images to describe, `prepare` finds or describes the queries, `search_parts` yields the part files.
"""

import functools
import importlib
from argparse import Namespace

import numpy as np

from cluster.dask_workers import open_workers
from data.landmarks import read_image_ids
from data.sources import TEST_CSV, share_of
from runs.kernel import require_package
from runs.session import MODEL
from utils import ExpectedError


def search_in_parts(session, args, search_parts, script):
    """Searches one part, or all of them; prints and gives the part files.

    `search_parts` is that function of the script, and `script` the name of its module.
    """
    on_workers, files = args.scheduler is not None, []
    for path in _on_workers(session, args, script) if on_workers else search_parts(session, args):
        print(path)
        files.append(path)
    return files


def numbers_of_parts(args):
    """Gives the numbers of the parts to search."""
    return range(args.parts) if args.part is None else [args.part]


def make_describer(session, args, split):
    """Loads the network; first, raises ExpectedError where faiss or the split is missing."""
    require_package("faiss", "faiss-cpu")
    session.source.select_shards(split)
    from descriptors import describe  # loads Keras

    settings = args.batch_size, args.flipped_too, args.descriptor_dtype
    return describe.open_describer(session.source, args.model or session.find(MODEL), *settings)


def read_test_ids(source, file, query_ids):
    """Reads the test ids, (n,) uint64; raises ExpectedError if queries of a part are no such."""
    test_ids = read_image_ids(source.fetch(TEST_CSV))
    if not np.isin(query_ids, test_ids).all():
        what = f"{file}: it has queries that are not in {TEST_CSV} of {source}"
        raise ExpectedError(f"{what}; expected parts of this source", "source")
    return test_ids


def _on_workers(session, args, script):
    """Describes shard by shard and searches part by part: yields the part files."""
    split, numbers = importlib.import_module(script).SPLIT, numbers_of_parts(args)
    shards = session.source.select_shards(split)
    alone = Namespace(**vars(args) | {"scheduler": None})
    with open_workers(args.scheduler, session, args.scratch) as workers:

        def run(job, items, what):
            return workers.run(functools.partial(job, script), items, what, on_gpu=True)

        run(_find_queries, [alone], "sets of queries there")
        wanted = [shard for part in numbers for shard in share_of(shards, part, args.parts)]
        run(_describe, [(alone, shard) for shard in wanted], f"{split} shards described")
        of_parts = [Namespace(**vars(alone) | {"part": part}) for part in numbers]
        for name in run(_search, of_parts, "parts searched"):
            yield session.path(name)


def _find_queries(script, session, args):
    importlib.import_module(script).prepare(session, args)


def _describe(script, session, job):
    from descriptors import describe  # loads Keras

    args, shard = job
    describer, image_ids = importlib.import_module(script).open_images(session, args)
    describe.describe_shards(session, describer, [shard], image_ids)


def _search(script, session, args):
    (path,) = importlib.import_module(script).search_parts(session, args)
    return path.name
