"""The step computes the same in every way of running it, and never reads back to the host."""

import copy
import functools
import io

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lgfast.assembly.networks import fuse_model_layers
from lgfast.config import DistillConfig, StepConfig
from lgfast.data.batch import Batch
from lgfast.guidance import GuidedStudent, Teacher
from lgfast.models import create_model
from lgfast.optim.build import DeviceSGD, param_groups, set_learning_rate
from lgfast.optim.flat_adamw import FlatAdamW
from lgfast.step import Objective, TrainMeter, TrainStep
from lgfast.step.average import WeightAverage
from lgfast.training.evaluation import evaluate
from tests.small_models import SHALLOW

BATCH = 8
HOST_READS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "item")


def build(
    optimizer="adamw", precision="fp32", bn="batch", clip_norm=0.0, device="cpu", drop_path_rate=0.1, streams="on",
    transform="linear", distill=None, **options,
):  # fmt: skip
    torch.manual_seed(7)
    model = create_model(
        "deit_tiny_patch16_224", num_classes=5, image_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=2,
        drop_path_rate=drop_path_rate,
    )  # fmt: skip
    is_compiled = options.get("compile") == "on"
    if options.get("fused_layers") == "on":
        fuse_model_layers(model)
    student = GuidedStudent(model, (0, 1, 2), (16, 32, 64), 16, transform, compiled=is_compiled).to(device)
    teacher = Teacher(
        create_model("cifar_resnet8", 5).to(device), bn=bn, dtype=torch.bfloat16 if precision == "bf16" else None,
        autocast=torch.float16 if precision == "fp16-amp" else None,
        concurrent=streams == "on", gives_logits=distill is not None, compiled=is_compiled,
    )  # fmt: skip
    groups = param_groups(student.named_parameters(), 0.05)
    makers = {
        "adamw": lambda: FlatAdamW(groups, lr=3e-3, max_norm=clip_norm, skip_nonfinite=precision == "fp16-amp"),
        "unclipped": lambda: FlatAdamW(groups, lr=3e-3),
        "torch": lambda: torch.optim.AdamW(groups, lr=3e-3),
        "sgd": lambda: DeviceSGD(groups, lr=0.05, momentum=0.9),
    }
    torch.manual_seed(8)  # of the steps to come
    return TrainStep(
        student, teacher, makers[optimizer](), TrainMeter(device), Objective(2.5, distill=distill, device=device),
        precision=precision, clip_norm=0.0 if optimizer == "adamw" else clip_norm,
        options=StepConfig(streams=streams, **options),
    )  # fmt: skip


