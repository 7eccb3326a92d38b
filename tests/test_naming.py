"""Short names for layers that are alike."""

from __future__ import annotations

import pytest

from catonnx.naming import in_common, kind_of, shortened, summed_up


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["/layers.3/q/MatMul", "/layers.3/k/MatMul"], "/layers.*/{q,k}/MatMul"),
        (["/layers.3/q/MatMul"], "/layers.*/q/MatMul"),
        (["linear", "linear_1", "linear_12"], "linear"),
        (["/layers.3/fc1/MatMul"], "/layers.*/fc1/MatMul"),
        (["/block3/experts.0/w1/MatMul_7", "/block3/experts.0/w3/MatMul_9"], "/block*/experts.*/{w1,w3}/MatMul"),
        (["/layers.3/Gemm"], "/layers.*/Gemm"),
        (["layer_3.fc2", "layer_3.fc2_1"], "layer_*.fc2"),
        (["MatMul_3"], "MatMul"),
        (["a/b", "c"], "a/b, c"),
        ([], ""),
    ],
)
def test_kind_joins_what_names_share(names: list[str], kind: str) -> None:
    assert kind_of(names) == kind


def test_shared_ends_are_left_out() -> None:
    assert shortened(["/m/a/q/MatMul", "/m/b/MatMul"]) == ["a/q", "b"]


@pytest.mark.parametrize("names", [[], ["/a/b/MatMul"], ["/a/b", "/a/b"], ["x", "/a/x"]])
def test_something_is_left_of_every_name(names: list[str]) -> None:
    assert [bool(name) for name in shortened(names)] == [True] * len(names)


def test_a_single_name_stays_whole() -> None:
    assert shortened(["/a/b/MatMul"]) == ["/a/b/MatMul"]


def test_reasons_that_differ_in_numbers_are_one() -> None:
    assert summed_up(["b", "read by /l.1/x", "read by /l.2/x"]) == [("read by /l.*/x", 2), ("b", 1)]


def test_numbers_stay_where_they_agree() -> None:
    assert in_common(["ends at 16", "ends at 16"]) == "ends at 16"
