"""The seeded run: one order of tasks a seed, virtual time, and tasks that stand still."""

from __future__ import annotations

import trio

from lattice.testing.scheduler import Freezer, run_seeded


def order_of(seed: int) -> list[int]:
    async def main() -> list[int]:
        seen: list[int] = []

        async def step(number: int) -> None:
            for _ in range(3):
                await trio.sleep(1)
                seen.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(step, number)
        return seen

    return run_seeded(seed, main)


def test_one_order_a_seed() -> None:
    orders = [order_of(seed) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_time_is_virtual() -> None:
    async def main() -> float:
        await trio.sleep(86_400)
        return trio.current_time()

    assert run_seeded(0, main) == 86_400


def test_frozen_tasks_stand_still_and_learn_it_later() -> None:
    async def main() -> None:
        freezer = Freezer()
        ticks: list[float] = []
        timed_out: list[float] = []

        async def tick() -> None:
            while True:
                await trio.sleep(1)
                ticks.append(trio.current_time())

        async def wait() -> None:
            with trio.move_on_after(5):
                await trio.sleep_forever()
            timed_out.append(trio.current_time())

        async def machine(*, task_status: trio.TaskStatus[trio.Nursery]) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tick)
                nursery.start_soon(wait)
                task_status.started(nursery)

        async with trio.open_nursery() as outer:
            nursery = await outer.start(machine)
            other: list[float] = []

            async def bystander() -> None:
                for _ in range(20):
                    await trio.sleep(1)
                    other.append(trio.current_time())

            outer.start_soon(bystander)
            await trio.sleep(3.5)
            freezer.freeze(nursery)
            await trio.sleep(10)
            assert ticks == [1, 2, 3]
            assert timed_out == []
            freezer.thaw(nursery)
            await trio.sleep(2)
            assert ticks == [1, 2, 3, 13.5, 14.5, 15.5]
            assert timed_out == [13.5]
            assert other[:15] == list(range(1, 16))
            outer.cancel_scope.cancel()

    run_seeded(0, main)


def test_a_task_that_was_already_runnable_is_frozen_too() -> None:
    async def main() -> None:
        freezer = Freezer()
        event = trio.Event()
        woken: list[float] = []

        async def wait() -> None:
            await event.wait()
            woken.append(trio.current_time())

        async def machine(*, task_status: trio.TaskStatus[trio.Nursery]) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                task_status.started(nursery)

        async with trio.open_nursery() as outer:
            nursery = await outer.start(machine)
            await trio.sleep(1)
            event.set()
            freezer.freeze(nursery)
            await trio.sleep(1)
            assert woken == []
            freezer.thaw(nursery)
            await trio.sleep(1)
            assert woken == [2.0]

    run_seeded(0, main)
