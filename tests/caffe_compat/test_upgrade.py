"""From generations V0 and V1 to V2: Caffe's steps one by one, what they refuse, and what becomes of blobs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

from caffe_compat import upgrade
from caffe_compat.errors import UnknownLayerError, UpgradeError, VggcError
from caffe_compat.generations import SOLVER_TYPES, V0_FIELDS, V0_PARAMS, V0_TRANSFORM, V0_TYPES, V1_TYPES
from caffe_compat.graph import Graph
from caffe_compat.reading import read_document
from caffe_compat.schema import pb
from caffe_compat.textformat import parse
from caffe_compat.upgrade import (
    STEPS,
    Upgraded,
    Work,
    copy_fields,
    generation_of,
    snapshot_prefix,
    upgrade_net,
    upgrade_solver,
)
from tests.conftest import FOLDERS

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "upgrade"
NETS = sorted(path.parent.name for path in GOLDEN.glob("*/in.prototxt"))
REFUSED = {"v0_unknown_type", "v1_and_v2_mixed"}
V0_INPUT = 'input: "x" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 8 '


def net(text: str) -> pb.NetParameter:
    return text_format.Parse(text, pb.NetParameter())


def upgraded(text: str) -> Upgraded:
    """The upgraded net of a text, with positions in messages."""
    document = parse(text, pb.NetParameter, "n.prototxt")
    assert isinstance(document.message, pb.NetParameter)
    return upgrade_net(document.message, document.map)


def v0(*layers: str) -> str:
    return V0_INPUT + " ".join(layers)


def only_layer(text: str) -> pb.LayerParameter:
    (layer,) = upgraded(text).net.layer
    return layer


def refusal(text: str) -> UpgradeError:
    with pytest.raises(UpgradeError) as caught:
        upgraded(text)
    assert caught.value.remedy
    return caught.value


# -- the whole ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", sorted(set(NETS) - REFUSED))
@pytest.mark.parametrize("suffix", [".prototxt", ".caffemodel"])
def test_gives_what_caffes_tools_gave(case: str, suffix: str) -> None:
    old, new = pb.NetParameter(), pb.NetParameter()
    for message, name in ((old, f"in{suffix}"), (new, f"out{suffix}")):
        data = (GOLDEN / case / name).read_bytes()
        text_format.Parse(data, message) if suffix == ".prototxt" else message.ParseFromString(data)
    before = old.SerializeToString(deterministic=True)
    result = upgrade_net(old)
    assert result.net == new
    assert old.SerializeToString(deterministic=True) == before, "the input is never changed"
    assert result.changed == (old != new)
    assert len(result.origins) == len(new.layer)


@pytest.mark.parametrize("case", sorted(REFUSED))
@pytest.mark.parametrize("suffix", [".prototxt", ".caffemodel"])
def test_refuses_what_caffe_refuses(case: str, suffix: str) -> None:
    document = read_document(GOLDEN / case / f"in{suffix}")
    assert isinstance(document.message, pb.NetParameter)
    with pytest.raises(UpgradeError) as caught:
        upgrade_net(document.message, document.map)
    where = caught.value.where
    assert where.source.endswith(f"in{suffix}")
    assert where.line > 0 or where.offset > 0
    assert caught.value.remedy


@pytest.mark.parametrize("case", sorted(set(NETS) - REFUSED))
def test_an_upgraded_net_needs_nothing(case: str) -> None:
    once = upgrade_net(net((GOLDEN / case / "in.prototxt").read_text())).net
    assert not [step.name for step in STEPS if step.needs(once)]
    twice = upgrade_net(once)
    assert twice.net == once
    assert not twice.changed
    assert not twice.problems
    assert twice.generation == "V2"
    assert twice.origins == tuple(f"layer[{i}]" for i in range(len(once.layer)))


@pytest.mark.parametrize("case", sorted(set(NETS) - REFUSED))
def test_each_step_is_needed_once(case: str) -> None:
    message = net((GOLDEN / case / "in.prototxt").read_text())
    work = Work(message, origins=[f"[{i}]" for i in range(len(message.layers) or len(message.layer))])
    for step in STEPS:
        if step.needs(work.net):
            step.apply(work)
            assert not step.needs(work.net), step.name


def test_idempotent_on_every_published_net(pytestconfig: pytest.Config) -> None:
    files = sorted(pytestconfig.stash[FOLDERS].zoo.rglob("*.prototxt"))
    if not files:
        pytest.skip("needs published nets: --zoo DIR")
    seen: set[str] = set()
    for path in files:
        try:
            document = read_document(path)
            if not isinstance(document.message, pb.NetParameter):
                continue
            once = upgrade_net(document.message, document.map)
        except VggcError:
            continue
        seen.add(once.generation)
        assert not any(step.needs(once.net) for step in STEPS), path
        twice = upgrade_net(once.net)
        assert (twice.net, twice.changed) == (once.net, False), path
    assert seen == {"V0", "V1", "V2"}


def test_tables_name_what_the_schema_has() -> None:
    v1 = pb.V1LayerParameter.LayerType.keys()
    assert set(V1_TYPES) == set(v1)
    assert set(V0_TYPES.values()) <= set(v1)
    assert set(SOLVER_TYPES) == set(pb.SolverParameter.SolverType.keys())
    fields = set(pb.V0LayerParameter.DESCRIPTOR.fields_by_name)
    never = {"new_num", "new_channels"}
    own = {"name", "type", "blobs", "blobs_lr", "weight_decay", "hdf5_output_param"}
    assert set(V0_FIELDS) | set(V0_TRANSFORM) | never | own == fields
    for new, types in V0_FIELDS.values():
        for kind in types:
            param = pb.V1LayerParameter.DESCRIPTOR.fields_by_name[V0_PARAMS[kind]].message_type
            assert new in param.fields_by_name


def test_public_upgrade_goes_on_where_caffe_does() -> None:
    result = upgrade(net(v0('layers { layer { name: "r" type: "relu" pad: 1 } bottom: "x" top: "r" }')))
    assert [layer.type for layer in result.layer] == ["Input", "ReLU"]


def test_a_net_without_layers_is_left_alone() -> None:
    for text in ("", 'name: "n"', "input_dim: 3"):
        result = upgrade_net(net(text))
        assert (result.net, result.changed, result.generation) == (net(text), False, "V2")


def test_unknown_fields_of_the_net_are_kept() -> None:
    strange = bytes.fromhex("c23e03616263")  # field 1000, "abc"
    for text in (
        'layer { name: "r" type: "ReLU" }',
        'layers { name: "r" type: RELU }',
        'layers { layer { name: "r" } }',
    ):
        message = pb.NetParameter.FromString(net(text).SerializeToString() + strange)
        assert strange in upgrade_net(message).net.SerializeToString()


# -- blobs -------------------------------------------------------------------------------------------------


def blob(values: list[float], **sizes: int) -> pb.BlobProto:
    return pb.BlobProto(data=values, diff=[1.0], **sizes)


@pytest.mark.parametrize("generation", ["V0", "V1", "V2"])
def test_blobs_go_along(generation: str) -> None:
    message = pb.NetParameter()
    blobs = [blob([1.5, -2.0], num=1, channels=1, height=1, width=2), blob([0.25])]
    if generation == "V0":
        layer = pb.V0LayerParameter(name="ip", type="innerproduct", blobs=blobs)
        message.layers.add(layer=layer, top=["ip"])
    elif generation == "V1":
        message.layers.add(name="ip", type="INNER_PRODUCT", blobs=blobs)
    else:
        message.layer.add(name="ip", type="InnerProduct", blobs=blobs)
    result = upgrade_net(message)
    assert result.generation == generation
    assert list(result.net.layer[0].blobs) == blobs
    result.net.layer[0].blobs[0].data[0] = 7
    source = message.layer or message.layers
    own = source[0].layer.blobs if generation == "V0" else source[0].blobs
    assert own[0].data[0] == 1.5


def test_blobs_follow_their_layers_past_padding_and_input() -> None:
    text = v0(
        'layers { layer { name: "pad" type: "padding" pad: 2 } bottom: "x" top: "p" }',
        'layers { layer { name: "c" type: "conv" num_output: 1 kernelsize: 5 } bottom: "p" top: "c" }',
        'layers { layer { name: "d" type: "innerproduct" num_output: 1 } bottom: "c" top: "d" }',
    )
    message = net(text)
    for index in (1, 2):
        message.layers[index].layer.blobs.add(data=[float(index)])
    result = upgrade_net(message)
    assert result.origins == ("", "layers[1]", "layers[2]")
    assert [[b.data[0] for b in layer.blobs] for layer in result.net.layer] == [[], [1.0], [2.0]]


def test_copy_fields_leaves_out() -> None:
    layer = pb.LayerParameter(name="ip", blobs=[blob([1.0])], top=["a", "b"])
    copy = pb.LayerParameter()
    copy_fields(layer, copy, {"blobs"})
    assert copy == pb.LayerParameter(name="ip", top=["a", "b"])


# -- V0 ----------------------------------------------------------------------------------------------------


def test_v0_fields_reach_their_messages() -> None:
    text = v0(
        """layers { layer { name: "c" type: "conv" num_output: 4 biasterm: false pad: 1 kernelsize: 3 group: 2 stride: 2
           weight_filler { type: "xavier" } bias_filler { value: 2 } blobs_lr: 1 blobs_lr: 2 weight_decay: 1
           weight_decay: 0 } bottom: "x" top: "c" }"""
    )
    expected = text_format.Parse(
        """name: "c" type: "Convolution" bottom: "x" top: "c" param { lr_mult: 1 decay_mult: 1 }
           param { lr_mult: 2 decay_mult: 0 } convolution_param { num_output: 4 bias_term: false pad: 1 kernel_size: 3
           group: 2 stride: 2 weight_filler { type: "xavier" } bias_filler { value: 2 } }""",
        pb.LayerParameter(),
    )
    assert upgraded(text).net.layer[1] == expected


@pytest.mark.parametrize("field", sorted(V0_FIELDS))
def test_v0_fields_in_the_wrong_layer_are_reported_with_their_line(field: str) -> None:
    descriptor = pb.V0LayerParameter.DESCRIPTOR.fields_by_name[field]
    value = {"string": '"s"', "bool": "true"}.get(_kind(descriptor), "1")
    stated = f"{field} {{ }}" if descriptor.message_type else f"{field}: {value}"
    result = upgraded(v0(f'layers {{ layer {{ name: "f" type: "flatten"\n {stated} }} bottom: "x" top: "f" }}'))
    (problem,) = result.problems
    assert field in problem.what
    assert "flatten" in problem.what
    assert (problem.where.line, problem.where.column, problem.where.layer) == (2, 2, "f")
    assert result.net.layer[1] == pb.LayerParameter(name="f", type="Flatten", bottom=["x"], top=["f"])


def _kind(descriptor: object) -> str:
    kinds = {9: "string", 8: "bool"}
    return kinds.get(descriptor.type, "")  # type: ignore[attr-defined]


def test_v0_fields_that_caffe_never_reads_are_noted() -> None:
    result = upgraded(v0('layers { layer { name: "d" type: "data" new_num: 3 } top: "d" }'))
    assert not result.problems
    assert any("new_num" in note for note in result.notes)


def test_a_v0_net_loses_what_caffe_does_not_carry_over() -> None:
    text = 'debug_info: true state { level: 2 } layers { layer { name: "r" type: "relu" } bottom: "x" top: "r" }'
    result = upgraded(V0_INPUT + text)
    assert not result.net.HasField("state")
    assert not result.net.HasField("debug_info")
    assert [note for note in result.notes if "state" in note]
    assert [note for note in result.notes if "debug_info" in note]


PAD = 'layers { layer { name: "pad" type: "padding" pad: 2 } bottom: "x" top: "p" }'


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ((PAD, 'layers { layer { name: "r" type: "relu" } bottom: "p" top: "r" }'), '"relu"'),
        ((PAD, 'layers { layer { name: "c" type: "conv" } bottom: "p" bottom: "x" top: "c" }'), "2 bottoms"),
        (
            (
                'layers { layer { name: "pad" type: "padding" pad: 2 } bottom: "x" top: "p" top: "q" }',
                'layers { layer { name: "c" type: "conv" } bottom: "p" top: "c" }',
            ),
            "2 tops",
        ),
        (('layers { layer { name: "c" type: "conv" } bottom: "y" top: "c" }',), '"y"'),
        ((PAD, PAD.replace('"x"', '"p"').replace('top: "p"', 'top: "q"')), '"padding"'),
    ],
)
def test_padding_that_caffe_cannot_fold(layers: tuple[str, ...], said: str) -> None:
    error = refusal(v0(*layers))
    assert said in str(error)
    assert error.where.line == 1


def test_padding_folds_into_every_reader_and_leaves_when_unread() -> None:
    readers = [f'layers {{ layer {{ name: "{k}" type: "{k}" }} bottom: "p" top: "{k}" }}' for k in ("conv", "pool")]
    folded = upgraded(v0(PAD, *readers))
    assert folded.net.layer[1].convolution_param.pad == [2]
    assert folded.net.layer[2].pooling_param.pad == 2
    assert [list(layer.bottom) for layer in folded.net.layer[1:]] == [["x"], ["x"]]
    unread = upgraded(v0(PAD, 'layers { layer { name: "r" type: "relu" } bottom: "x" top: "r" }'))
    assert [layer.type for layer in unread.net.layer] == ["Input", "ReLU"]
    assert any("nothing reads it" in note for note in unread.notes)


def test_v0_layers_without_a_name_or_type() -> None:
    assert only_layer('layers { layer { blobs_lr: 2 } top: "a" }') == text_format.Parse(
        'top: "a" param { lr_mult: 2 }', pb.LayerParameter()
    )
    assert "unknown V0 layer type" in refusal('layers { layer { type: "" } }').what


@pytest.mark.parametrize(
    "text",
    [
        'layers { layer { name: "r" type: "relu" } } layers { name: "s" type: RELU }',
        'layers { layer { name: "r" type: "relu" } name: "r" }',
        'layers { layer { name: "r" type: "relu" } } layer { name: "s" type: "ReLU" }',
        'layers { name: "r" type: RELU } layer { name: "s" type: "ReLU" }',
    ],
)
def test_mixed_generations_are_refused(text: str) -> None:
    assert refusal(text).where.line == 1


# -- V1 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), sorted(V1_TYPES.items()))
def test_every_v1_type_gets_its_string(old: str, new: str) -> None:
    layer = only_layer(f'layers {{ name: "a" type: {old} bottom: "b" top: "t" include {{ phase: TEST }} }}')
    assert (layer.type, layer.name, list(layer.bottom), list(layer.top)) == (new, "a", ["b"], ["t"])
    assert layer.include[0].phase == pb.TEST


def test_v1_multipliers_become_one_param_entry_each() -> None:
    layer = only_layer("layers { param: 'w' blobs_lr: 0 blobs_lr: 2 weight_decay: 3 blob_share_mode: PERMISSIVE }")
    assert list(layer.param) == [
        pb.ParamSpec(name="w", share_mode=pb.ParamSpec.PERMISSIVE, lr_mult=0, decay_mult=3),
        pb.ParamSpec(lr_mult=2),
    ]


@pytest.mark.parametrize(
    ("kind", "field"),
    [("DATA", "data_param"), ("IMAGE_DATA", "image_data_param"), ("WINDOW_DATA", "window_data_param")],
)
def test_data_transformation_moves(kind: str, field: str) -> None:
    layer = only_layer(
        f"layers {{ type: {kind} {field} {{ source: 's' scale: 2 mean_file: 'm' crop_size: 3 mirror: true }} }}"
    )
    assert layer.transform_param == pb.TransformationParameter(scale=2, mean_file="m", crop_size=3, mirror=True)
    assert [name.name for name, _ in getattr(layer, field).ListFields()] == ["source"]


def test_transformation_that_caffe_ignores_is_noted() -> None:
    result = upgraded('layer { name: "d" type: "Data" data_param { mean_file: "m" scale: 2 } }')
    assert not result.changed
    (note,) = result.notes
    assert "data_param scale, mean_file" in note
    assert '"d"' in note


def test_fork_fields_of_binary_v1_layers_are_reported() -> None:
    layer = pb.V1LayerParameter(name="c", type="CONVOLUTION").SerializeToString() + bytes.fromhex("e00301")  # 60: 1
    message = pb.NetParameter.FromString(b"\x12" + bytes([len(layer)]) + layer)
    result = upgrade_net(message)
    assert result.net.layer[0] == pb.LayerParameter(name="c", type="Convolution")
    (problem,) = result.problems
    assert "60" in problem.what
    assert problem.where.layer == "c"


def test_fork_fields_of_v2_layers_are_kept() -> None:
    layer = pb.LayerParameter(name="c", type="Normalize").SerializeToString() + bytes.fromhex("f20c0108")
    message = pb.NetParameter.FromString(b"\xa2\x06" + bytes([len(layer)]) + layer)
    result = upgrade_net(message)
    assert not result.problems
    assert result.net.SerializeToString() == message.SerializeToString()


# -- input fields and BatchNorm ----------------------------------------------------------------------------


def test_input_dims_become_shapes_before_everything_else() -> None:
    text = 'input: "a" input: "b" layer { name: "r" type: "ReLU" }' + " ".join(f" input_dim: {i}" for i in range(8))
    result = upgraded(text)
    layer = result.net.layer[0]
    assert (layer.name, layer.type, list(layer.top)) == ("input", "Input", ["a", "b"])
    assert [list(shape.dim) for shape in layer.input_param.shape] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert result.origins == ("", "layer[0]")
    assert not result.net.input
    assert not result.net.input_dim


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('input: "a" input: "b" input_dim: 1 input_dim: 1 input_dim: 1 input_dim: 1', "4 input_dim entries for 2"),
        ('input: "a" input: "b" input_shape { dim: 3 }', "1 input_shape entries for 2"),
    ],
)
def test_too_few_input_sizes_are_refused(text: str, said: str) -> None:
    error = refusal(f'name: "n"\n{text}')
    assert said in error.what
    assert error.where.line == 2


def test_surplus_input_sizes_are_noted() -> None:
    result = upgraded('input: "a" input_shape { dim: 3 } input_shape { dim: 4 } input_dim: 5')
    assert [list(shape.dim) for shape in result.net.layer[0].input_param.shape] == [[3]]
    assert any("surplus" in note for note in result.notes)
    assert any("ignored input_dim" in note for note in result.notes)


def test_batch_norm_statistics_stop_learning() -> None:
    spec = pb.ParamSpec(lr_mult=0, decay_mult=0)
    layer = only_layer("layer { name: 'b' type: 'BatchNorm' param { lr_mult: 1 } param { } param { name: 's' } }")
    assert list(layer.param) == [spec, spec, pb.ParamSpec(name="s", lr_mult=0, decay_mult=0)]
    two = "layer { name: 'b' type: 'BatchNorm' param { lr_mult: 1 } param { } }"
    assert not upgraded(two).changed


# -- solvers -----------------------------------------------------------------------------------------------


def solver(text: str) -> pb.SolverParameter:
    return text_format.Parse(text, pb.SolverParameter())


@pytest.mark.parametrize("case", sorted(path.parent.name for path in GOLDEN.glob("*/solver_in.prototxt")))
def test_solvers_become_what_caffes_tool_made(case: str) -> None:
    old = solver((GOLDEN / case / "solver_in.prototxt").read_text())
    result = upgrade_solver(old)
    assert result.solver == solver((GOLDEN / case / "solver_out.prototxt").read_text())
    assert result.changed == old.HasField("solver_type")
    again = upgrade_solver(result.solver)
    assert (again.solver, again.changed) == (result.solver, False)


@pytest.mark.parametrize(("old", "new"), sorted(SOLVER_TYPES.items()))
def test_every_solver_type_gets_its_string(old: str, new: str) -> None:
    result = upgrade_solver(solver(f"solver_type: {old}"))
    assert result.solver == pb.SolverParameter(type=new)
    assert old in result.notes[0]


def test_two_solver_types_are_refused() -> None:
    document = parse('type: "SGD"\nsolver_type: ADAM', pb.SolverParameter, "s.prototxt")
    assert isinstance(document.message, pb.SolverParameter)
    with pytest.raises(UpgradeError, match="both type and solver_type") as caught:
        upgrade_solver(document.message, document.map)
    assert str(caught.value.where) == "s.prototxt:2:1"


def test_old_nets_inside_a_solver_stay_and_are_noted() -> None:
    old = solver('net_param { layers { name: "r" type: RELU } } test_net_param { layer { } } solver_type: SGD')
    result = upgrade_solver(old)
    assert result.solver.net_param == old.net_param
    assert [note for note in result.notes if "net_param is a V1 net" in note]


@pytest.mark.parametrize(
    ("stated", "prefix"),
    [("", "examples/s"), ('snapshot_prefix: "snaps/a"', "snaps/a"), ('snapshot_prefix: "folder"', "folder/s")],
)
def test_snapshot_prefix(stated: str, prefix: str) -> None:
    assert snapshot_prefix(solver(stated), "examples/s.prototxt", lambda path: path == "folder") == prefix


def test_generations() -> None:
    assert generation_of(net("layers { layer { } }")) == "V0"
    assert generation_of(net("layers { }")) == "V1"
    assert generation_of(net("layer { }")) == "V2"


def test_float_values_survive_bit_by_bit() -> None:
    value = float(np.float32(0.1))
    layer = only_layer(f"layers {{ layer {{ type: 'lrn' alpha: {value!r} }} }}")
    assert layer.lrn_param.alpha == value


def test_layer_types_of_forks_stay_as_they_are() -> None:
    done = upgraded('layers { name: "x" type: SMOOTH_L1_LOSS bottom: "a" }')
    assert done.net.layer[0].type == "SMOOTH_L1_LOSS"
    assert [problem.what for problem in done.problems] == [
        "V1 layer type SMOOTH_L1_LOSS is not one of Caffe's; it stays as it is"
    ]
    error = Graph.from_net(done.net, collect=True).problems[1]
    assert isinstance(error, UnknownLayerError)
    assert error.remedy == 'if it is SmoothL1Loss, write the net with `layer { }` and type: "SmoothL1Loss"'


def test_layer_types_of_the_dialect_become_those_of_v2() -> None:
    text = 'layers { name: "x" type: CONVOLUTION3D bottom: "a" convolution_param { kernel_depth: 3 } }'
    done = upgrade_net(parse(text, pb.NetParameter).message, dialect="c3d-v1.0")  # type: ignore[arg-type]
    assert done.problems == ()
    assert done.net.layer[0].type == "Convolution3D"
    assert done.net.layer[0].convolution_param.kernel_depth == 3
    (problem,) = upgraded(text).problems
    assert problem.remedy == "use --dialect c3d-v1.0"
