"""What to do next: kernels are pushed in order, as their inputs finish and sessions are free."""

import time
from collections import Counter

from on_kaggle.client import ask_once, patiently, printable
from on_kaggle.packing import REPORT
from on_kaggle.states import State, look
from utils import ExpectedError, say

POLL_S = 60  # between two looks at Kaggle
GPU_SESSIONS = 2  # at once; Kaggle refuses more
MAX_SESSIONS = 4  # of one kernel in a run
SETTLING_LOOKS = 5  # Kaggle may tell of the session before for a while


class Chain:
    """Pushes kernels (name -> `Built`) when inputs are finished and a session is free for them."""

    def __init__(self, built, any_build=False):
        self.built, self.any_build = built, any_build
        self.states, self.before_push = {}, {}  # name -> State
        self.finished = {}  # name -> report
        self.num_doubts, self.num_pushes = Counter(), Counter()
        self.is_full = self.was_full = False  # Kaggle refused a session since the last look, ever

    def advance(self, to_the_end=True):
        """Pushes all kernels that are not finished, in order; waits in between, or to the end."""
        while True:
            self.look_at_all()
            for name in self.built:
                is_ready = self.finished.keys() >= set(self.inputs(name))
                if name in self.finished or self.states[name].is_active or not is_ready:
                    continue
                if self.judge(name):
                    self.finished[name] = self.states[name].report
                else:
                    self.try_push(name)
            left = self.built.keys() - self.finished.keys()
            if not left or (not to_the_end and all(self.num_pushes[name] for name in left)):
                return
            time.sleep(POLL_S)

    def push_again(self, names):
        """Pushes these kernels whatever the state of their last sessions."""
        self.look_at_all()
        for name in [name for name in self.built if name in names]:
            state, kernel_id = self.states[name], self.built[name].id
            if state.is_active:
                raise ExpectedError(
                    f"{kernel_id}: its session is {state.status}; expected none before a new one; "
                    "wait for its end, or stop it on its page"
                )
            for other in self.inputs(name):
                if not self.states[other].is_finished:
                    raise ExpectedError(
                        f"{kernel_id}: its input {other} is not finished; expected that first; "
                        "push all in order with: python kernels.py run"
                    )
            while not self.try_push(name):
                time.sleep(POLL_S)
                self.look_at_all()

    def inputs(self, name):
        return [other for other in self.built[name].kernel.inputs if other != name]

    def look_at_all(self):
        """Renews the states of the kernels that are new or active."""
        self.is_full = False
        for name, built in self.built.items():
            if name in self.states and not self.states[name].is_active:
                continue
            state = look(built)
            # For a while Kaggle may tell of the session before, or lack the last one's output.
            is_doubtful = state == self.before_push.get(name) or (
                state.status == "COMPLETE" and not state.report
            )
            if is_doubtful and self.num_doubts[name] < SETTLING_LOOKS:
                self.num_doubts[name] += 1
                state = State("SETTLING")
            else:
                self.num_doubts[name] = 0
                self.before_push.pop(name, None)
            if name not in self.states or state.status != self.states[name].status:
                say(f"{time.strftime('%H:%M')} {name}: {state.status}")
            self.states[name] = state

    def judge(self, name):
        """Tells whether a kernel is finished or to be pushed; raises where a person must decide."""
        built, state = self.built[name], self.states[name]
        again = f"push it again with: python kernels.py push {name}"
        logs = f"see `kaggle kernels logs {built.id}`"
        is_other_build = state.build not in ("", built.build)
        if state.status == "absent":
            if self.num_pushes[name]:
                raise ExpectedError(
                    f"{built.id}: it was pushed, but Kaggle does not know it; expected it on "
                    "kaggle.com under this owner",
                    setting="user",
                )
            return False
        if state.status != "COMPLETE":
            if not is_other_build:
                raise ExpectedError(
                    f"{built.id}: {state.status} ({state.message or 'no reason given'}); expected "
                    f"it to complete; {logs}; mend it and build, or {again}"
                )
            say(f"{name}: {state.status} was of another build; pushing this one")
            return False
        if not state.report:
            raise ExpectedError(
                f"{built.id}: its output has no {REPORT}; expected a kernel of this project; "
                f"if it may be replaced, {again}"
            )
        if not state.is_finished and name not in built.kernel.inputs:
            raise ExpectedError(
                f"{built.id}: it stopped without {built.kernel.result}; expected it to finish in "
                f"one session; {logs}, and {again}"
            )
        if not state.is_finished:
            return False
        if any(state.report["started"] < self.finished[o]["ended"] for o in self.inputs(name)):
            say(f"{name}: older than its inputs; pushing it again")
            return False
        if is_other_build and not self.any_build:
            told = f"finished by build {state.build}; expected {built.build}"
            where = f"which is in {built.folder}"
            raise ExpectedError(f"{built.id}: {told}, {where}", setting="any_build")
        return True

    def try_push(self, name):
        """Pushes a kernel if a session is free for it; tells whether it did."""
        built, before = self.built[name], self.states[name]
        active = [other for other, state in self.states.items() if state.is_active]
        num_gpus = sum(self.built[other].kernel.has_gpu for other in active)
        if self.is_full or (built.kernel.has_gpu and num_gpus >= GPU_SESSIONS):
            return False
        reason = printable(before.report.get("error", ""))
        if self.num_pushes[name] >= MAX_SESSIONS:
            raise ExpectedError(
                f"{built.id}: not finished after {MAX_SESSIONS} sessions"
                f"{reason and f', the last: {reason}'}; expected fewer; see "
                f"`kaggle kernels logs {built.id}`, and run again to go on"
            )
        if not push(built, before):
            if not self.was_full:
                say(f"{name}: Kaggle has no session free; waiting")
            self.is_full = self.was_full = True
            return False
        if reason:
            say(f"{name}: continued after a session that failed: {reason}")
        self.num_pushes[name] += 1
        self.before_push[name] = before
        self.states[name] = State("PUSHED")
        return True


def push(built, before):
    """Pushes a kernel whose `State` was `before`; False where Kaggle has no session free now."""
    attempts = []

    def attempt():
        attempts.append(None)
        if len(attempts) > 1 and look(built) != before:  # the answer was lost, not the push
            return None
        return ask_once("kernels_push", str(built.folder))

    answer = patiently(attempt)
    told = "pushed, though its answer was lost"
    if answer:
        if "session count" in answer.error:  # "Maximum batch GPU session count of 2 reached"
            return False
        if answer.error:
            raise ExpectedError(
                f"{built.id}: Kernel push error: {printable(answer.error)}; expected Kaggle to "
                "take it; mend what it names, then run the command again"
            )
        kinds = ("invalid_kernel_sources", "invalid_dataset_sources", "invalid_model_sources")
        dropped = {source for kind in kinds for source in getattr(answer, kind) or []}
        if before.status == "absent":  # a kernel that continues itself is no source yet
            dropped -= {built.id}
        if dropped:
            raise ExpectedError(
                f"{built.id}: pushed without {printable(', '.join(sorted(dropped)))}, not valid "
                "sources to Kaggle; expected a push with all its sources; stop its session on its "
                "page, and see that the sources exist"
            )
        told = f"version {answer.version_number} pushed, see {printable(answer.url)}"
    say(f"{time.strftime('%H:%M')} {built.kernel.name}: {told}")
    return True
