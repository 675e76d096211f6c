"""Two hosts (network namespaces with a virtual link) train together; one fails; they resume."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pyg_se3.training import read_checkpoint
from pyg_se3.training.loggers import read_metrics

ROOT = Path(__file__).parents[2]
ADDRESSES = ("10.213.77.1", "10.213.77.2")
STEPS = 60


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[list[tuple[str, str]]]:
    """Names of two namespaces and of their network devices, made here and removed afterwards."""
    if shutil.which("ip") is None:
        pytest.skip("needs the command ip (iproute2)")
    tag = f"{os.getpid()}"
    names = [(f"se3a{tag}", f"va{tag}"), (f"se3b{tag}", f"vb{tag}")]
    made: list[str] = []
    try:
        try:
            for namespace, _ in names:
                ip("netns", "add", namespace)
                made.append(namespace)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted: {error.stderr.strip()}")
        (first, device), (second, peer) = names
        ip("link", "add", device, "netns", first, "type", "veth", "peer", "name", peer,
           "netns", second)  # fmt: skip
        for (namespace, name), address in zip(names, ADDRESSES, strict=True):
            ip("-n", namespace, "address", "add", f"{address}/24", "dev", name)
            ip("-n", namespace, "link", "set", name, "up")
            ip("-n", namespace, "link", "set", "lo", "up")
        yield names
    finally:
        for namespace in made:
            ip("netns", "del", namespace)


@pytest.mark.slow
def test_one_of_two_hosts_fails_and_the_job_resumes(
    hosts, start: Callable[..., subprocess.Popen], tiny, tmp_path
):
    def job(folder: str, *more: str) -> list[subprocess.Popen]:
        """Torchrun on both hosts."""
        return [
            start(
                "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={rank}",
                "--nproc_per_node=1", f"--master_addr={ADDRESSES[0]}", "--master_port=29555",
                str(ROOT / "train.py"), *tiny, "trainer=ddp", "trainer.devices=1",
                "trainer.num_nodes=2", "data.batch_size=4", f"trainer.max_steps={STEPS}",
                "trainer.max_epochs=-1", "test=false", f"run_dir={folder}", *more,
                before=("ip", "netns", "exec", namespace), GLOO_SOCKET_IFNAME=device,
            )
            for rank, (namespace, device) in enumerate(hosts)
        ]  # fmt: skip

    def finish(processes: list[subprocess.Popen]) -> list[str]:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
        assert [p.returncode for p in processes] == [0, 0], "\n".join(outputs)
        return outputs

    finish(job("whole"))

    processes = job("run", "resume=true")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    while steps_done(last) < STEPS // 3:
        assert all(p.poll() is None for p in processes), "the job ended before it could fail"
        time.sleep(0.05)
    # The second host loses power: torchrun and its worker at once.
    for pid in (*descendants(processes[1].pid), processes[1].pid):
        os.kill(pid, signal.SIGKILL)
    message = processes[0].communicate(timeout=120)[0]
    assert processes[0].returncode != 0
    assert "another process of this run died or no longer answers" in message
    done = read_checkpoint(last)["global_step"]
    assert STEPS // 3 <= done < STEPS

    outputs = finish(job("run", "resume=true"))
    assert f"Resuming at step {done}" in outputs[0]
    whole, run = (
        read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "run")
    )
    assert whole["global_step"] == run["global_step"] == STEPS
    for name, value in whole["state_dict"].items():
        assert torch.equal(run["state_dict"][name], value), name
    losses = []
    for name in ("whole", "run"):
        rows = read_metrics(tmp_path / name / "metrics.csv")
        losses.append(
            {step: row["train/loss"] for step, row in rows.items() if "train/loss" in row}
        )
    assert losses[0] == losses[1] and len(losses[0]) == STEPS


def steps_done(last: Path) -> int:
    try:
        return read_checkpoint(last)["global_step"]
    except FileNotFoundError:  # Not yet, or between its renaming and the next one's.
        return 0


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [found for child in map(int, children) for found in (child, *descendants(child))]
