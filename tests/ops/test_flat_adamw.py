"""flat_adamw against torch.optim.AdamW, clip_grad_norm_ and its plain PyTorch reference."""

import pytest
import torch

from lgfast.ops import flat_adamw, reference
from lgfast.ops.flat_adamw import hyperparameter_row

SHAPES = [(3, 7), (5,), (64, 33), (), (40,)]
GROUPS = [0, 1, 0, 1, 1]
LR = 1e-2
SETTINGS = [  # of the groups
    {"lr": LR, "weight_decay": 0.05, "betas": (0.9, 0.999), "eps": 1e-8},
    {"lr": 3e-3, "weight_decay": 0.0, "betas": (0.8, 0.95), "eps": 1e-6, "maximize": True},
]


def table(settings, device="cpu"):
    return torch.tensor([hyperparameter_row(**one) for one in settings], dtype=torch.float64, device=device)


class Problem:
    """Parameters in a flat buffer, and the arguments of a step on them."""

    def __init__(self, device="cpu", low=None):
        generator = torch.Generator().manual_seed(0)
        self.values = [torch.randn(shape, generator=generator) for shape in SHAPES]
        sizes = [-(-value.numel() // 8) * 8 for value in self.values]
        self.offsets = [sum(sizes[:k]) for k in range(len(sizes))]
        self.params, self.exp_avg, self.exp_avg_sq = torch.zeros(3, sum(sizes), device=device)
        for view, value in zip(self.views(self.params), self.values, strict=True):
            view.copy_(value)
        self.low = None if low is None else torch.zeros(sum(sizes), dtype=low, device=device)
        self.hyperparameters = table(SETTINGS, device)
        self.steps = torch.zeros(len(SHAPES), device=device)
        self.num_skipped = torch.zeros((), dtype=torch.int64, device=device)

    def views(self, flat):
        return [flat[o : o + v.numel()].view_as(v) for o, v in zip(self.offsets, self.values, strict=True)]

    def update(self, grads, **options):
        flat_adamw(
            self.params, grads, self.exp_avg, self.exp_avg_sq, self.offsets, GROUPS, self.hyperparameters, self.steps,
            self.num_skipped, low=self.low, **options,
        )  # fmt: skip

    def arguments(self, grads, loss_scale=None, found_inf=None, max_norm=0.0, skip=False):
        return (
            self.params, self.exp_avg, self.exp_avg_sq, self.low, self.steps, self.num_skipped, grads, self.offsets,
            GROUPS, self.hyperparameters, loss_scale, found_inf, max_norm, skip,
        )  # fmt: skip

    def state(self):
        return [self.params, self.exp_avg, self.exp_avg_sq, self.steps, self.num_skipped]


def random_grads(step, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in SHAPES]


def torch_adamw(problem, dtype=torch.float32):
    parameters = [torch.nn.Parameter(value.clone().to(dtype)) for value in problem.values]
    groups = [
        {"params": [p for p, g in zip(parameters, GROUPS, strict=True) if g == i], **SETTINGS[i]} for i in range(2)
    ]
    return parameters, torch.optim.AdamW(groups)


def test_equals_torch_adamw_over_1000_steps():
    """In float64, within half an ulp of the largest parameter a step."""
    problem = Problem()
    exact, optimizer = torch_adamw(problem, torch.float64)
    largest = [0.0] * len(exact)
    for step in range(1000):
        grads = random_grads(step)
        for p, grad in zip(exact, grads, strict=True):
            p.grad = grad.double()
        optimizer.step()
        problem.update(grads)
        largest = [max(size, p.detach().abs().max().item()) for size, p in zip(largest, exact, strict=True)]
    for ours, p, size in zip(problem.views(problem.params), exact, largest, strict=True):
        assert (ours.double() - p).abs().max() <= 1000 * torch.finfo(torch.float32).eps / 2 * size
    assert problem.steps.tolist() == [1000] * len(SHAPES)


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_equals_torch(max_norm):
    problem = Problem()
    parameters, optimizer = torch_adamw(problem)
    for step in range(5):
        grads = random_grads(step)
        for p, grad in zip(parameters, grads, strict=True):
            p.grad = grad.clone()
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
        problem.update(grads, max_norm=max_norm)
    for ours, p in zip(problem.views(problem.params), parameters, strict=True):
        torch.testing.assert_close(ours, p.detach(), rtol=1e-6, atol=1e-6)


def test_loss_scale_is_divided_out():
    scaled, plain = Problem(), Problem()
    for step in range(3):
        grads = random_grads(step)
        scaled.update([grad * 1024 for grad in grads], loss_scale=torch.tensor(1024.0), max_norm=1.0)
        plain.update(grads, max_norm=1.0)
    torch.testing.assert_close(scaled.params, plain.params, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_skips_the_step_and_is_counted(bad):
    problem = Problem(low=torch.bfloat16)
    problem.update(random_grads(0), skip_nonfinite=True)
    before = [tensor.clone() for tensor in (*problem.state()[:4], problem.low)]
    grads = random_grads(1)
    grads[2][3, 4] = bad
    problem.update(grads, skip_nonfinite=True)
    assert all(torch.equal(a, b) for a, b in zip(before, (*problem.state()[:4], problem.low), strict=True))
    assert problem.num_skipped.item() == 1


def test_what_loss_scaling_found_skips_the_step():
    problem = Problem(low=torch.bfloat16)
    problem.update(random_grads(0), found_inf=torch.zeros(1))
    before = [tensor.clone() for tensor in (*problem.state()[:4], problem.low)]
    problem.update(random_grads(1), found_inf=torch.ones(1))
    assert all(torch.equal(a, b) for a, b in zip(before, (*problem.state()[:4], problem.low), strict=True))
    assert problem.num_skipped.item() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("low", [None, torch.bfloat16, torch.float16])
def test_matches_reference(dtype, low):
    ours, plain = Problem(low=low), Problem(low=low)
    scale = torch.tensor(4.0)
    for step in range(3):
        grads = random_grads(step, dtype)
        grads[step] = None
        found_inf = torch.tensor(float(step == 1))
        ours.update(grads, loss_scale=scale, found_inf=found_inf, max_norm=2.0, skip_nonfinite=True)
        reference.flat_adamw(*plain.arguments(grads, scale, found_inf, 2.0, True))
    assert ours.steps.tolist() == [1, 2, 1, 2, 2] and ours.num_skipped.item() == 1
    for a, b in zip(ours.state(), plain.state(), strict=True):
        torch.testing.assert_close(a, b, rtol=4e-6, atol=1e-7)  # a few float32 roundings over three steps
    if low is not None:
        assert torch.equal(ours.low, ours.params.to(low))


def test_parameters_without_gradient_stay():
    """And their own step count with them, as in torch.optim.AdamW."""
    problem, (parameters, optimizer) = Problem(), torch_adamw(Problem())
    before = problem.params.clone()
    for step in range(6):
        grads = random_grads(step)
        if step < 4:
            grads[1:3] = None, None
        for p, grad in zip(parameters, grads, strict=True):
            p.grad = grad
        optimizer.step()
        problem.update(grads)
        if step < 4:
            assert torch.equal(problem.params[24:2144], before[24:2144])
    assert problem.steps.tolist() == [6, 2, 2, 6, 6]
    for ours, p in zip(problem.views(problem.params), parameters, strict=True):
        torch.testing.assert_close(ours, p.detach(), rtol=1e-6, atol=1e-6)


def test_the_result_does_not_depend_on_the_thread_count():
    results = []
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        params = torch.randn(300_000, generator=torch.Generator().manual_seed(0))
        moments, grad = torch.zeros(2, 300_000), torch.randn(300_000, generator=torch.Generator().manual_seed(1))
        flat_adamw(
            params, [grad], *moments, [0], [0], table(SETTINGS[:1]), torch.zeros(1),
            torch.zeros((), dtype=torch.int64), max_norm=1.0,
        )  # fmt: skip
        results.append(params)
    torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_opcheck():
    problem = Problem(low=torch.bfloat16)
    arguments = problem.arguments(
        [*random_grads(0, torch.bfloat16)[:-1], None], torch.tensor(2.0), torch.zeros(()), 1.0, True
    )
    torch.library.opcheck(torch.ops.lgfast.flat_adamw, arguments)


def test_compiles_fullgraph():
    eager, compiled = Problem(), Problem()
    eager.update(random_grads(0), max_norm=1.0)
    torch.compile(compiled.update, fullgraph=True, backend="aot_eager")(random_grads(0), max_norm=1.0)
    assert all(torch.equal(a, b) for a, b in zip(eager.state(), compiled.state(), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": [4, 24, 32, 2144, 2152]}, r"offsets\[0\] must be a multiple of 8"),
        ({"offsets": [0, 24, 32, 2144, 4000]}, r"offsets\[4\] must be a multiple of 8 that leaves room for 40"),
        ({"groups": [0, 0, 0, 0, 2]}, r"groups\[4\] must lie in \[0, 2\), got 2"),
        ({"groups": [0, 0]}, "grads, offsets and groups must have the same length, got 5, 5 and 2"),
        (
            {"hyperparameters": torch.ones(2, 6)},
            r"hyperparameters must be contiguous \[G, 6\] Double, got \[2, 6\] Float",
        ),
        ({"steps": torch.zeros(4)}, r"steps must be contiguous \[5\] Float, one per gradient, got \[4\] Float"),
        ({"found_inf": torch.zeros(2)}, r"found_inf must be one Float, got \[2\] Float"),
        (
            {"grads": [*random_grads(0)[:4], torch.ones(40).half()]},
            "grads must share one dtype, got Float and Half at 4",
        ),
        ({"exp_avg": torch.zeros(3)}, r"exp_avg must be contiguous \[.*\] Float, got \[3\]"),
        ({"low": torch.zeros(2193, dtype=torch.bfloat16)[1:]}, "low must begin on a 16-byte boundary"),
    ],
)
def test_errors_name_the_argument(change, message):
    problem = Problem()
    arguments = {
        "params": problem.params, "grads": random_grads(0), "exp_avg": problem.exp_avg,
        "exp_avg_sq": problem.exp_avg_sq, "offsets": problem.offsets, "groups": GROUPS, "steps": problem.steps,
        "hyperparameters": problem.hyperparameters, "num_skipped": problem.num_skipped,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        flat_adamw(**arguments | change)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_matches_cpu(dtype):
    cpu, cuda = Problem(low=torch.bfloat16), Problem("cuda", torch.bfloat16)
    for step in range(20):
        cpu.update(random_grads(step, dtype), max_norm=1.0, skip_nonfinite=True)
        cuda.update(random_grads(step, dtype, "cuda"), max_norm=1.0, skip_nonfinite=True)
    for a, b in zip(cpu.state(), cuda.state(), strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-5, atol=1e-6)  # twenty steps of float32 roundings
    assert torch.equal(cuda.low, cuda.params.to(torch.bfloat16))


@pytest.mark.gpu
def test_cuda_runs_agree_bit_for_bit():
    runs = [Problem("cuda"), Problem("cuda")]
    for problem in runs:
        for step in range(3):
            problem.update(random_grads(step, device="cuda"), max_norm=1.0)
    assert all(torch.equal(a, b) for a, b in zip(runs[0].state(), runs[1].state(), strict=True))
