"""The command line: `teleport-bench COMMAND`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from teleport_bench.console import unfailing
from teleport_bench.errors import FULL, UserError, counted

if TYPE_CHECKING:
    from teleport_bench.record import Records, Store
    from teleport_bench.report.tables import Table
    from teleport_bench.suite import Scale, Suite

OK, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: done; 1: some runs failed, the report differs, or the output was lost; 2: bad
    input; 130: Ctrl-C."""
    with unfailing() as output:
        try:
            code = _main(arguments)
        except SystemExit as leave:  # argparse: --help, and mistakes
            code = int(leave.code or 0)
        output.flush()
        lost = output.error
        if lost and not isinstance(lost, BrokenPipeError):  # a reader that left, as `head` does
            reason = getattr(lost, "strerror", None) or lost
            print(
                f"teleport-bench: the output cannot be written: {reason}; results are kept, and "
                "the same command shows them again",
                file=sys.stderr,
            )
            code = code or SOME_FAILED
    return code


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    try:
        _load(getattr(options, "plugins", ()))
        code: int = options.command(options)
    except UserError as error:
        print(f"teleport-bench: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\nteleport-bench: stopped; the same command goes on where it was", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:  # of a log, or a trace: what is written to results says so itself
        if error.errno not in FULL:
            raise
        print(f"teleport-bench: {error}; make room, and run the command again", file=sys.stderr)
        return SOME_FAILED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="teleport-bench", description="Benchmarks for decentralized learning."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    listing = commands.add_parser(
        "list", help="suites, algorithms, topologies, problems, models, data"
    )
    listing.set_defaults(command=_list)

    run = commands.add_parser(
        "run", help="run a suite, or what is left of it, and write its report"
    )
    run.add_argument(
        "suite",
        metavar="SUITE",
        help="a built-in name (demo), a folder of them (paper), or a path to a .toml file",
    )
    tune = commands.add_parser(
        "tune", help="choose step sizes and k alone, and show what the search for k saves"
    )
    tune.add_argument("suite", metavar="SUITE", help="as for run")
    tune.add_argument(
        "--exhaustive", action="store_true", help="also run every k alone, to compare with"
    )
    for command in (run, tune):
        command.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
        command.add_argument(
            "--set",
            dest="overrides",
            metavar="KEY=VALUE",
            action="append",
            default=[],
            help="override a value of the suite, as in --set rounds=50 or --set grid.nodes=[8,16]",
        )
        command.add_argument(
            "--compile",
            default="auto",
            choices=("auto", "on", "off"),
            help="rounds in C++ or CUDA graphs; auto: where that saves more than compiling takes",
        )
        command.add_argument(
            "--data",
            metavar="DIR",
            help="where image data sets lie in the layout of the Hugging Face hub, as DIR/cifar10 "
            "(default: what TELEPORT_BENCH_DATA says); the hub gives what is not there",
        )
        command.add_argument("--rerun", action="store_true", help="run everything, finished or not")
        command.add_argument(
            "--deterministic",
            action="store_true",
            help="on CUDA, take only algorithms that give the same bits each time, slower ones; on "
            "the CPU that is so anyway",
        )
    run.add_argument(
        "--profile",
        metavar="FILE",
        type=Path,
        help="write a trace of what is run now, call by call, for ui.perfetto.dev or chrome://tracing",
    )
    run.set_defaults(command=_run)
    tune.set_defaults(command=_tune)

    report = commands.add_parser("report", help="rebuild tables, figures and page from the records")
    report.add_argument(
        "suite", metavar="SUITE", help="what was run: a suite's name or path, or a folder of suites"
    )
    for command in (run, tune, report):
        command.add_argument(
            "--scale",
            default="full",
            choices=("full", "small"),
            help="small: the same plan with what the suite has under [small]",
        )
    report.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where a file differs by a byte"
    )
    report.set_defaults(command=_report)

    theory = commands.add_parser(
        "theory", help="derived rates, spectral gaps and the best number of active nodes"
    )
    theory.add_argument("--nodes", metavar="N,..", type=_listed, help="numbers of nodes n")
    theory.add_argument("--rounds", metavar="T,..", type=_listed, help="numbers of rounds T")
    theory.add_argument("--topology", dest="topologies", metavar="NAME", nargs="+")
    theory.add_argument(
        "--sigma2", metavar="X", type=_number, help="variance of a stochastic gradient"
    )
    theory.add_argument(
        "--zeta2", metavar="X", type=_number, help="heterogeneity of the nodes' gradients"
    )
    theory.add_argument(
        "--L", metavar="X", type=_number, help="smoothness of each node's objective"
    )
    theory.add_argument("--r0", metavar="X", type=_number, help="f(x0) - min f")
    theory.set_defaults(command=_theory)

    kernels = commands.add_parser(
        "kernels", help="time the mixing kernels beside plain copies, and write tables and a figure"
    )
    rounds = commands.add_parser(
        "rounds", help="time whole rounds beside what one would write instead, likewise"
    )
    for command, name in ((kernels, "kernels"), (rounds, "rounds")):
        command.add_argument(
            "--json",
            metavar="FILE",
            type=Path,
            nargs="+",
            help="measure nothing: draw what pytest-benchmark wrote",
        )
        command.add_argument("--scale", default="full", choices=("full", "small"))
        command.set_defaults(command=_benchmark, name=name)
    for command, where in (
        (run, "SUITE"),
        (report, "SUITE"),
        (tune, "SUITE"),
        (theory, "theory"),
        (kernels, "kernels/MACHINE"),
        (rounds, "rounds/MACHINE"),
    ):
        command.add_argument(
            "--out",
            metavar="DIR",
            type=Path,
            default=Path("results"),
            help=f"results lie in DIR/{where} (default: results)",
        )

    for command in (listing, run, tune, report, theory):
        command.add_argument(
            "--plugin",
            dest="plugins",
            metavar="FILE",
            action="append",
            default=[],
            help="execute a Python file that registers components of your own; repeatable",
        )

    env = commands.add_parser("env", help="what a record says of this machine and this code")
    for command in (env, kernels, rounds):
        command.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    env.set_defaults(command=_env)
    return parser


