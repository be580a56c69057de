"""Reports: pure functions of the records, honest about runs without a result, safe to publish."""

import copy
import csv
import html
import io
import itertools
import os
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from teleport_bench import Suite
from teleport_bench.metrics import COSTS, METRICS, NOT_EVALUATED
from teleport_bench.record import Record
from teleport_bench.registry import ALGORITHMS, TOPOLOGIES
from teleport_bench.report import figures
from teleport_bench.report.build import build, check, earlier, open_report, write
from teleport_bench.report.frame import frame
from teleport_bench.report.statistics import summarise
from teleport_bench.report.style import style_of
from teleport_bench.report.tables import Table, build_table, markdown
from teleport_bench.shown import TableSpec

# Statistics over seeds

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(NUMBERS, min_size=2, max_size=20))
def test_mean_and_sample_standard_deviation_are_those_of_numpy(values):
    summary = summarise(values, ["finished"] * len(values))
    assert summary.n == len(values)
    assert summary.states == ()
    assert summary.mean == pytest.approx(np.mean(values), rel=1e-12, abs=1e-9)
    assert summary.std == pytest.approx(np.std(values, ddof=1), rel=1e-9, abs=1e-7)


@given(st.lists(NUMBERS, min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_the_runs_does_not_move_a_mean(values, random):
    shuffled = random.sample(values, len(values))
    states = ["finished"] * len(values)
    assert summarise(shuffled, states).mean == summarise(values, states).mean


def test_one_run_has_a_mean_and_no_spread():
    summary = summarise([0.25], ["finished"])
    assert (summary.n, summary.mean, summary.std) == (1, 0.25, None)
    assert summary.text("{:.3f}") == "0.250"


NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "states", "text"),
    [
        ([1.0, 2.0], ["finished", "finished"], "1.50 ± 0.71"),
        ([1.0, NAN], ["finished", "diverged"], "diverged (1 of 2)"),
        ([NAN, NAN], ["diverged", "diverged"], "diverged"),
        ([NAN], ["failed"], "failed"),
        ([NAN], ["missing"], "missing"),
        (
            [NAN, 1.0, NAN, NAN],
            ["missing", "finished", "diverged", "failed"],
            "diverged (1 of 4), failed (1 of 4), missing (1 of 4)",
        ),
        ([], [], "missing"),
    ],
)
def test_a_cell_has_a_number_only_where_every_run_finished(values, states, text):
    summary = summarise(values, states)
    assert summary.text("{:.2f}") == text
    assert (summary.mean is None) == (set(states) != {"finished"})
    assert summary.mean is not None or summary.std is None


# Helpers


@pytest.fixture
def hand(texts, make_record):
    """A suite and hand-made records of its runs: (suite, records by id).

    score: (planned run) -> final objective gap, a status, or None for no record.
    """

    def hand(score=lambda run: run.spec.seed + 1.0, name="tiny", edit=None):
        source = tomllib.loads(texts[name])
        if edit:
            edit(source)
        suite = Suite.from_source("hand", source)
        records = {}
        for run in suite.planned():
            value = score(run)
            if isinstance(value, str):
                finals = {} if value == "failed" else {"objective_gap": 1.0, "consensus": 1.0}
                records[run.spec.id] = make_record(run.spec, value, **finals)
            elif value is not None:
                finals = {"objective_gap": value, "consensus": 0.5}
                records[run.spec.id] = make_record(run.spec, **finals)
        return suite, records

    return hand


def rows_of(markdown):
    """The rows of a Markdown table, header and rule first, as lists of cells."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.links, self.sources, self.handlers = [], [], [], []
        self.texts, self.items, self.styles = [], [], []
        self._stack = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._stack.append(tag)
        for name, value in attrs:
            if name == "href":
                self.links.append(value)
            elif name in ("src", "srcset", "data", "poster", "action"):
                self.sources.append(value)
            elif name.startswith("on"):
                self.handlers.append((name, value))

    def handle_endtag(self, tag):
        while self._stack and self._stack.pop() != tag:
            pass

    def handle_data(self, data):
        inside = self._stack[-1] if self._stack else ""
        (self.styles if inside == "style" else self.texts).append(data)
        if inside == "li":
            self.items.append(data)


@pytest.fixture
def folder(finished, tmp_path):
    """A finished run that may be changed: out/suite."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy" / "out" / "suite"


def report(bench, folder, *options):
    return bench("report", "suite.toml", "--out", folder.parent, *options)


REPORT_FILES = [
    "index.html",
    *(f"tables/{name}.{form}" for name in ("gap", "details") for form in ("md", "csv", "tex")),
    *(f"figures/{name}.{form}" for name in ("curves", "finals") for form in ("svg", "png", "csv")),
]

# Purity


def test_a_run_writes_tables_and_figures_in_every_form_and_nothing_else(folder):
    written = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert {name for name in written if not name.startswith("runs/")} == {
        ".lock",  # whose lock is what counts, and not its being there
        "suite.json",
        *REPORT_FILES,
    }


def test_two_builds_give_the_same_bytes_in_whatever_order_the_records_come(folder):
    suite, records = open_report(folder)
    _, first = build(suite, records)
    _, second = build(suite, dict(reversed(records.items())))
    assert sorted(first) == sorted(REPORT_FILES)
    assert first == second
    assert first == {name: (folder / name).read_bytes() for name in REPORT_FILES}


