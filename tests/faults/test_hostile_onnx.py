"""onnxruntime-genai folders with sound containers and hurtful contents end in one sentence."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from faults import hostile, hostile_onnx
from faults.hostile import one_sentence, use

import edgekit
from edgekit.base.errors import CorruptError
from edgekit.containers.onnx_graph import read_onnx_graph
from edgekit.models import onnx_folder
from edgekit.models.onnx_folder import check_onnx_folder


@pytest.fixture
def folder(small_onnx: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_onnx, tmp_path / "onnx"))


def test_the_good_folder_is_sound(small_onnx: Path) -> None:
    assert check_onnx_folder(small_onnx)["vocab_size"] == 478
    use("onnxruntime", small_onnx)


def test_the_graph_is_read_as_onnx_reads_it(small_onnx: Path) -> None:
    found = read_onnx_graph(small_onnx / "model.onnx")
    graph = onnx.load(small_onnx / "model.onnx", load_external_data=False).graph
    assert list(found.inputs) == [value.name for value in graph.input]
    assert [node.op for node in found.nodes] == [node.op_type for node in graph.node]
    for mine, node in zip(found.nodes, graph.node, strict=True):
        assert (mine.inputs, mine.outputs) == (tuple(node.input), tuple(node.output))
        assert mine.numbers == {attribute.name: attribute.i for attribute in node.attribute}
    for value in graph.output:
        dims = value.type.tensor_type.shape.dim
        assert found.outputs[value.name] == tuple(
            dim.dim_value if dim.HasField("dim_value") else None for dim in dims
        )


@pytest.mark.parametrize("case", hostile_onnx.ONNX)
def test_a_hostile_folder_is_refused_by_the_rule_it_breaks(case: str, folder: Path) -> None:
    hurt, rule = hostile_onnx.ONNX[case]
    hurt(folder)
    hostile.refused(check_onnx_folder, "onnxruntime", folder, rule)


@pytest.mark.parametrize("case", ["a token id of billions", "a pattern that formats", "a larger vocabulary",
                                  "a context longer than the tables of rope", "infinity in a norm"])  # fmt: skip
def test_the_child_contains_what_the_rules_would_have_refused(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the rules taken out of the child, the runtime itself meets the folder: the parent lives, and says so."""
    hurt, rule = hostile_onnx.ONNX[case]
    hurt(folder)
    hostile.take_out_rules(tmp_path, monkeypatch.setenv)
    unseen = case == "a context longer than the tables of rope"
    assert hostile.contained("onnxruntime", folder, rule) or unseen


@pytest.mark.parametrize("case", ["a token id of billions", "NaN in a scale", "more layers than the graph"])
def test_load_refuses_before_anything_native_is_opened(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile_onnx.ONNX[case][0](folder)
    monkeypatch.setattr("onnxruntime_genai.Config", lambda *_: os.abort())
    with pytest.raises(CorruptError, match="malicious|finite weights"):
        edgekit.load(folder)


def test_the_template_is_rendered_before_anything_else_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "chat_template.jinja").write_text(hostile.ENDLESS)
    monkeypatch.setattr(onnx_folder, "check_onnx", lambda *_: pytest.fail("the graph was read"))
    with pytest.raises(CorruptError, match="template was stopped") as refused:
        check_onnx_folder(folder)
    one_sentence(refused.value)


def test_a_mask_may_be_infinite(folder: Path) -> None:
    """Single values, and what `Where` alone reads; the same values read by `Add` are weights."""

    def with_mask(op: str) -> None:
        def change(graph: onnx.GraphProto) -> None:
            mask = np.full((1, 8), -np.inf, np.float32)
            graph.initializer.append(onnx.numpy_helper.from_array(mask, f"mask.{op}"))
            graph.initializer.append(onnx.numpy_helper.from_array(mask[0, 0], f"least.{op}"))
            inputs = (
                ["flags", f"mask.{op}", f"least.{op}"] if op == "Where" else [f"mask.{op}", f"least.{op}"]
            )
            graph.node.append(onnx.helper.make_node(op, inputs, [f"masked.{op}"]))

        hostile_onnx.edited(change)(folder)

    with_mask("Where")
    check_onnx_folder(folder)
    with_mask("Add")
    with pytest.raises(CorruptError, match=r"finite weights.*mask\.Add"):
        check_onnx_folder(folder)
