"""Jobs on the workers of a Dask cluster: in any order, retried when a worker dies.

A script makes a list of jobs that can be pickled, and names a function that does one of them in a
worker, in a `Session` there: `with open_workers(...) as workers: workers.run(function, jobs)`.
Output and source must have the same paths on all workers. Only here Dask is imported.
"""

import atexit
import contextlib
import functools
import importlib.util
import os
import re
import threading
from collections import Counter
from pathlib import Path

from data.sources import Source
from runs.folders import scratch_folder
from runs.session import Session
from utils import ExpectedError, Stop, StoppedError, say

NUM_RETRIES = 3  # of a job whose worker died
PATIENCE_S = 30  # for a scheduler to answer
GPU = "GPU"  # the resource of workers that have one: `dask worker ADDRESS --resources GPU=1`
_one_at_a_time = threading.Lock()  # a worker may have several threads, Keras has one network


class Workers:
    """The workers of a cluster, by its distributed.Client, with a folder for their downloads."""

    def __init__(self, client, session, scratch):
        self.client, self.session = client, session
        locations = [place.location for place in session.source.places]
        source = tuple(x if isinstance(x, str) else str(x.resolve()) for x in locations)
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        num_beside = max(Counter(worker.get("host") for worker in workers).values(), default=1)
        self.arguments = (  # can be pickled
            session.output.resolve(), Path(scratch).resolve(), source, session.skips_bad_shards,
            max(1, session.source.max_connections // num_beside),
        )  # fmt: skip
        self.has_gpus = any(GPU in worker.get("resources", {}) for worker in workers)

    def run(self, function, jobs, what, on_gpu=False):
        """Does all jobs as `as_done` does; gives a list of results, in the order of the jobs."""
        return [result for _, result in sorted(self.as_done(function, jobs, what, on_gpu))]

    def as_done(self, function, jobs, what, on_gpu=False):
        """Does all jobs; says how it goes; yields (number of a job, its result), as each ends.

        Args:
            function: (`Session`, job) -> a small result; of a module that workers can import.
            jobs: list of anything that can be pickled.
            what: the jobs, for a person, e.g. `parts searched`.
            on_gpu: on the workers that have a GPU, where any has.

        Raises:
            StoppedError: the session was asked to stop.
            ExpectedError: a job failed, or its workers died again and again.
        """
        from distributed import KilledWorker, wait

        do = functools.partial(_do, self.arguments, function)
        resources = {GPU: 1} if on_gpu and self.has_gpus else None
        futures = self.client.map(do, jobs, pure=False, resources=resources)
        missing, done = {future: number for number, future in enumerate(futures)}, ""
        try:
            while missing:
                with contextlib.suppress(TimeoutError):
                    wait(list(missing), timeout=0.5, return_when="FIRST_COMPLETED")
                ended = [future for future in missing if future.done()]
                for future in ended:
                    if future.status not in ("finished", "error"):
                        told = f"{what}: a job was cancelled; run the same command again"
                        raise ExpectedError(told)
                    if isinstance(future.exception(), KilledWorker):
                        raise ExpectedError(
                            f"{what}: workers died {NUM_RETRIES + 1} times at one job; expected "
                            "workers with enough memory; see their logs"
                        ) from future.exception()
                    yield missing.pop(future), future.result()
                done = f"{len(futures) - len(missing)} of {len(futures)} {what}"
                if ended:
                    say(done)
                if missing and self.session.stop.requested():
                    raise StoppedError(self.session.stop, done)
        finally:
            self.client.cancel(futures)


@contextlib.contextmanager
def open_workers(where, session, scratch):
    """Yields the `Workers` of a Dask scheduler, or of `local:N`: N processes here, a GPU for each.

    Raises:
        ExpectedError: Dask is not installed, nobody answers, or those there lack the project.
    """
    try:
        import dask
        import distributed
    except ImportError as error:
        raise ExpectedError(
            f"{where}: {error}; expected the optional packages of requirements-cluster.txt; "
            "install them"
        ) from error
    retries = {"distributed.scheduler.allowed-failures": NUM_RETRIES}
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(retries | {"logging.distributed": "error"}))
        if number := re.fullmatch(r"local:(\d+)", where):
            stack.enter_context(_sharing_cores(int(number[1])))
            where = stack.enter_context(_start_here(int(number[1])))
        try:
            client = distributed.Client(where, timeout=PATIENCE_S)
        except (OSError, ValueError) as error:
            raise ExpectedError(
                f"{where}: no Dask scheduler answers there ({error}); expected one that runs",
                setting="scheduler",
            ) from error
        stack.enter_context(client)
        _require_project(client)
        yield Workers(client, session, scratch)


def _require_project(client):
    """Raises ExpectedError unless scheduler and workers can import the project."""
    # A worker that cannot load a job ends, and the script would wait for others without end.
    package = __name__.partition(".")[0]
    found = client.run(importlib.util.find_spec, package)
    found["the scheduler"] = client.run_on_scheduler(importlib.util.find_spec, package)
    for where, spec in found.items():
        if spec is None:
            raise ExpectedError(
                f"{where}: this project cannot be imported there; expected scheduler and workers "
                "to run in its folder; start them there by `python -m dask`"
            )


def _start_here(num_workers):
    from distributed import Nanny, Scheduler, SpecCluster

    gpus = _visible_gpus()
    if gpus and num_workers > len(gpus):
        raise ExpectedError(
            f"local:{num_workers}: {len(gpus)} GPUs here; expected a worker for each at most",
            setting="scheduler",
        )
    workers = {}
    for number in range(num_workers):
        options = {"nthreads": 1, "host": "127.0.0.1", "memory_limit": 0}
        if gpus:
            options |= {"env": {"CUDA_VISIBLE_DEVICES": gpus[number]}, "resources": {GPU: 1}}
        workers[number] = {"cls": Nanny, "options": options}
    dashboard = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}  # 8787 may be another's
    options = {"host": "127.0.0.1", "port": 0} | dashboard
    return SpecCluster(workers, {"cls": Scheduler, "options": options}, silence_logs="ERROR")


@contextlib.contextmanager
def _sharing_cores(num_workers):
    """Lets each worker search with its share of the cores, unless OMP_NUM_THREADS says otherwise.

    Dask has one thread for each, and sets that in the environment of this process, too, which has
    its own again at the end.
    """
    import dask

    environment = "distributed.nanny.pre-spawn-environ"
    kept = {name: os.environ.get(name) for name in dask.config.get(environment)}
    share = max(1, (os.cpu_count() or 1) // num_workers)
    with dask.config.set({f"{environment}.OMP_NUM_THREADS": share}):
        try:
            yield
        finally:
            for name, value in kept.items():
                os.environ.pop(name, None)
                os.environ |= {} if value is None else {name: value}


def _visible_gpus():
    """Lists NVIDIA's GPUs that this process may use, e.g. ["0", "1"]."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name not in ("", "-1")]
    numbers = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia*"))
    return sorted((number for number in numbers if number.isdecimal()), key=int)


def _do(arguments, function, job):
    with _one_at_a_time:
        return function(_open_session(*arguments), job)


@functools.lru_cache(maxsize=1)
def _open_session(output, scratch, source, skips_bad_shards, max_connections):
    """Opens this worker's session, which is kept for the jobs to come."""
    closing = contextlib.ExitStack()
    path = closing.enter_context(scratch_folder(scratch))
    atexit.register(closing.close)
    source = Source(source, path, max_connections)
    return Session(output, source, Stop(), skips_bad_shards)