def test_another_process_with_another_hash_seed_gives_the_same_bytes(folder):
    command = [sys.executable, "-m", "teleport_bench", "report", "suite.toml", "--check"]
    environment = os.environ | {"PYTHONHASHSEED": "12345", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    done = subprocess.run(
        [*command, "--out", folder.parent],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0, done.stdout


USER_SETTINGS = {
    "savefig.transparent": True,
    "savefig.bbox": "tight",
    "lines.linestyle": "--",
    "svg.fonttype": "none",
    "figure.dpi": 50,
    "font.family": ["monospace"],
    "axes.unicode_minus": False,
}


def test_a_user_s_matplotlib_settings_do_not_change_a_figure(finished):
    folder = finished / "out" / "suite"
    data = frame(*open_report(folder))
    with mpl.rc_context(USER_SETTINGS):
        forms = figures.draw(data, data.suite.spec.figure[1])
    assert set(forms) == {"svg", "png", "csv"}
    for form, content in forms.items():
        assert content == (folder / "figures" / f"finals.{form}").read_bytes(), form


def test_drawing_leaves_matplotlib_s_settings_alone(finished):
    before = dict(mpl.rcParams)
    data = frame(*open_report(finished / "out" / "suite"))
    figures.draw(data, data.suite.spec.figure[1])
    assert dict(mpl.rcParams) == before


def test_report_writes_again_what_was_deleted(folder, bench):
    before = {name: (folder / name).read_bytes() for name in REPORT_FILES}
    for name in REPORT_FILES:
        (folder / name).unlink()
    (folder / "tables").rmdir()
    done = report(bench, folder)
    assert done.code == 0
    for text in ("A tiny suite", "TELEPORTATION, k=2", str(folder / "index.html")):
        assert text in done.out
    assert {name: (folder / name).read_bytes() for name in REPORT_FILES} == before


def test_check_passes_after_a_run_without_the_suite_file_and_writes_nothing(folder, bench):
    (folder.parents[1] / "suite.toml").unlink()
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    done = report(bench, folder, "--check")
    assert done.code == 0
    assert f"{len(REPORT_FILES)} files of {folder} are what 12 records give" in done.out
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_check_names_the_files_that_differ_or_are_not_there(folder, bench):
    changed = bytearray((folder / "tables" / "gap.tex").read_bytes())
    changed[len(changed) // 2] ^= 1
    (folder / "tables" / "gap.tex").write_bytes(changed)
    (folder / "tables" / "gap.csv").unlink()
    done = report(bench, folder, "--check")
    assert done.code == 1
    assert sorted(done.out.splitlines()) == [
        "tables/gap.csv: is not there",
        "tables/gap.tex: differs",
    ]
    assert (folder / "tables" / "gap.tex").read_bytes() == changed
    assert not (folder / "tables" / "gap.csv").exists()


def test_one_byte_more_less_or_other_is_seen_in_every_file(folder):
    _, files = build(*open_report(folder))
    assert check(folder, files) == []
    for name in REPORT_FILES:
        content = (folder / name).read_bytes()
        middle = len(content) // 2
        other = bytes([content[middle] ^ 1])
        for damaged in (
            content[:-1],
            content + b"\n",
            content[:middle] + other + content[middle + 1 :],
        ):
            (folder / name).write_bytes(damaged)
            assert check(folder, files) == [f"{name}: differs"]
        (folder / name).write_bytes(content)


def test_check_sees_a_number_changed_in_a_record(folder, bench):
    path = min((folder / "runs").iterdir())
    record = Record.model_validate_json(path.read_bytes()).model_dump()
    record["curves"]["objective_gap"][-1] *= 1.01
    path.write_text(Record.model_validate(record).model_dump_json())
    done = report(bench, folder, "--check")
    assert done.code == 1
    assert "tables/gap.csv: differs" in done.out
    assert "figures/curves.svg: differs" in done.out


def test_write_and_check_agree(tmp_path):
    files = {"a.txt": b"1", "deep/down/b.bin": bytes(range(256))}
    write(tmp_path, files)
    assert check(tmp_path, files) == []
    assert check(tmp_path, files | {"a.txt": b"2"}) == ["a.txt: differs"]


def test_files_of_an_earlier_report_are_removed_and_others_are_left_alone(tmp_path):
    page = b'<a href="tables/old.md">x</a><a href="figures/old.png">x</a><a href="../x.md">x</a>'
    first = {
        "tables/old.md": b"1",
        "figures/old.png": b"2",
        "claims.json": b"3",
        "index.html": page,
    }
    assert write(tmp_path, first, earlier(tmp_path)) == []
    (tmp_path / "tables" / "mine.txt").write_text("mine")
    second = {"tables/new.md": b"1", "index.html": b"new"}
    assert check(tmp_path, second) == [
        "tables/new.md: is not there",
        "index.html: differs",
        *(
            f"{name}: is no part of this report: remove it"
            for name in ("claims.json", "figures/old.png", "tables/old.md")
        ),
    ]
    removed = write(tmp_path, second, earlier(tmp_path))
    assert removed == ["claims.json", "figures/old.png", "tables/old.md"]
    assert check(tmp_path, second) == []
    left = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {"tables/new.md", "tables/mine.txt", "index.html"}


# Tables


def finals(folder, metric):
    """{(algorithm, n, k): final values over the seeds, in the order of the seeds}."""
    _, records = open_report(folder)
    found = {}
    for record in sorted(records.values(), key=lambda r: r.spec["seed"]):
        key = (record.spec["algorithm"]["name"], record.spec["nodes"], record.spec["active"])
        found.setdefault(key, []).append(record.curves[metric][-1])
    return found


def key_of(label, nodes):
    match = re.fullmatch(r"TELEPORTATION, k=(\d+)", label)
    return ("teleportation", nodes, int(match[1])) if match else ("dsgd", nodes, nodes)


def test_the_numbers_of_a_csv_file_are_those_of_the_records_in_full(folder):
    rows = list(csv.DictReader((folder / "tables" / "details.csv").read_text().splitlines()))
    assert len(rows) == 6
    for metric in ("objective_gap", "consensus"):
        expected = finals(folder, metric)
        for row in rows:
            values = expected[key_of(row["method"], int(row["nodes"]))]
            assert float(row[f"{metric}_mean"]) == pytest.approx(np.mean(values), rel=1e-14)
            assert float(row[f"{metric}_std"]) == pytest.approx(np.std(values, ddof=1), rel=1e-12)
            assert int(row[f"{metric}_finished"]) == len(values) == 2
    for row in rows:
        name, _, k = key_of(row["method"], int(row["nodes"]))
        assert int(row["gradients"]) == 8 * k
        assert float(row["lr"]) == 0.1
        assert name in ("dsgd", "teleportation")


def test_a_pivot_has_a_row_a_method_and_a_column_a_value(folder):
    rows = list(csv.reader((folder / "tables" / "gap.csv").read_text().splitlines()))
    assert rows[0] == [
        "method",
        *(f"objective_gap_nodes{n}_{s}" for n in (4, 6) for s in ("mean", "std", "finished")),
    ]
    expected = finals(folder, "objective_gap")
    assert [row[0] for row in rows[1:]] == ["D-SGD", "TELEPORTATION, k=1", "TELEPORTATION, k=2"]
    for row in rows[1:]:
        for i, n in enumerate((4, 6)):
            values = expected[key_of(row[0], n)]
            assert float(row[1 + 3 * i]) == pytest.approx(statistics.mean(values), rel=1e-14)
            assert float(row[2 + 3 * i]) == pytest.approx(statistics.stdev(values), rel=1e-12)


def test_every_row_of_a_csv_file_is_as_long_as_its_header(hand):
    def edit(source):
        source["grid"]["nodes"] = [4]
        source["table"][0]["pivot"] = "active"

    suite, records = hand(edit=edit)
    _, files = build(suite, records)
    header, *rows = csv.reader(io.StringIO(files["tables/gap.csv"].decode()))
    assert len(header) == 1 + 3 * 3  # k = 1, 2, 4
    assert [len(row) for row in rows] == [len(header)] * 3
    by_method = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    dsgd = by_method["D-SGD"]
    assert [dsgd[f"objective_gap_active{k}_mean"] for k in (1, 2, 4)] == ["", "", "1.5"]


def test_a_markdown_table_rounds_and_shows_the_spread(hand):
    suite, records = hand(lambda run: 0.25 if run.spec.seed else 0.75)
    _, files = build(suite, records)
    header, rule, *rows = rows_of(files["tables/gap.md"].decode())
    assert header == ["method", "n = 4", "n = 6"]
    assert all(set(cell) <= {"-", ":"} for cell in rule)
    assert rows == [
        [label, "0.5 ± 0.354", "0.5 ± 0.354"]
        for label in ("D-SGD", "TELEPORTATION, k=1", "TELEPORTATION, k=2")
    ]
    assert "Mean ± sample standard deviation over 2 seeds." in files["tables/gap.md"].decode()


def test_a_table_of_one_seed_shows_no_spread_and_says_so(hand):
    suite, records = hand(edit=lambda source: source["grid"].update(seed=[0]))
    _, files = build(suite, records)
    for name in ("gap", "details"):
        text = files[f"tables/{name}.md"].decode()
        assert "±" not in text
        assert "One seed." in text
    header, *rows = csv.reader(io.StringIO(files["tables/gap.csv"].decode()))
    assert header[:3] == ["method", "objective_gap_nodes4_mean", "objective_gap_nodes4_std"]
    assert rows[0][1:3] == ["1.0", ""]


def test_a_table_of_details_has_a_row_for_every_step_size(hand):
    def edit(source):
        source["run"].pop("lr")
        source["grid"] = {"nodes": [4], "seed": [0, 1], "lr": [0.1, 0.2]}
        source["method"] = [{"algorithm": "dsgd"}]
        source["table"] = [{"name": "details", "values": ["objective_gap"]}]

    suite, records = hand(lambda run: 10 * run.spec.lr + run.spec.seed, edit=edit)
    _, files = build(suite, records)
    rows = list(csv.DictReader(io.StringIO(files["tables/details.csv"].decode())))
    assert [(row["lr"], row["objective_gap_finished"]) for row in rows] == [
        ("0.1", "2"),
        ("0.2", "2"),
    ]
    assert [float(row["objective_gap_mean"]) for row in rows] == pytest.approx([1.5, 2.5])


@pytest.mark.parametrize("label", ["a|b", "50% & more_#1", "~x^2\\y", "_x_", "$5 and $6", "<b>"])
def test_a_label_with_special_characters_stays_one_cell(hand, label):
    def edit(source):
        source["method"][0]["label"] = label

    suite, records = hand(edit=edit)
    _, files = build(suite, records)
    rows = rows_of(files["tables/gap.md"].decode())
    assert {len(row) for row in rows} == {3}
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", rows[2][0]) == label
    assert next(csv.reader(files["tables/gap.csv"].decode().splitlines()[1:]))[0] == label
    body = files["tables/gap.tex"].decode()
    (line,) = [x for x in body.splitlines() if "TELEPORTATION" not in x and r"$\pm$" in x][:1]
    cell = line.partition(" & ")[0] if label != "50% & more_#1" else line.rpartition(r"\& more")[0]
    assert not re.search(r"(?<!\\)[%#_&]", cell.replace("$", ""))
    assert len(re.findall(r"(?<!\\)&", line)) == 2


def shown(markdown):
    """What a reader sees of inline Markdown, as far as our texts can go: a tag vanishes, so does
    what encloses emphasis, code, a deletion, a link or a formula."""
    kept = []
    text = re.sub(
        r"\\([!-/:-@\[-`{-~])", lambda m: kept.append(m[1]) or f"\0{len(kept) - 1}\0", markdown
    )
    text = re.sub(r"<[!/a-z?][^>]*>|<[^<>\s]*>", "", text)
    text = re.sub(r"(`+|\$)(.+?)\1", r"\2", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"(?<![^\W_])(_+)(?=\S)([^_]+?)(?<=\S)\1(?![^\W_])", r"\2", text)
    text = re.sub(r"(\*+|~+)(?=\S)(.+?)(?<=\S)\1", r"\2", text)
    text = html.unescape(text)
    return re.sub("\0(\\d+)\0", lambda m: kept[int(m[1])], text)


WRITTEN = [
    "TELEPORTATION <k=4>",
    "**a** [x](y) <!-- x -->",
    "*a* _b_ __c__ ~~d~~ `e` $f$",
    "x_i, f(x) - f*",
    "&amp; &#42; &copy;",
    "a\\*b* \\",
    "![i](u) [a]: b",
    "</td></tr>",
    "a | b",
    "- 1",
    "# 2",
]


@pytest.mark.parametrize("text", WRITTEN)
def test_markdown_shows_a_text_as_it_was_written(hand, text):
    def edit(source):
        source["method"][0]["label"] = text
        source["table"][0] |= {"caption": text, "assumed": text}

    suite, records = hand(edit=edit)
    _, files = build(suite, records)
    markdown = files["tables/gap.md"].decode()
    caption, *_ = markdown.splitlines()
    assert shown(caption.removeprefix("**").removesuffix("**")) == text
    assert shown(rows_of(markdown)[2][0]) == text
    assert shown(markdown.splitlines()[-1]) == f"Assumed: {text}"
    assert text in "".join(Page(files["index.html"].decode()).texts)


def test_the_program_s_own_texts_need_no_escapes():
    for text in ("f(x̄) − f*", "0.912 *", "~1.40", "+0.01 [0.00, 0.02]", "x_i", "> 3 (2 of 5 not)"):
        assert markdown(text) == text


def test_a_note_begins_no_list_heading_or_quote_and_a_caption_no_paragraph():
    notes = ["- a", "* b", "+ c", "1. d", "2) e", "# f", "> g", "---", "===", "~~~", "1.5 h", "-1"]
    table = Table("t", "one\n\ntwo\n- three", ["a"], ["a"], [["x\n\ny"]], notes)
    first, *rest = table.markdown().splitlines()
    assert first == "**one two - three**"
    assert rows_of(table.markdown())[2] == ["x y"]
    assert [line.rstrip() for line in rest[-len(notes) :]] == [
        *("\\- a", "\\* b", "\\+ c", "1\\. d", "2\\) e", "\\# f", "\\> g"),
        *("\\---", "\\===", "~\\~\\~", "1.5 h", "-1"),
    ]


def test_a_csv_file_holds_no_formulas_and_all_numbers(hand):
    texts = ["=1+1", "@x", "+cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0", "\t=1", "'=1", "＝1"]
    kept = ["-0.5", "+0.012 [0.004, 0.020]", "-1/7 = -0.143", "-inf", "'a'", "a=b", "- a"[2:]]
    rows = [[text, -1.5, -3] for text in texts + kept]
    table = Table("t", "t", ["a", "b", "c"], ["a", "b", "c"], rows)
    _, *read = csv.reader(io.StringIO(table.csv()))
    assert [row[0] for row in read] == [*(f"'{text}" for text in texts), *kept]
    assert {tuple(row[1:]) for row in read} == {("-1.5", "-3")}

    def edit(source):
        source["method"][0]["label"] = "=1+1"
        source["figure"] = [ONE_FIGURE]

    _, files = build(*hand(edit=edit))
    for name in ("tables/gap.csv", "tables/details.csv", "figures/finals.csv"):
        assert "'=1+1" in files[name].decode()
        assert "\n=" not in files[name].decode()


@pytest.fixture
def every_metric(texts, make_record):
    """A suite with a table of every metric, and records that have them all."""
    source = tomllib.loads(texts["tiny"])
    source["table"] = [{"name": "gap", "values": ["objective_gap"], "caption": "A\nB ± C"}]
    suite = Suite.from_source("hand", source)
    metrics = [name for name in METRICS if name not in (*COSTS, *NOT_EVALUATED)]
    values = dict.fromkeys(metrics, 0.25)
    records = {r.spec.id: make_record(r.spec, **values) for r in suite.planned()}
    # by hand, since no single problem reports every metric
    spec = suite.spec.table[0].model_copy(update={"values": metrics, "pivot": None})
    return build_table(frame(suite, records), spec)


def test_latex_is_ascii_with_rules_and_as_many_columns_everywhere(every_metric):
    text = every_metric.latex()
    text.encode("ascii")
    lines = text.splitlines()
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}"):
        assert lines.count(rule) == 1
    (begin,) = [line for line in lines if line.startswith(r"\begin{tabular}")]
    columns = len(every_metric.columns)
    assert re.fullmatch(r"\\begin\{tabular\}\{[lr]+\}", begin)
    assert len(begin) == len(r"\begin{tabular}{}") + columns
    rows = [line for line in lines if line.endswith(r"\\")]
    assert len(rows) == 1 + 6
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == columns - 1
    assert text.count(r"0.250 $\pm$ 0.000") == 6 * 4  # the metrics with three decimals
    assert text.replace(r"\$", "").count("$") % 2 == 0


def test_whatever_stands_outside_a_latex_table_is_a_comment(every_metric):
    before, _, rest = every_metric.latex().partition(r"\begin{tabular}")
    after = rest.partition("\\end{tabular}\n")[2]
    for line in [*before.splitlines(), *after.splitlines()]:
        assert line.startswith("%"), line


def test_every_metric_has_a_heading_and_a_better_side():
    for metric in METRICS.values():
        assert metric.better in ("higher", "lower")
        assert metric.label
        assert metric.format.format(0.5)


# Runs without a result


def of(label, nodes, seed, status):
    """A score: that run has the status, all others a number."""
    return lambda run: (
        status
        if (run.label, run.spec.nodes, run.spec.seed) == (label, nodes, seed)
        else run.spec.seed + 1.0
    )


@pytest.mark.parametrize("status", ["diverged", "failed", None])
def test_one_bad_seed_takes_the_place_of_the_number_everywhere(hand, status):
    suite, records = hand(of("D-SGD", 4, 1, status))
    _, files = build(suite, records)
    word = status or "missing"
    rows = rows_of(files["tables/gap.md"].decode())
    assert rows[2] == ["D-SGD", f"{word} (1 of 2)", "1.5 ± 0.707"]
    line = files["tables/gap.csv"].decode().splitlines()[1]
    assert line.split(",")[:4] == ["D-SGD", "", "", "1"]
    assert f"{word} (1 of 2)" in files["tables/gap.tex"].decode()
    page = Page(files["index.html"].decode())
    (item,) = [item for item in page.items if item.startswith("D-SGD, n = 4")]
    assert item.startswith("D-SGD, n = 4, step size 0.1, seed 1: ")
    reason = {"diverged": "diverged, seen after round 8", "failed": "failed: RuntimeError: boom"}
    assert reason.get(word, "missing") in item
    (count,) = [text for text in page.texts if "12 reported runs" in text]
    assert f"1 {word}" in count
    assert "11 finished" in count


ONE_FIGURE = {"name": "finals", "y": "objective_gap", "x": "nodes"}


@pytest.mark.parametrize("status", ["diverged", "failed", None])
def test_a_report_of_no_finished_run_at_all_can_be_built(hand, status):
    suite, records = hand(lambda _: status, edit=lambda s: s.update(figure=[ONE_FIGURE]))
    _, files = build(suite, records)
    word = status or "missing"
    assert [row[1:] for row in rows_of(files["tables/gap.md"].decode())[2:]] == [[word] * 2] * 3
    assert f"12 reported runs: 12 {word}" in files["index.html"].decode()
    assert_image(files["figures/finals.png"])


def test_a_report_of_a_tuned_suite_without_any_record_can_be_built(texts):
    source = tomllib.loads(texts["tuned"]) | {"figure": [ONE_FIGURE]}
    _, files = build(Suite.from_source("tuned", source), {})
    page = files["index.html"].decode()
    assert "12 reported runs: 12 missing; 36 tuning runs: 36 missing." in page
    assert_image(files["figures/finals.png"])
    assert files["tables/gap.csv"].decode().startswith("method")


def test_a_page_of_finished_runs_only_says_that_none_is_without_a_result(hand):
    suite, records = hand()
    page = build(suite, records)[1]["index.html"].decode()
    assert "None: every run finished." in page


def test_a_record_deleted_after_the_run_is_reported_as_missing(write, texts, run, bench, tmp_path):
    path, folder = write(texts["tiny"]), tmp_path / "out" / "tiny"
    run(path)
    min((folder / "runs").iterdir()).unlink()
    assert bench("report", path, "--out", folder.parent, "--check").code == 1
    bench("report", path, "--out", folder.parent)
    assert "missing (1 of 2)" in (folder / "tables" / "gap.md").read_text()
    assert "12 reported runs: 11 finished, 1 missing" in (folder / "index.html").read_text()
    assert bench("report", path, "--out", folder.parent, "--check").code == 0


def test_the_page_warns_of_runs_from_different_or_changed_code(hand):
    suite, records = hand()
    keys = list(records)
    for key, code in (
        (keys[0], {"version": "1", "commit": "a" * 40, "dirty": False}),
        (keys[1], {"version": "1", "commit": "b" * 40, "dirty": True}),
    ):
        content = records[key].model_dump()
        content["made"]["code"] = code
        records[key] = Record.model_validate(content)
    page = build(suite, records)[1]["index.html"].decode()
    assert "made by different code" in page
    assert "a" * 12 in page
    assert "b" * 12 in page
    assert "1 of 12 runs were made by code with uncommitted changes" in page


def test_the_page_warns_of_runs_that_read_different_versions_of_a_data_set(hand):
    suite, records = hand()
    for key, sha256 in zip(records, itertools.cycle("01"), strict=False):
        content = records[key].model_dump()
        content["problem"]["data"] = {"name": "x", "sha256": sha256}
        records[key] = Record.model_validate(content)
    words = "These runs read different versions of a data set of the same name."
    assert words in build(suite, records)[1]["index.html"].decode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["made"]["code"].update(commit="b" * 40), "different commits in one cell"),
        (lambda c: c["made"]["code"].update(dirty=True), "with and without uncommitted changes"),
        (lambda c: c["made"]["code"].update(plugins={"mine.py": "1"}), "versions of plugins"),
        (lambda c: c["problem"].update(data={"name": "x", "sha256": "0"}), "versions of the data"),
    ],
)
def test_a_cell_of_seeds_of_different_making_says_so_in_every_form(hand, change, words):
    suite, records = hand()
    assert not any(
        "Careful" in f.decode(errors="replace") for f in build(suite, records)[1].values()
    )
    key = next(key for key, record in records.items() if record.spec["seed"] == 1)
    content = records[key].model_dump()
    change(content)
    records[key] = Record.model_validate(content)
    tables, files = build(suite, records)
    assert any(words in note and "D-SGD, n = 4" in note for note in tables[0].notes)
    for name in ("tables/gap.md", "tables/gap.tex", "index.html"):
        assert words in files[name].decode()


