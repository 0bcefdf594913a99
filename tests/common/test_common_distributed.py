"""Sharing work between processes: a plain run, and three processes over gloo."""

import json
import multiprocessing
import os
import socket

import pytest
import torch

from ddpm.common import distributed
from ddpm.common.errors import RunStopped, UserError

CONTEXT = multiprocessing.get_context("spawn")


def test_a_plain_run_is_process_0_of_1(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (distributed.rank(), distributed.world_size(), distributed.local_world_size()) == (0, 1, 1)
    assert distributed.is_main()
    assert distributed.my_share(7) == range(7)
    assert distributed.gather(iter("ab")) == ["a", "b"]
    assert distributed.on_main(lambda: 5) == 5
    assert distributed.all_sum(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
    distributed.barrier()
    assert not torch.distributed.is_initialized()
    assert not distributed.is_lost_process(RuntimeError("connection reset by peer"))  # of a download, say


@pytest.mark.parametrize(("num", "processes"), [(0, 3), (2, 3), (7, 3), (9, 3), (1000, 7)])
def test_my_share_divides_the_numbers_evenly(monkeypatch, num, processes):
    shares = []
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    for rank in range(processes):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(distributed.my_share(num))
    assert [number for share in shares for number in share] == list(range(num))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def fail(error: Exception):
    raise error


def work(rank: int, port: int, folder: str) -> None:
    """Call every function as process `rank` of three, and write down the answers."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    found = {
        "squares": distributed.gather(number**2 for number in distributed.my_share(7)),
        "sum": distributed.all_sum(torch.tensor([float(rank), 1.0])).tolist(),
        "result": distributed.on_main(lambda: "done"),
    }
    for name, error in (("user", UserError("wrong")), ("stopped", RunStopped("full"))):
        try:
            distributed.on_main(lambda error=error: fail(error))
        except (UserError, RunStopped, SystemExit) as raised:
            found[name] = f"{type(raised).__name__}: {raised}"
    distributed.barrier()
    with open(f"{folder}/{rank}.json", "w") as handle:
        json.dump(found, handle)


def test_three_processes_share_and_gather(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [CONTEXT.Process(target=work, args=(rank, port, str(tmp_path))) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    first, *others = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert first == {
        "squares": [0, 1, 4, 9, 16, 25, 36],
        "sum": [3.0, 3.0],
        "result": "done",
        "user": "UserError: wrong",
        "stopped": "RunStopped: full",
    }
    for other in others:
        assert other == first | {"result": None, "user": "SystemExit: 2", "stopped": "SystemExit: 1"}
