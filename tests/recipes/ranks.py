"""Processes that train together, forked from one that has imported all that they need."""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["brevitas_multiquant.recipes.search"])
_SECONDS = 300


def run_ranks(count: int, work: Callable[..., None], *args: Any) -> None:
    """Run ``work(*args)`` in processes that know each other, as ``torchrun`` would start them."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        _CONTEXT.Process(target=_as_rank, args=(rank, count, port, work, args))
        for rank in range(count)
    ]
    deadline = time.monotonic() + _SECONDS
    try:
        for one in ranks:
            one.start()
        for one in ranks:  # where one of them fails, those that wait for it do
            one.join(deadline - time.monotonic())
        assert [one.exitcode for one in ranks] == [0] * count
    finally:
        for one in ranks:
            one.kill()


def _as_rank(rank: int, count: int, port: int, work: Callable[..., None], args: Any) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    torch.set_num_threads(1)
    work(*args)