# The page

HOSTILE = '<script>alert("1")</script>"><img src=x onerror=alert(1)>&amp;{{ 7*7 }}'
LABEL = '"><script>alert(1)</script>'


def test_a_page_shows_hostile_text_as_text(hand):
    def edit(source):
        source["title"] = source["about"] = HOSTILE
        source["method"][0]["label"] = LABEL
        source["table"][0]["caption"] = HOSTILE
        source["figure"] = [ONE_FIGURE | {"caption": HOSTILE}]

    suite, records = hand(of(LABEL, 4, 1, "failed"), edit=edit)
    _, files = build(suite, records)
    page = Page(files["index.html"].decode())
    assert "script" not in page.tags
    assert page.handlers == []
    assert page.tags.count("img") == 1
    text = "".join(page.texts)
    assert text.count(HOSTILE) >= 5  # title, heading, about, captions
    assert f"{LABEL}, n = 4, step size 0.1, seed 1: failed" in text
    assert "alert" not in "".join(page.sources + page.links)
    root = ET.fromstring(files["figures/finals.svg"])
    assert not [e for e in root.iter() if e.tag.endswith("script")]


def test_a_page_needs_nothing_beside_it(finished):
    folder = finished / "out" / "suite"
    page = Page((folder / "index.html").read_text())
    assert len(page.sources) == 2
    for source in page.sources:
        assert source.startswith("data:image/svg+xml;base64,")
    assert {"script", "link", "iframe", "object", "embed"} & set(page.tags) == set()
    assert not re.search(r"url\(|@import", "".join(page.styles))
    files = [link for link in page.links if link != "runs/"]
    for link in files:
        assert re.fullmatch(r"(tables|figures)/[\w.-]+", link)
        assert (folder / link).is_file()
    assert sorted(files) == sorted(set(REPORT_FILES) - {"index.html"})
    assert page.links.count("runs/") == 4  # an item each
    assert (folder / "runs").is_dir()


