"""The benchmark of precomputed geometry runs and reports every way of keeping frames."""

from pathlib import Path

from benchmarks import geometry_cache

MINI = Path(__file__).parents[1] / "fixtures" / "qm9_mini.csv"


def test_reports_what_is_saved_and_what_it_costs(tmp_path, capsys):
    geometry_cache.main(
        ["--raw-path", str(MINI), "--data", str(tmp_path), "--model", "quick", "--repeats", "1",
         "--threads", "1"]
    )  # fmt: skip
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines[2:]}
    assert list(rows) == [
        "computed in the step", "ram float32", "ram bfloat16", "disk float32", "disk bfloat16",
    ]  # fmt: skip
    sizes = [float(row[3].replace(",", "")) for row in rows.values()]
    assert sizes[0] == 0 < sizes[1] == sizes[3] and abs(sizes[1] - 2 * sizes[2]) <= 1
    assert all(float(row[0]) > 0 for row in rows.values())
