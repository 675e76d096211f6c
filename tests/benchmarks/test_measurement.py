"""The harness: processes of their own, honest failures, reports that overwrite nothing."""

import json
from pathlib import Path

import pytest
import torch
from benchmarks.common import Job, Result, machine, measure, measure_all
from benchmarks.inputs import qm9_batch
from benchmarks.memory import PeakMemory

from benchmarks import kernels, qm9_step, report

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "qm9_mini.csv"
SMALL = {"num_layers": 1, "num_degrees": 2, "num_channels": 4, "num_heads": 2}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    path = folder / "qm9-4.pt"
    qm9_batch(4, root=folder, raw_path=FIXTURE).save(path)
    return str(path)


def test_a_measurement_has_times_memory_and_the_same_number_for_all_systems(inputs):
    jobs = [Job(s, inputs, spec=SMALL, repeats=3) for s in ("nvidia-full", "ours")]
    results = measure_all(jobs, rounds=2)
    assert [r.status for r in results] == ["ok", "ok"]
    for r in results:
        assert len(r.times) == 6 and 0 < r.best <= r.seconds
        assert r.peak_bytes > 0 and r.base_bytes > 1e7
        assert r.inputs["graphs"] == 4
    assert report.disagreements(results) == []


def test_lack_of_memory_is_a_result(inputs):
    job = Job("nvidia-full", inputs, spec={"num_channels": 256}, memory_limit_gb=0.5)
    assert measure(job).status == "out of memory"


def test_failures_say_why(inputs):
    result = measure(Job("nvidia-full", inputs, mode="forces", spec=SMALL))
    assert result.status == "failed"
    assert "no complete position gradients" in result.message


def test_peak_memory_counts_what_is_gone_again():
    with PeakMemory("cpu") as memory:
        torch.ones(25_000_000).sum()
    assert 95e6 < memory.above_base < 130e6


@pytest.mark.parametrize("wrong", [{"mode": "sideways"}, {"kind": "atom"}, {"precision": "8"}])
def test_wrong_jobs_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        Job("ours", "nowhere", **wrong)


def result(system, value, seconds=1.0, inputs="qm9-4.pt"):
    return Result(Job(system, inputs), "ok", [seconds], 10**9, 10**8, value=value)


def test_disagreement_is_reported():
    found = report.disagreements([result("nvidia-full", 1.0), result("ours", 1.01)])
    assert len(found) == 1 and "ours gives 1.01" in found[0]
    assert report.disagreements([result("nvidia-full", 1.0), result("ours", 1.0001)]) == []
    assert (
        len(report.disagreements([result("nvidia-full", 1.0), result("ours", float("nan"))])) == 1
    )


def test_ratios_are_against_the_fused_baseline(tmp_path):
    results = [result("ours", 1.0, 0.5), result("nvidia-full", 1.0, 4.0)]
    options = qm9_step.parse([])
    text = qm9_step.page(machine(1), results, options)
    assert "| pyg-se3 | 0.5 (0.5) | 8 | 8x | 1 | 1x |" in text
    paths = qm9_step.charts(tmp_path / "chart", results)
    assert [p.read_bytes()[:4] for p in paths] == [b"\x89PNG"]


def test_results_are_never_overwritten(tmp_path):
    stem = tmp_path / "2020-01-01-qm9"
    assert report.free_stem(stem) == stem
    stem.with_suffix(".json").write_text("{}")
    assert report.free_stem(stem).name == "2020-01-01-qm9-2"


def test_qm9_step_from_the_command_line(tmp_path):
    arguments = "--systems nvidia-low-memory ours --batch-sizes 3 --layers 1 --degrees 2"
    arguments += " --channels 4 --heads 2 --repeats 1 --threads 1"
    arguments = arguments.split() + ["--raw-path", str(FIXTURE), "--data", str(tmp_path)]
    assert qm9_step.main([*arguments, "--output", str(tmp_path / "run")]) == 0
    record = json.loads((tmp_path / "run.json").read_text())
    assert {r["job"]["system"] for r in record["results"]} == {"nvidia-low-memory", "ours"}
    assert record["machine"]["cpu"] and record["results"][0]["min_seconds"] > 0
    assert "All systems computed the same number." in (tmp_path / "run.md").read_text()
    assert (tmp_path / "run-training-3-32.png").exists()


def test_kernels_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setitem(kernels.CASES, "dense-L1-C16", kernels.dense(1, 4, 8, 3))
    arguments = "--cases dense-L1-C16 --systems nvidia-full ours --rounds 1 --repeats 1 --warmup 0"
    arguments = [*arguments.split(), "--threads", "1", "--output", str(tmp_path / "run")]
    assert kernels.main(arguments) == 0
    text = (tmp_path / "run.md").read_text()
    assert text.count("layer L=1, C=4, 8 nodes x 3") == 4
    assert "All systems computed the same number." in text