def test_a_page_carries_the_suite_the_settings_of_each_cell_and_the_environment(finished):
    folder = finished / "out" / "suite"
    text = "".join(Page((folder / "index.html").read_text()).texts)
    _, records = open_report(folder)
    assert '"eval_every": 4' in text
    assert '"weight_decay": 0.0' in text  # a default, filled in
    for record in records.values():
        assert f"Environment {record.made.environment['id']}" in text
    dates = [record.made.date for record in records.values()]
    assert f"Made from {min(dates)} to {max(dates)}." in text
    for label in ("D-SGD", "TELEPORTATION, k=1", "TELEPORTATION, k=2"):
        for n in (4, 6):
            assert f'"{label}, n = {n}": {{' in text


# Figures


def assert_image(content):
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        image.load()
        assert min(image.size) > 100
        low, high = image.convert("L").getextrema()
    assert low < high  # something is drawn


def colours(svg):
    return set(re.findall(r"stroke: (#[0-9a-f]{6})", svg.decode()))


def test_figures_are_valid_png_and_svg(finished):
    folder = finished / "out" / "suite"
    for name in ("curves", "finals"):
        assert_image((folder / "figures" / f"{name}.png").read_bytes())
        root = ET.fromstring((folder / "figures" / f"{name}.svg").read_bytes())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert float(root.attrib["width"].removesuffix("pt")) > 100
        assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 10
        for element in root.iter():
            for attribute, value in element.attrib.items():
                if attribute.endswith("href"):
                    assert value.startswith(("#", "data:"))


