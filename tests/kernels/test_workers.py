"""Jobs on threads: their order, their threads, their errors."""

import os
import threading
import time
from functools import partial

import pytest
import torch

from lightning_root.kernels import run_in_order


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("ahead", [None, 1, 2])
def test_results_come_in_the_order_of_the_jobs(workers, ahead):
    def job(number):
        time.sleep(0.002 * (5 - number))  # the last would be done first
        return number

    jobs = [partial(job, number) for number in range(6)]
    assert list(run_in_order(jobs, workers, ahead)) == list(range(6))


def test_jobs_run_on_other_threads_with_one_thread_for_each_operation():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        seen = list(run_in_order([lambda: (threading.get_ident(), torch.get_num_threads())] * 8, 2))
        assert {threads for _, threads in seen} == {1}
        assert threading.get_ident() not in {thread for thread, _ in seen}
        assert torch.get_num_threads() == 3
        new = []
        thread = threading.Thread(target=lambda: new.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert new == [3]  # what other threads of the process begin with is as it was
    finally:
        torch.set_num_threads(before)


def test_jobs_build_no_graph():
    weight = torch.ones(2, requires_grad=True)
    (result,) = run_in_order([lambda: weight * 2], 2)
    assert not result.requires_grad


def test_no_more_results_wait_than_allowed():
    """What hooks look at is kept in memory until they have."""
    begun = []
    jobs = [partial(begun.append, number) for number in range(20)]
    for taken, _ in enumerate(run_in_order(jobs, 2, ahead=2), 1):
        time.sleep(0.002)
        assert len(begun) <= taken + 2


def test_an_error_comes_through_and_leaves_nothing_running():
    done = []

    def fail():
        raise ValueError("the second job")

    def slow():
        time.sleep(0.05)
        done.append(True)

    with pytest.raises(ValueError, match="the second job"):
        list(run_in_order([slow, fail, *[slow] * 200], 2))
    count = len(done)
    time.sleep(0.1)
    assert len(done) == count < 200  # with five seconds for the two threads to hear of it
    assert list(run_in_order([lambda: 1, lambda: 2], 2)) == [1, 2]  # the threads are still there


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    """As a data loader's workers are."""
    list(run_in_order([lambda: 1] * 4, 2))
    child = os.fork()
    if child == 0:
        results = list(run_in_order([lambda: 1] * 4, 2))
        os._exit(0 if results == [1] * 4 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
