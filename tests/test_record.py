"""Records: consistent or refused, written whole or not at all."""

import errno
import fcntl
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from teleport_bench import Record, RunSpec, UserError, executor
from teleport_bench.record import Records, Store, provenance
from teleport_bench.record import store as record_store
from teleport_bench.record.provenance import environment
from teleport_bench.record.schema import Made
from teleport_bench.record.store import PACK_FILE, write_atomically

SPEC = RunSpec(algorithm="dsgd", nodes=4, problem="quadratic", lr=0.1, rounds=8, eval_every=4)


@pytest.fixture
def record(make_record):
    """A finished run."""
    return make_record(SPEC, objective_gap=0.5)


def change(record, **fields):
    """The record with other content, validated again."""
    return Record.model_validate(record.model_dump() | fields)


def test_a_record_comes_back_from_json_as_it_was(make_record):
    for status in ("finished", "diverged", "failed"):
        record = make_record(SPEC, status)
        assert Record.model_validate_json(record.model_dump_json()) == record


def test_every_float_survives_the_way_to_disk_and_back(record, tmp_path):
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, float(np.nextafter(1, 2))]
    curves = {name: [*range(6)] for name in record.curves} | {"objective_gap": values}
    before = change(record, curves=curves)
    store = Store(tmp_path)
    store.save(before)
    after = store.load(SPEC).curves["objective_gap"]
    assert np.array(after).tobytes() == np.array(values).tobytes()


NONSENSE = {
    "curves of two lengths": ({"curves": {"rounds": [0, 1], "consensus": [0]}}, "one length"),
    "a failed run with curves": (
        {"status": "failed", "error": "boom", "curves": {"rounds": [0]}},
        "failed run has no curves",
    ),
    "a failed run without an error": ({"status": "failed", "curves": {}}, "error goes with"),
    "a finished run with an error": ({"error": "boom"}, "error goes with"),
    "a diverged run without a round": ({"status": "diverged"}, "diverged_at goes with"),
    "a finished run that diverged": ({"diverged_at": 4}, "diverged_at goes with"),
    "a failed run that diverged": (
        {"status": "failed", "error": "boom", "curves": {}, "diverged_at": 4},
        "diverged_at goes with",
    ),
    "an unknown status": ({"status": "killed"}, "status"),
    "another version of the layout": ({"schema_version": 2}, "schema_version"),
    "an unknown key": ({"comment": "x"}, "unknown key 'comment'"),
    "no settings": ({"spec": None}, "spec"),
    "a curve of text": ({"curves": {"rounds": ["many"]}}, "curves"),
}


@pytest.mark.parametrize(("fields", "message"), NONSENSE.values(), ids=NONSENSE)
def test_a_record_that_contradicts_itself_is_refused(record, fields, message):
    with pytest.raises(ValueError, match=message):
        change(record, **fields)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_record_holds_finite_numbers_only(record, number):
    with pytest.raises(ValueError, match="finite"):
        change(record, curves={"objective_gap": [1.0, number]})
    with pytest.raises(ValueError, match="finite"):
        Made.model_validate(record.made.model_dump() | {"seconds": number})
    with pytest.raises(ValueError, match="finite"):
        Made.model_validate(record.made.model_dump() | {"phases": {"mix": number}})


def test_a_finished_run_has_final_values(record):
    assert record.final("objective_gap") == 0.5
    assert record.final("rounds") == 8
    with pytest.raises(KeyError, match="test_accuracy"):
        record.final("test_accuracy")


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_a_run_that_did_not_finish_has_no_final_value(make_record, status):
    record = make_record(SPEC, status, **({} if status == "failed" else {"objective_gap": 0.5}))
    for metric in ("objective_gap", "rounds"):
        with pytest.raises(KeyError, match=f"is {status}: it has no final {metric}"):
            record.final(metric)


def test_a_result_is_the_record_without_how_it_was_made(record):
    other = change(record, made=record.made.model_dump() | {"seconds": 99.0, "date": "tomorrow"})
    assert other != record
    assert other.result() == record.result()
    assert set(record.result()) == set(Record.model_fields) - {"made"}


