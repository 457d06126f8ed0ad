"""Several processes: the same result as one, and what happens when one of them is lost."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from caffe_compat.errors import VggcError
from caffe_compat.weight_files import read_weights
from repro.cli import run
from repro.training.gradients import Gradients
from repro.training.group import FRESH_STORE, Group
from repro.training.memory import PARTS, choose_micro_batch
from repro.training.nets import training_net
from tests.repro.training.tiny import write_images, write_net

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", **dict([FRESH_STORE])}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
OPTIONS = ("--batch", "16", "--rate", "0.0005", "--scale", "9-12", "--init", "msra", "--workers", "1")
RARELY = ("--validate-every", "1000", "--patience", "99")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("home")
    write_net(path)
    write_images(path)
    return path


def words(home: Path, out: Path, iterations: int, *more: str) -> list[str]:
    named = ["train", str(home / "tiny.prototxt"), "--data", str(home / "images"), "--out", str(out)]
    return [*named, *OPTIONS, *RARELY, "--device", "cpu", "--max-iter", str(iterations), *more]


def check(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out


def start(command: list[str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT, start_new_session=True)


def wait_for(path: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not list(path.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, pattern
        time.sleep(0.02)


def same(one: Path, other: Path) -> None:
    """Parameters are equal within 1e-6 of the largest, and indeed to the bit."""
    for mine, theirs in zip(read_weights(one), read_weights(other), strict=True):
        for a, b in zip(mine.blobs, theirs.blobs, strict=True):
            assert np.abs(a.values - b.values).max() <= 1e-6 * np.abs(a.values).max()
            np.testing.assert_array_equal(a.values, b.values)


@pytest.fixture(scope="module")
def whole(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 iterations in one process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert run(words(home, out, 60, "--snapshot-every", "20", "--keep", "9")) == 0
    torch.set_num_threads(before)
    return out


@pytest.mark.parametrize("processes", [2, 4])
def test_as_on_one(processes: int, home: Path, whole: Path, tmp_path: Path) -> None:
    """1 x 16, 2 x 8 and 4 x 4 images, with augmentation and dropout, after 20 iterations."""
    command = words(home, tmp_path / "run", 20, "--nproc", str(processes))
    text = check(start([sys.executable, "-m", "repro", *command]))
    assert text.count("max_iter reached at iteration 20") == 1, "the first process alone speaks"
    same(whole / "tiny_iter_20.caffemodel", tmp_path / "run" / "last.caffemodel")


def test_interrupt_stops_all_with_a_snapshot(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start([sys.executable, "-m", "repro", *words(home, out, 10**6, "--snapshot-every", "5", "--nproc", "2")])
    wait_for(out, "*_iter_5.json", process)
    os.killpg(process.pid, signal.SIGINT)
    stopped = re.findall(r"stopped at iteration (\d+); the same command goes on", check(process))
    assert [(out / f"tiny_iter_{iteration}.json").exists() for iteration in stopped] == [True]


def test_a_lost_process_is_replaced(home: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = ("--snapshot-every", "20", "--nproc", "2")
    process = start([sys.executable, "-m", "repro", *words(home, out, 60, *more)])
    wait_for(out, "*_iter_20.json", process)
    lines = (out / "train.log").read_text().splitlines()
    os.kill(int(lines[-1].split()[2]), signal.SIGKILL)
    check(process)
    same(whole / "tiny_iter_60.caffemodel", out / "last.caffemodel")
    assert "Restoring previous solver status" in (out / "train.log").read_text()


def test_a_lost_node_is_replaced(home: Path, whole: Path, tmp_path: Path) -> None:
    """Two torchrun nodes on this machine; one is killed with all it has started, and started again."""
    out = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = [f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-backend=c10d", "--rdzv-id=1", "--local-addr=127.0.0.1"]
    conf = "--rdzv-conf=keep_alive_interval=1,keep_alive_max_attempt=2,last_call_timeout=1,join_timeout=120"
    node = [*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", *place, conf, "-m", "repro"]
    command = [*node, *words(home, out, 60, "--snapshot-every", "20")]
    first, second = start(command), None
    try:
        time.sleep(1)  # the first hosts the rendezvous
        second = start(command)
        wait_for(out, "*_iter_20.json", first)
        os.killpg(second.pid, signal.SIGKILL)
        for pid in _children_of(second.pid):
            os.kill(pid, signal.SIGKILL)
        second.communicate()
        second = start(command)
        check(first)
        check(second)
    finally:
        for each in (first, second):
            if each and each.poll() is None:
                os.killpg(each.pid, signal.SIGKILL)
    same(whole / "tiny_iter_60.caffemodel", out / "last.caffemodel")


def _children_of(pid: int) -> list[int]:
    """Processes whose group leader is gone are found by the agent that started them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(entry.parent.name))
    return found


def test_a_batch_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(VggcError, match="a batch of 16 cannot be split over 3 processes"):
        Group(0, 3).share(16)


def test_sums_go_by_pairs_of_passes() -> None:
    """Three passes, as two of three: ((a + b) + c); gradients that a pass does not reach count as nothing."""
    blobs = [nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(2))]
    sums = Gradients(Group(), blobs)
    parts = [torch.rand(4, generator=torch.Generator().manual_seed(seed)) * 10**seed for seed in range(3)]
    sums.begin()
    for number, part in enumerate(parts):
        if number == 2:
            sums.last()
        (blobs[0] * part).sum().backward()  # type: ignore[no-untyped-call]
        sums.passed()
    assert blobs[0].grad is not None
    assert torch.equal(blobs[0].grad, (parts[0] + parts[1]) + parts[2])
    assert blobs[1].grad is None


def test_micro_batches_suit_up_to_eight_processes(home: Path) -> None:
    info = training_net(home / "tiny.prototxt", 3)
    for batch, most in ((256, 32), (16, 2), (10, 10)):
        size = choose_micro_batch(info, batch, torch.device("cpu"))
        assert size <= most
        assert (batch // PARTS or batch) % size == 0 or batch % size == 0
    assert re.match("8", str(PARTS))
