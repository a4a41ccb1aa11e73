"""The subjects of the throughput table: which rows each compares, by column."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.document_tables.rows import Row


@dataclass(frozen=True)
class Subject:
    """A subject has one line of the throughput table for each hardware.

    Attributes:
        name: as the table shows it.
        bench: as file names have it: <date>_<hardware>_<bench>.csv.
        gpu, cpu: column -> pattern that a row measured there must match; None: the subject is not measured there.
        value: the column to compare. Of times the lower is better, of rates the higher.
        own: lgfast's providers.
        ignored: variants of lgfast that are no peers either.
        headline: name in the README's table; "": the README leaves the subject out.
    """

    name: str
    bench: str
    gpu: Row | None
    cpu: Row | None
    value: str = "median_ms"
    own: tuple[str, ...] = ("lgfast",)
    ignored: tuple[str, ...] = ()
    headline: str = ""

    @property
    def command(self) -> str:
        return f"`python -m benchmarks.bench_{self.bench}`"

    def is_own(self, row: Row) -> bool:
        return row["provider"] in self.own

    def is_peer(self, row: Row) -> bool:
        return not row["provider"].startswith("lgfast") and row["provider"] not in self.own + self.ignored


SUBJECTS = (
    *(
        Subject(
            f"`short_attention`, {name}",
            "short_attention",
            {"mode": mode, "shape": "deit_tiny B=256"},
            {"mode": mode, "dtype": "bfloat16", "shape": "deit_tiny*"},
            headline=f"attention, {name}",
        )
        for name, mode in (("forward", "fwd"), ("backward", "bwd"))
    ),
    Subject(
        "`feature_mse`, forward and backward",
        "feature_mse",
        {"mode": "both", "dtype": "bfloat16", "shape": "deit_tiny B=128"},
        {"mode": "both", "dtype": "float32", "shape": "deit_tiny B=32"},
        headline="guidance loss, forward and backward",
    ),
    Subject("`augment`", "augment", {"shape": "*B=128"}, {"shape": "*B=128"}, "images_per_s"),
    *(
        Subject(
            f"`{op}`, forward and backward",
            "fused_layers",
            {"op": op, "mode": "both", "dtype": "bfloat16", "shape": "deit_tiny B=256"},
            {"op": op, "mode": "both", "dtype": "bfloat16"},
        )
        for op in ("add_layer_norm", "bias_gelu", "patch_conv")
    ),
    Subject("`flat_adamw`", "optimizer", {"shape": "deit_tiny*"}, {"shape": "deit_tiny*"}),
    Subject(
        "loader, 32 -> 224",
        "loader",
        {},
        {},
        "images_per_s",
        ("resident",),
        ignored=("dali",),
        headline="data loader with RandAugment",
    ),
    Subject(
        "guided step, DeiT-Ti",
        "train_step",
        {"mode": "guided", "shape": "deit_tiny_224 B=128"},
        {"mode": "guided", "shape": "deit_tiny_224*"},
        "images_per_s",
        ignored=("bare", "loop"),
        headline="guided training step",
    ),
    Subject(
        "guided step, digits",
        "train_step",
        None,
        {"mode": "guided", "shape": "digits B=32"},
        "images_per_s",
        ignored=("bare", "loop"),
    ),
    Subject(
        "sweep",
        "sweep",
        {"shape": "deit-ti*"},
        {"shape": "heavy*"},
        "trials_per_hour",
        ("group", "groups"),
        headline="sweep",
    ),
)