# The store


def test_a_stored_record_is_found_by_its_settings_only(record, tmp_path):
    store = Store(tmp_path)
    assert store.load(SPEC) is None
    store.save(record)
    assert store.load(SPEC) == record
    assert store.load(SPEC.model_copy(update={"seed": 1})) is None
    assert [path.name for path in store.runs.iterdir()] == [
        f"dsgd-ring-n4-k4-lr0.1-s0-{SPEC.id}.json"
    ]


def test_a_stored_record_is_one_line_of_json(record, tmp_path):
    Store(tmp_path).save(record)
    text = Store(tmp_path).path(SPEC).read_text()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert json.loads(text)["id"] == SPEC.id


def test_the_record_of_another_run_is_not_taken_for_this_one(record, tmp_path):
    store = Store(tmp_path)
    store.save(record)
    other = RunSpec.model_validate(SPEC.model_dump() | {"seed": 1})
    store.path(SPEC).rename(store.path(other))
    assert store.load(other) is None


def test_the_names_of_records_are_distinct_and_portable(tmp_path):
    changes = [{}, {"seed": 1}, {"lr": 1e-7}, {"lr": 1.00000001e-7}, {"momentum": 0.5}]
    specs = [RunSpec.model_validate(SPEC.model_dump() | fields) for fields in changes]
    names = [Store(tmp_path).path(spec).name for spec in specs]
    assert len(set(names)) == len(names)
    for name in names:
        assert set(name) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-"
        )


def test_preparing_a_store_makes_its_folders_and_leaves_nothing_in_them(tmp_path):
    store = Store(tmp_path / "a" / "b")
    store.prepare()
    store.prepare()
    assert list(store.runs.iterdir()) == []


