"""Describe the space of a sweep: axes over configuration keys, checked before anything starts."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lgfast.config import Config, check_key, convert, get, replace, valid_keys
from lgfast.config.yaml_file import read_mapping
from lgfast.spec.fields import shown

if TYPE_CHECKING:
    from optuna.trial import Trial

ENTRIES = ("choices", "low", "high", "log", "step", "when")  # of an axis in a file
MAX_CHECKED = 10_000  # the most combinations of a grid that are checked one by one


@dataclass(frozen=True)
class Axis:
    """One configuration key and what it may be: `choices`, or a range from `low` to `high`.

    `when` restricts the axis to settings in which other keys have one of the given values.
    """

    key: str
    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def suggest(self, trial: Trial) -> Any:
        """Ask Optuna for the trial's value."""
        if self.choices:
            labels = {label(value): value for value in self.choices}
            return labels[trial.suggest_categorical(self.key, list(labels))]
        assert self.low is not None and self.high is not None
        if valid_keys()[self.key] in (int, int | None):
            return trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return trial.suggest_float(self.key, self.low, self.high, log=self.log, step=self.step)

    def holds(self, value: Any) -> bool:
        """Whether the axis could give this value."""
        if self.choices:
            return value in self.choices
        if value is None or not self.low <= value <= self.high:
            return False
        step = self.step or (1 if valid_keys()[self.key] in (int, int | None) else None)
        count = (value - self.low) / step if step else 0
        return math.isclose(count, round(count), abs_tol=1e-9)

    def applies(self, config: Config) -> bool:
        return all(get(config, key) in values for key, values in self.when)


@dataclass(frozen=True)
class Space:
    """Axes in order, and the seeds that repeat every setting."""

    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    is_grid: bool

    def grid(self) -> list[dict[str, Any]]:
        """Return every combination of the axes' choices, as key -> value."""
        columns = [[(axis.key, value) for value in axis.choices] for axis in self.axes]
        return [dict(row) for row in itertools.product(*columns)]

    def sample(self, trial: Trial, base: Config) -> dict[str, Any]:
        """Let Optuna choose a setting. Axes whose condition does not hold keep the base value."""
        changes: dict[str, Any] = {}
        for axis in self.axes:
            if axis.applies(replace(base, changes)):
                changes[axis.key] = plain(axis.suggest(trial))
        return changes

    def own_values(self, base: Config) -> dict[str, Any]:
        """Return the base configuration's values on the axes that contain them, as Optuna stores values."""
        axes = [axis for axis in self.axes if axis.applies(base) and axis.holds(get(base, axis.key))]
        return {axis.key: label(get(base, axis.key)) for axis in axes}

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> Space:
        axes = tuple(Axis(**{name: freeze(value) for name, value in axis.items()}) for axis in tree["axes"])
        return cls(axes, tuple(tree["seeds"]), tree["is_grid"])


def label(value: Any) -> Any:
    """Convert a choice to what Optuna stores: plain values as they are, lists as text."""
    return json.dumps(value) if isinstance(value, (list, tuple)) else value


def plain(value: Any) -> Any:
    """Convert a value to what comes back from JSON."""
    return json.loads(json.dumps(value))


def freeze(value: Any) -> Any:
    return tuple(map(freeze, value)) if isinstance(value, (list, tuple)) else value


def read_space(assignments: list[str], file: str | None, base: Config) -> Space:
    """Read the space of `--sweep KEY=V1,V2 ...` and of a `--sweep-space` file.

    Raises:
        ValueError: an unknown key, a value that the key cannot take, or a malformed file.
    """
    axes = [axis_from_text(text) for text in assignments]
    if file:
        axes += [axis_from_yaml(key, entry) for key, entry in read_yaml(file).items()]
    repeated = {axis.key for axis in axes if sum(other.key == axis.key for other in axes) > 1}
    if repeated:
        raise ValueError(f"--sweep: {repeated.pop()} is given twice; list all its values once")
    check_axes(axes)
    seeds = next((axis for axis in axes if axis.key == "seed"), Axis("seed", (base.seed,)))
    if not seeds.choices:
        raise ValueError("seed: a sweep repeats every setting with each seed; list them, e.g. seed: [0, 1, 2]")
    space = Space(tuple(axis for axis in axes if axis.key != "seed"), seeds.choices, is_grid=not file)
    check_space(space, base)
    return space


def axis_from_text(text: str) -> Axis:
    """Read an axis from `KEY=V1,V2`, or `KEY=0,1,2;0,3,5` for keys that hold several numbers."""
    key, equals, values = text.partition("=")
    if not equals or not values:
        raise ValueError(f"--sweep: expected KEY=V1,V2,..., got {text!r}")
    check_sweepable(key)
    is_list = getattr(valid_keys()[key], "__origin__", None) is tuple
    parts = values.split(";") if is_list or ";" in values else values.split(",")
    if len(parts) > 1 and not all(map(str.strip, parts)):
        raise ValueError(f"--sweep: {key}: a value between the commas is missing in {text!r}")
    return Axis(key, choices=tuple(convert(part.strip(), valid_keys()[key], key) for part in parts))


