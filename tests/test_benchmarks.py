"""The benchmarks still run and still compare like with like; nothing here is timed."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from benchmarks.__main__ import main  # noqa: E402
from benchmarks.harness import report, timing  # noqa: E402
from benchmarks.harness.agreement import close, equal, relative_norm  # noqa: E402
from benchmarks.harness.case import Case, Setting  # noqa: E402
from benchmarks.harness.runner import Ceilings, Row, run_case  # noqa: E402

OPS = sorted(path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py"))
CPU_ONLY = {"coco_eval"}


@pytest.mark.skipif(
    "FASTSEG_TEST_EXTENSION" in os.environ, reason="benchmarks time the installed extension"
)
def test_quick_run_of_all_ops(tmp_path):
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--device", "cpu", "--threads", "1"]
    table = tmp_path / "table.md"
    command += ["--json", str(results), "--markdown", str(table)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(run.stdout, run.stderr)  # names the peers that are not installed
    assert run.returncode == 0
    document = json.loads(results.read_text())
    assert document["machine"]["copy_bandwidth"] > 0
    assert {row["op"] for row in document["results"]} == set(OPS)
    for row in document["results"]:
        assert row["status"] in ("ok", "not installed"), row
        if row["provider"] == "fastseg":
            assert row["status"] == "ok" and row["wall"]["median"] > 0, row
    compared = [row for row in document["results"] if row["speedup"]]
    assert len(table.read_text().splitlines()) == 4 + len(compared)


@pytest.mark.gpu
def test_quick_run_on_the_gpu(tmp_path):
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--device", "cuda"]
    run = subprocess.run(
        [*command, "--json", str(results)], cwd=ROOT, capture_output=True, text=True
    )
    print(run.stdout, run.stderr)
    assert run.returncode == 0
    rows = [row for row in json.loads(results.read_text())["results"] if row["status"] == "ok"]
    assert {row["op"] for row in rows} == set(OPS) - CPU_ONLY
    roi_align = [row for row in rows if (row["op"], row["provider"]) == ("roi_align", "fastseg")]
    assert all(row["graph"] for row in roi_align), roi_align


class FakeCuda:
    """Just enough of torch.cuda for the timing of calls: a clock that counts the calls."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.clock = 0.0
        self.errors_on_sync = False
        cuda = self

        class Event:
            def __init__(self, enable_timing):
                self.time = 0.0

            def record(self):
                self.time = cuda.clock

            def elapsed_time(self, other):
                return other.time - self.time

        class Graph:
            def replay(self):
                cuda.clock += 1

        @contextlib.contextmanager
        def graph(graph, stream):
            yield

        for name, fake in {
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": graph,
            "current_stream": lambda: None,
            "synchronize": lambda: None,
            "set_sync_debug_mode": self.set_sync_debug_mode,
        }.items():
            patch.setattr(torch.cuda, name, fake)

    def set_sync_debug_mode(self, mode: str) -> None:
        self.errors_on_sync = mode == "error"

    def kernel(self) -> None:
        self.clock += 3

    def synchronising(self) -> None:
        self.clock += 12
        if self.errors_on_sync:
            raise RuntimeError("called a synchronizing operation\nand more")


