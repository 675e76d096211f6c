from __future__ import annotations

import json
import multiprocessing

import pytest
import torch

from pyg_se3.data import QM9, cache


def build(root, path, **options):
    return QM9(root, raw_path=path, progress=False, **options)


@pytest.fixture
def small(tmp_path, mini_path):
    """The first eight molecules, so that building again is quick."""
    lines = mini_path.read_text().splitlines(keepends=True)[:9]
    path = tmp_path / "raw.csv"
    path.write_text("".join(lines))
    return path


@pytest.fixture
def count_builds(monkeypatch):
    from pyg_se3.data import qm9

    calls = []
    real = qm9.process_qm9pack

    def counting(*args, **kwargs):
        calls.append(kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(qm9, "process_qm9pack", counting)
    return calls


def test_built_once(tmp_path, small, count_builds):
    first = build(tmp_path / "a", small)
    second = build(tmp_path / "a", small)
    assert len(count_builds) == 1
    for key, value in first.store.tensors().items():
        assert torch.equal(value, second.store.tensors()[key])
    build(tmp_path / "a", small, force_reload=True)
    assert len(count_builds) == 2


@pytest.mark.parametrize(
    "options",
    [{"bonds": "aromatic"}, {"graph": "complete"}, {"graph": "radius", "cutoff": 2.0}],
)
def test_other_options_are_built_apart(tmp_path, small, count_builds, options):
    first = build(tmp_path / "a", small)
    other = build(tmp_path / "a", small, **options)
    assert len(count_builds) == 2
    assert first.path != other.path
    assert build(tmp_path / "a", small).path == first.path
    assert len(count_builds) == 2


def test_cutoff_raw_data_and_code_decide(tmp_path, small, monkeypatch):
    two = build(tmp_path / "a", small, graph="radius", cutoff=2.0)
    three = build(tmp_path / "a", small, graph="radius", cutoff=3.0)
    assert two.path != three.path
    assert two.store.edge_index.size(1) < three.store.edge_index.size(1)
    first = build(tmp_path / "a", small)
    monkeypatch.setattr(cache, "code_fingerprint", lambda *_: "other code")
    assert build(tmp_path / "a", small).path != first.path
    monkeypatch.undo()
    small.write_text("".join(small.read_text().splitlines(keepends=True)[:-1]))
    assert len(build(tmp_path / "a", small)) == 7


def test_code_fingerprint_follows_the_source(tmp_path, monkeypatch):
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "code.py").write_text("a = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = cache.code_fingerprint("some_package", ["code.py"])
    (package / "code.py").write_text("a = 1\r\n".replace("\r\n", "\n"))
    assert cache.code_fingerprint("some_package", ["code.py"]) == before
    (package / "code.py").write_text("a = 2\n")
    assert cache.code_fingerprint("some_package", ["code.py"]) != before


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "truncated"),
        (flip, "checksum"),
        (lambda path: path.unlink(), "missing"),
        (lambda path: cache.manifest_path(path).unlink(), "manifest is missing"),
        (lambda path: cache.manifest_path(path).write_text("{"), "manifest cannot be read"),
        (lambda path: cache.manifest_path(path).write_text("[]"), "manifest cannot be read"),
        (
            lambda path: cache.manifest_path(path).write_text(
                cache.manifest_path(path).read_text().replace("kekule", "aromatic")
            ),
            "other options",
        ),
    ],
)
def test_damage_is_reported_and_repaired(tmp_path, small, count_builds, capfd, damage, message):
    first = build(tmp_path / "a", small)
    damage(first.path)
    second = build(tmp_path / "a", small)
    assert len(count_builds) == 2
    told = capfd.readouterr().err
    assert message in told and str(first.path) in told and "made again" in told
    assert torch.equal(first.store.pos, second.store.pos)
    build(tmp_path / "a", small)
    assert len(count_builds) == 2


def test_a_failed_write_leaves_the_old_file(tmp_path, small, monkeypatch):
    first = build(tmp_path / "a", small)
    content = first.path.read_bytes()

    def full_disk(obj, stream):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        build(tmp_path / "a", small, force_reload=True)
    monkeypatch.undo()
    assert first.path.read_bytes() == content
    assert not list((tmp_path / "a").glob("*.tmp"))
    assert len(build(tmp_path / "a", small)) == 8


def test_manifest_says_how_it_was_made(tmp_path, small):
    dataset = build(tmp_path / "a", small)
    manifest = json.loads(cache.manifest_path(dataset.path).read_text())
    assert manifest["spec"]["bonds"] == "kekule"
    assert manifest["spec"]["raw"].startswith("sha256")
    assert manifest["bytes"] == dataset.path.stat().st_size


def test_mmap_gives_the_same(tmp_path, small):
    ram = build(tmp_path / "a", small)
    for _ in range(2):
        mapped = build(tmp_path / "a", small, mmap=True)
        assert torch.equal(ram.batch([1, 4]).pos, mapped.batch([1, 4]).pos)
    fresh = build(tmp_path / "b", small, mmap=True)
    assert torch.equal(ram.batch([1, 4]).pos, fresh.batch([1, 4]).pos)


def _build_in_process(root, path, log):
    from pyg_se3.data import qm9

    real = qm9.process_qm9pack

    def logging(*args, **kwargs):
        with open(log, "a") as stream:
            stream.write("built\n")
        return real(*args, **kwargs)

    qm9.process_qm9pack = logging
    assert len(build(root, path)) == 8


def test_processes_do_not_build_at_once(tmp_path, small):
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    workers = [
        context.Process(target=_build_in_process, args=(tmp_path / "a", small, log))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert log.read_text() == "built\n"
