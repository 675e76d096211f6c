"""The harness: processes of their own, honest failures, reports that overwrite nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.common import ROOT, Job, Result, machine, measure, measure_all, run_module
from benchmarks.inputs import qm9_batch
from benchmarks.memory import PeakMemory, available_gb
from benchmarks.worker import chosen_kernels, sample

from benchmarks import report

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
        assert r.inputs["graphs"] == 4 and len(r.outputs) == 4
    assert results[0].kernels == [] and results[1].kernels
    assert len(report.comparisons(results)) == 1
    assert report.disagreements(results) == []


def test_lack_of_memory_is_a_result(inputs):
    job = Job("nvidia-full", inputs, spec={"num_channels": 256}, memory_limit_gb=0.5)
    assert measure(job).status == "out of memory"


def test_lack_of_time_is_a_result(inputs):
    result = measure(Job("nvidia-full", inputs, spec=SMALL), time_limit=0.1)
    assert result.status == "timed out" and result.message == "took longer than 0.1 s"


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


def result(system, outputs, seconds=1.0, inputs="qm9-4.pt", **job):
    return Result(Job(system, inputs, **job), "ok", [seconds], 10**9, 10**8, outputs=outputs)


def test_disagreement_is_reported():
    judge = result("nvidia-full", [3.0, -4.0])
    near = result("ours", [3.0 + 1e-5, -4.0])
    assert report.difference(near, judge) == pytest.approx(1e-5 / 5)
    assert report.disagreements([judge, near]) == []
    assert "largest difference, root mean square over root mean square, was 2.0e-06 in 32" in (
        report.agreement([judge, near])
    )
    far = result("ours", [3.001, -4.0])
    (line,) = report.disagreements([judge, far])
    assert line == "ours and nvidia-full differ by 0.0002 (qm9-4, training, 32)"
    assert "do not agree" in report.agreement([judge, far])
    assert report.exit_status([judge, far]) == 1 and report.exit_status([judge, near]) == 0
    assert len(report.disagreements([judge, result("ours", [float("nan"), -4.0])])) == 1


def test_low_precision_is_held_against_float32():
    results = [
        result("ours", [1.1, 1.0], precision="bf16-mixed"),
        result("nvidia-full", [1.0, 1.0]),
    ]
    ((held, judge, _),) = report.comparisons(results)
    assert (held.job.system, judge.job.system) == ("ours", "nvidia-full")
    assert report.disagreements(results) == []
    results[0].outputs = [2.0, 1.0]
    assert len(report.disagreements(results)) == 1


def test_only_the_same_problem_is_compared():
    results = [result("ours", [1.0]), result("ours", [2.0], inputs="qm9-8.pt")]
    assert report.comparisons(results) == []
    assert "no outputs were compared" in report.agreement(results)


def test_failure_is_an_error_and_lack_of_memory_is_not():
    job = Job("ours", "qm9-4.pt")
    assert report.exit_status([Result(job, "out of memory"), Result(job, "timed out")]) == 0
    assert report.exit_status([Result(job, "failed")]) == 1


def test_results_are_never_overwritten(tmp_path):
    stem = tmp_path / "2020-01-01-some.cpu-qm9"
    assert report.free_stem(stem) == stem
    report.write_results(stem, "qm9", machine(1), [], "page\n")
    second = report.free_stem(stem)
    assert second.name == "2020-01-01-some.cpu-qm9-2"
    report.file_of(second, "-batch-20.png").write_text("")
    assert report.free_stem(stem).name == "2020-01-01-some.cpu-qm9-3"


def test_pages_are_named_by_date_and_machine():
    head = machine(2) | {"cpu": "AMD EPYC 9R14 96-Core Processor (family 25 model 17)"}
    assert report.default_stem("qm9", head).name[10:] == "-amd-epyc-9r14-96-core-2t-qm9"


def test_results_survive_the_file(tmp_path):
    results = [result("ours", [1.0, 2.0], spec=SMALL)]
    head = machine(1)
    path, _ = report.write_results(tmp_path / "run", "qm9", head, results, "page\n")
    kind, again, (back,) = report.read_results(path)
    assert (kind, again) == ("qm9", head)
    assert back.job.spec == SMALL and back.case == "qm9-4" and back.times == [1.0]
    path.write_text("[]")
    with pytest.raises(ValueError, match="no results of a benchmark"):
        report.read_results(path)


def test_tables_are_aligned_markdown():
    text = report.table(["a", "number"], [["x", "1"], ["long", "22"]])
    assert text.splitlines() == [
        "| a    | number |",
        "| ---- | -----: |",
        "| x    |      1 |",
        "| long |     22 |",
    ]


def test_samples_are_small_and_spread():
    values = torch.arange(10000.0)
    found = sample(values)
    assert len(found) <= 4096 and found[0] == 0 and found[-1] > 9990
    assert sample(torch.tensor([1.0, 2.0])) == [1.0, 2.0]


def test_free_memory_is_some_of_what_there_is():
    assert 0 < available_gb() <= machine(1)["memory_gb"] + 0.1


def test_the_chosen_kernel_is_recorded():
    from pyg_se3.ops import dispatch

    with chosen_kernels() as kernels:
        dispatch.logger.info("TFN convolutions on cpu use the source kernel (options)")
        dispatch.logger.info("TFN convolutions on cpu use the source kernel (others)")
        dispatch.logger.info("something else")
    assert kernels == ["source"]


def test_the_package_works_under_another_name(tmp_path):
    """In an installed package it is `pyg_se3.benchmarks`: no module may ask for `benchmarks`."""
    (tmp_path / "elsewhere").symlink_to(ROOT / "benchmarks")
    names = sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py") if p.stem != "__init__")
    code = f"import importlib, sys\nsys.path[:0] = [{str(tmp_path)!r}, {str(ROOT / 'src')!r}]\n"
    code += f"for name in {names}: importlib.import_module('elsewhere.' + name)\n"
    code += "assert 'benchmarks' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_module_runs_with_its_threads():
    done = run_module("protein", "--help", threads=1)
    assert done.returncode == 0 and "--residues" in done.stdout