def test_a_store_that_cannot_be_written_says_where_and_what_to_do(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write results to .*file/suite.*--out"):
        Store(tmp_path / "file" / "suite").prepare()


def fail(*_, **__):
    raise OSError(28, "No space left on device")


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("raises", [fail, interrupt])
@pytest.mark.parametrize(("target", "name"), [(os, "fsync"), (Path, "replace"), (Path, "chmod")])
@pytest.mark.parametrize("old", [b"what was there", None])
def test_a_write_that_fails_leaves_what_was_there_and_no_litter(
    tmp_path, monkeypatch, target, name, raises, old
):
    path = tmp_path / "folder" / "record.json"
    path.parent.mkdir()
    if old is not None:
        path.write_bytes(old)
    with monkeypatch.context() as patch:
        patch.setattr(target, name, raises)
        with pytest.raises((OSError, KeyboardInterrupt)):
            write_atomically(path, b"something new")
    assert (path.read_bytes() if path.exists() else None) == old
    assert list(path.parent.iterdir()) == ([path] if old is not None else [])


def test_a_write_is_on_disk_before_it_takes_the_old_file_s_place(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    path.write_bytes(b"old")
    seen = []
    fsync = os.fsync

    def watch(handle):
        seen.append((path.read_bytes(), os.fstat(handle).st_size))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watch)
    write_atomically(path, b"the new one")
    assert seen == [(b"old", len(b"the new one"))]
    assert path.read_bytes() == b"the new one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_makes_the_folder_and_a_file_that_others_may_read(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert path.stat().st_mode & 0o777 == 0o644


# Provenance


def test_the_environment_s_id_names_its_facts(monkeypatch):
    first = environment(torch.device("cpu"))
    assert environment(torch.device("cpu")) == first
    monkeypatch.setattr(torch, "get_num_threads", lambda: 999)
    other = environment(torch.device("cpu"))
    assert other["threads"] == 999
    assert other["id"] != first["id"]
    assert {k: v for k, v in other.items() if k not in ("id", "threads")} == {
        k: v for k, v in first.items() if k not in ("id", "threads")
    }


def test_an_environment_says_what_may_move_a_float():
    facts = environment(torch.device("cpu"))
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["packages"]["numpy"] == np.__version__
    assert facts["device"] == "cpu"
    assert facts["cuda"] is None
    assert facts["threads"] == torch.get_num_threads()


def test_the_example_of_the_results_readme_is_a_record(make_record):
    page = (Path(__file__).parents[1] / "results" / "README.md").read_text()
    (example,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    content = json.loads(example)
    spec = RunSpec.model_validate(content["spec"])
    assert content["spec"] == spec.model_dump(mode="json")
    assert content["id"] == spec.id
    record = Record.model_validate(content)
    assert record.model_dump().keys() == content.keys()
    assert make_record(spec, objective_gap=1.0).made.model_dump().keys() == content["made"].keys()
    assert {"`" + key + "`" for key in content} - {"`schema_version`"} <= set(
        re.findall(r"`\w+`", page.partition("| key | what |")[2])
    )


def test_a_record_of_a_later_schema_is_refused_and_kept(record, tmp_path):
    store = Store(tmp_path)
    store.save(record)
    path = store.path(SPEC)
    path.write_text(path.read_text().replace('"schema_version":1', '"schema_version":2'))
    with pytest.raises(UserError, match=r"has schema version 2, and this teleport-bench reads 1"):
        store.load(SPEC)


def test_a_record_without_the_fields_that_came_later_is_read(record):
    """As main wrote them before there were targets."""
    content = json.loads(record.model_dump_json())
    del content["reached_at"], content["made"]["engine"]
    assert Record.model_validate(content) == record


def runs_of(make_record, n):
    problem = {"name": "quadratic", "dim": 2}
    shared = {"algorithm": "dsgd", "nodes": 2, "problem": problem, "lr": 0.1, "rounds": 1}
    return [make_record(RunSpec(seed=s, **shared), objective_gap=float(s)) for s in range(n)]


def spec_of(record):
    return RunSpec.model_validate(record.spec)


def test_a_pack_holds_what_its_records_held(make_record, tmp_path):
    store, records = Store(tmp_path), runs_of(make_record, 5)
    store.prepare()
    for record in records:
        store.save(record)
    store.pack([spec_of(r) for r in records[:3]])
    store.pack([spec_of(r) for r in records[2:4]])
    own = store.path(spec_of(records[4])).name
    assert {p.name for p in store.runs.iterdir()} == {PACK_FILE, own}
    for at in (store, Store(tmp_path)):
        assert [at.load(spec_of(r)) for r in records] == records
    assert Store(tmp_path).load(spec_of(runs_of(make_record, 6)[5])) is None


def test_equal_records_give_equal_packs_in_whatever_order(make_record, tmp_path):
    records, packs = runs_of(make_record, 4), []
    for name, order in (("a", [0, 1, 2, 3]), ("b", [3, 1, 0, 2])):
        store = Store(tmp_path / name)
        store.prepare()
        for i in order:
            store.save(records[i])
            store.pack([spec_of(records[i])])
        packs.append((store.runs / PACK_FILE).read_bytes())
    assert packs[0] == packs[1]


def test_a_record_of_its_own_is_newer_than_the_pack(make_record, tmp_path):
    store, (record,) = Store(tmp_path), runs_of(make_record, 1)
    store.prepare()
    store.save(record)
    store.pack([spec_of(record)])
    newer = record.model_copy(update={"made": record.made.model_copy(update={"seconds": 9.0})})
    store.save(newer)
    assert Store(tmp_path).load(spec_of(record)) == newer
    store.pack([spec_of(record)])
    assert Store(tmp_path).load(spec_of(record)) == newer


@pytest.mark.parametrize("cut", [0.3, 0.7, 0.95])
def test_of_a_pack_that_was_cut_what_can_be_read_is_there(make_record, tmp_path, cut):
    store, records = Store(tmp_path), runs_of(make_record, 50)
    store.prepare()
    for record in records:
        store.save(record)
    store.pack([spec_of(r) for r in records])
    path = store.runs / PACK_FILE
    path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    found = [Store(tmp_path).load(spec_of(r)) for r in records]
    assert all(f is None or f == r for f, r in zip(found, records, strict=True))
    assert None in found


GARBAGE = {
    "empty": b"",
    "no gzip": b"no gzip",
    "no json": gzip.compress(b"no json\n"),
    "no record": gzip.compress(b"[]\n"),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_a_pack_of_garbage_is_no_pack(make_record, tmp_path, garbage):
    store, (record,) = Store(tmp_path), runs_of(make_record, 1)
    store.prepare()
    (store.runs / PACK_FILE).write_bytes(garbage)
    assert store.load(spec_of(record)) is None
    store.save(record)
    assert store.load(spec_of(record)) == record


def test_many_tuning_runs_are_packed_and_not_run_again(tmp_path, monkeypatch, write, texts, run):
    path = write(texts["tuned"], "tuned")
    assert run(path, out=tmp_path / "loose").code == 0
    monkeypatch.setattr(executor, "PACKED", 10)
    first = run(path)
    assert first.code == 0
    runs = tmp_path / "out/tuned/runs"
    assert len(list(runs.glob("*.json"))) == 12  # the reported ones
    assert "0 of them now" in run(path).err
    for name in ("tables/gap.csv", "tables/step-sizes.csv"):
        packed, loose = ((tmp_path / out / "tuned" / name).read_text() for out in ("out", "loose"))
        assert packed == loose


def test_without_git_a_record_has_a_version_and_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    provenance.code.cache_clear()
    try:
        assert provenance.code()["commit"] is None
    finally:
        provenance.code.cache_clear()
    assert provenance._version("no-such-package") is None


def test_a_file_system_without_locks_takes_records(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", fail)
    assert not Store(tmp_path)._lock()


# What is wrong with a file is said


def edited(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes, indent=1))


def test_a_record_that_was_changed_is_read_with_a_word(record, tmp_path):
    Store(tmp_path).save(record)
    path = Store(tmp_path).path(SPEC)
    edited(path)  # other spaces are the same content
    store = Store(tmp_path)
    assert store.load(SPEC) == record
    assert not store.faults
    for changes in (
        {"curves": json.loads(path.read_text())["curves"] | {"objective_gap": [1.0, 0.25]}},
        {"status": "failed", "curves": {}, "error": "x"},
        {"digest": "0" * 32},
    ):
        store.save(record)
        edited(path, **changes)
        store.load(SPEC)
        (fault,) = store.faults.values()
        assert "was changed after it was written" in fault.why
        assert not fault.lost
        store.save(record)
        assert store.load(SPEC) == record
        assert not store.faults


def test_a_record_of_an_earlier_version_has_no_digest(record, tmp_path):
    store = Store(tmp_path)
    store.save(record)
    content = json.loads(store.path(SPEC).read_text())
    del content["digest"]
    store.path(SPEC).write_text(json.dumps(content))
    assert store.load(SPEC) == record
    assert not store.faults


def of_another(path):
    edited(path, spec=json.loads(path.read_text())["spec"] | {"seed": 5})


def sparse(path):
    with path.open("wb") as file:
        file.truncate(2**40)


WRONG = {
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "is a folder"),
    "a pipe": (lambda p: (p.unlink(), os.mkfifo(p)), "is a pipe or a device"),
    "a link": (lambda p: (p.unlink(), p.symlink_to("/dev/zero")), "is a link"),
    "far too large": (sparse, "too many for a record"),
    "empty": (lambda p: p.write_bytes(b""), "is no record"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-9]), "is no record"),
    "an infinite curve": (
        lambda p: p.write_bytes(p.read_bytes().replace(b"0.5", b"Infinity")),
        "is no record (curves",
    ),
    "curves of two lengths": (
        lambda p: edited(p, curves={"rounds": [0.0, 8.0], "epochs": [0.0]}),
        "curves must have one length",
    ),
    "another status": (lambda p: edited(p, status="done"), "is no record (status"),
    "of other settings": (of_another, "is not the record of its settings"),
    "of another id": (lambda p: edited(p, id="0" * 12), "is not the record of its settings"),
    "endless digits": (lambda p: edited(p, reached_at=10**4000), "is no record (reached_at"),
}