@pytest.fixture
def drawn(monkeypatch):
    """What figures.draw hands to seaborn: a list of (data, arguments), a panel each."""
    calls = []
    lineplot = figures.sns.lineplot

    def watch(data, **arguments):
        calls.append((data, arguments))
        return lineplot(data, **arguments)

    monkeypatch.setattr(figures.sns, "lineplot", watch)
    return calls


def test_a_figure_has_a_panel_a_value_and_a_line_a_method(hand, drawn):
    suite, records = hand(lambda run: run.spec.nodes * 100 + run.spec.seed, "figures")
    figures.draw(frame(suite, records), suite.spec.figure[0])
    assert [sorted(data["nodes"].unique()) for data, _ in drawn] == [[4], [6]]
    for (data, arguments), n in zip(drawn, (4, 6), strict=True):
        assert (arguments["x"], arguments["y"]) == ("rounds", "objective_gap")
        assert set(data[arguments["hue"]]) == {
            "D-SGD",
            "TELEPORTATION, k=1",
            "TELEPORTATION, k=2",
        }
        last = data[data["rounds"] == 8]
        assert sorted(last["objective_gap"].unique()) == [n * 100, n * 100 + 1]


def test_a_figure_against_a_setting_shows_final_values(hand, drawn):
    suite, records = hand(lambda run: run.spec.nodes * 100 + run.spec.seed, "figures")
    figures.draw(frame(suite, records), suite.spec.figure[1])
    ((data, arguments),) = drawn
    assert arguments["x"] == "nodes"
    assert len(data) == 12
    assert set(data["objective_gap"]) == {400, 401, 600, 601}


def test_a_method_with_a_bad_seed_has_no_line_and_is_named_in_its_panel(hand, drawn):
    suite, records = hand(of("D-SGD", 4, 1, "diverged"), "figures")
    forms = figures.draw(frame(suite, records), suite.spec.figure[0])
    four, six = (set(data["method"]) for data, _ in drawn)
    assert "D-SGD" not in four
    assert "D-SGD" in six
    assert b"D-SGD, n = 4: 1 of 2 diverged" in forms["svg"]
    assert b"D-SGD, n = 6" not in forms["svg"]


def test_a_step_size_that_diverges_leaves_the_others_in_a_figure_against_step_sizes(hand, drawn):
    def edit(source):
        source["run"].pop("lr")
        source["grid"] = {"nodes": [4], "seed": [0, 1], "lr": [0.1, 0.2, 0.4]}
        source["method"] = [{"algorithm": "dsgd"}]
        source["table"] = []
        source["figure"] = [{"name": "f", "y": "objective_gap", "x": "lr"}]

    suite, records = hand(lambda run: "diverged" if run.spec.lr == 0.4 else 1.0, edit=edit)
    figures.draw(frame(suite, records), suite.spec.figure[0])
    ((data, _),) = drawn
    assert set(data["lr"]) == {0.1, 0.2}


def test_a_metric_that_is_zero_all_along_can_be_drawn(hand, make_record):
    def edit(source):
        source["method"] = [{"algorithm": "teleportation", "active": 1}]
        source["figure"] = [{"name": "f", "y": "consensus", "x": "nodes"}]

    suite, _ = hand(edit=edit)
    records = {
        run.spec.id: make_record(run.spec, objective_gap=1.0, consensus=0.0)
        for run in suite.planned()
    }
    for record in records.values():
        record.curves["consensus"][0] = 0.0
    assert_image(figures.draw(frame(suite, records), suite.spec.figure[0])["png"])


@pytest.mark.parametrize("label", ["$\\frac$", "_private", "a -- b", "x" * 40])
def test_any_label_can_be_drawn(hand, label):
    def edit(source):
        source["method"][0]["label"] = label
        source["figure"] = [ONE_FIGURE]

    suite, records = hand(of(label, 4, 1, "diverged"), edit=edit)
    svg = figures.draw(frame(suite, records), suite.spec.figure[0])["svg"]
    ET.fromstring(svg)
    assert label.encode() in svg.replace(b"- -", b"--")


def test_a_figure_says_how_many_seeds_it_shows(hand):
    edit = lambda source: source.update(figure=[ONE_FIGURE])  # noqa: E731
    suite, records = hand(edit=edit)
    svg = figures.draw(frame(suite, records), suite.spec.figure[0])["svg"]
    assert b"mean of 2 seeds" in svg
    assert b"one seed" not in svg
    few = {key: record for key, record in records.items() if record.spec["seed"] == 0}
    suite = Suite.from_source("hand", suite.source | {"grid": {"nodes": [4, 6], "seed": [0]}})
    svg = figures.draw(frame(suite, few), suite.spec.figure[0])["svg"]
    assert b"one seed" in svg
    assert b"mean of" not in svg


# Style

METHODS = {
    "D-SGD": {"algorithm": "dsgd"},
    "TELEPORTATION, k=1": {"algorithm": "teleportation", "active": 1},
    "TELEPORTATION, k=2": {"algorithm": "teleportation", "active": 2},
}


def test_a_method_looks_the_same_whatever_else_is_drawn(hand):
    own = {
        "D-SGD": style_of("dsgd", 4, "ring").colour.lower(),
        "TELEPORTATION, k=1": style_of("teleportation", 1, "ring").colour.lower(),
        "TELEPORTATION, k=2": style_of("teleportation", 2, "ring").colour.lower(),
    }
    assert len(set(own.values())) == 3
    for size in (1, 3):
        for names in combinations(METHODS, size):

            def edit(source, names=names):
                source["method"] = [copy.deepcopy(METHODS[name]) for name in reversed(names)]
                source["figure"] = [ONE_FIGURE]

            suite, records = hand(edit=edit)
            seen = colours(figures.draw(frame(suite, records), suite.spec.figure[0])["svg"])
            assert {name for name in METHODS if own[name] in seen} == set(names)


def test_every_registered_method_and_graph_has_a_style_of_its_own():
    topologies = TOPOLOGIES.names()
    assert len({str(style_of("dsgd", 8, name).dashes) for name in topologies}) == len(topologies)
    looks = [
        (style.colour, style.marker)
        for entry in ALGORITHMS
        for k in ((1, 2, 4, 8, 16, 32, 64) if entry.component.partial else (8,))
        for style in [style_of(entry.name, k, "ring")]
    ]
    assert len(set(looks)) == len(looks)


def test_the_number_of_active_nodes_does_not_change_the_look_of_an_algorithm_without_choice():
    assert len({style_of("dsgd", k, "ring") for k in (1, 2, 8, 100)}) == 1


def test_methods_that_would_look_alike_differ_in_their_markers(hand):
    def edit(source):
        source["method"] = [
            {"algorithm": "dsgd", "momentum": beta, "label": f"beta {beta}"}
            for beta in (0.0, 0.5, 0.9)
        ] + [{"algorithm": "teleportation", "active": 2}]
        source["figure"] = [ONE_FIGURE | {"methods": ["beta 0.9"]}, ONE_FIGURE | {"name": "all"}]

    suite, records = hand(edit=edit)
    data = frame(suite, records)
    looks = figures.styles_of(data)
    assert len(set(map(str, looks.values()))) == 4
    few = data.view(suite.spec.figure[0])
    assert figures.styles_of(few) == {"beta 0.9": looks["beta 0.9"]}  # whatever else is shown