def axis_from_yaml(key: str, entry: Any) -> Axis:
    """Read an axis from a list of choices, or a mapping: `choices` or `low` and `high`, optional `log`, `step`,
    `when`."""
    check_sweepable(key)
    entry = {"choices": entry} if isinstance(entry, list) else entry
    if not isinstance(entry, dict) or ("choices" in entry) == ("low" in entry and "high" in entry):
        raise ValueError(f"{key}: expected a list of choices or a mapping with low and high, got {shown(entry)}")
    unknown = [name for name in entry if name not in ENTRIES]
    if unknown:
        raise ValueError(f"{key}: {unknown[0]!r} is none of {', '.join(ENTRIES)}")
    axis = choices_axis(key, entry["choices"]) if "choices" in entry else range_axis(key, entry)
    return dataclasses.replace(axis, when=conditions(key, entry.get("when") or {}))


def choices_axis(key: str, choices: Any) -> Axis:
    """Make an axis from a YAML list."""
    if not isinstance(choices, list) or not choices:
        raise ValueError(f"{key}: expected at least one choice, as a list, got {shown(choices)}")
    return Axis(key, tuple(convert(value, valid_keys()[key], key) for value in choices))


def range_axis(key: str, entry: dict[str, Any]) -> Axis:
    """Make an axis from a YAML mapping with low and high."""
    hint = valid_keys()[key]
    if hint not in (int, float, int | None, float | None):
        raise ValueError(f"{key}: low and high need a number, and this key holds {hint}; list choices instead")
    low, high, step = (convert(entry.get(name), hint | None, f"{key}: {name}") for name in ("low", "high", "step"))
    is_log = convert(entry.get("log", False), bool, f"{key}: log")
    if low is None or high is None:
        raise ValueError(f"{key}: low and high need a number each, got {shown(entry)}")
    if step is not None and not 0 < step <= high - low:
        raise ValueError(f"{key}: step: expected more than 0 and at most high - low, got {shown(entry)}")
    if not low < high or (is_log and low <= 0):
        scale = " and low > 0 on a log scale" if is_log else ""
        raise ValueError(f"{key}: expected low < high{scale}, got {shown(entry)}")
    if is_log and step:
        raise ValueError(f"{key}: a log scale has no step; drop one of the two")
    return Axis(key, low=low, high=high, log=is_log, step=step)


def check_axes(axes: list[Axis]) -> None:
    """Refuse a value that is given twice, which would repeat a run, and a condition on a key that is sampled later."""
    for number, axis in enumerate(axes):
        twice = [value for value in axis.choices if axis.choices.count(value) > 1]
        if twice:
            raise ValueError(f"{axis.key}: the value {twice[0]!r} is given twice; repeat settings with seed=0,1,2")
        later = {other.key for other in axes[number:]}
        for parent, _ in axis.when:
            if parent in later:
                raise ValueError(f"{axis.key}: its condition needs {parent}, which comes later; move {parent} up")


def conditions(key: str, when: Any) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """Read the values that other keys must have for an axis to apply."""
    if not isinstance(when, dict):
        raise ValueError(f"{key}: when: expected a mapping such as {{optim.name: sgd}}, got {shown(when)}")
    found = []
    for parent, values in when.items():
        check_key(parent)
        values = values if isinstance(values, list) else [values]
        found.append((parent, tuple(convert(value, valid_keys()[parent], parent) for value in values)))
    return tuple(found)


def check_sweepable(key: str) -> None:
    check_key(key)
    if key == "run_dir":
        raise ValueError("run_dir: a sweep names the folder of each run itself; set --out for the whole sweep")


# keys that decide which images, and which score of them, settings are compared by
JUDGED_BY = (
    "eval.metric", "eval.holdout_fraction", "data.dataset", "data.root", "data.labels", "data.group", "data.folds",
    "data.fold", "data.test_fraction", "data.train_limit",
)  # fmt: skip


def check_space(space: Space, base: Config) -> None:
    """Check that every value makes a valid configuration, and that all are judged on the same images."""
    by_key = {axis.key: axis for axis in space.axes}
    protocols = by_key["eval.protocol"].choices if "eval.protocol" in by_key else (base.eval.protocol,)
    if "paper" in protocols:
        raise ValueError(
            "eval.protocol: paper selects on the test images, and a sweep selects on validation; "
            "add --eval.protocol holdout, or drop paper from the values"
        )
    for key in JUDGED_BY:
        if key in by_key and len(by_key[key].choices) != 1:
            way = "by different scores" if key == "eval.metric" else "on different images"
            raise ValueError(f"{key}: its settings would be judged {way}; give it one value")
    for axis in space.axes:
        for value in axis.choices or (axis.low, axis.high):
            replace(base, {axis.key: value})
    if space.is_grid:
        for changes in itertools.islice(space.grid(), MAX_CHECKED):
            replace(base, changes)


def read_yaml(file: str) -> dict[str, Any]:
    tree = read_mapping(file, "--sweep-space: ")
    if not tree:
        raise ValueError(f"--sweep-space: {file}: expected configuration keys with choices or ranges, got none")
    return tree