@pytest.mark.parametrize(("damage", "words"), WRONG.values(), ids=WRONG)
def test_what_is_in_the_place_of_a_record_is_named(record, tmp_path, damage, words):
    store = Store(tmp_path)
    store.save(record)
    damage(store.path(SPEC))
    assert store.load(SPEC) is None
    ((name, fault),) = store.faults.items()
    assert name == f"runs/{store.path(SPEC).name}"
    assert fault.lost
    assert words in fault.why


def test_faults_are_said_once_and_of_many_the_first(make_record, tmp_path):
    store, records = Store(tmp_path), runs_of(make_record, 9)
    for record in records:
        store.save(record)
        store.path(spec_of(record)).write_bytes(b"")
        store.load(spec_of(record))
    said = store.faults.say(lost=True)
    assert len(said) == 6
    assert said[-1] == "and 4 more files"
    assert store.faults.say(lost=True) == store.faults.say(lost=False) == []


def test_what_is_wrong_with_a_pack_is_named(make_record, tmp_path):
    store, records = Store(tmp_path), runs_of(make_record, 3)
    store.prepare()
    lines = [record.to_line() for record in records]
    for content, words in (
        (gzip.compress(b"".join([*lines, lines[0]])), "two records of one id"),
        (gzip.compress(b"".join([b"[]\n", *lines])), "has a line that is no record"),
        (gzip.compress(b"".join(lines))[:-9], "cannot be read to its end"),
        (
            gzip.compress(b"".join(lines).replace(b'"seconds":1.0', b'"seconds":2.0')),
            "was changed after",
        ),
    ):
        (store.runs / PACK_FILE).write_bytes(content)
        reading = Store(tmp_path)
        found = [reading.load(spec_of(r)) for r in records]
        assert None not in found or "to its end" in words
        assert any(words in fault.why for fault in reading.faults.values())