def entries_below(figure):
    """The labels of a legend that are not within the figure."""
    figure.draw_without_rendering()
    legend = figure.legends[0]
    inside = figure.bbox
    boxes = [(text.get_text(), text.get_window_extent()) for text in legend.get_texts()]
    return [t for t, b in boxes if b.y0 < 0 or b.x0 < 0 or b.y1 > inside.y1 or b.x1 > inside.x1]


def many(count):
    betas = [{"algorithm": "dsgd", "momentum": i / 1000} for i in range(count)]
    return [beta | {"label": f"beta {beta['momentum']}"} for beta in betas]


GRAPHS = [
    *({"algorithm": "dsgd", "topology": t, "label": f"D-SGD, {t}"} for t in TOPOLOGIES.names()),
    *({"algorithm": "teleportation", "active": k} for k in (1, 2, 4, 8)),
]


@pytest.mark.parametrize(
    "methods",
    [
        GRAPHS,
        many(40),
        many(100),
        [{"algorithm": "dsgd", "momentum": 0.5, "label": "W" * 200}, *many(3)],
    ],
    ids=["graphs", "40", "100", "long"],
)
def test_a_legend_is_within_its_figure_and_no_two_methods_look_alike(hand, monkeypatch, methods):
    def edit(source):
        source["method"] = methods
        source["grid"] = {"nodes": [16], "seed": [0]}
        source["table"] = []
        source["figure"] = [ONE_FIGURE]

    saved = []
    save = figures._save
    monkeypatch.setattr(figures, "_save", lambda f, form: saved.append(f) or save(f, form))
    suite, records = hand(edit=edit)
    data = frame(suite, records)
    svg = figures.draw(data, suite.spec.figure[0])["svg"].decode()
    assert entries_below(saved[0]) == []
    assert all(run.label in svg for run in suite.planned())
    assert min(ax.get_window_extent().width for ax in saved[0].axes) > 50
    looks = figures.styles_of(data)
    assert len(set(looks.values())) == len(methods)
    alike = Counter((look.colour, look.marker) for look in looks.values())
    if len(methods) < 30:  # dashes alone are hard to tell
        assert max(alike.values()) <= 4


def test_a_panel_names_no_more_runs_than_it_has_room_for(hand):
    def edit(source):
        source["method"] = many(30)
        source["grid"] = {"nodes": [4], "seed": [0]}
        source["table"] = []
        source["figure"] = [ONE_FIGURE]

    suite, records = hand(lambda _: "diverged", edit=edit)
    svg = figures.draw(frame(suite, records), suite.spec.figure[0])["svg"].decode()
    assert svg.count("1 of 1 diverged") == 12
    assert "and 18 more" in svg


def test_a_chosen_k_has_a_look_of_its_own():
    ways = ["search", "best", *(2**i for i in range(7))]
    assert len({style_of("teleportation", k, "ring")[:2] for k in ways}) == len(ways)


# Any setting as an axis


@pytest.fixture
def zetas(hand):
    """Two n, two zeta2, two sigma2: (suite, records); the gap is 100 n + 10 zeta2 + sigma2."""

    def zetas(edit=None, score=None):
        def change(source):
            source["grid"] |= {"problem.zeta2": [0.5, 8.0], "problem.sigma2": [0.0, 1.0]}
            source["table"] = []
            if edit:
                edit(source)

        def gap(run):
            problem = run.spec.problem
            return 100 * run.spec.nodes + 10 * problem["zeta2"] + problem["sigma2"]

        return hand(score or gap, edit=change)

    return zetas


def test_a_table_may_have_a_column_a_value_of_any_setting_of_the_runs_chosen(zetas):
    table = {
        "name": "t",
        "values": ["objective_gap"],
        "pivot": "problem.zeta2",
        "where": {"nodes": 4, "problem.sigma2": 1.0},
        "methods": ["TELE*", "nothing but D-SGD", "D-SGD"][::2],
    }
    _, files = build(*zetas(lambda source: source.update(table=[table])))
    header, _, *rows = rows_of(files["tables/t.md"].decode())
    assert header == ["method", "ζ² = 0.5", "ζ² = 8"]
    assert [row[0] for row in rows] == ["D-SGD", "TELEPORTATION, k=1", "TELEPORTATION, k=2"]
    assert {tuple(row[1:]) for row in rows} == {("406 ± 0", "481 ± 0")}
    names, *_ = csv.reader(io.StringIO(files["tables/t.csv"].decode()))
    assert names[1::3] == ["objective_gap_zeta2_0.5_mean", "objective_gap_zeta2_8.0_mean"]


def test_a_table_of_details_names_the_settings_in_which_its_rows_differ(zetas):
    table = {"name": "t", "values": ["objective_gap"], "where": {"nodes": 4}}
    _, files = build(*zetas(lambda source: source.update(table=[table])))
    header, _, *rows = rows_of(files["tables/t.md"].decode())
    assert header[:5] == ["method", "n", "ζ²", "σ²", "step size"]
    assert len({tuple(row) for row in rows}) == len(rows) == 3 * 4
    for row in csv.DictReader(io.StringIO(files["tables/t.csv"].decode())):
        expected = 400 + 10 * float(row["problem.zeta2"]) + float(row["problem.sigma2"])
        assert float(row["objective_gap_mean"]) == pytest.approx(expected)


def test_the_number_of_rounds_is_an_axis_of_curves_and_a_setting(hand, drawn):
    def edit(source):
        source["grid"] = {"nodes": [4], "seed": [0, 1], "rounds": [4, 8]}
        source["table"] = [{"name": "t", "values": ["objective_gap"], "pivot": "rounds"}]
        source["figure"] = [{"name": "f", "y": "objective_gap", "columns": "rounds"}]

    _, files = build(*hand(lambda run: run.spec.rounds, edit=edit))
    header, _, *rows = rows_of(files["tables/t.md"].decode())
    assert header == ["method", "T = 4", "T = 8"]
    assert {tuple(row[1:]) for row in rows} == {("4 ± 0", "8 ± 0")}
    assert [data["rounds"].max() for data, _ in drawn] == [4, 8]


def test_a_figure_has_a_grid_of_panels(zetas, drawn):
    figure = ONE_FIGURE | {"columns": "problem.zeta2", "rows": "problem.sigma2"}
    suite, records = zetas(lambda source: source.update(figure=[figure]))
    forms = figures.draw(frame(suite, records), suite.spec.figure[0])
    panels = [(data["objective_gap"] - 100 * data["nodes"]).unique().tolist() for data, _ in drawn]
    assert panels == [[5.0], [80.0], [6.0], [81.0]]
    for title in ("heterogeneity ζ² = 0.5", "heterogeneity ζ² = 8", "gradient noise σ² = 1"):
        assert title.encode() in forms["svg"]
    points = list(csv.DictReader(io.StringIO(forms["csv"].decode())))
    assert len(points) == 2 * 2 * 2 * 3
    for point in points:
        assert float(point["mean"]) == pytest.approx(
            100 * int(point["nodes"])
            + 10 * float(point["problem.zeta2"])
            + float(point["problem.sigma2"])
        )
        assert point["seeds"] == "2"


@pytest.fixture
def axes(monkeypatch):
    """The axes of the panels that are drawn."""
    found = []
    panel = figures._panel

    def watch(ax, *rest):
        points = panel(ax, *rest)
        found.append(ax)
        return points

    monkeypatch.setattr(figures, "_panel", watch)
    return found


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([0.1, 10.0], "log"),
        ([1.0, 2.0, 8.0], "log"),
        ([0.5, 1.0], "log"),
        ([1.0, 3.0], "linear"),
        ([0.0, 1.0, 100.0], "linear"),
        ([1.0, 10.0], "linear"),
    ],
)
def test_numbers_over_more_than_a_decade_or_powers_of_two_are_on_a_log_axis(
    zetas, axes, values, scale
):
    def edit(source):
        source["grid"] = {"nodes": [4], "seed": [0], "problem.zeta2": values}
        source["figure"] = [ONE_FIGURE | {"x": "problem.zeta2"}]

    suite, records = zetas(edit)
    figures.draw(frame(suite, records), suite.spec.figure[0])
    assert [ax.get_xscale() for ax in axes] == [scale]
    assert axes[0].get_xlabel() == "heterogeneity ζ²"


