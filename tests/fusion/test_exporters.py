"""Fused models and every exporter of PyTorch: the file computes the same, or the error says what to do."""

import io
import warnings

import pytest
import torch

from lgfast import fuse, fuse_layers, unfuse, unfuse_layers
from lgfast.ops import feature_mse
from tests.small_models import images, vit


@pytest.fixture(params=[fuse, fuse_layers], ids=["attention", "layers"])
def model(request):
    model = vit().eval()
    assert request.param(model).fused
    return model


def own_operations(graph):
    return {node.kind() for node in graph.nodes() if "lgfast" in node.kind() or "Python" in node.kind()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_torchscript_traces_pytorchs_operations(model):
    x = images(model)
    traced = torch.jit.trace(model, (x,))
    assert own_operations(traced.inlined_graph) == set()
    torch.testing.assert_close(traced(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_cannot_compile_and_says_what_to_do(model):
    classes = [type(module) for module in model.modules()]
    with pytest.raises(
        RuntimeError, match=r"cannot compile Fused\w+; call lgfast.unfuse\(model\) and .* first, or use"
    ):
        torch.jit.script(model)
    assert [type(module) for module in model.modules()] == classes
    unfuse(model), unfuse_layers(model)
    x = images(model)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


def exported_to_onnx(model, x, dynamo):
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), file, dynamo=dynamo, verbose=False)
    return file.getvalue()


def test_the_torchscript_exporter_writes_onnx(model):
    assert b"lgfast" not in exported_to_onnx(model, images(model), dynamo=False)


@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_computes_the_same(model, dynamo):
    pytest.importorskip("onnxscript")
    runtime, x = pytest.importorskip("onnxruntime"), images(model)
    session = runtime.InferenceSession(exported_to_onnx(model, x, dynamo))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_an_operation_alone_is_traced_by_its_composition():
    maps = torch.randn(2, 16, 3), torch.randn(2, 3, 8, 8)
    traced = torch.jit.trace(lambda student, teacher: feature_mse([student], [teacher]), maps)
    assert own_operations(traced.graph) == set()
    torch.testing.assert_close(traced(*maps), feature_mse([maps[0]], [maps[1]]))