def _number(text: str) -> int | float | str:
    """The number that a text is; the text itself, for an error message, where it is none."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _listed(text: str) -> list[int | float | str]:
    return [_number(part) for part in text.split(",")]


def _load(paths: Sequence[str]) -> None:
    if paths:
        from teleport_bench import plugins

        for path in paths:
            plugins.load_plugin(path)


def _list(_: argparse.Namespace) -> int:
    import tomllib

    from teleport_bench import registry, suite

    print("suites")
    for name, path in suite.built_in().items():
        source = tomllib.loads(path.read_text("utf-8"))
        print(f"  {name:<24}{source.get('title', '')}")
        for scale, at in (("full", source), ("small", source.get("small", {}))):
            if duration := at.get("duration"):
                times = ", ".join(f"{time} on {place}" for place, time in duration.items())
                print(f"  {'':<24}  {scale}: {times}")
    for kind in registry.KINDS:
        print(f"\n{kind.kind}")
        for entry in kind:
            print(f"  {entry.name:<24}{entry.summary}")
            for option, field in entry.options.model_fields.items():
                default = "required" if field.is_required() else f"default {field.default!r}"
                print(f"  {'':<24}  {option}: {default}")
    return OK


def _run(options: argparse.Namespace) -> int:
    with _profiled(options.profile):
        return _each(options, lambda suite: _execute(options, suite))


def _each(options: argparse.Namespace, do: Callable[[Suite], int]) -> int:
    """Do it for the suite, or for each of a folder of them; a folder ends with all its claims."""
    if options.compile != "off" and not options.device.startswith("cuda"):
        from teleport_bench.libraries import ROUNDS

        ROUNDS.begin()  # beside the import of torch; the smaller library has time after that
    from teleport_bench.data.source import DATA_VARIABLE
    from teleport_bench.suite import Suite, suite_name

    if options.data:
        if not os.path.isdir(options.data):  # noqa: PTH112 - pathlib raises for a name too long
            raise UserError(
                f"--data names the folder that holds image data sets, got {options.data!r}, which "
                "is none: name another, or leave it out"
            )
        os.environ[DATA_VARIABLE] = str(Path(options.data).absolute())  # a ~ here is a folder
    chosen = _scaled(options)
    code = OK
    for name, scale in chosen:
        try:
            code = max(code, do(Suite.load(name, options.overrides, scale)))
        except UserError as error:
            if len(chosen) == 1:
                raise
            # the others of the folder may do without what this one lacks
            print(f"teleport-bench: {error}", file=sys.stderr)
            code = BAD_INPUT
    if len(chosen) > 1:
        _print_claims([options.out / suite_name(*each) for each in chosen])
    return code


def _scaled(options: argparse.Namespace) -> list[tuple[str, Scale]]:
    """The suites that are meant, each with its scale: one of a folder that has one scale alone is
    the same at any."""
    from teleport_bench.suite import of_group, scales

    names = of_group(options.suite)
    return [
        (name, options.scale if len(names) == 1 or options.scale in scales(name) else "full")
        for name in names
    ]


def _execute(
    options: argparse.Namespace,
    suite: Suite,
    *,
    tuning_only: bool = False,
    exhaustive: bool = False,
) -> int:
    from teleport_bench.executor import be_deterministic, pick_device, run_suite
    from teleport_bench.plugins import outdated
    from teleport_bench.progress import Meter
    from teleport_bench.record import Store

    device = pick_device(options.device)
    if options.deterministic:
        be_deterministic()
    folder = options.out / suite.name
    _check_place(folder, suite)
    for note in suite.notes():
        print(f"teleport-bench: {suite.name}: {note}", file=sys.stderr)
    meter = Meter()
    with Store(folder) as store:
        try:
            records = run_suite(
                suite,
                store,
                device,
                meter,
                options.rerun,
                options.compile,
                tuning_only=tuning_only,
                exhaustive=exhaustive,
            )
        except KeyboardInterrupt:
            meter.close()
            print(f"\n{_so_far(suite, store, tuning_only)}", file=sys.stderr)
            raise
        finally:
            meter.close()
        print(f"{counted(len(records), 'run')}, {meter.executed} of them now", file=sys.stderr)
        for name, count in outdated(records.values()).items():
            print(
                f"teleport-bench: another version of {name} made {count} of the runs; --rerun "
                "makes all of them again",
                file=sys.stderr,
            )
        return _finish(
            folder, suite.name, ("step-sizes", "tuning-cost", "search") if tuning_only else None
        )


def _check_place(folder: Path, suite: Suite) -> None:
    """Say which runs of an earlier report in the folder are no part of the new one; UserError where
    that report is another suite's, or a built-in one's as it is and --set changes it."""
    from teleport_bench.record.store import SUITE_FILE
    from teleport_bench.report.build import differences, run_ids
    from teleport_bench.suite import built_in, from_json, to_json

    try:
        text = (folder / SUITE_FILE).read_text("utf-8")
        source = json.loads(text)["suite"]
        title = source["title"]
        old = set() if text == to_json(suite) else run_ids(from_json(text))
    except UserError:  # of a plugin that is not loaded, or of another version
        old = set()
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return  # none, or none that can be read
    left = old - run_ids(suite)
    if title != suite.spec.title and left == old and text != to_json(suite):
        raise UserError(
            f"{folder} holds another suite, {title!r} and not {suite.spec.title!r}: name another "
            f"folder with --out, rename the file, or remove {folder}"
        )
    if not left:
        return
    differ = differences(source, suite.source)
    if suite.overrides and suite.name.removesuffix("-small") in built_in():
        raise UserError(
            f"{folder} holds results of {suite.name} with other settings ({differ}), whose report "
            "would be replaced: name another folder with --out"
        )
    print(
        f"teleport-bench: {counted(len(left), 'run')} of other settings ({differ}) stay in "
        f"{folder / 'runs'}, and are no part of this report",
        file=sys.stderr,
    )


def _so_far(suite: Suite, store: Store, tuning_only: bool) -> str:
    """How many of a suite's runs are there."""
    from teleport_bench.report.build import load_records
    from teleport_bench.tune import decided

    records = load_records(suite, store)
    known, planned = suite.tuning, len(suite.tuning)
    if not tuning_only:
        reported = decided(suite, records)
        known, planned = [*known, *reported], planned + max(len(reported), len(suite.planned()))
    there = sum(r.spec.id in records and records[r.spec.id].status != "failed" for r in known)
    return f"{there} of {planned} runs are kept in {store.runs}, {planned - there} are left"