def test_names_are_an_axis_too(hand, axes):
    def edit(source):
        source["grid"] = {"nodes": [6], "seed": [0, 1], "topology": ["star", "ring"]}
        source["table"] = []
        source["figure"] = [ONE_FIGURE | {"x": "topology.name"}]

    suite, records = hand(edit=edit)
    svg = figures.draw(frame(suite, records), suite.spec.figure[0])["svg"]
    assert axes[0].get_xlabel() == "graph"
    assert b"<!-- star -->" in svg
    assert b"<!-- ring -->" in svg


def test_a_method_without_a_line_is_named_with_the_setting_on_the_axis(zetas):
    def edit(source):
        source["grid"]["problem.sigma2"] = [0.0]
        source["figure"] = [ONE_FIGURE | {"x": "problem.zeta2", "columns": "nodes"}]

    bad = lambda run: "diverged" if run.spec.problem["zeta2"] == 8 else 1.0  # noqa: E731
    suite, records = zetas(edit, bad)
    svg = figures.draw(frame(suite, records), suite.spec.figure[0])["svg"]
    assert "D-SGD, ζ² = 8: 2 of 2 diverged".encode() in svg


# Rounds to a target


@pytest.fixture
def targets(hand):
    """The tiny suite with a target: reached(run) -> the round, or None."""

    def targets(reached, edit=None):
        def change(source):
            source["run"]["stop"] = {"metric": "objective_gap", "value": 0.01}
            source["table"] = [{"name": "t", "values": ["rounds_to_target"], "pivot": "nodes"}]
            source["figure"] = [ONE_FIGURE | {"y": "rounds_to_target"}]
            if edit:
                edit(source)

        suite, records = hand(lambda _: 0.02, edit=change)
        at = {run.spec.id: reached(run) for run in suite.planned()}
        return suite, {k: r.model_copy(update={"reached_at": at[k]}) for k, r in records.items()}

    return targets


def missed(run):
    """D-SGD with 6 nodes does not reach its target with seed 1, with 4 nodes never."""
    if run.label == "D-SGD" and (run.spec.nodes == 4 or run.spec.seed == 1):
        return None
    return 4 + run.spec.seed


def test_a_table_gives_a_bound_where_a_target_was_not_reached(targets):
    _, files = build(*targets(missed))
    rows = rows_of(files["tables/t.md"].decode())
    assert rows[2] == ["D-SGD", "> 8 (not reached)", "> 6 (1 of 2 not reached)"]
    assert rows[3] == ["TELEPORTATION, k=1", "4 ± 1", "4 ± 1"]
    assert "Not reached: " in files["tables/t.md"].decode()
    dsgd, other, _ = csv.DictReader(io.StringIO(files["tables/t.csv"].decode()))
    stem = "rounds_to_target_nodes6"
    columns = ("mean", "std", "finished", "bound", "censored")
    assert [dsgd[f"{stem}_{c}"] for c in columns] == ["", "", "2", "6.0", "1"]
    assert [other[f"{stem}_{c}"] for c in columns] == ["4.5", "0.7071067811865476", "2", "", "0"]


def test_a_table_of_reached_targets_has_no_word_of_the_others(targets):
    _, files = build(*targets(lambda run: 4 + run.spec.seed))
    assert "reached" not in files["tables/t.md"].decode()


def test_a_figure_marks_a_bound_without_a_bar_and_with_an_arrow(targets, axes):
    suite, records = targets(missed)
    forms = figures.draw(frame(suite, records), suite.spec.figure[0])
    (ax,) = axes
    bounds = [line for line in ax.lines if line.get_markerfacecolor() == "white"]
    assert [line.get_xydata().tolist() for line in bounds] == [[[4, 8]], [[6, 6]]]
    arrows = [text for text in ax.texts if text.arrow_patch]
    assert [text.xy for text in arrows] == [(4, 8), (6, 6)]
    bars = [bar for bar in ax.containers if bar.has_yerr]
    assert len(bars) == 4  # of the two other methods
    assert b"not reached by all" in forms["svg"]
    points = list(csv.DictReader(io.StringIO(forms["csv"].decode())))
    assert [(p["mean"], p["min"], p["bound"], p["censored"]) for p in points][:3] == [
        ("", "", "8.0", "2"),
        ("", "", "6.0", "1"),
        ("4.5", "4.0", "", "0"),
    ]


def test_a_figure_of_reached_targets_says_nothing_of_bounds(targets):
    suite, records = targets(lambda run: 4 + run.spec.seed)
    svg = figures.draw(frame(suite, records), suite.spec.figure[0])["svg"]
    assert b"not reached" not in svg


def test_a_curve_ends_where_the_first_of_its_seeds_reached_the_target(targets, drawn):
    """The mean of the seeds that are still running would be another quantity."""

    def edit(source):
        source["figure"] = [{"name": "f", "y": "objective_gap", "columns": "nodes"}]

    suite, records = targets(missed, edit)
    for record in records.values():
        if record.spec["seed"] == 1 and record.spec["algorithm"]["name"] == "dsgd":
            record.curves["rounds"][-1] = 6.0
    figures.draw(frame(suite, records), suite.spec.figure[0])
    for data, _ in drawn:
        ends = data.groupby("method")["rounds"].max()
        assert ends["D-SGD"] == 0
        assert ends["TELEPORTATION, k=1"] == 8
        assert set(data.groupby(["method", "rounds"]).size()) == {2}


def test_a_target_is_a_line_in_a_figure_of_its_metric(targets, axes):
    def edit(source):
        source["figure"] = [
            {"name": y, "y": y, "where": {"nodes": 4}} for y in ("objective_gap", "consensus")
        ]

    suite, records = targets(missed, edit)
    for spec in suite.spec.figure:
        figures.draw(frame(suite, records), spec)
    lines = [
        [line.get_ydata() for line in ax.lines if list(line.get_ydata()) == [0.01, 0.01]]
        for ax in axes
    ]
    assert [len(found) for found in lines] == [1, 0]


# Simulated costs


@pytest.fixture
def network(monkeypatch):
    """A time model that is easy to check: a round costs tau, a node sends k bytes a round."""
    from teleport_bench import network
    from teleport_bench.registry import StrictModel

    calls = []

    class Network(StrictModel):
        preferred: dict = {"name": "ring"}
        tau: float = 1.0

    class Costs:
        def __init__(self, time, busiest_bytes):
            self.time, self.busiest_bytes = time, busiest_bytes

    def simulate(spec, network, at, n_params=None):  # noqa: ARG001
        calls.append((spec.id, network.tau))
        return Costs([network.tau * t for t in at], [spec.n_active * t for t in at])

    monkeypatch.setattr(network, "Network", Network, raising=False)
    monkeypatch.setattr(network, "simulate", simulate, raising=False)
    return calls


def test_simulated_time_is_an_axis_by_the_network_of_the_figure_over_that_of_the_suite(
    hand, network, drawn
):
    def edit(source):
        source["network"] = {"tau": 5.0}
        time = {"y": "objective_gap", "x": "time", "columns": "nodes"}
        source["figure"] = [
            {"name": "own", "network": {"tau": 2.0}, **time},
            {"name": "suite", **time},
            {"name": "bytes", **time, "x": "bytes_busiest"},
        ]

    suite, records = hand(edit=edit)
    data = frame(suite, records)
    assert network == []  # computed when something asks
    for figure, expected in zip(suite.spec.figure, (2.0, 5.0, None), strict=True):
        drawn.clear()
        figures.draw(data, figure)
        for panel, arguments in drawn:
            assert arguments["x"] == figure.x
            each = panel["active"] if expected is None else expected
            assert (panel[figure.x] == panel["rounds"] * each).all()
    assert len(network) == 2 * len(records)  # the third is of the same network as the second


