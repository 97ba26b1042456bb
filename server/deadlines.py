"""How long a step may take before its worker is given up. Pure: a description, a plan and the clock's readings in.

Five times what the warm-up measured for the same kind and size, and never less than the floor; in no case more than
worker.step_timeout. Knows no worker and no device.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.protocol import CpuOptions, Description, DeviceOptions
from server.engine.scheduler import DecodePlan, FeedPlan, Plan, feed_of
from server.settings import WorkerSettings

FACTOR = 5.0
# The runtime's own limit comes first: it says what hangs, a killed worker does not.
RUNTIME_MARGIN_S = 1.0


def step_deadline(plan: Plan, description: Description, options: DeviceOptions, settings: WorkerSettings) -> float:
    """Seconds after which `plan` is late.

    A processor that this machine shares with everything else has no time of its own: on the CPU backend the warm-up
    says nothing about a busy hour, and worker.step_timeout alone holds.
    """
    measured = _measured(plan, description)
    if measured <= 0 or isinstance(options, CpuOptions):
        return settings.step_timeout
    least = settings.step_floor
    if description.runtime_timeout_s:
        least = max(least, description.runtime_timeout_s + RUNTIME_MARGIN_S)
    return min(settings.step_timeout, max(least, FACTOR * measured))


def step_name(plan: Plan) -> str:
    """What the log calls `plan`."""
    feed = feed_of(plan)
    if feed is None:
        return "decode step"
    fed = f"feed of {feed.stop - feed.start} tokens"
    return fed if plan is feed else f"decode step with a {fed}"


def _measured(plan: Plan, description: Description) -> float:
    """The warm-up's seconds for this step; 0 where it has none.

    A feed runs the program of the smallest bucket that holds it. A decode is taken for the slowest one: which bucket it
    runs depends on the longest live sequence. A step that does both takes no longer than the two.
    """
    parts = [max(description.step_s, default=0.0)] if isinstance(plan, DecodePlan) else []
    if (feed := feed_of(plan)) is not None:
        parts.append(_feed_s(feed, description))
    return sum(parts) if all(parts) else 0.0


def _feed_s(plan: FeedPlan, description: Description) -> float:
    fed = plan.stop - plan.start
    timed = zip(description.context_buckets, description.feed_s, strict=False)
    return next((seconds for bucket, seconds in timed if bucket >= fed), max(description.feed_s, default=0.0))


@dataclass(slots=True)
class StepWatch:
    """Seconds for which a step has been seen to run.

    It counts what it attended, at most `most` seconds between two looks: when the process or the whole machine stood
    still, the step is not to blame, and its result may lie unread in the socket.
    """

    most: float
    _step: int | None = None
    _age: float = 0.0
    _looked: float = 0.0

    def look(self, step: int | None, now: float) -> float:
        """The age of `step` (None: nothing runs) at the monotonic time `now`."""
        self._age = self._age + min(now - self._looked, self.most) if step == self._step else 0.0
        self._step, self._looked = step, now
        return self._age if step is not None else 0.0