def test_cuda_timing(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    graph, reason = timing.capture(cuda.synchronising)
    assert graph is None and reason == "synchronises: called a synchronizing operation"
    graph, reason = timing.capture(cuda.kernel)
    assert graph is not None and reason == ""
    for flush in (None, lambda: None):
        runs = {"fast": cuda.kernel, "slow": cuda.synchronising}
        eager = timing.time_cuda_eager(runs, 0.01, flush)
        assert eager["fast"].median == pytest.approx(3e-3)
        assert eager["slow"].ratio_to(eager["fast"]) == 4
        replay = timing.time_cuda_graph({"fast": graph}, 0.01, flush)
        assert replay["fast"].median == pytest.approx(1e-3)


def run_fake_case(seconds: float = 0, **providers) -> dict[str, Row]:
    setting = Setting(torch.device("cpu"), torch.float32, quick=True)
    case = Case("fake", {name: lambda run=run: run for name, run in providers.items()}, 8)
    rows = run_case(
        "fake",
        case,
        setting,
        against=None,
        seconds=seconds,
        ceilings=Ceilings(setting, copy=1e9),
    )
    return {row.provider: row for row in rows}


def test_no_speedup_where_results_differ():
    rows = run_fake_case(
        fastseg=lambda: torch.ones(3),
        same=lambda: torch.ones(3),
        other=lambda: torch.tensor([1.0, 2.0, 1.0]),
    )
    assert rows["same"].speedup.keys() == {"wall", "cpu"}
    assert rows["other"].status == "differs" and rows["other"].failed
    assert "[1]: 1 against 2" in rows["other"].reason
    assert not rows["other"].speedup


def test_failures_are_reported_and_do_not_stop_the_run():
    def fail():
        raise NotImplementedError("not for this dtype")

    rows = run_fake_case(fastseg=lambda: torch.ones(3), broken=fail)
    assert rows["broken"].status == "failed" and not rows["broken"].failed
    assert "not for this dtype" in rows["broken"].reason
    rows = run_fake_case(fastseg=fail, peer=lambda: torch.ones(3), seconds=0.01)
    assert rows["fastseg"].failed and rows["peer"].status == "not compared"


def test_an_op_without_inputs_does_not_stop_the_others(tmp_path, monkeypatch):
    def cases(setting):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("benchmarks.point_sample.cases", cases)
    results = tmp_path / "results.json"
    options = ["--quick", "--device", "cpu", "--against", "none", "--json", str(results)]
    assert main(["point_sample", "paste_masks", *options]) == 1
    failed, *others = json.loads(results.read_text())["results"]
    assert (failed["op"], failed["status"]) == ("point_sample", "failed")
    assert "out of memory" in failed["reason"]
    assert {(row["op"], row["status"]) for row in others} == {("paste_masks", "ok")}


def test_gpu_check_measures_all_ops():
    words = (ROOT / "benchmarks" / "gpu_check.sh").read_text().replace("(", " ").replace(")", " ")
    assert set(OPS) - CPU_ONLY <= set(words.split())


def test_plot_shows_ratios(tmp_path):
    pytest.importorskip("matplotlib")
    rows = run_fake_case(fastseg=lambda: torch.ones(3), peer=lambda: torch.ones(3))
    report.plot(tmp_path / "plot.png", {"cpu": "CPU", "threads": 1}, list(rows.values()))
    assert (tmp_path / "plot.png").stat().st_size > 0


def test_missing_peer_is_named():
    setting = Setting(torch.device("cpu"), torch.float32, quick=True)

    def missing():
        raise ImportError("No module named 'peer'")

    case = Case("fake", {"fastseg": lambda: lambda: 1, "peer": missing}, 8, agreement=equal)
    ceilings = Ceilings(setting, copy=1e9)
    _, row = run_case("fake", case, setting, against=None, seconds=0, ceilings=ceilings)
    assert row.status == "not installed" and "peer" in row.reason and row.wall is None


@pytest.mark.parametrize("agreement", [close(), relative_norm(0.01)])
def test_agreement_of_tensors(agreement):
    ones = torch.ones(2, 3)
    assert agreement(ones, ones) is None
    assert agreement([ones, ones], (ones, ones)) is None
    assert agreement(0 * ones, 0 * ones) is None
    assert agreement(ones, 2 * ones) is not None
    assert agreement(ones * float("nan"), ones) is not None
    assert agreement(ones, ones[:1]) is not None
    assert agreement([ones], [ones, ones]) is not None
    assert agreement(ones, None) is not None


def test_agreement_of_exact_results():
    assert equal([b"a", b"b"], [b"a", b"b"]) is None
    assert "item 1 of 2" in equal([b"a", b"b"], [b"a", b"c"])
    assert equal(torch.tensor([1, 2]), torch.tensor([1, 2])) is None
    assert equal(torch.tensor([1, 2]), torch.tensor([2, 1])) is not None


def test_ratio_pairs_rounds():
    # Both slowed down alike in the second round: the ratio does not see it.
    slow, fast = timing.Times([4.0, 40.0, 4.0]), timing.Times([2.0, 20.0, 2.0])
    assert slow.ratio_to(fast) == 2
    assert timing.Times([3.0, 1.0, 2.0]).median == 2
