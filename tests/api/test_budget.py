"""Budgets of the API's capacity: their order, limits and releases."""

from __future__ import annotations

import asyncio

import pytest

from api.edge.capacity import Budget
from shared.errors import ServerBusy

PHOTO = 12


def budget(*, total: int = 60, own: int = 50, patience: float = 5.0) -> Budget:
    """A small budget."""
    return Budget(total, own, patience, "things")


def test_a_caller_with_large_requests_does_not_delay_one_with_a_small_one() -> None:
    """Sixteen large images wait; the small one that arrives last is next, or runs beside the first if it fits."""

    async def order(total: int) -> list[str]:
        shared, done = budget(total=total), []

        async def work(caller: str, amount: int) -> None:
            async with shared.reserve(caller, amount):
                done.append(caller)
                await asyncio.sleep(0.005)

        async with asyncio.TaskGroup() as group:
            for _ in range(16):
                group.create_task(work("hog", 50))
            await asyncio.sleep(0)
            for _ in range(3):
                group.create_task(work("photo", PHOTO))
        return done

    assert asyncio.run(order(62))[:2] == ["hog", "photo"]
    assert asyncio.run(order(50))[:5] == ["hog", "photo", "photo", "photo", "hog"]


def test_callers_share_by_amount() -> None:
    """Small requests of the same total amount are served per large one, not one for one."""

    async def order() -> str:
        shared, done = budget(total=50), []

        async def work(caller: str, amount: int) -> None:
            async with shared.reserve(caller, amount):
                done.append(caller)
                await asyncio.sleep(0.001)

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(work("L", 50))
            for _ in range(40):
                group.create_task(work("s", 10))
        return "".join(done)

    first = asyncio.run(order())[:15]
    assert 8 <= first.count("s") <= 13, first


def test_one_caller_cannot_reserve_everything() -> None:
    """A caller who requests more than the limit gets the limit."""

    async def used() -> None:
        shared = budget(total=60, own=40, patience=0.02)
        async with shared.reserve("a", 10**9):
            assert shared.free == 20
            with pytest.raises(ServerBusy):
                async with shared.reserve("a", 1):
                    pass
            async with shared.reserve("b", 20):
                assert shared.free == 0
        assert shared.free == 60

    asyncio.run(used())


def test_reservations_are_always_released() -> None:
    """After errors, after cancellations of waiting and of running requests, and after timeouts."""

    async def tried() -> int:
        shared = budget(total=10, own=10, patience=0.01)
        for error in (ValueError, asyncio.CancelledError):
            with pytest.raises(error):
                async with shared.reserve("a", 10):
                    raise error
        async with shared.reserve("a", 10):
            with pytest.raises(ServerBusy) as refusal:
                async with shared.reserve("b", 1):
                    pass
            assert refusal.value.headers["Retry-After"] == "5"
        shared.patience = 5

        async def hold(seconds: float) -> None:
            async with shared.reserve("a", 10):
                await asyncio.sleep(seconds)

        for delay in (0.0, 0.001, 0.002, 0.003):
            tasks = [asyncio.create_task(hold(0.002)) for _ in range(5)]
            await asyncio.sleep(delay)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return shared.free

    assert asyncio.run(tried()) == 10