def batches(count, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        images = torch.randn(BATCH, 3, 16, 16, generator=generator)
        labels = torch.randint(5, (BATCH,), generator=generator)
        small = images[:, :, ::2, ::2].contiguous()
        yield Batch(*(tensor.to(device) for tensor in (images, small, labels, torch.arange(BATCH))))


def train(step, count=20, after_step=lambda: None):
    """Losses of `count` steps, with the meter read after each."""
    device = step.meter.sums.device
    step.student.train()
    losses = []
    for batch in batches(count, device):
        step(batch)
        after_step()
        losses.append(step.meter.read(TrainMeter.WINDOW)["loss"])
        step.meter.reset(TrainMeter.WINDOW)
    return losses


def parameters(step):
    return [p.detach().clone() for p in step.student.parameters()]


def assert_near(actual, expected, bound):
    """Every tensor's largest difference is at most `bound` times its largest value."""
    for a, b in zip(actual, expected, strict=True):
        assert (a - b).abs().max() <= bound * b.abs().max() + 1e-6


# ---- nothing is read back -------------------------------------------------------------------------------------------


class HostReads(TorchDispatchMode):
    """Names of the dispatched operations whose result depends on data that the host must wait for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in HOST_READS:
            self.found.append(str(func))
        if func.overloadpacket.__name__ in ("index", "index_put", "index_put_"):
            self.found += [str(func) for index in args[1] if index is not None and index.dtype == torch.bool]
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16-amp"])
def test_a_step_reads_nothing_back(precision):
    step = build(precision=precision, clip_norm=1.0, accumulate=2, ema_decay=0.9)
    first, second = batches(2)
    step(first)  # the loss scale is made in the first step
    with HostReads() as reads:
        step(second)
    assert reads.found == []


def test_the_host_read_counter_sees_reads():
    x = torch.tensor([1.0, 2.0])
    with HostReads() as reads:
        x[0].item()
        x[x > 1]
    assert len(reads.found) >= 2


@pytest.mark.gpu
@pytest.mark.parametrize("graph", ["on", "off"])
def test_a_step_never_synchronises(graph):
    step = build(device="cuda", precision="bf16", graph=graph, clip_norm=1.0, ema_decay=0.9)
    ready = list(batches(8, "cuda"))
    for batch in ready[:5]:
        step(batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in ready[5:]:
            step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- the same numbers in every way of running it ---------------------------------------------------------------------


def plain_losses(count, device="cpu"):
    """The guided recipe written out: hooks, real 1x1 convolutions, interpolation, torch.optim.AdamW."""
    reference = build(drop_path_rate=0.0, device=device)
    student, teacher = copy.deepcopy(reference.student.model), copy.deepcopy(reference.teacher.model).train()
    projections = copy.deepcopy(reference.student.guidance.projections)
    tokens, maps, losses = [], [], []
    for block in student.blocks:
        block.register_forward_hook(lambda module, args, output: tokens.append(output))
    for stage in (teacher.layer1, teacher.layer2, teacher.layer3):
        stage.register_forward_hook(lambda module, args, output: maps.append(output.detach()))
    named = [*student.named_parameters(), *projections.named_parameters()]
    optimizer = torch.optim.AdamW(param_groups(named, 0.05), lr=3e-3)
    for batch in batches(count, device):
        tokens.clear(), maps.clear()
        teacher(batch.teacher_images)
        loss = F.cross_entropy(student(batch.images), batch.labels)
        for x, linear, target in zip(tokens, projections, maps, strict=True):
            x = x[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
            x = F.conv2d(x, linear.weight[:, :, None, None], linear.bias)
            size = max(x.shape[-1], target.shape[-1])
            x, target = (F.interpolate(m, (size, size), mode="bilinear", align_corners=False) for m in (x, target))
            loss = loss + 2.5 * F.mse_loss(x, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_fp32_equals_the_plain_composition():
    ours = train(build(drop_path_rate=0.0))
    # Twenty steps at a high rate let the last bits of float32 sums, taken in another order, grow.
    assert ours == pytest.approx(plain_losses(20), rel=1e-3)
    assert ours[:3] == pytest.approx(plain_losses(3), rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"graph": "off"}, {"streams": "off"}, {"graph": "off", "streams": "off"}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_runs_repeat_bit_for_bit_however_they_are_executed(precision, options):
    assert train(build(precision=precision, **options), 10) == usual_losses(precision)


@functools.cache
def usual_losses(precision):
    return train(build(precision=precision), 10)


@pytest.mark.parametrize("bn", ["batch", "running"])
def test_accumulation_equals_one_big_batch(bn):
    """One optimizer step on the parts' summed gradients; the teacher sees the whole batch in either case."""
    whole, split = (build("sgd", bn=bn, drop_path_rate=0.0, accumulate=count) for count in (1, 4))
    assert train(split, 1) == pytest.approx(train(whole, 1), rel=1e-6)
    assert_near(parameters(split), parameters(whole), 1e-5)
    assert train(split, 5) == pytest.approx(train(whole, 5), rel=1e-4)


@pytest.mark.parametrize("transform", ["attention", "similarity"])
def test_variants_of_guidance_train(transform):
    step = build(transform=transform, drop_path_rate=0.0)
    (batch,) = batches(1)
    losses = []
    for _ in range(20):
        step(batch)
        losses.append(step.meter.read(TrainMeter.WINDOW)["guidance_loss"])
        step.meter.reset(TrainMeter.WINDOW)
    assert 0 < losses[-1] < losses[0]
    assert len(list(step.student.guidance.parameters())) == 0


def test_accumulation_that_does_not_divide_the_batch_is_refused():
    with pytest.raises(ValueError, match=r"step.accumulate: 3 does not divide the batch of 8 images"):
        train(build(accumulate=3), 1)


@pytest.mark.parametrize(
    "options", [{}, {"bn": "synced"}, {"bn": "running"}, {"distill": DistillConfig("soft", 2.0)}], ids=str
)
def test_compiled_student_and_teacher_give_the_same_losses(monkeypatch, options):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager", fullgraph=True))
    losses = train(build(compile="on", drop_path_rate=0.0, **options))
    # aot_eager decomposes the same operations: the first steps agree to rounding, later ones within its growth.
    expected = train(build(drop_path_rate=0.0, **options))
    assert losses[:3] == pytest.approx(expected[:3], rel=1e-6)
    assert losses == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16-amp"])
def test_student_and_teacher_are_compiled_once_whatever_comes_between(counted_compiles, precision):
    """A capture is refused when its step has to be compiled anew, which an evaluation just before could cause."""
    step = build(compile="on", precision=precision)
    for batch in batches(3):
        train(step, 1)
        evaluate(step.model, [batch], "cpu")
        step.teacher.channels(8)  # on two images, as another run of the process asks
    assert counted_compiles.frame_count == 2


def test_equal_students_share_compiled_code_and_others_are_all_compiled(counted_compiles):
    rates = [0.1, 0.1, 0.2, 0.3, 0.4]
    with torch._dynamo.config.patch(recompile_limit=2):
        for step in [build(compile="on", drop_path_rate=rate) for rate in rates]:
            train(step, 1)
    assert counted_compiles.frame_count == len(set(rates)) + 1  # the teacher is one for all


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16-amp"])
def test_fused_layers_give_the_same_losses(precision):
    fused = build(fused_layers="on", precision=precision)
    assert [type(block).__name__ for block in fused.student.model.blocks] == ["FusedVitBlock"] * 3
    losses, expected = train(fused), train(build(precision=precision))
    # The same drop-path draws and the same arithmetic but for single roundings: float32's over the first steps, those
    # of the 16-bit type where there is one, and their growth over 20 steps.
    unit = {"fp32": 1e-6, "bf16": 2**-7, "fp16-amp": 2**-9}[precision]
    assert losses[:3] == pytest.approx(expected[:3], rel=unit)
    assert losses == pytest.approx(expected, rel=max(1e-3, 4 * unit))


def test_fused_layers_where_nothing_can_be_fused_is_refused():
    with pytest.raises(ValueError, match=r"step.fused_layers: 0 blocks and MLPs use.*; use step.fused_layers=off"):
        fuse_model_layers(create_model("cifar_resnet8", 5))


@pytest.mark.parametrize("optimizer", ["adamw", "unclipped", "torch", "sgd"])
def test_clipping_equals_torch(optimizer):
    ours = build(optimizer, clip_norm=0.5, drop_path_rate=0.0)
    plain = build("sgd" if optimizer == "sgd" else "torch", drop_path_rate=0.0)
    update = plain.update

    def clipped_update():
        norm = torch.nn.utils.clip_grad_norm_(plain.student.parameters(), 0.5)
        assert norm > 0.5
        update()

    plain.update = clipped_update
    assert train(ours, 3) == pytest.approx(train(plain, 3), rel=1e-5)
    assert_near(parameters(ours), parameters(plain), 1e-3)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}], ids=str)