@pytest.mark.usefixtures("network")
def test_simulated_costs_are_values_of_a_table_where_the_run_finished(hand):
    def edit(source):
        source["table"] = [{"name": "t", "values": ["time", "bytes_busiest"], "pivot": "nodes"}]
        source["network"] = {"tau": 5.0}

    suite, records = hand(of("D-SGD", 4, 1, "diverged"), edit=edit)
    _, files = build(suite, records)
    rows = rows_of(files["tables/t.md"].decode())
    assert rows[2] == ["D-SGD", "diverged (1 of 2)", "40 ± 0", "diverged (1 of 2)", "48 ± 0"]
    assert rows[3] == ["TELEPORTATION, k=1", "40 ± 0", "40 ± 0", "8 ± 0", "8 ± 0"]


@pytest.mark.parametrize("status", ["failed", None])
def test_costs_of_no_run_can_be_asked_for(hand, network, status):
    figure = ONE_FIGURE | {"x": "time", "columns": "nodes"}
    suite, records = hand(lambda _: status, edit=lambda s: s.update(figure=[figure]))
    assert_image(figures.draw(frame(suite, records), suite.spec.figure[0])["png"])
    assert network == []


# Whose a choice is, and at which scale it was run


def test_tags_stand_below_their_item_in_every_form(hand):
    tags = {"paper": "Fig. 2", "derived": "r₀", "assumed": "the <target>, 5 %"}

    def edit(source):
        source["table"][0] |= tags
        source["figure"] = [ONE_FIGURE | tags]

    _, files = build(*hand(edit=edit))
    assert r"Assumed: the \<target>, 5 %" in files["tables/gap.md"].decode()
    assert "% Paper: Fig. 2\n" in files["tables/gap.tex"].decode()
    page = files["index.html"].decode()
    for tag in tags:
        assert page.count(f'<p class="tag {tag}"><b>{tag}</b>') == 2
    assert "the &lt;target&gt;, 5 %</p>" in page
    assert "Fig. 2" not in files["tables/details.md"].decode()


def test_a_page_says_the_settings_that_the_runs_of_an_item_share(hand):
    def edit(source):
        source["figure"] = [ONE_FIGURE | {"methods": ["D-SGD"]}]

    suite, records = hand(edit=edit)
    page = build(suite, records)[1]["index.html"].decode()
    blocks = re.findall(r"Settings of the runs shown</summary><pre>(.*?)</pre>", page, re.DOTALL)
    assert len(blocks) == 3  # two tables and a figure
    shared, differing = blocks[2].split("that differ between runs:")
    for line in ("algorithm.name = dsgd", "topology.name = ring", "lr = 0.1", "problem.dim = 5"):
        assert line in shared.splitlines()
    assert differing.split("\n")[1:] == ["nodes: 4, 6", "active: 4, 6", "seed: 0, 1"]


SCALE = "Small scale: n to 6, not the paper's"


def test_everything_of_a_small_scale_says_so(hand):
    def edit(source):
        source["scale_note"] = SCALE
        source["duration"] = {"two cores": "1 s"}
        source["figure"] = [ONE_FIGURE]
        claim = {"name": "c", "text": "t", "source": "paper", "metric": "objective_gap"}
        source["claim"] = [claim | {"better": "TELE*", "than": "D-SGD"}]

    _, files = build(*hand(edit=edit))
    for name, content in files.items():
        if name.endswith((".md", ".tex", ".svg", ".json")):
            assert SCALE in content.decode(), name
    page = Page(files["index.html"].decode())
    shown = [text.strip() for text in page.texts if text.strip()]
    assert shown[shown.index("A tiny suite") + 1] == html.unescape(SCALE)  # behind the title
    assert "two cores: 1 s" in "".join(page.texts)


def test_a_full_scale_says_nothing_of_scales(hand):
    _, files = build(*hand(edit=lambda source: source.update(figure=[ONE_FIGURE])))
    assert not [name for name, content in files.items() if b"mall scale" in content]


# LaTeX

CHARACTERS = "ζ² σ² α β η τ ≥ ≤ > < × ± x̄ ‖∇f‖² − – … ∞ → % _ & # $ { } ~ ^ \\ [a] *b*"


def tokens(text):
    """What TeX would read: (control sequence or character, in math mode); fails where TeX would."""
    found, math, depth, i = [], False, 0, 0
    while i < len(text):
        if match := re.match(r"\\([a-zA-Z]+|.|\n)", text[i:]):
            found.append((match[0], math))
            i += len(match[0])
            continue
        c = text[i]
        i += 1
        if c == "%":
            i = text.find("\n", i) + 1 or len(text)
        elif c == "$":
            math = not math
        else:
            depth += (c == "{") - (c == "}")
            assert depth >= 0, "a brace is closed that was not opened"
            assert math or c not in "^_#", f"{c!r} outside of math"
            found.append((c, math))
    assert not math, "math is not closed"
    assert depth == 0, "a brace is not closed"
    return found


def test_latex_of_every_character_that_we_use_can_be_read_by_tex(zetas):
    labels = [CHARACTERS, "[optional]", "*star", "50% of D_1 & #2"]

    def edit(source):
        source["method"] = [
            {"algorithm": "dsgd", "label": label.replace("{", "{{").replace("}", "}}"), "lr": lr}
            for label, lr in zip(labels, (0.1, 0.2, 0.3, 0.4), strict=True)
        ]
        table = {"name": "t", "values": ["objective_gap", "consensus"], "pivot": "problem.zeta2"}
        table |= {"where": {"nodes": 4, "problem.sigma2": 1.0}, "caption": CHARACTERS}
        source["table"] = [table | {"assumed": CHARACTERS}]
        source["scale_note"] = CHARACTERS

    text = build(*zetas(edit))[1]["tables/t.tex"].decode()
    text.encode("ascii")
    found = tokens(text)
    math = {token for token, inside in found if inside and token.startswith("\\")}
    assert {r"\zeta", r"\times", r"\pm", r"\nabla", r"\bar", r"\ge", r"\to"} <= math
    known = {"begin", "end", "toprule", "midrule", "bottomrule", "textasciitilde"}
    known |= {"textbackslash", "textasciicircum", "ensuremath", "dots", "\\", "&", "%", "_", "#"}
    known |= {"$", "{", "}", "^"}
    assert {t[1:] for t, inside in found if not inside and t.startswith("\\")} <= known
    body = "".join(token for token, _ in found).split(r"\midrule")[1].split(r"\bottomrule")[0]
    rows = body.split(r"\\")[:-1]
    assert len(rows) == 4
    for row in rows:  # `\\` takes what follows in brackets, or a star, as an option
        assert not row.strip().startswith(("[", "*"))
        assert len(re.findall(r"(?<!\\)&", row)) == 4


def test_simulated_costs_are_those_of_the_time_model_at_the_recorded_rounds(finished):
    from teleport_bench.network import Network, simulate

    suite, records = open_report(finished / "out" / "suite")
    network = {"tau": 5.0, "mode": "barrier_free"}
    item = TableSpec(name="t", values=["time"], network=network)
    view = frame(suite, records).view(item, names=["time", "bytes_busiest"])
    for run in suite.planned():
        costs = simulate(run.spec, Network(**network), [0, 4, 8])
        mine = view.curves[(view.curves["label"] == run.label)]
        mine = mine[(mine["nodes"] == run.spec.nodes) & (mine["seed"] == run.spec.seed)]
        assert mine["rounds"].tolist() == [0, 4, 8]
        assert mine["time"].tolist() == costs.time.tolist()
        assert mine["bytes_busiest"].tolist() == costs.busiest_bytes.tolist()
        (last,) = view.runs.loc[mine["run"].unique(), "time"]
        assert last == costs.time[-1]
