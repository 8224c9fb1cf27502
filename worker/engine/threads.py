"""The number of torch's CPU threads, which is lowered while other programs keep the cores busy.

At the end of each operation torch's threads wait for one another in a busy loop. Beside another busy program one of
them is always late, and the others spin until it has run: two threads on two cores take three times as long as on an
idle machine, one thread less than twice as long. Now and then a step is tried with another number of threads: seldom
while the times of steps are stable, at once when they change much.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch

BETTER = 0.87  # a trial that takes less than this fraction of the mean time is adopted
CHANGED = (0.75, 1.4)  # a step outside these multiples of the mean time is an outlier
FIRST, LAST = 5, 320  # steps between two trials, doubled while trials fail
LAST_OF_FEW = 40  # the most while there are fewer threads than possible
OUTLIERS = 2  # outliers in a row that start a trial
RECENT = 0.3  # weight of the last step in the mean


class Threads:
    """Chooses the number of threads for each step.

    Args:
        most: the largest number.
        use: sets the number.
        clock: returns seconds.
    """

    def __init__(
        self,
        most: int,
        use: Callable[[int], object] = torch.set_num_threads,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.most = most
        self.now = most
        self.use = use
        self.clock = clock
        self._means: dict[tuple[Hashable, int], float] = {}  # mean seconds of a step, by its kind and number of threads
        self._every = FIRST
        self._since = 0  # steps since the last trial
        self._outliers = 0  # in a row
        self._up = False  # whether the last trial had more threads

    @contextmanager
    def step(self, kind: Hashable) -> Iterator[None]:
        """Encloses a step. Steps of one kind take the same time on an idle machine."""
        trial = self._trial(kind)
        if trial:
            self.use(trial)
        begin = self.clock()
        try:
            yield
        except BaseException:  # its time does not count
            self.use(self.now)
            raise
        seconds = self.clock() - begin
        if trial:
            self._judge(kind, trial, seconds)
        else:
            self._record(kind, seconds)

    def _trial(self, kind: Hashable) -> int | None:
        """The number of threads to try in this step; None: no trial."""
        if (
            self.most == 1
            or (kind, self.now) not in self._means
            or (self._outliers < OUTLIERS and self._since < self._every)
        ):
            return None
        self._up = self.now == 1 or (self.now < self.most and not self._up)
        return min(self.most, 2 * self.now) if self._up else max(1, self.now // 2)

    def _judge(self, kind: Hashable, tried: int, seconds: float) -> None:
        """Adopt the number that was tried, or restore the previous one."""
        if seconds < BETTER * self._means[kind, self.now]:
            self.now, self._every = tried, FIRST
            self._means = {(kind, tried): seconds}  # older times do not compare
        else:
            self._every = min(2 * self._every, LAST if self.now == self.most else LAST_OF_FEW)
            self.use(self.now)
        self._since = self._outliers = 0

    def _record(self, kind: Hashable, seconds: float) -> None:
        self._since += 1
        mean = self._means.get((kind, self.now))
        outlier = mean is not None and not CHANGED[0] < seconds / mean < CHANGED[1]
        self._outliers = self._outliers + 1 if outlier else 0
        if self._outliers == OUTLIERS:
            self._means = {(kind, self.now): seconds}  # older times do not compare
        elif not outlier:
            self._means[kind, self.now] = seconds if mean is None else mean + RECENT * (seconds - mean)
