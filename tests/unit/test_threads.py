"""The number of threads, on machines whose steps take the given times."""

from __future__ import annotations

import pytest

from worker.engine.threads import LAST, LAST_OF_FEW, Threads

QUIET = {1: 1.8, 2: 1.0}  # times of a step, by threads
BUSY = {1: 1.9, 2: 3.5}
MANY = {1: 6.0, 2: 3.1, 4: 1.7, 8: 1.0}
HALF = {1: 6.2, 2: 3.3, 4: 2.0, 8: 4.0}


class Machine:
    """A machine that sets the number of threads and advances a clock."""

    def __init__(self, most: int = 2) -> None:
        self.using, self.time = most, 0.0
        self.threads = Threads(most, self.use, lambda: self.time)

    def use(self, count: int) -> None:
        """Set the number of threads."""
        self.using = count

    def run(self, steps: int, times: dict[int, float], kind: str = "a") -> float:
        """Run this many steps. Returns their mean time."""
        begin = self.time
        for step in range(steps):
            with self.threads.step(kind):
                self.time += times[self.using] * (1.06 if step % 3 else 0.94)
        return (self.time - begin) / steps


def test_alone_it_uses_all_of_them() -> None:
    """Trials cost next to nothing."""
    machine = Machine()
    machine.run(100, QUIET)
    assert machine.run(2 * LAST, QUIET) < 1.03
    assert machine.threads.now == 2


def test_beside_a_busy_program_it_uses_one_within_a_few_steps() -> None:
    """Whether the other program runs from the start or starts later."""
    machine = Machine()
    assert machine.run(100, BUSY) < 2.2
    assert machine.threads.now == 1
    machine = Machine()
    machine.run(500, QUIET)
    assert machine.run(100, BUSY) < 2.2


def test_when_the_other_ends_it_uses_all_again() -> None:
    """With one thread this does not show in the time of a step."""
    machine = Machine()
    machine.run(500, BUSY)
    machine.run(LAST_OF_FEW + 2, QUIET)
    assert machine.threads.now == 2


def test_many_cores_are_given_up_step_by_step() -> None:
    """Only as far as that is faster."""
    machine = Machine(8)
    machine.run(200, MANY)
    assert machine.threads.now == 8
    machine.run(60, HALF)
    assert machine.threads.now == 4
    machine.run(2 * LAST, MANY)
    assert machine.threads.now == 8


def test_steps_of_different_kinds_are_not_compared() -> None:
    """A layer that takes ten times as long is no sign of another program."""
    machine = Machine()
    for _ in range(200):
        machine.run(1, QUIET, "a")
        machine.run(1, {1: 18.0, 2: 10.0}, "b")
    assert machine.threads.now == 2


def test_one_core_has_nothing_to_choose() -> None:
    """There are no trials."""
    machine = Machine(1)
    machine.run(100, {1: 1.0})
    assert machine.using == 1


def test_between_two_steps_no_trial_is_left() -> None:
    """Between steps torch has the best number of threads, also after a step that raised."""
    machine = Machine()
    for number in range(50):
        machine.run(1, QUIET)
        assert machine.using == 2
        if number == 20:
            machine.threads._since = LAST
            with pytest.raises(ZeroDivisionError), machine.threads.step("a"):
                machine.time += 1 / 0
            assert machine.using == machine.threads.now