@pytest.mark.parametrize("precision", ["bf16", "fp16-amp"])
def test_clipping_before_the_update_equals_the_optimizers_own(precision, options):
    steps = [build(name, precision, clip_norm=0.5, **options) for name in ("adamw", "unclipped")]
    own, before = (train(step, 3) for step in steps)
    unit = {"bf16": 2**-7, "fp16-amp": 2**-9}[precision]  # the clipped gradients are rounded once more
    assert before == pytest.approx(own, rel=unit)
    assert before != train(build("unclipped", precision, **options), 3)


def test_average_equals_its_formula():
    step = build(ema_decay=0.75)
    expected = [p.detach().clone() for p in step.student.model.parameters()]
    for batch in batches(5):
        step(batch)
        expected = [
            0.75 * e + 0.25 * p.detach() for e, p in zip(expected, step.student.model.parameters(), strict=True)
        ]
    assert_near(list(step.model.parameters()), expected, 1e-6)
    assert step.model is not step.student.model
    assert not step.model.training


def test_average_with_warm_up_equals_its_formula_and_continues():
    model = torch.nn.Linear(3, 2, bias=False)
    average, expected = WeightAverage(model, 0.9, warmup=True), model.weight.detach().double()
    for step in range(1, 120):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3))
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
        if step == 60:  # another average goes on from here
            state = copy.deepcopy(average.state_dict())
            average = WeightAverage(model, 0.9, warmup=True)
            average.load_state_dict(state)
        torch.testing.assert_close(average.model.weight.double(), expected, rtol=1e-5, atol=1e-6)


