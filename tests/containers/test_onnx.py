"""The ONNX pre-parser: sound models as onnx reads them, hostile ones refused with the place, links never followed."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.base.errors import ConfigError, CorruptError
from edgekit.containers import onnx as container
from edgekit.containers.onnx import check_onnx


def varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def message(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def graph(*tensors: onnx.TensorProto, nodes: list[onnx.NodeProto] | None = None) -> onnx.GraphProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    return helper.make_graph(nodes or [helper.make_node("Relu", ["x"], ["y"])], "g", [value], [], tensors)


def model(
    *tensors: onnx.TensorProto,
    nodes: list[onnx.NodeProto] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph(*tensors, nodes=nodes), opset_imports=opsets, functions=functions or [])


def external(location: str = "model.onnx.data", **more: object) -> onnx.TensorProto:
    """Four floats in another file; an entry that is None is left out."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": 16, "length": 16, **more}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def write(folder: Path, content: onnx.ModelProto | bytes) -> Path:
    data = content if isinstance(content, bytes) else content.SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    if not os.path.lexists(folder / "model.onnx.data"):
        (folder / "model.onnx.data").write_bytes(bytes(64))
    return folder


def relu(**attributes: object) -> onnx.NodeProto:
    return helper.make_node("Relu", ["x"], ["y"], **attributes)


def foreign(domain: str) -> onnx.NodeProto:
    return helper.make_node("Evil", ["x"], ["y"], domain=domain)


def nested(levels: int) -> onnx.NodeProto:
    node = relu()
    for _ in range(levels):
        node = helper.make_node("If", ["x"], ["y"], then_branch=graph(nodes=[node]))
    return node


def function(domain: str, node: onnx.NodeProto) -> onnx.FunctionProto:
    return helper.make_function(domain, "f", ["x"], ["y"], [node], [helper.make_opsetid("", 21)])


def odd(**fields: object) -> onnx.TensorProto:
    return TensorProto(**{"name": "w", "data_type": 1, "dims": [4], "raw_data": bytes(16), **fields})  # type: ignore[arg-type]


