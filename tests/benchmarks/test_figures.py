"""The commands from end to end on tiny inputs: numbers, pages, charts, the README's section."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.common import Job, Result, machine
from benchmarks.counts import count, saved_bytes
from benchmarks.kernel_table import growth, summary
from benchmarks.systems import ModelSpec, build_model

from benchmarks import counts, kernels, qm9_step, readme, report, roofline, scaling

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "qm9_mini.csv"
TINY = "--layers 1 --degrees 2 --channels 4 --heads 2 --threads 1".split()


def data(tmp_path):
    return ["--raw-path", str(FIXTURE), "--data", str(tmp_path), "--output", str(tmp_path / "run")]


def is_png(path):
    return path.read_bytes()[:4] == b"\x89PNG" and path.stat().st_size > 10_000


def result(system, seconds, peak=10**9, case="qm9-4", mode="training", **more):
    spec = more.pop("spec", {})
    job = Job(system, f"{case}.pt", mode=mode, spec=spec, precision=more.pop("precision", "32"))
    inputs = more.pop("inputs", {"graphs": 4, "nodes": 70, "edges": 140, "source": "QM9"})
    return Result(job, "ok", [seconds], peak, 10**8, outputs=[1.0], inputs=inputs, **more)


def test_qm9_ratios_are_against_the_best_of_nvidia(tmp_path):
    short = Result(Job("original", "qm9-4.pt"), "out of memory", message="no more")
    results = [
        short,
        result("nvidia-full", 4.0, 8 * 10**9),
        result("nvidia-low-memory", 2.0, 2 * 10**9),
        result("ours", 0.5, 10**8),
        result("ours", 0.25, 10**8, precision="bf16-mixed"),
    ]
    text = qm9_step.page(machine(1), results)
    lines = [line.replace(" ", "") for line in text.splitlines()]
    assert "|NVIDIA,lowmemory|**2(2)**|2|1x|**2**|1x|" in lines
    assert "|NVIDIA,fullyfused|4(4)|1|0.5x|8|0.25x|" in lines
    assert "|pyg-se3|0.5(0.5)|8|4x|0.1|20x|" in lines
    assert "|pyg-se3,bf16-mixed|0.25(0.25)|16|8x|0.1|20x|" in lines
    assert "|original(unfused)|outofmemory|–|–|–|–|" in lines
    assert "- original (unfused), training: out of memory (no more)" in text
    (path,) = qm9_step.charts(tmp_path / "chart", machine(1), results)
    assert path.name == "chart-batch-4.png" and is_png(path)
    (speed, _) = qm9_step._panels("training", results)
    assert [bar.note for bar in speed.bars][0] == "out of memory"
    assert speed.bars[3].note == "8 (4x)" and speed.bars[3].ours


def test_quick_changes_defaults_only():
    assert qm9_step.parse(["--quick"]).batch_sizes == [20]
    assert qm9_step.parse(["--quick", "--batch-sizes", "7"]).batch_sizes == [7]
    assert qm9_step.parse(["--quick"]).time_limit < qm9_step.parse([]).time_limit
    assert qm9_step.parse(["--memory-limit-gb", "3"]).memory_limit_gb == 3
    with pytest.raises(SystemExit):
        qm9_step.parse(["--systems", "ours:8-bit"])


def test_qm9_from_the_command_line(tmp_path):
    arguments = "--systems nvidia-low-memory ours ours:bf16-mixed --batch-sizes 3".split()
    arguments += ["--modes", "training", "--repeats", "1", *TINY, *data(tmp_path)]
    assert qm9_step.main(arguments) == 0
    record = json.loads((tmp_path / "run.json").read_text())
    measured = [(r["job"]["system"], r["job"]["precision"]) for r in record["results"]]
    assert measured == [("nvidia-low-memory", "32"), ("ours", "32"), ("ours", "bf16-mixed")]
    assert record["machine"]["cpu"] and record["results"][0]["min_seconds"] > 0
    assert "All systems computed the same outputs" in (tmp_path / "run.md").read_text()
    assert is_png(tmp_path / "run-batch-3.png")


def test_kernels_from_the_command_line(tmp_path, monkeypatch):
    case = replace(kernels.dense(1, 4, 8, 3), modes=("inference",))
    monkeypatch.setitem(kernels.CASES, "dense-L1-C32", case)
    arguments = "--cases dense-L1-C32 --systems nvidia-full ours --repeats 1 --warmup 0".split()
    assert kernels.main([*arguments, "--threads", "1", "--output", str(tmp_path / "run")]) == 0
    text = (tmp_path / "run.md").read_text()
    assert text.count("| layer L=1, C=4, 8 nodes x 3, inference |") == 2
    assert "| dense layer, L=1, C=4, 8 nodes x 3: forward |" in text
    assert "All systems computed the same outputs" in text


def test_every_case_of_the_kernels_is_run_unless_it_takes_too_much():
    assert "largest" not in kernels.parse([]).cases
    assert set(kernels.parse(["--largest"]).cases) == set(kernels.CASES)


def kernel_results():
    spec = {"max_degree": 1, "channels": 32}
    sizes = {"graphs": 1, "nodes": 300, "edges": 300 * 64, "source": "random"}
    found = [
        result("nvidia-full", 12.0, 8 * 10**9, "step"),
        result("nvidia-none", 6.0, 4 * 10**9, "step"),
        result("nvidia-low-memory", 9.0, 10**9, "step"),
        result("ours", 1.5, 10**8, "step"),
        result("nvidia-full", 0.3, case="dense-L1", mode="inference", spec=spec, inputs=sizes),
        result("ours", 0.02, case="dense-L1", mode="inference", spec=spec, inputs=sizes),
        result("ours", 1.0, 2 * 10**9 - 10**8, "memory-400", inputs={"graphs": 400}),
        result("ours", 2.0, 3 * 10**9 - 10**8, "memory-800", inputs={"graphs": 800}),
        result("ours", 1.5, case="forces"),
        result("ours", 3.75, case="forces", mode="forces"),
    ]
    sizes = {"graphs": 16}
    return found + [
        result("ours", 0.01 * degree**3, case=f"degree-{degree}", inputs=sizes)
        for degree in (2, 4, 6)
    ]


def test_the_summary_has_the_rows_of_the_goals():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in summary(kernel_results()).splitlines()[2:]
    ]
    by_name = {row[0]: row[1:] for row in rows}
    step = by_name["training step, batch 100"]
    assert step == ["1.5 (1.5) s", "6 (6) s, not fused", "4x", "12 (12) s", "8x"]
    memory = by_name["the same, peak memory above base"]
    assert memory == ["100 MB", "1000 MB, low memory", "10x", "8000 MB", "80x"]
    layer = by_name["dense layer, L=1, C=32, 300 nodes x 64: forward"]
    assert layer[0] == "20 (20) ms" and layer[2] == layer[4] == "15x"
    # 2 GB at 400 and 3 GB at 800: 2.5 MB each above 1 GB, so 15 GB hold 6000.
    largest = by_name["largest batch that trains in 16 GB, from 400 and 800 molecules"]
    assert largest[0] == "6000 (2.50 MB per molecule)"
    assert by_name["growth over L = 2..6: with L, with L + 1"][0].startswith("L^3.00, ")
    assert by_name["the same over energies only"][0] == "2.5x as long"


def test_growth_is_the_exponent():
    assert growth([(x, 5 * x**2.5) for x in (1, 2, 7)]) == pytest.approx(2.5)


def test_scaling_stops_a_system_that_became_too_slow(tmp_path):
    arguments = "--sweeps neighbours-L1 --systems nvidia-full ours ours-source --quick".split()
    arguments += "--warmup 0 --repeats 1 --threads 1 --stop-seconds 0".split()
    assert scaling.main([*arguments, "--output", str(tmp_path / "run")]) == 0
    record = json.loads((tmp_path / "run.json").read_text())
    statuses = [(r["job"]["inputs"], r["status"]) for r in record["results"]]
    assert statuses == [("neighbours-L1-4.pt", "ok")] * 3 + [("neighbours-L1-16.pt", "not run")] * 3
    text = (tmp_path / "run.md").read_text()
    assert "All systems computed the same outputs" in text
    assert "training: not run (took " in text
    assert is_png(tmp_path / "run.png")


def test_scaling_names_the_kernel_that_was_chosen():
    results = [
        result("ours", 1.0, case="neighbours-L1-4", kernels=["edge"]),
        result("ours", 2.0, case="neighbours-L1-16", kernels=["source"]),
    ]
    assert scaling.chosen(scaling.of_sweep(results, "neighbours-L1")["ours"]) == {
        4: "edge",
        16: "source",
    }
    text = scaling.sweep_table(results, "neighbours-L1")
    assert "^0.50" in text and "edge" in text and "source" in text


def test_operations_are_counted():
    a, b = torch.randn(8, 4), torch.randn(4, 6)
    total = torch.zeros(8, 6)
    layer = torch.nn.Linear(4, 5)

    def step():
        total.addmm_(a, b)  # 2 * 8 * 4 * 6
        torch.bmm(a[None], b[None])  # the same
        layer(a)  # 2 * 8 * 4 * 5

    found = count(step, layer, training=False)
    assert found.products == 384 + 384 + 320
    assert 0 < found.product_share < 1 and sum(found.shares.values()) == pytest.approx(1)
    assert found.necessary_bytes == 4 * (4 * 5 + 5)


def test_what_is_saved_for_the_backward_pass_is_counted_once():
    layer = torch.nn.Linear(10, 10, bias=False)
    x = torch.randn(100, 10)

    def step():
        hidden = layer(x).sigmoid()  # saves x and the result; the result is also an argument
        (layer(hidden) * 1).sum().backward()

    assert saved_bytes(step, layer) == 4 * (100 * 10 + 100 * 10)


def test_roofline_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(counts, "SIZES", (64,))
    arguments = ["--systems", "ours-exact", "--batch-size", "2", "--repeats", "1", *TINY]
    threads = torch.get_num_threads()
    try:
        assert roofline.main([*arguments, *data(tmp_path)]) == 0
    finally:
        torch.set_num_threads(threads)
    record = json.loads((tmp_path / "run.json").read_text())
    (point,) = record["results"]
    assert point["counts"]["products"] > 0 and point["counts"]["necessary_bytes"] > 0
    assert math.isfinite(point["reached"]) and point["reached"] > 0
    assert record["limits"]["flops"] > 0 and record["limits"]["bandwidth"] > 0
    assert "Where the time of pyg-se3, uncompressed goes" in (tmp_path / "run.md").read_text()


def test_the_formula_of_the_edge_form_counts_what_it_does():
    """Without gradients the uncompressed edge form does what the formula says, and little more."""
    options = roofline.parse([*"--mode inference --channels 16 --heads 4 --layers 2".split()])
    torch.manual_seed(0)
    batch = scaling.dense_batch(20, 8)
    batch = type(batch)(**{**vars(batch), "x": torch.randn(20, 6)})
    options.repeats = 1
    point = roofline.measure(options, "ours-exact", batch)
    assert point.uncompressed <= point.counts.products <= 1.2 * point.uncompressed


def test_training_takes_three_times_the_products():
    spec = ModelSpec(num_layers=1, num_degrees=2, num_channels=8, num_heads=2)
    runner = build_model("ours", spec)
    forward = roofline.edge_form_operations(runner, 10, training=False)
    assert forward > 0
    assert roofline.edge_form_operations(runner, 10, training=True) == 3 * forward


def test_the_readme_gets_its_section_and_nothing_else(tmp_path, capsys):
    head = machine(1)
    table, _ = report.write_results(tmp_path / "k", "kernels", head, kernel_results(), "page\n")
    figure, _ = report.write_results(
        tmp_path / "q", "qm9", head, [result("nvidia-full", 2.0), result("ours", 1.0)], "page\n"
    )
    target = tmp_path / "README.md"
    target.write_text(f"before\n{readme.BEGIN}\nformer section\n{readme.END}\nafter\n")
    assert readme.main([str(table), str(figure), "--into", str(target)]) == 0
    text = target.read_text()
    assert text.startswith(f"before\n{readme.BEGIN}\nAgainst NVIDIA's")
    assert text.endswith(f"{readme.END}\nafter\n") and "former section" not in text
    assert "| training step, batch 100 " in text and "Training, batch 4:" in text
    assert "`make bench-kernels`: k.json" in text and "`make bench`: q.json" in text
    assert readme.main([str(table), "--into", str(target)]) == 0  # again, in place
    assert "Training, batch 4:" not in target.read_text()

    target.write_text("no markers\n")
    assert readme.main([str(table), "--into", str(target)]) == 1
    assert target.read_text() == "no markers\n"
    assert "once each" in capsys.readouterr().err
    other, _ = report.write_results(tmp_path / "s", "scaling", head, [], "page\n")
    assert readme.main([str(other)]) == 1
    assert "expected 'kernels' or 'qm9'" in capsys.readouterr().err