def test_average_carries_the_buffers():
    step = build(ema_decay=0.5)
    step.student.model.register_buffer("seen", torch.zeros(3))
    step.average = type(step.average)(step.student.model, 0.5)
    step.student.model.seen.fill_(4.0)
    train(step, 1)
    assert step.model.seen.tolist() == [4.0] * 3


# ---- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_bf16_keeps_float32_masters_and_follows_fp32(optimizer, accumulate):
    step = build(optimizer, precision="bf16", drop_path_rate=0.0, accumulate=accumulate)
    losses = train(step, 10)
    expected = train(build(optimizer, drop_path_rate=0.0), 10)
    assert losses[0] == pytest.approx(expected[0], rel=2**-6)  # a few bfloat16 roundings of 2**-9
    assert losses[-1] == pytest.approx(expected[-1], rel=0.1)
    assert all(p.dtype == torch.float32 for p in step.student.parameters())
    for leaf, master in zip(step.precision.leaves, step.precision.masters, strict=True):
        assert torch.equal(leaf, master.bfloat16())


def test_fp16_amp_skips_an_overflow_and_halves_the_scale():
    step = build(precision="fp16-amp")
    train(step, 1)
    scale, before = step.precision.scaler.get_scale(), parameters(step)
    (batch,) = batches(1)
    step(batch._replace(images=batch.images * 1e30))
    assert step.precision.scaler.get_scale() == scale / 2
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(step), strict=True))
    assert step.optimizer.num_skipped.item() == 1


@pytest.mark.parametrize("name", ["cvt_13", "t2t_vit_7", "pvt_v2_b0", "convit_tiny", "pit_ti_224"])
def test_every_student_family_computes_in_bf16(name):
    torch.manual_seed(0)
    student = GuidedStudent(create_model(name, 3, image_size=64, **SHALLOW[name]))
    step = TrainStep(student, None, FlatAdamW(student.parameters()), TrainMeter("cpu"), precision="bf16")
    statistics = {k: v.clone() for k, v in student.named_buffers() if "running" in k}
    step(Batch(torch.randn(2, 3, 64, 64), None, torch.tensor([0, 2]), torch.arange(2)))
    assert step.meter.first_bad_step() is None
    assert all(leaf.grad is not None for leaf in step.precision.leaves)
    assert all(not torch.equal(v, dict(student.named_buffers())[k]) for k, v in statistics.items())  # float32, updated


# ---- continuation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16-amp"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_restored_step_continues_exactly(precision, optimizer):
    options = {"optimizer": optimizer, "precision": precision, "drop_path_rate": 0.0, "ema_decay": 0.9}
    step, file = build(**options), io.BytesIO()
    train(step, 3)
    torch.save((step.student.state_dict(), step.state_dict()), file)
    expected = train(step, 3)
    restored = build(**options)
    file.seek(0)
    weights, state = torch.load(file)
    restored.student.load_state_dict(weights)
    restored.load_state_dict(state)
    assert train(restored, 3) == expected
    assert all(torch.equal(a, b) for a, b in zip(restored.model.parameters(), step.model.parameters(), strict=True))


# ---- one CUDA graph -------------------------------------------------------------------------------------------------