def several(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return model(tensor, tensor)


Content = onnx.ModelProto | bytes
GRAPH = graph().SerializeToString()
HOSTILE: dict[str, tuple[Callable[[], Content], str]] = {
    "empty": (lambda: b"", "no graph"),
    "text": (lambda: b"<html>not found</html>", "wire type 4|number|wire"),
    "no graph": (lambda: varint(8) + varint(8), "no graph"),
    "number without end": (lambda: b"\xff" * 100, "more than 64 bits"),
    "number of 70 bits": (lambda: b"\x08" + b"\xff" * 9 + b"\x7f", "more than 64 bits"),
    "number cut off": (lambda: b"\x08\xff", "cut off"),
    "field number 0": (lambda: b"\x02\x00", "impossible number 0"),
    "field number 2^60": (lambda: varint(1 << 63) + b"\0", "impossible number"),
    "group": (lambda: b"\x3b" * 100_000, "wire type 3"),
    "length of 2^64-1": (lambda: b"\x3a" + varint(2**64 - 1) + b"\0", "18446744073709551615 bytes"),
    "length past the parent": (lambda: message(7, b"\x0a\x05ab"), "5 bytes, and 2 are left"),
    "graph as a number": (lambda: b"\x38\x01", "wrong wire type"),
    "two graphs": (lambda: message(7, GRAPH) * 2, "appears twice"),
    "deep subgraphs": (lambda: model(nodes=[nested(25)]), "nested more than 64"),
    "very deep": (lambda: message(7, deep(300)), "nested more than 64"),
    "foreign operator": (lambda: model(nodes=[foreign("evil.ops")]), "'evil.ops'"),
    "foreign in a subgraph": (
        lambda: model(nodes=[helper.make_node("If", ["x"], ["y"], then_branch=graph(nodes=[foreign("evil")]))]), "'evil'",
    ),
    "foreign in a list of graphs": (
        lambda: model(nodes=[relu(graphs=[graph(), graph(nodes=[foreign("evil")])])]), "'evil'",
    ),
    "foreign in a function": (lambda: model(functions=[function("com.microsoft", foreign("evil"))]), "'evil'"),
    "function of a foreign domain": (lambda: model(functions=[function("evil", relu())]), "a function of .* 'evil'"),
    "foreign in training": (
        lambda: message(7, GRAPH) + message(20, message(1, graph(nodes=[foreign("evil")]).SerializeToString())), "'evil'",
    ),
    "two domains, last one known": (
        lambda: message(7, message(1, message(7, b"evil") + message(7, b""))), "'evil'",
    ),
    "domain not UTF-8": (lambda: message(7, message(1, message(7, b"\xff"))), "UTF-8"),
    "domain of 1 MB": (lambda: message(7, message(1, message(7, b"a" * 1_000_000))), "1000000 bytes long"),
    "opset twice": (lambda: message(8, b"\x10\x01") * 2 + message(7, GRAPH), "appears twice"),
    "initializer twice": (lambda: several(odd()), "appears twice"),
    "initializer without name": (lambda: model(odd(name="")), "no name"),
    "unknown type": (lambda: model(odd(data_type=99)), "unknown type 99"),
    "undefined type": (lambda: model(odd(data_type=0)), "unknown type 0"),
    "negative type": (lambda: model(odd(data_type=-1)), "unknown type"),
    "negative dimension": (lambda: model(odd(dims=[-4])), "negative dimension"),
    "too many dimensions": (lambda: model(odd(dims=[1] * 65)), "more than 64 dimensions"),
    "packed dimensions": (lambda: message(7, message(5, message(1, b"\1" * 100))), "more than 64 dimensions"),
    "raw data short": (lambda: model(odd(raw_data=bytes(15))), "takes 16 bytes, and 15"),
    "raw data long": (lambda: model(odd(raw_data=bytes(17))), "takes 16 bytes, and 17"),
    "product wraps": (lambda: model(odd(dims=[1 << 32, 1 << 32, 4], raw_data=b"")), "takes"),
    "values without data": (lambda: model(odd(dims=[1 << 40], raw_data=None)), "and 0 bytes are stored"),
    "values short": (lambda: model(odd(dims=[33], raw_data=None, float_data=[1.0, 2.0])), "33 values, and 8"),
    "raw and values": (lambda: model(odd(float_data=[0.0] * 4)), "more than one place"),
    "texts missing": (lambda: model(odd(data_type=8, dims=[2], raw_data=None, string_data=[b"a"])), "2 texts holds 1"),
    "texts as raw data": (lambda: model(odd(data_type=8, dims=[0], raw_data=b"abc")), "texts"),
    "segments": (lambda: model(odd(segment=TensorProto.Segment(begin=0, end=4))), "segments"),
    "type twice": (lambda: message(7, message(5, b"\x10\x01\x10\x0b")), "appears twice"),
    "constant twice": (lambda: message(7, message(1, message(5, message(5, odd().SerializeToString()) * 2))), "twice"),
    "constant that lies": (lambda: model(nodes=[relu(value=odd(dims=[5]))]), "takes 20 bytes"),
    "sparse values that lie": (
        lambda: message(7, message(15, message(1, odd(dims=[5]).SerializeToString()))), "takes 20 bytes",
    ),
    "raw and external": (lambda: model(with_raw(external())), "more than one place"),
    "external but not said": (lambda: model(odd(raw_data=None, external_data=external().external_data)), "says so"),
    "said but not external": (lambda: model(odd(raw_data=None, data_location=1)), "says so"),
    "unknown location": (lambda: message(7, message(5, b"\x08\x00\x10\x01\x42\x01w\x70\x07")), "data location 7"),
    "no location": (lambda: model(external("")), "not a plain file name"),
    "parent folder": (lambda: model(external("../outside")), "not a plain file name"),
    "dots": (lambda: model(external("..")), "not a plain file name"),
    "this folder": (lambda: model(external(".")), "not a plain file name"),
    "absolute": (lambda: model(external("/etc/passwd")), "not a plain file name"),
    "backslash": (lambda: model(external("..\\outside")), "not a plain file name"),
    "drive": (lambda: model(external("C:outside")), "not a plain file name"),
    "sub folder": (lambda: model(external("sub/model.onnx.data")), "not a plain file name"),
    "memory address": (lambda: model(external("*/_ORT_MEM_ADDR_/*")), "not a plain file name"),
    "NUL": (lambda: model(external("model.onnx.data\0")), "not a plain file name"),
    "missing": (lambda: model(external("none.data")), "which is missing"),
    "long name": (lambda: model(external("n" * 5000)), "which is missing"),
    "a folder": (lambda: model(external("folder")), "not a regular file"),
    "a pipe": (lambda: model(external("pipe")), "not a regular file"),
    "link outside": (lambda: model(external("outside.data")), "symbolic link"),
    "link inside": (lambda: model(external("inside.data")), "symbolic link"),
    "hard link": (lambda: model(external("hard.data")), "hard link"),
    "past the end": (lambda: model(external(offset=49)), "which has 64"),
    "offset wraps": (lambda: model(external(offset=2**64 - 16)), "not a size"),
    "negative offset": (lambda: model(external(offset=-16)), "not a size"),
    "offset with a plus": (lambda: model(external(offset="+16")), "not a size"),
    "offset in other digits": (lambda: model(external(offset="١٦")), "not a size"),
    "offset of many digits": (lambda: model(external(offset="1" * 5000)), "not a size"),
    "length short": (lambda: model(external(length=12)), "takes 16 bytes, and is given 12"),
    "length long": (lambda: model(external(length=32)), "takes 16 bytes, and is given 32"),
    "unknown key": (lambda: model(external(basepath="/etc")), "'basepath'"),
    "key twice": (lambda: model(twice(external())), "'location'"),
    "external in a constant": (lambda: model(nodes=[relu(value=external("../outside"))]), "plain file name"),
    "external in a list": (lambda: model(nodes=[relu(values=[external("../outside")])]), "plain file name"),
}  # fmt: skip


def deep(levels: int) -> bytes:
    """A graph in a node's attribute in a graph, and so on; written by hand, for onnx itself stops at 100."""
    data = b""
    for _ in range(levels):
        data = message(1, message(5, message(6, data)))
    return data


def with_raw(tensor: onnx.TensorProto) -> onnx.TensorProto:
    tensor.raw_data = bytes(16)
    return tensor


def twice(tensor: onnx.TensorProto) -> onnx.TensorProto:
    tensor.external_data.add(key="location", value="../outside")
    return tensor


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with links, a pipe and a folder in the place of weights."""
    folder = tmp_path_factory.mktemp("trap") / "model"
    (folder / "folder").mkdir(parents=True)
    for outside in (folder.parent / "outside", folder / "model.onnx.data", folder.parent / "target"):
        outside.write_bytes(bytes(64))
    os.mkfifo(folder / "pipe")
    (folder / "outside.data").symlink_to("../outside")
    (folder / "inside.data").symlink_to("model.onnx.data")
    os.link(folder.parent / "target", folder / "hard.data")
    return folder


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_models_are_refused_with_the_reason(case: str, trap: Path) -> None:
    content, reason = HOSTILE[case]
    with pytest.raises(CorruptError, match=reason) as refusal:
        check_onnx(write(trap, content()), "model.onnx")
    assert str(trap) in refusal.value.message and refusal.value.hint and len(refusal.value.message) < 500


def test_the_model_file_itself_is_no_link(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write(tmp_path, model())
    (folder / "model.onnx").symlink_to(tmp_path / "model.onnx")
    with pytest.raises(CorruptError, match="symbolic link"):
        check_onnx(folder, "model.onnx")
    (folder / "model.onnx").unlink()
    os.link(tmp_path / "model.onnx", folder / "model.onnx")
    with pytest.raises(CorruptError, match="hard link"):
        check_onnx(folder, "model.onnx")
    for name in ("../model.onnx", str(tmp_path / "model.onnx"), "", ".."):
        with pytest.raises(CorruptError, match="plain file name"):
            check_onnx(folder, name)
    with pytest.raises(ConfigError, match="no file"):
        check_onnx(folder, "none.onnx")


def sound() -> onnx.ModelProto:
    """All that is allowed: every way to store a tensor, a subgraph, a function, a constant."""
    inside = graph(odd(name="inner"), nodes=[helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")])
    nodes = [
        relu(),
        helper.make_node("If", ["x"], ["y"], then_branch=inside, else_branch=graph()),
        helper.make_node("Constant", [], ["c"], value=odd(name="")),
        helper.make_node("Constant", [], ["i"], value_ints=[-1, 2**62]),
    ]
    return model(
        odd(name="raw"),
        external(),
        TensorProto(name="scalar", data_type=7, int64_data=[-1]),
        TensorProto(name="empty", data_type=1, dims=[0, 4]),
        TensorProto(name="packed", data_type=22, dims=[3], int32_data=[1, 2]),
        TensorProto(name="texts", data_type=8, dims=[2], string_data=[b"a", b""]),
        nodes=nodes,
        functions=[function("com.microsoft", relu())],
    )


SOUND = sound().SerializeToString()


def test_a_sound_model_reads_as_onnx_reads_it(tmp_path: Path) -> None:
    layout = check_onnx(write(tmp_path, sound()), "model.onnx")
    assert layout.opsets == {"": 21, "com.microsoft": 1} and layout.external == {"model.onnx.data": 64}
    assert layout.domains == {"com.microsoft"} and layout.ir_version == sound().ir_version
    expected = {tensor.name: tensor for tensor in sound().graph.initializer}
    assert list(layout.initializers) == list(expected)
    for name, tensor in layout.initializers.items():
        assert (tensor.dtype, list(tensor.dims)) == (expected[name].data_type, list(expected[name].dims))
    raw, outside = layout.initializers["raw"], layout.initializers["w"]
    assert raw.offset is not None and raw.file == "model.onnx" and raw.nbytes == 16
    assert (tmp_path / raw.file).read_bytes()[raw.offset :].startswith(bytes(16))
    assert (outside.file, outside.offset, outside.nbytes) == ("model.onnx.data", 16, 16)
    assert layout.initializers["packed"].nbytes == 2 and layout.initializers["packed"].offset is None


def test_weights_stand_where_it_says(tmp_path: Path) -> None:
    """As onnx itself writes them, in the model and beside it."""
    arrays = {
        name: np.random.default_rng(i).normal(size=(40, i + 1)).astype(np.float32)
        for i, name in enumerate("abc")
    }
    saved = model(*(numpy_helper.from_array(array, name) for name, array in arrays.items()))
    for beside in (False, True):
        onnx.save_model(
            saved, tmp_path / "model.onnx", save_as_external_data=beside, location="data", size_threshold=0
        )
        layout = check_onnx(tmp_path, "model.onnx")
        for name, array in arrays.items():
            tensor = layout.initializers[name]
            assert tensor.file == ("data" if beside else "model.onnx") and tensor.offset is not None
            assert np.array_equal(
                np.fromfile(tmp_path / tensor.file, np.float32, array.size, offset=tensor.offset),
                array.reshape(-1),
            )


def test_a_sound_model_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """Cut between two fields of the model it may still be one: then onnx reads the same."""
    write(tmp_path, SOUND)
    read = 0
    for length in reversed(range(len(SOUND))):
        os.truncate(tmp_path / "model.onnx", length)
        try:
            check_onnx(tmp_path, "model.onnx")
        except CorruptError:
            continue
        onnx.load_model_from_string(SOUND[:length])
        read += 1
    assert read <= 4  # behind the graph and behind each import


def test_the_fields_are_those_of_onnx() -> None:
    """Every place where a tensor, an operator or a function can stand is entered, and none is missed."""
    known = onnx.ModelProto.DESCRIPTOR.file.message_types_by_name
    entered = {"TensorProto", "NodeProto", "FunctionProto"}
    while True:
        more = {
            name
            for name, kind in known.items()
            if any(field.message_type and field.message_type.name in entered for field in kind.fields)
        }
        if more <= entered:
            break
        entered |= more
    for name in entered - {"TensorProto"}:
        fields = [field for field in known[name].fields if field.message_type]
        inner = {
            field.number: field.message_type.name for field in fields if field.message_type.name in entered
        }
        opsets = {
            f.number: f.message_type.name for f in fields if f.message_type.name == "OperatorSetIdProto"
        }
        assert container.MESSAGES[name] == inner | opsets, name
        assert container.SINGLE.get(name, set()) == {
            n for n in inner if not known[name].fields_by_number[n].is_repeated
        }
    assert set(container.MESSAGES) == entered
    assert container.MESSAGES["TensorProto"] == {
        known["TensorProto"].fields_by_name["external_data"].number: "StringStringEntryProto"
    }
    assert {name: known[name].fields_by_number[n].name for name, n in container.DOMAIN_FIELDS.items()} == {
        "NodeProto": "domain", "FunctionProto": "domain",
    }  # fmt: skip
    names = {number: field.name for number, field in known["TensorProto"].fields_by_number.items()}
    assert {names[n] for n in container.VALUE_FIELDS} == {
        "float_data", "int32_data", "int64_data", "double_data", "uint64_data",
    }  # fmt: skip


def test_the_types_have_onnxs_sizes() -> None:
    known = dict(TensorProto.DataType.items())
    assert set(container.DTYPE_BITS) | {container.STRING, known["UNDEFINED"]} == set(known.values())
    for name, number in known.items():
        if number in container.DTYPE_BITS and not name.startswith("FLOAT6"):  # numpy has no such type
            values = np.zeros(8, helper.tensor_dtype_to_np_dtype(number))
            stored = numpy_helper.from_array(values)
            assert stored.data_type == number and len(stored.raw_data) == container.DTYPE_BITS[number], name


FUZZ = settings(
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FUZZ
@given(st.data())
def test_random_bytes_and_changed_models_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    """What is let through has, read by onnx, the same initializers, no foreign operator and no way out."""
    if data.draw(st.booleans()):
        content = message(7, data.draw(st.binary(max_size=100)))
    else:
        changed = bytearray(SOUND)
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(changed) - 1))
            if data.draw(st.booleans()):
                changed[at] = data.draw(st.integers(0, 255))
            else:
                changed[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
        content = bytes(changed)
    try:
        layout = check_onnx(write(tmp_path, content), "model.onnx")
    except CorruptError:
        return
    try:
        loaded = onnx.load_model_from_string(content)
    except DecodeError:
        return  # such as a name that is not UTF-8 in a place that is skipped here
    assert {t.name: (t.data_type, *t.dims) for t in loaded.graph.initializer} == {
        name: (tensor.dtype, *tensor.dims) for name, tensor in layout.initializers.items()
    }
    assert {node.domain for node in loaded.graph.node} <= container.DOMAINS
    for tensor in loaded.graph.initializer:
        assert {entry.value for entry in tensor.external_data if entry.key == "location"} <= {
            "model.onnx.data"
        }
