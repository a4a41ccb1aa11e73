"""One HTML file with a sweep's best setting, its table and its plots; it refers to no other file."""

from __future__ import annotations

import base64
import html
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lgfast.sweep.plots import plot_curves, plot_importance, plot_parallel
from lgfast.sweep.results import RunRow, SettingRow, find_winner, test_of
from lgfast.sweep.study import Study
from lgfast.sweep.table import cells, counts, describe, failures, number_columns, score

MAX_ROWS = 200  # settings in the page's table
STYLE = """
:root{color-scheme:light dark;--text:#222;--back:#fff;--line:#ddd;--best:#e3f0ff;--soft:#667}
@media(prefers-color-scheme:dark){
  :root{--text:#ddd;--back:#16181c;--line:#363a42;--best:#1d3550;--soft:#9aa}
  img{border-radius:6px}
}
body{font:15px/1.45 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:var(--text);
  background:var(--back);overflow-wrap:anywhere}
h1{font-size:1.6em;line-height:1.2}h2{font-size:1.2em;margin:1.8em 0 .5em}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.25em .8em;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap}
td.number,th.number{text-align:right}
tr.best{background:var(--best);font-weight:600}
.soft{color:var(--soft)}
img{max-width:100%;height:auto;display:block}
"""


class Picture(NamedTuple):
    title: str
    caption: str
    path: Path


def write_page(study: Study, runs: Sequence[RunRow], settings: Sequence[SettingRow], out: Path) -> list[str]:
    """Write the PNGs and index.html into `out`; lines that say where, or what is missing."""
    scored = [row for row in settings if row.mean is not None]
    if not scored:
        return []
    try:
        import matplotlib
    except ImportError:
        return ["no plots: matplotlib is missing; pip install 'lgfast[sweep]'"]
    matplotlib.use("Agg")
    with matplotlib.rc_context({"text.parse_math": False}):  # a dollar sign in a value is a dollar sign
        pictures = draw(study, runs, scored, out)
    (out / "index.html").write_text(page(study, runs, settings, pictures, out), encoding="utf-8")
    return [f"plots in {out}/index.html"]


def draw(study: Study, runs: Sequence[RunRow], scored: Sequence[SettingRow], out: Path) -> list[Picture]:
    keys = [axis.key for axis in study.plan.space.axes]
    curves = plot_curves(runs, scored, out / "curves.png")
    pictures = [Picture("Validation accuracy over epochs", "A line per run; the best settings in color.", curves)]
    if keys and len(scored) > 1:
        caption = "A line per setting, from violet (worst) to yellow (best, thick). Values are spaced by rank."
        pictures.append(Picture("Values of each setting", caption, plot_parallel(scored, keys, out / "parallel.png")))
    if importance := plot_importance(study, out / "importance.png"):
        caption = "How much of the differences between complete runs each key explains."
        pictures.append(Picture("Importance of the keys", caption, importance))
    return pictures


def page(
    study: Study,
    runs: Sequence[RunRow],
    settings: Sequence[SettingRow],
    pictures: Sequence[Picture],
    out: Path,
) -> str:
    title, seeds = html.escape(f"Sweep of {study.plan.base.name}"), len(study.plan.space.seeds)
    spread = f"; mean ± standard deviation over {seeds} seeds" if seeds > 1 else ""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>{title}</title><style>{STYLE}</style>",
        f"<h1>{title}</h1><p>{html.escape(counts(runs))}. Selected on validation{spread}.</p>",
        *best(study, settings, out),
        "<h2>Settings, best first</h2>",
        *settings_table(study, settings),
        *(f"<p>{html.escape(line)}</p>" for line in failures(runs)),
        *map(figure, pictures),
        f"<p class=soft>Continue or join this sweep with <code>{command('--resume', out)}</code>.</p>",
    ]
    return "\n".join(parts) + "\n"


def best(study: Study, settings: Sequence[SettingRow], out: Path) -> list[str]:
    winner = find_winner(settings)
    if winner is None:
        return ["<p>No setting is complete yet.</p>"]
    validation, test = score(winner.mean, winner.seeds, winner.spread), test_of(study, winner)
    tested = f", test {score(test['mean'], len(test['top1']), test['spread'])} %" if test else ""
    return [
        f"<p><b>Best: setting {winner.setting}</b> ({html.escape(describe(winner.changes))}), "
        f"validation {validation} %{tested}.<br>"
        f"Train it again with <code>{command('--config', out / 'best.yaml')}</code></p>"
    ]


def command(option: str, path: Path) -> str:
    return html.escape(f"python -m lgfast.train {option} {shlex.quote(str(path))}")


def settings_table(study: Study, settings: Sequence[SettingRow]) -> list[str]:
    rows = cells(settings[:MAX_ROWS], [axis.key for axis in study.plan.space.axes])
    are_numbers = number_columns(rows)
    winner, parts = find_winner(settings), ["<div class=wide><table>"]
    for number, row in enumerate(rows):
        tag = "td" if number else "th"
        mark = " class=best" if winner and row[0] == str(winner.setting) else ""
        parts.append(f"<tr{mark}>" + "".join(map(cell, row, are_numbers, [tag] * len(row))) + "</tr>")
    hidden = len(settings) - MAX_ROWS
    return [*parts, "</table></div>", *([f"<p>... and {hidden} more in sweep.csv.</p>"] if hidden > 0 else [])]


def cell(text: str, is_number: bool, tag: str) -> str:
    return f"<{tag}{' class=number' if is_number else ''}>{html.escape(text)}</{tag}>"


def figure(picture: Picture) -> str:
    title, data = html.escape(picture.title), base64.b64encode(picture.path.read_bytes()).decode()
    caption = html.escape(picture.caption)
    return f'<h2>{title}</h2><p class=soft>{caption}</p><img alt="{title}" src="data:image/png;base64,{data}">'