def test_report_names_a_record_that_was_changed(finished, bench, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    monkeypatch.chdir(finished)
    assert bench("report", "suite.toml", "--out", out, "--check").code == 0
    path = min((out / "suite" / "runs").iterdir())
    edited(path, made=json.loads(path.read_text())["made"] | {"seconds": 1.0})
    done = bench("report", "suite.toml", "--out", out, "--check")
    assert done.code == 1
    assert done.out.splitlines()[0] == f"runs/{path.name}: {record_store.EDITED}"
    assert path.name in bench("report", "suite.toml", "--out", out).err
    done = bench("run", "suite.toml", "--out", out, "--compile", "off")
    assert "12 runs, 0 of them now" in done.err
    assert path.name in done.err
    path.write_bytes(b"")
    done = bench("run", "suite.toml", "--out", out, "--compile", "off")
    assert "12 runs, 1 of them now" in done.err
    assert f"{path} is no record" in done.err
    path.unlink()
    path.mkdir()
    done = bench("run", "suite.toml", "--out", out, "--compile", "off")
    assert done.code == 2
    assert f"{path} is a folder" in done.err


@pytest.mark.parametrize("name", ["unsaved.jsonl", ".lock", f"runs/{PACK_FILE}", "index.html"])
def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    with Store(tmp_path) as store, pytest.raises(UserError, match=r"director|is a folder"):
        store.prepare()


def test_checkpoints_that_are_a_file_are_refused(tmp_path):
    (tmp_path / "checkpoints").write_text("x")
    with Store(tmp_path) as store, pytest.raises(UserError, match="checkpoints is no folder"):
        store.prepare()


def test_unsaved_records_that_were_changed_are_not_saved(make_record, tmp_path):
    records = runs_of(make_record, 2)
    lines = b"".join(record.to_line() for record in records)
    for content, there in ((lines, 2), (lines.replace(b"1.0,0.0", b"1.0,0.5"), 0), (b"{}\n", 0)):
        (tmp_path / "unsaved.jsonl").write_bytes(content)
        with Store(tmp_path) as store:
            store.prepare()
        assert [store.load(spec_of(r)) for r in records].count(None) == 2 - there
        assert bool(store.faults) == (not there)
        assert not (tmp_path / "unsaved.jsonl").exists()
        for path in store.runs.iterdir():
            path.unlink()
    os.mkfifo(tmp_path / "unsaved.jsonl")
    with Store(tmp_path) as store:
        store.prepare()
    assert not (tmp_path / "unsaved.jsonl").exists()


def test_what_another_process_writes_is_left_to_it(tmp_path):
    """A report holds no lock on the folder."""
    (tmp_path / "tables").mkdir()
    handle, name = record_store._begin(tmp_path / "tables" / "gap.md")
    left = tmp_path / "figures" / ".curves.svg.abcdefgh.part"
    left.parent.mkdir()
    left.write_bytes(b"half")
    with Store(tmp_path) as store:
        store.prepare()
        assert Path(name).exists()
        assert not left.exists()
    assert Path(name).exists()
    os.close(handle)
    with Store(tmp_path) as store:
        store.prepare()
    assert not Path(name).exists()


def test_a_file_that_was_taken_for_one_that_was_left_is_begun_again(tmp_path, monkeypatch):
    lock, begun = fcntl.flock, []

    def late(handle, how):
        if not begun:
            (path,) = tmp_path.glob(".*.part")
            begun.append(path)
            path.unlink()
        lock(handle, how)

    monkeypatch.setattr("fcntl.flock", late)
    write_atomically(tmp_path / "x", b"content")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_records_in_memory_are_what_they_were_and_take_little(make_record):
    records = runs_of(make_record, 300)
    many = Records()
    for record in records[:100]:
        many[record.id] = record
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for record in records[100:]:
            many[record.id] = record
        assert (tracemalloc.get_traced_memory()[0] - before) / 200 < 1000
    finally:
        tracemalloc.stop()
    assert [many[r.id] for r in records] == records
    assert [type(many[r.id].curves["rounds"][0]) for r in records[:3]] == [float] * 3
    assert list(many.values()) == records
    assert many[records[0].id].result() == records[0].result()
    del many[records[0].id]
    assert records[0].id not in many


# Which code made it


def test_the_environment_s_git_is_not_another_s(monkeypatch, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    for call in (
        ["init", "-q"],
        ["-c", "user.name=x", "-c", "user.email=x@x", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", *call], cwd=other, env=clean, check=True)
    provenance.code.cache_clear()
    expected = provenance.code()
    for names in (("GIT_DIR",), ("GIT_DIR", "GIT_WORK_TREE"), ("GIT_INDEX_FILE",)):
        with monkeypatch.context() as patch:
            for name in names:
                patch.setenv(name, str(other / (".git" if name == "GIT_DIR" else "")))
            provenance.code.cache_clear()
            assert provenance.code() == expected
    provenance.code.cache_clear()


def test_a_git_that_hangs_or_speaks_of_another_folder_says_nothing(monkeypatch, tmp_path):
    root = Path(provenance.__file__).parents[2]
    if not (root / ".git").exists():
        pytest.skip("no checkout")
    monkeypatch.setattr(provenance, "PATIENCE", 0.2)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for script in ("exec sleep 60", f"echo {tmp_path}", "exit 128", "printf '\\377'"):
        (tmp_path / "git").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "git").chmod(0o755)
        provenance.code.cache_clear()
        assert provenance.code()["commit"] is None
    provenance.code.cache_clear()


def test_sources_are_known_by_their_content(tmp_path):
    """Of two checkouts with uncommitted changes, each is its own."""
    for name, content in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name / "package").mkdir(parents=True)
        (tmp_path / name / "package" / "x.py").write_text(content)
    a, b, c = (provenance._digest((tmp_path / n).rglob("*.py")) for n in "abc")
    assert a == b != c
    names = {path.name for path in provenance._own()}
    assert {"fleet.py", "rounds.cpp", "mixing.hpp", "cpu_mix.cpp", "ops.py"} <= names
    assert provenance.code()["sources"] == provenance._digest(provenance._own())[:12]


def test_code_from_elsewhere_is_known_by_its_content(tmp_path, monkeypatch):
    before = provenance.loaded()
    (tmp_path / "helper_of_a_test.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("helper_of_a_test")
    assert provenance.loaded() != before
    del sys.modules["helper_of_a_test"]
    assert provenance.loaded() == before
