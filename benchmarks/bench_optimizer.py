"""Time one AdamW step over the parameters of a network: flat_adamw against torch's and NVIDIA apex's.

    python -m benchmarks.bench_optimizer [--providers lgfast,fused,foreach,loop,apex] [--models deit_tiny_patch16_224]

Providers: lgfast is FlatAdamW; fused, foreach and loop are implementations of torch.optim.AdamW (loop takes one
parameter after another, as in the paper's code); apex is FusedAdam, where NVIDIA apex is installed. Gradients are ready
before the clock starts. On a GPU up to a millisecond of the host's time is not counted. copy_share: 28 bytes a
parameter (float32 gradient read, parameter and both moments read and written) over the median time, as a share of a
device copy.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterator, Sequence

import torch
from timm import is_model
from torch import nn

from benchmarks import ceilings, harness, row_file
from lgfast.models import create_model
from lgfast.optim.build import param_groups
from lgfast.optim.flat_adamw import FlatAdamW

LR, WEIGHT_DECAY = 5e-4, 0.05
BYTES_PER_PARAMETER = 7 * 4


def torch_adamw(**options) -> Callable[[list[dict]], torch.optim.Optimizer]:
    return lambda groups: torch.optim.AdamW(groups, lr=LR, **options)


def apex_adam(groups: list[dict]) -> torch.optim.Optimizer:
    from apex.optimizers import FusedAdam

    return FusedAdam(groups, lr=LR, adam_w_mode=True)


PROVIDERS: dict[str, Callable[[list[dict]], torch.optim.Optimizer]] = {
    "lgfast": lambda groups: FlatAdamW(groups, lr=LR),
    "fused": torch_adamw(fused=True),
    "foreach": torch_adamw(foreach=True),
    "loop": torch_adamw(foreach=False, fused=False),
    "apex": apex_adam,
}


def available() -> list[str]:
    """Return the providers on this machine. NVIDIA's apex has an extension; PyPI's apex is another project."""
    has_apex = importlib.util.find_spec("amp_C") is not None
    return [name for name in PROVIDERS if name != "apex" or has_apex]


def model_names(text: str) -> list[str]:
    """Read an option's comma-separated names of networks."""
    for name in text.split(","):
        if not is_model(name):
            raise argparse.ArgumentTypeError(f"unknown {name!r}; timm.list_models() lists the names")
    return text.split(",")


def make_network(name: str, device: torch.device) -> nn.Module:
    """Make a network with a gradient on every parameter, equal at every call."""
    torch.manual_seed(0)
    network = create_model(name, 100)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    return network.to(device)


def make_step(provider: str, network: nn.Module) -> Callable[[], object]:
    return PROVIDERS[provider](param_groups(network.named_parameters(), WEIGHT_DECAY)).step


def check(provider: str, network: str, device: torch.device, steps: int = 3) -> None:
    """Check that after some steps the parameters are those of float64 AdamW, within float32 rounding of the update."""
    exact, own = make_network(network, device).double(), make_network(network, device)
    for made, step in ((exact, make_step("loop", exact)), (own, make_step(provider, own))):
        for parameter in made.parameters():
            parameter.grad = parameter.grad.to(parameter.dtype)
        for _ in range(steps):
            step()
    # an update is at most lr (1 + weight decay); every step rounds parameter and update once each
    for value, true in zip(own.parameters(), exact.parameters(), strict=True):
        bound = steps * (torch.finfo(torch.float32).eps * true.abs().max().item() + 16e-7 * LR)
        torch.testing.assert_close(value.double(), true, rtol=0, atol=bound)


def bench(
    name: str, providers: Sequence[str], device: torch.device, rounds: int, limits: ceilings.Ceilings
) -> Iterator[dict]:
    providers = harness.agreeing(providers, lambda provider: check(provider, name, device), name)
    networks = {provider: make_network(name, device) for provider in providers}
    count = sum(parameter.numel() for parameter in networks[providers[0]].parameters())
    calls = {provider: make_step(provider, network) for provider, network in networks.items()}
    peers = set(calls) - {"lgfast"}
    for provider, timing in harness.time_interleaved(calls, device, rounds, fragile=peers, queued=True).items():
        yield {
            "op": "adamw",
            "provider": provider,
            "mode": "step",
            "dtype": "float32",
            "shape": f"{name} ({count / 1e6:.2f} M)",
            **vars(timing),
            **limits.shares(timing, BYTES_PER_PARAMETER * count),
        }


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__, rounds=100)
    harness.add_names(parser, "--providers", PROVIDERS, ",".join(available()))
    networks = "deit_tiny_patch16_224,cifar_resnet56"
    parser.add_argument(
        "--models", type=model_names, default=networks, help=f"comma-separated, any of timm's; default {networks}"
    )
    options = parser.parse_args(argv)
    device = harness.chosen_device(options)
    limits = ceilings.load(options.ceilings, device)
    rows = (
        row
        for name in options.models
        for row in harness.survive(
            bench(name, options.providers, device, options.rounds, limits), op="adamw", shape=name
        )
    )
    row_file.record("optimizer", rows, device, options.out)


if __name__ == "__main__":
    main()
