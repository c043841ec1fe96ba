"""The pool of gloo processes that the distributed tests stand on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from tests.distributed.pool import GlooPool


class Unpicklable(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")  # unpickling calls it with one argument


def rank_and_arguments(rank: int, world_size: int, *args: object) -> tuple[object, ...]:
    return rank, world_size, *args


def process_id(rank: int, world_size: int) -> int:
    return os.getpid()


def all_reduced(rank: int, world_size: int, values: torch.Tensor) -> torch.Tensor:
    total = values * (rank + 1)
    dist.all_reduce(total)
    return total


def random_numbers_and_environment(rank: int, world_size: int) -> tuple[list[float], str | None]:
    earlier = os.environ.get("LEFT_BY_A_TEST")
    os.environ["LEFT_BY_A_TEST"] = "1"
    return torch.rand(3).tolist(), earlier


def threads(rank: int, world_size: int) -> tuple[int, str]:
    return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]


def fail_everywhere(rank: int, world_size: int) -> None:
    raise ValueError(f"rank {rank} says no")


def fail_on_one_rank(rank: int, world_size: int) -> None:
    if rank == 1:
        raise ValueError("only rank 1 says no")
    dist.barrier()


def fail_with_unpicklable(rank: int, world_size: int) -> None:
    raise Unpicklable(1, 2)


def fail_a_pytest_check(rank: int, world_size: int) -> None:
    pytest.fail("not what was asked for")


def die_on_one_rank(rank: int, world_size: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def destroy_group(rank: int, world_size: int) -> None:
    dist.destroy_process_group()


def launcher_variables(rank: int, world_size: int) -> tuple[str, ...]:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return tuple(os.environ[name] for name in names)


def sleep_on_one_rank(rank: int, world_size: int, seconds: float) -> None:
    time.sleep(seconds * rank)


@pytest.fixture(scope="module")
def own_pool() -> Iterator[GlooPool]:
    """A pool that these tests may kill, beside the session's."""
    pool = GlooPool(grace=0.5)
    yield pool
    pool.close()


def test_results_come_in_rank_order(gloo_pool: GlooPool) -> None:
    expected = [(0, 2, "a", 1.5), (1, 2, "a", 1.5)]
    assert gloo_pool.run(rank_and_arguments, "a", 1.5) == expected


def test_ranks_share_a_gloo_group(gloo_pool: GlooPool) -> None:
    for result in gloo_pool.run(all_reduced, torch.tensor([1.0, -2.0])):
        torch.testing.assert_close(result, torch.tensor([3.0, -6.0]), rtol=0, atol=0)


def test_processes_are_kept_between_calls(gloo_pool: GlooPool) -> None:
    first, second = gloo_pool.run(process_id), gloo_pool.run(process_id)
    assert first == second
    assert len({os.getpid(), *first}) == 3


def test_calls_start_from_the_same_seed_and_environment(gloo_pool: GlooPool) -> None:
    first = gloo_pool.run(random_numbers_and_environment)
    assert first == gloo_pool.run(random_numbers_and_environment)
    assert first[0] == (torch.rand(3, generator=torch.Generator().manual_seed(0)).tolist(), None)


def test_each_process_has_one_thread(gloo_pool: GlooPool) -> None:
    assert gloo_pool.run(threads) == [(1, "1"), (1, "1")]


def test_a_destroyed_group_is_made_anew(gloo_pool: GlooPool) -> None:
    before = gloo_pool.run(process_id)
    gloo_pool.run(destroy_group)
    assert [result.item() for result in gloo_pool.run(all_reduced, torch.tensor(1.0))] == [3, 3]
    assert gloo_pool.run(process_id) == before


def test_environment_is_that_of_a_launcher(gloo_pool: GlooPool) -> None:
    first, second = gloo_pool.run(launcher_variables)
    assert first[:3] == ("0", "0", "2")
    assert second[:3] == ("1", "1", "2")
    assert first[3:] == second[3:]
    assert first[3] == "127.0.0.1"


def test_exception_keeps_type_message_and_traceback(gloo_pool: GlooPool) -> None:
    before = gloo_pool.run(process_id)
    with pytest.raises(ValueError, match=r"^rank 0 says no$") as caught:
        gloo_pool.run(fail_everywhere)
    assert "in fail_everywhere" in str(caught.value.__cause__)
    assert gloo_pool.run(process_id) == before  # all ranks answered, so all can go on


def test_exception_of_one_rank_ends_the_wait_of_the_others(own_pool: GlooPool) -> None:
    before = own_pool.run(process_id)
    with pytest.raises(ValueError, match="only rank 1"):
        own_pool.run(fail_on_one_rank)
    after = own_pool.run(process_id)  # new processes: the old ones were halfway through a barrier
    assert not set(before) & set(after)


def test_exception_that_cannot_travel_is_told(gloo_pool: GlooPool) -> None:
    with pytest.raises(RuntimeError, match="Unpicklable: 1 and 2"):
        gloo_pool.run(fail_with_unpicklable)


def test_failed_check_on_a_rank_fails_the_test(gloo_pool: GlooPool) -> None:
    with pytest.raises(RuntimeError, match="Failed: not what was asked for"):
        gloo_pool.run(fail_a_pytest_check)


def test_dead_process_is_reported(own_pool: GlooPool) -> None:
    with pytest.raises(RuntimeError, match=r"rank 1 ended with exit code -9 .*die_on_one_rank"):
        own_pool.run(die_on_one_rank)


def test_process_killed_between_calls_is_replaced(own_pool: GlooPool) -> None:
    first, second = own_pool.run(process_id)
    os.kill(second, signal.SIGKILL)
    own_pool._processes[1].join()  # until the kill has arrived
    assert not {first, second} & set(own_pool.run(process_id))


def test_time_limit_kills_the_pool(own_pool: GlooPool) -> None:
    """Rank 0 has nothing to do, and on a busy machine may not be done with it either."""
    before = own_pool.run(process_id)
    message = r"ranks \[(0, )?1\] were not done with sleep_on_one_rank in 0\.5 s"
    with pytest.raises(TimeoutError, match=message):
        own_pool.run(sleep_on_one_rank, 3600.0, time_limit=0.5)
    assert not set(before) & set(own_pool.run(process_id))


def test_local_function_is_refused(gloo_pool: GlooPool) -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        gloo_pool.run(lambda rank, world_size: rank)
