"""Students on a GPU: the numbers of the CPU, and a forward that a CUDA graph can replay."""

import copy

import pytest
import torch

from lgfast.models import FeatureTaps, create_model, default_layers

pytestmark = pytest.mark.gpu
STUDENTS = (
    "deit_tiny_patch16_224", "t2t_vit_7", "pit_ti_224", "pvt_tiny", "pvt_v2_b0", "convit_tiny", "cvt_13"
)  # fmt: skip


def small(name):
    return create_model(name, num_classes=5, image_size=64, drop_path_rate=0)


@pytest.mark.parametrize("name", STUDENTS)
def test_logits_maps_and_gradients_equal_those_of_the_cpu(name):
    model = small(name)
    if name == "deit_tiny_patch16_224":
        torch.nn.init.normal_(model.head.weight, std=0.02)  # behind a zero head every gradient would be zero
    images, results = torch.randn(2, 3, 64, 64), []
    for device in ("cpu", "cuda"):
        net = copy.deepcopy(model).to(device)
        taps = FeatureTaps(net, default_layers(net))
        logits = net(images.to(device))
        maps = [tokens for tokens, _ in taps.take()]
        (logits.square().sum() + sum(m.square().mean() for m in maps)).backward()
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        results.append([t.detach().cpu() for t in (logits, *maps, *grads)])
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * want.abs().max().item() + 1e-5)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_cuda_graph_replays_the_autocast_forward(name):
    model = small(name).cuda().eval()
    images = torch.randn(2, 3, 64, 64, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        with torch.cuda.stream(stream):
            for _ in range(3):
                model(images)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = model(images)
        images.copy_(torch.randn_like(images))
        graph.replay()
        torch.testing.assert_close(logits, model(images))
