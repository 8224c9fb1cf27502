"""How many threads torch computes with on the CPU: fewer while other programs keep its cores busy.

torch's threads wait for one another in a busy loop at the end of each operation. Beside another busy program one of
them is always late, and all the others spin until the scheduler lets it run: two threads on two cores take three times
as long as alone, one thread takes less than twice as long. What a step would take with another number of threads is
found out by taking one with it, seldom while all is as it was, at once when a step takes much longer or shorter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch

BETTER = 0.87  # of the time before: another number of threads is kept
CHANGED = (0.75, 1.4)  # times what a step took: something else has come or gone
FIRST, LAST = 5, 320  # steps between two trials, each time twice as many while nothing changes
LAST_OF_FEW = 40  # the same while there are fewer threads than there could be
ODD = 2  # so many steps in a row are no accident
RECENT = 0.3  # weight of the last step in the mean


class Threads:
    """The engine's, on the CPU.

    Args:
        most: threads.
        use: called with a number of threads.
        clock: in seconds.
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
        self._means: dict[tuple[Hashable, int], float] = {}  # seconds of a step, by its kind and the threads
        self._every = FIRST
        self._since = 0  # steps since the last trial
        self._odd = 0  # steps in a row that took much longer or shorter than the mean
        self._up = False  # whether the last trial was of more

    @contextmanager
    def step(self, kind: Hashable) -> Iterator[None]:
        """Around a step: steps of one kind take the same time where nothing has changed."""
        trial = self._trial(kind)
        if trial:
            self.use(trial)
        begin = self.clock()
        try:
            yield
        except BaseException:  # how long it took says nothing
            self.use(self.now)
            raise
        seconds = self.clock() - begin
        if trial:
            self._judge(kind, trial, seconds)
        else:
            self._note(kind, seconds)

    def _trial(self, kind: Hashable) -> int | None:
        """How many threads this step is taken with, to see; None: as many as the others."""
        if self.most == 1 or (kind, self.now) not in self._means or (self._odd < ODD and self._since < self._every):
            return None
        self._up = self.now == 1 or (self.now < self.most and not self._up)
        return min(self.most, 2 * self.now) if self._up else max(1, self.now // 2)

    def _judge(self, kind: Hashable, tried: int, seconds: float) -> None:
        """Keep the number that was tried, or go back."""
        if seconds < BETTER * self._means[kind, self.now]:
            self.now, self._every = tried, FIRST
            self._means = {(kind, tried): seconds}  # what others took is of another time
        else:
            self._every = min(2 * self._every, LAST if self.now == self.most else LAST_OF_FEW)
            self.use(self.now)
        self._since = self._odd = 0

    def _note(self, kind: Hashable, seconds: float) -> None:
        self._since += 1
        mean = self._means.get((kind, self.now))
        odd = mean is not None and not CHANGED[0] < seconds / mean < CHANGED[1]
        self._odd = self._odd + 1 if odd else 0
        if self._odd == ODD:
            self._means = {(kind, self.now): seconds}  # what others took is of another time
        elif not odd:
            self._means[kind, self.now] = seconds if mean is None else mean + RECENT * (seconds - mean)
