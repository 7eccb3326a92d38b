"""What streaming refuses, and that nothing is left behind then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from catonnx.errors import CalibrationError, ModelError, OutputError
from catonnx.graph.segments import cut
from catonnx.graph.sites import Selection, Site, find_sites
from catonnx.runtime.stream import Batches, Decision, run_stages
from tests.graph.builder import Net
from tests.runtime.streaming import Chain, feeds, recorder


@pytest.fixture
def chain() -> Chain:
    return Chain()


def test_nothing_is_given(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="nothing to calibrate on"):
        run_stages(chain.stages, [], recorder()[1], scratch=tmp_path)


def test_feeds_that_do_not_fit(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"lacks x and adds z .*calibration sample 1"):
        run_stages(chain.stages, [*feeds(3), {"z": np.zeros((3, 4), np.float32)}], recorder()[1], scratch=tmp_path)


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (Decision({"elsewhere": np.eye(4)}), "'elsewhere', which is no selected linear of site a; those are: node_7"),
        (Decision({"node_7": np.eye(3)}), r"for node_7 has shape \[3, 3\]; it must be \[4, 4\]"),
        (Decision({}, lambda rows: rows[:2]), r"round_rows made \[2, 4\] of \[3, 4\]; it must keep it \(site a\)"),
    ],
)
def test_decisions_that_cannot_be_carried_out(chain: Chain, tmp_path: Path, decision: Decision, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_stages(chain.stages, feeds(3), recorder({"a": decision})[1], scratch=tmp_path)


def test_a_rounding_that_drives_the_model_to_infinity_is_told_from_a_bad_model(chain: Chain, tmp_path: Path) -> None:
    decision = Decision({chain.names[1]: np.full((4, 4), 1e6)})
    with pytest.raises(CalibrationError, match=r"NaN or Inf \(site c, value c, rounded run, calibration sample 1\)"):
        run_stages(
            chain.stages,
            [{"x": np.zeros((1, 4), np.float32)}, *feeds(3)],
            recorder({"b": decision})[1],
            scratch=tmp_path,
        )
    big = [{"x": np.full((1, 4), 3e38, np.float32)}]
    with pytest.raises(CalibrationError, match=r"NaN or Inf \(site b, value b, float run, calibration sample 0\)"):
        run_stages(chain.stages, big, recorder()[1], scratch=tmp_path)


def test_a_site_of_another_width(chain: Chain, tmp_path: Path) -> None:
    first = chain.sites[0]
    stages = cut(chain.model, [Site(first.value, 8, first.linears)])
    with pytest.raises(CalibrationError, match=r"shape \[3, 4\] where 8 channels were planned \(site a.*sample 0\)"):
        run_stages(stages, feeds(3), recorder()[1], scratch=tmp_path)


def test_a_stage_that_does_not_load_is_named(tmp_path: Path) -> None:
    net = Net()
    flow = net.op("MatMul", net.input("x", ["rows", 4]), net.normal(4, 4))
    net.output(net.op("MatMul", net.op("Unheard", flow, domain="example.com"), net.normal(4, 4)))
    model = net.model()
    stages = cut(model, find_sites(model.graph, Selection(head=True)).sites)
    with pytest.raises(ModelError, match=r"operator example.com:Unheard \(stage 1 of the model, float run\)"):
        run_stages(stages, feeds(3), recorder()[1], scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_output_error(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OutputError, match=r"cannot be kept: No space left on device .*free some space"):
        run_stages(chain.stages, feeds(3), recorder()[1], scratch=tmp_path, memory=0)
    with pytest.raises(OutputError, match="no temporary folder"):
        run_stages(chain.stages, feeds(3), recorder()[1], scratch=tmp_path / "nowhere")


def test_the_scratch_folder_is_left_empty_when_a_visit_fails(chain: Chain, tmp_path: Path) -> None:
    def visit(site: Site, batches: Batches) -> Decision:
        if site.name == "b":
            raise KeyboardInterrupt
        return Decision()

    with pytest.raises(KeyboardInterrupt):
        run_stages(chain.stages, feeds(3), visit, scratch=tmp_path, memory=0)
    assert list(tmp_path.iterdir()) == []