def test_graph_on_without_cuda_is_refused():
    with pytest.raises(ValueError, match=r"step.graph: CUDA graphs need a CUDA device, got cpu; use step.graph=auto"):
        build(graph="on")


def test_graph_auto_runs_eagerly_on_cpu():
    assert build(graph="auto").graph is None


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16-amp"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_graph_and_streams_do_not_change_the_losses(precision, optimizer):
    options = {"optimizer": optimizer, "device": "cuda", "precision": precision, "clip_norm": 1.0, "ema_decay": 0.9}
    expected = train(build(graph="off", streams="off", **options))
    assert train(build(graph="off", streams="on", **options)) == expected
    assert train(build(graph="on", streams="off", **options)) == expected
    assert train(build(graph="on", streams="on", **options)) == expected
    assert train(build(graph="on", streams="on", **options), after_step=torch.cuda.synchronize) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_graph_and_streams_do_not_change_the_losses_of_distillation(mode):
    options = {"device": "cuda", "precision": "bf16", "distill": DistillConfig(mode, 2.0)}
    expected = train(build(graph="off", streams="off", **options))
    assert train(build(graph="on", streams="on", **options)) == expected
    assert train(build(graph="on", streams="on", **options), after_step=torch.cuda.synchronize) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("graph", ["on", "off"])
def test_compiled_student_and_teacher_give_the_same_losses_on_the_gpu(graph):
    options = {"device": "cuda", "graph": graph, "drop_path_rate": 0.0}
    losses, expected = train(build(compile="on", **options)), train(build(**options))
    # Fused operations round elsewhere: the first steps agree to rounding, later ones within its growth.
    assert losses[:3] == pytest.approx(expected[:3], rel=1e-5)
    assert losses == pytest.approx(expected, rel=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16-amp"])
def test_a_compiled_step_is_captured_right_after_an_evaluation(precision):
    losses = []
    for graph in ("off", "on"):
        step = build(device="cuda", graph=graph, compile="on", precision=precision)  # the second shares the code
        found = train(step, 3)
        (batch,) = batches(1, "cuda")
        evaluate(step.model, [batch], "cuda")
        losses.append(found + train(step, 5))
    assert losses[0] == losses[1]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16-amp"])
def test_fused_layers_give_the_same_losses_on_the_gpu(precision):
    options = {"device": "cuda", "precision": precision}
    eager = train(build(graph="off", fused_layers="on", **options))
    assert train(build(graph="on", fused_layers="on", **options)) == eager
    # The same draws; the first step differs by roundings of the compute type alone.
    unit = {"fp32": 1e-5, "bf16": 2**-7, "fp16-amp": 2**-9}[precision]
    assert eager[0] == pytest.approx(train(build(graph="off", **options), 1)[0], rel=unit)


@pytest.mark.gpu
def test_fp32_equals_the_plain_composition_on_the_gpu():
    ours, plain = train(build(drop_path_rate=0.0, device="cuda")), plain_losses(20, "cuda")
    assert ours[:3] == pytest.approx(plain[:3], rel=1e-5)
    assert ours == pytest.approx(plain, rel=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_graph_follows_rate_and_weight(optimizer):
    eager, graphed = (build(optimizer, device="cuda", graph=graph, drop_path_rate=0.0) for graph in ("off", "on"))
    for step in (eager, graphed):
        train(step, 6)
        set_learning_rate(step.optimizer, 1e-4)
        step.objective.guidance_weight.fill_(0.5)
    assert train(graphed, 6) == train(eager, 6)


@pytest.mark.gpu
def test_a_graph_is_captured_per_batch_shape():
    step = build(device="cuda", graph="on")
    train(step, 5)
    for batch in batches(5, "cuda"):
        step(Batch(*(tensor[: BATCH // 2] for tensor in batch if tensor is not None)))
    assert len(step.graph._captured) == 2


@pytest.mark.gpu
def test_cuda_agrees_with_cpu():
    assert train(build(drop_path_rate=0.0), 5) == pytest.approx(
        train(build(drop_path_rate=0.0, device="cuda"), 5), rel=1e-4
    )
