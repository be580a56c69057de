"""The page: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from teleport_bench.errors import counted
from teleport_bench.metrics import setting
from teleport_bench.report.claims import Verdict
from teleport_bench.report.figures import Drawing
from teleport_bench.report.frame import Frame
from teleport_bench.report.tables import Table
from teleport_bench.shown import Item, order, settings_of, show

ENGINES = {"compiled": "in C++", "graph": "as CUDA graphs", "torch": "in torch"}


def render(
    frame: Frame,
    tables: Sequence[Table],
    drawings: Sequence[Drawing],
    claims: Sequence[tuple[Verdict, Table]] = (),
) -> str:
    """index.html.

    tables: of the suite, of its step sizes and, where there are claims, the table of these.
    claims: each with the table of its cases.
    """
    template = resources.files("teleport_bench.report").joinpath("page.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
        keep_trailing_newline=True,
    )
    spec = frame.suite.spec
    items = {table.name: table for table in spec.table}
    return environment.from_string(template).render(
        title=spec.title,
        note=frame.suite.scale_note,
        duration=spec.duration,
        about=[p for p in spec.about.strip().split("\n\n") if p],
        counts=counts(frame),
        warnings=warnings(frame),
        tables=[
            _table(table) | {"settings": _shared(frame, items.get(table.name))}
            for table in tables
            if not (claims and table is tables[-1])
        ],
        claims=_table(tables[-1]) if claims else None,
        cases=[
            _table(table)
            | {
                "text": verdict.claim.text,
                "source": verdict.claim.source,
                "verdict": verdict.verdict,
                "reason": verdict.reason,
                "settings": _shared(frame, verdict.claim),
            }
            for verdict, table in claims
        ],
        figures=[
            {
                "name": d.name,
                "caption": d.caption,
                "data": base64.b64encode(d.forms["svg"]).decode(),
                "forms": list(d.forms),
                "tags": d.item.tags if d.item else [],
                "settings": _shared(frame, d.item),
            }
            for d in drawings
        ],
        unfinished=unfinished(frame),
        code=_code(frame),
        time=_time(frame),
        environments=_environments(frame),
        problems=_problems(frame),
        source=_json(frame.suite.source),
        settings=_json(
            {frame.name(label, s): s.model_dump(mode="json") for _, label, s in frame.suite.cells()}
        ),
    )


def _table(table: Table) -> dict[str, Any]:
    # the table escapes its own cells
    shown = {"name": table.name, "caption": table.caption, "html": Markup(table.html())}
    return shown | {"notes": table.notes, "tags": table.tags}


def _shared(frame: Frame, item: Item | None) -> str:
    """The settings of the runs that an item shows: those of all, and the values of the others."""
    if item is None:
        return ""
    runs = frame.view(item).runs
    found = [frame.settings[i] | {"lr": float(runs["lr"][i])} for i in runs.index]
    keys = dict.fromkeys(key for settings in found for key in settings)
    values = {key: {settings.get(key): None for settings in found} for key in keys}
    one = [f"{key} = {show(*of)}" for key, of in values.items() if len(of) == 1]
    many = [
        f"{key}: {', '.join(map(show, sorted(of, key=order)))}"
        for key, of in values.items()
        if len(of) > 1
    ]
    return "\n".join([*one, "", "that differ between runs:", *many])


def counts(frame: Frame) -> str:
    """`50 reported runs: 48 finished, 2 diverged; 140 tuning runs: 140 finished.`"""
    parts = []
    statuses = frame.runs["status"].tolist() if len(frame.runs) else []
    parts.append(("reported", statuses))
    if frame.others:
        others = [run for other in frame.others for run in other.reported]
        also = [frame.records.get(run.spec.id) for run in others]
        parts.append(("runner-up", [r.status if r else "missing" for r in also]))
    if frame.suite.tuning:
        tuned = [frame.records.get(run.spec.id) for run in frame.suite.tuning]
        parts.append(("tuning", [r.status if r else "missing" for r in tuned]))
    texts = [
        f"{counted(len(found), f'{kind} run')}: "
        + ", ".join(f"{n} {s}" for s, n in sorted(Counter(found).items()))
        for kind, found in parts
    ]
    return "; ".join(texts) + "."


def warnings(frame: Frame) -> list[str]:
    """What a reader should know before trusting the numbers."""
    used = frame.used
    found = []
    commits = sorted({str(r.made.code.get("commit"))[:12] for r in used})
    if len(commits) > 1:
        found.append(f"These runs were made by different code: commits {', '.join(commits)}.")
    dirty = sum(bool(r.made.code.get("dirty")) for r in used)
    if dirty:
        found.append(f"{dirty} of {len(used)} runs were made by code with uncommitted changes.")
    versions = {v for r in used for v in r.made.code.get("plugins", {}).items()}
    found += [
        f"These runs were made by different versions of {name}."
        for name, n in sorted(Counter(name for name, _ in versions).items())
        if n > 1
    ]
    sums = {
        json.dumps([data.get("name"), data.get("sha256")])
        for r in used
        if (data := r.problem.get("data"))
    }
    if len(sums) > len({json.loads(s)[0] for s in sums}):
        found.append("These runs read different versions of a data set of the same name.")
    none = [c for c, choice in frame.choices.items() if choice.lr is None]
    labels = {cell: frame.name(label, spec) for cell, label, spec in frame.suite.cells()}
    found += [
        f"No step size of the grid worked for {labels[cell]}: it has no results." for cell in none
    ]
    return found


def unfinished(frame: Frame) -> list[str]:
    """Reported and tuning runs that have no result, with the reason."""
    lines = []
    others = [run for other in frame.others for run in other.reported]
    for kind, runs in (
        ("", frame.reported),
        ("runner-up, ", others),
        ("tuning, ", frame.suite.tuning),
    ):
        for run in runs:
            record = frame.records.get(run.spec.id)
            if record and record.status == "finished":
                continue
            what = "missing"
            if record:
                what = f"diverged, seen after round {record.diverged_at}"
                what = f"failed: {record.error}" if record.status == "failed" else what
            s = run.spec
            lines.append(
                f"{kind}{frame.name(run.label, s)}, step size {s.lr:g}, seed {s.seed}: {what}"
            )
    return lines


def _code(frame: Frame) -> str:
    made = Counter(
        f"teleport-bench {c.get('version')}"
        + (f", commit {str(c['commit'])[:12]}" if c.get("commit") else "")
        + (" with uncommitted changes" if c.get("dirty") else "")
        + "".join(f", plugin {k} {v[:12]}" for k, v in c.get("plugins", {}).items())
        for c in (r.made.code for r in frame.used)
    )
    dates = sorted(r.made.date for r in frame.used)
    span = f" Made from {dates[0]} to {dates[-1]}." if dates else ""
    return (
        "; ".join(f"{text} ({counted(n, 'run')})" for text, n in sorted(made.items())) + "." + span
    )


def _time(frame: Frame) -> str:
    totals: Counter[str] = Counter()
    for record in frame.used:
        totals.update(record.made.phases)
    phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in totals.items())
    if not phases:
        return "No time was recorded."
    engines = Counter(ENGINES[r.made.engine] for r in frame.used if r.made.engine)
    how = "; ".join(f"{counted(n, 'run')} {engine}" for engine, n in sorted(engines.items()))
    return f"Time in the round loop, all runs: {phases}." + (f" Rounds: {how}." if how else "")


def _environments(frame: Frame) -> list[dict[str, str]]:
    found: dict[str, Mapping[str, Any]] = {}
    for record in frame.used:
        found.setdefault(record.made.environment["id"], record.made.environment)
    return [
        {"title": f"Environment {key}: {e['device']}, {e['processor']}", "text": _json(e)}
        for key, e in sorted(found.items())
    ]


def _problems(frame: Frame) -> list[dict[str, str]]:
    """Data and label histogram of the first seed of each n and problem."""
    found: dict[tuple[int, str], tuple[int, Mapping[str, Any]]] = {}
    for run in frame.reported:
        record = frame.records.get(run.spec.id)
        if record and record.problem:
            settings = settings_of(run.spec)
            keys = [key for key in frame.own if key.startswith("problem.")]
            own = [f", {setting(key).short} = {show(settings.get(key))}" for key in keys]
            at = (run.spec.nodes, "".join(own))
            found.setdefault(at, (run.spec.seed, record.problem))
    return [
        {"title": f"Problem of seed {seed} with n = {nodes}{own}", "text": _problem(problem)}
        for (nodes, own), (seed, problem) in sorted(found.items(), key=lambda item: item[0])
    ]


def _problem(problem: Mapping[str, Any]) -> str:
    """JSON, with each node's label histogram on one line."""
    rest = {k: v for k, v in problem.items() if k != "label_histogram"}
    histogram = problem.get("label_histogram")
    lines = [_json(rest)]
    if histogram:
        lines.append("samples by class, a node a line:")
        lines += [f"{i:4d}: " + " ".join(f"{c:4d}" for c in row) for i, row in enumerate(histogram)]
    return "\n".join(lines)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