def _tune(options: argparse.Namespace) -> int:
    return _each(options, lambda suite: _choose(options, suite))


def _choose(options: argparse.Namespace, suite: Suite) -> int:
    """Run the tuning runs alone, and print what they choose."""
    if not suite.tuning:
        raise UserError(f"{suite.name} has no [tune], so there is nothing to choose")
    return _execute(options, suite, tuning_only=True, exhaustive=options.exhaustive)


@contextlib.contextmanager
def _profiled(path: Path | None) -> Iterator[None]:
    """Trace what runs in here, and write it whatever comes of it."""
    from teleport_bench import trace

    if path is None:
        yield
        return
    try:  # before hours are spent
        path.open("ab").close()
    except OSError as error:
        raise UserError(
            f"cannot write the trace to {path}: {error.strerror or error}; name another file"
        ) from error
    with trace.taking() as taken:
        try:
            yield
        finally:
            taken.write(path)
            more = f", the first {trace.MOST_EVENTS:,} spans" if taken.dropped else ""
            print(f"trace: {path}{more}", file=sys.stderr)


def _finish(
    folder: Path, name: str, shown: Collection[str] | None = None, scale: Scale | None = None
) -> int:
    """Write the report, print its tables (or those shown), name the page; exit code by the state of
    the runs. scale: as in `_built`."""
    from teleport_bench.report.build import earlier

    suite, records, tables, files = _built(folder, name, scale)
    for lost in (False, True):
        for text in records.faults.say(lost=lost):
            print(f"teleport-bench: {text}", file=sys.stderr)
    _write(folder, files, earlier(folder))
    print(f"\n{suite.spec.title}")
    _show([table for table in tables if shown is None or table.name in shown])
    print(f"\nThe page: {folder / 'index.html'}")
    failed = sum(record.status == "failed" for record in records.values())
    if failed:
        print(
            f"teleport-bench: {counted(failed, 'run')} failed; the page says why, and "
            f"`teleport-bench run {name}` tries again",
            file=sys.stderr,
        )
    return SOME_FAILED if failed else OK


