"""Layers and callers share the time of the device."""

from __future__ import annotations

import time
from threading import Event, Thread

from tests.unit.engines import Slow, ask, question
from worker.engine.engine import Engine
from worker.engine.scheduling import Account


def test_layers_share_the_device_by_time() -> None:
    """A layer whose steps take five times as long makes a fifth of the steps."""
    device = Slow()
    engine = Engine(device)
    asked = [engine.ask([question(1, layer, iterations=count)]) for layer, count in (("conv1_1", 20), ("conv1_2", 60))]
    for one in asked:
        list(one)
    engine.close()
    while_both = device.order[: min(len(device.order), 60)]
    assert 2 < while_both.count("conv1_2") / while_both.count("conv1_1") < 8


def test_a_small_job_does_not_wait_for_a_big_one_of_the_same_layer() -> None:
    """Urgent questions have a batch of their own; within a class, callers take turns."""
    device = Slow()
    engine = Engine(device)
    big = engine.ask([question(1, iterations=50) for _ in range(16)], account=Account(urgent=False))
    small = engine.ask([question(1, iterations=5)])
    list(small)
    assert sum(ticket.step is not None for ticket in big.tickets) <= 2
    other = engine.ask([question(1, iterations=5)], account=Account(urgent=False))
    list(other)
    assert sum(ticket.step is not None for ticket in big.tickets) <= 3
    big.cancel()
    engine.close()


def test_callers_that_never_rest_do_not_starve_a_question() -> None:
    """Eight callers whose calls take longer than their pauses: both steps and calls make progress."""
    engine, over, ran = Engine(Slow()), Event(), list[float]()

    def rank() -> None:
        while not over.is_set():
            engine.call(time.sleep, 0.03)
            ran.append(time.monotonic())
            time.sleep(0.01)

    callers = [Thread(target=rank) for _ in range(8)]
    for caller in callers:
        caller.start()
    try:
        alone = 20 * 0.01  # seconds
        begin = time.monotonic()
        assert ask(engine, [question(0, "conv1_1", iterations=20)])
        assert time.monotonic() - begin < 10 * alone
        assert len(ran) > 3
    finally:
        over.set()
        for caller in callers:
            caller.join()
        engine.close()


def test_a_small_job_beside_many_big_ones() -> None:
    """With sixteen layers of a bulk caller, urgent work gets half of the device."""
    engine = Engine(Slow())
    account = Account(urgent=False)
    big = [engine.ask([question(1, f"conv{n}", iterations=2000)], account=account) for n in range(16)]
    while any(one.tickets[0].step is None for one in big):
        time.sleep(0.001)
    begin = time.monotonic()
    assert ask(engine, [question(1, "conv1_1", iterations=30)])
    alone = 30 * 0.011
    assert time.monotonic() - begin < 3 * alone
    for one in big:
        one.cancel()
    engine.close()


def test_callers_share_the_device_whatever_their_batches_are() -> None:
    """A caller with questions about eight layers gets no more of it than one with a single layer."""
    engine = Engine(Slow())
    many = Account()
    big = [engine.ask([question(1, f"conv{n}", iterations=2000)], account=many) for n in range(8)]
    while any(one.tickets[0].step is None for one in big):
        time.sleep(0.001)
    begin = time.monotonic()
    one = Account()
    assert list(engine.ask([question(1, "conv1_2", iterations=50)], account=one))
    assert time.monotonic() - begin < 4 * 50 * 0.003
    assert one.used > 50 * 0.002
    for asked in big:
        asked.cancel()
    engine.close()
