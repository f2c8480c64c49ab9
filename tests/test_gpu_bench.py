"""What `bench gpu_check` and `bench speed --backend gpu` do, on the grid: no speed means anything there."""

import json
import sys
from pathlib import Path

import backends
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1]))  # bench is not installed

pytest.importorskip("rich")

import compress
from bench import __main__ as command
from bench import frontier, gpu
from compress._gpu import device


@pytest.fixture
def grid():
    backends.use("grid")
    yield device.cupy()
    device._cupy = None


def test_every_message_is_the_cpus(grid):
    wrong, count = gpu.compare(grid, (1, 1000), ())
    assert not wrong and count > 500


def test_a_wrong_byte_is_found(grid, monkeypatch):
    from compress._gpu import kernels as _gpu

    right = _gpu.quantize_pack

    def wrong(x, scales, offset, wire, block, levels, key, out, *rest):
        right(x, scales, offset, wire, block, levels, key ^ 1, out, *rest)

    monkeypatch.setattr(_gpu, "quantize_pack", wrong)
    found, _ = gpu.compare(grid, (1000,), ())
    assert {C for C, *_ in found} >= {"TernGrad(wire='float32')", repr(compress.StandardDithering(7))}
    assert all(what.startswith("payload, decoded") for *_, what in found)
    assert all("StandardDithering" in C or "TernGrad" in C or "NaturalDithering" in C for C, *_ in found)


def test_the_report(grid, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "BATCHES", 1)
    monkeypatch.setattr(gpu, "CALLS", 1)
    monkeypatch.setattr(gpu, "BUSY", 16)
    monkeypatch.setattr(gpu, "compare", lambda *_: ([("RandK(k=1)", 31, "float32", "normal", "payload")], 2))
    assert command.main(["gpu_check", "--quick", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "DIFFERS: RandK(k=1), d = 31" in printed and "1 of 2 messages" in printed
    (path,) = tmp_path.glob("*.json")
    saved = json.loads(path.read_text())
    kernels = {row["kernel"] for row in saved["rows"]}
    assert {"norm", "dithered quantise + pack, 4 bit", "Top-K, 1%", "Kashin iteration", "rANS decode, 2 bit"} <= kernels
    assert all(row["seconds"] > 0 for row in saved["rows"])
    table = path.with_suffix(".md").read_text()
    assert table.startswith("# the host, block by block") and "StandardDithering(7).encode" in table


def test_the_frontier_on_a_gpu(grid, tmp_path):
    """The same points as on the CPU, but for the times."""
    x = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    for C in (compress.StandardDithering(7), compress.TopK(0.1), compress.Kashin(3), compress.Trellis(2)):
        here, there = (frontier.measure(C, x, 3, backend=backend) for backend in ("cpu", "gpu"))
        assert (here.bits, here.nmse) == (there.bits, there.nmse)


def test_a_gpu_that_is_not_there_is_an_error(capsys):
    if device.status().startswith("available"):
        pytest.skip("there is a GPU")
    for arguments in (["gpu_check"], ["speed", "--backend", "gpu"], ["frontier", "--quick", "--backend", "gpu"]):
        with pytest.raises(SystemExit) as stop:
            command.main(arguments)
        assert "unavailable" in str(stop.value)