def _built(
    folder: Path, name: str, scale: Scale | None
) -> tuple[Suite, Records, list[Table], dict[str, bytes]]:
    """The suite of a folder with its records, and the tables and files of its report.

    scale: that of the suite's file, which then says what is shown; None: as it was run.
    """
    from teleport_bench.record import Store
    from teleport_bench.record.store import SUITE_FILE
    from teleport_bench.report.build import as_in_file, build, load_records, open_report
    from teleport_bench.suite import to_json

    stored, records = open_report(folder)
    suite = as_in_file(stored, name, scale) if scale else stored
    changed = {}
    if suite is not stored:
        records = load_records(suite, Store(folder))
        changed[SUITE_FILE] = to_json(suite).encode()
    tables, files = build(suite, records)
    return suite, records, tables, changed | files


def _write(folder: Path, files: Mapping[str, bytes], old: Iterable[str]) -> None:
    from teleport_bench.report.build import write

    if removed := write(folder, files, old):
        print(
            f"teleport-bench: removed from {folder} what an earlier report wrote and this one has "
            f"not: {', '.join(removed)}",
            file=sys.stderr,
        )


def _report(options: argparse.Namespace) -> int:
    from teleport_bench.suite import suite_name

    chosen = _scaled(options)
    code = OK
    for name, scale in chosen:
        folder = options.out / suite_name(name, scale)
        code = max(
            code,
            _check(folder, name, scale) if options.check else _finish(folder, name, None, scale),
        )
    if len(chosen) > 1 and not options.check:
        _print_claims([options.out / suite_name(*each) for each in chosen])
    return code


def _check(folder: Path, name: str, scale: Scale) -> int:
    """Whether the files of a report are what the records give; prints those that are not."""
    from teleport_bench.report.build import check

    _, records, _, files = _built(folder, name, scale)
    wrong = [f"{name}: {fault.why}" for name, fault in records.faults.items()]
    wrong += check(folder, files)
    for difference in wrong:
        print(difference)
    if not wrong:
        of = counted(len(records), "record")
        print(f"{len(files)} files of {folder} are what {of} give, byte for byte")
    return SOME_FAILED if wrong else OK


def _print_claims(folders: Sequence[Path]) -> None:
    """What the suites of a folder say of their claims, in one table."""
    from teleport_bench.report.claims import summary

    _show([summary(folders)])


def _theory(options: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from teleport_bench.locator import Locator
    from teleport_bench.report.theory import FILES, build
    from teleport_bench.theory import TheorySpec

    given = {key: getattr(options, key) for key in TheorySpec.model_fields}
    try:
        spec = TheorySpec.model_validate({k: v for k, v in given.items() if v is not None})
    except ValidationError as error:
        raise UserError(Locator("theory", "").explain(error, lambda loc: [loc])) from None
    tables, files = build(spec)
    _write(options.out / "theory", files, FILES)
    _show(tables)
    print(f"\nTables and a figure: {options.out / 'theory'}")
    return OK


def _show(tables: Sequence[Table]) -> None:
    for table in tables:
        print(f"\n{table.caption}\n{table.terminal()}")
        for note in table.notes:
            print(note)


def _benchmark(options: argparse.Namespace) -> int:
    """`kernels` and `rounds`: measure, or take what was measured, and draw it."""
    import importlib
    import tempfile

    from teleport_bench.executor import pick_device
    from teleport_bench.report.bench import of_inputs

    report = importlib.import_module(f"teleport_bench.report.{options.name}")
    with tempfile.TemporaryDirectory() as folder:
        paths = options.json or [Path(folder) / "benchmark.json"]
        code = OK
        if not options.json:
            pick_device(options.device)  # says what is wrong with it
            code = _measure(report.SOURCE, paths[0], options.device, options.scale)
        if code != OK and not paths[0].exists():
            return SOME_FAILED
        frame, machine = report.load(paths)
        tables, files = report.build(frame, machine)
        files |= of_inputs(paths, files)
    place = options.out / options.name / report.machine_name(machine)
    _write(place, files, report.FILES)
    for other in sorted(place.glob("*.json")):
        if other.name not in files:
            print(f"teleport-bench: {other} is no part of these tables", file=sys.stderr)
    _show(tables)
    print(f"\nTables, a figure and all samples: {place}")
    return SOME_FAILED if code else OK


def _measure(source: str, path: Path, device: str, scale: str) -> int:
    """Run the benchmarks in a process of their own."""
    import subprocess
    from importlib.util import find_spec

    file = Path(__file__).parents[1] / "suites" / "bench" / source
    if not file.is_file():
        raise UserError(
            "the benchmarks are in the project's checkout, not in its package: run it from there, "
            "or give --json a file that it wrote"
        )
    if not find_spec("pytest_benchmark"):
        raise UserError("pytest-benchmark is missing: pip install -c constraints.txt '.[test]'")
    options = ["-q", "-p", "no:cacheprovider", "--device", device]
    command = [sys.executable, "-m", "pytest", str(file), *options, "--scale", scale]
    # of its own: a test run that started this one has said nothing to it
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    command.append(f"--benchmark-json={path}")
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        print(f"teleport-bench: the benchmarks ended with exit code {code}", file=sys.stderr)
    return code


def _env(options: argparse.Namespace) -> int:
    from teleport_bench.executor import pick_device
    from teleport_bench.record.provenance import code, environment

    facts = {"code": code(), "environment": environment(pick_device(options.device))}
    print(json.dumps(facts, indent=2))
    return OK
