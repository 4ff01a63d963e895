"""The command ``vmrepro``: a few verbs on ids. It parses and delegates; results go to stdout, complaints to stderr.

Exit status: 0 done, 1 a check or a claim came out otherwise, 2 misuse or something missing. What a verb needs is imported
when it runs, so that ``--help`` and ``list`` answer at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from vmrepro import __version__
from vmrepro.specs import catalog, efficiency
from vmrepro.specs.schema import TIERS


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv`` (by default the process's own) and return the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.verb(arguments)
    except (ValueError, FileNotFoundError, RuntimeError, ImportError) as error:
        print(f"vmrepro: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vmrepro: stopped; the same command goes on where this one ended", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vmrepro", description="The results of VideoMamba, recomputed and judged.")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    listing = verbs.add_parser("list", help="experiments by id, with the claims they answer")
    listing.add_argument("--tier", choices=TIERS, default="smoke")
    listing.set_defaults(verb=_list)

    running = verbs.add_parser("run", help="run or measure a figure, or one experiment; what is recorded is reused")
    _what(running)
    _where(running)
    running.add_argument("--jobs", type=int, help="processes that share the seeds (default: by tier and cores)")
    running.add_argument("--dry-run", action="store_true", help="print what would run and its cost, and stop")
    running.set_defaults(verb=_run)

    planning = verbs.add_parser("plan", help="what a run would train and what it costs; runs nothing")
    _what(planning)
    planning.add_argument("--json", action="store_true", help="the specs themselves, every default written out")
    planning.set_defaults(verb=_plan)

    evaluating = verbs.add_parser("evaluate", help="test a checkpoint on Kinetics-400 or SSV2; what is recorded is reused")
    evaluating.add_argument("checkpoint", type=Path, help="a released file, or weights.pt of a run")
    evaluating.add_argument("dataset", help="kinetics400 or ssv2")
    evaluating.add_argument("root", type=Path, help="its folder, with test.csv")
    _views(evaluating)
    _where(evaluating)
    evaluating.set_defaults(verb=_evaluate)

    predicting = verbs.add_parser("predict", help="what a checkpoint sees in a video file")
    predicting.add_argument("video", type=Path)
    predicting.add_argument("--checkpoint", type=Path, required=True, help="a released file, or weights.pt of a run")
    predicting.add_argument("--labels", type=Path, help="a text file with the name of each class in a line (default: numbers)")
    predicting.add_argument("--top", type=int, default=5, help="how many classes to print (default: 5)")
    _views(predicting)
    _where(predicting)
    predicting.add_argument("--decoder", default="auto", help="av, decord or torchcodec (default: auto)")
    predicting.set_defaults(verb=_predict)

    data = verbs.add_parser("data", help="check a data set of files, or measure the video decoders")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    checking = actions.add_parser("check", help="look for every file of a data set and decode it; 1 if something is wrong")
    checking.add_argument("dataset", help="imagenet, kinetics400 or ssv2")
    checking.add_argument("root", type=Path, help="its folder")
    checking.set_defaults(verb=_data_check)
    timing = actions.add_parser("bench", help="measure the video decoders that are installed")
    timing.add_argument("--record", action="store_true", help="keep the rows as figures/speed/decoders.csv")
    timing.set_defaults(verb=_data_bench)

    reporting = verbs.add_parser("report", help="figures, tables and pages again from recorded numbers; runs nothing")
    reporting.set_defaults(verb=_report)

    verifying = verbs.add_parser("verify", help="judge every claim from what is printed, counted and recorded; 1 if one changed")
    verifying.add_argument("--format", choices=("text", "csv", "json"), default="text", help="default: text")
    verifying.add_argument("--write", action="store_true", help="keep these verdicts as the list to compare with")
    verifying.set_defaults(verb=_verify)

    counting = verbs.add_parser("peers", help="count the other methods' models again and record them; needs the extra peers")
    counting.set_defaults(verb=_peers)

    doctor = verbs.add_parser("doctor", help="what works on this machine, what does not, and why")
    doctor.set_defaults(verb=_doctor)

    notebooks = verbs.add_parser("notebooks", help="run the notebooks, or renew what is committed of one")
    actions = notebooks.add_subparsers(required=True, metavar="ACTION")
    every = actions.add_parser("run", help="run every notebook")
    every.add_argument("--tier", choices=TIERS, default="smoke")
    every.set_defaults(verb=_notebooks_run)
    bless = actions.add_parser("bless", help="execute a notebook and commit its outputs as the new reference")
    bless.add_argument("notebook")
    bless.set_defaults(verb=_notebooks_bless)
    return parser


def _what(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="a figure (fig6) or one experiment, see `vmrepro list`")
    parser.add_argument("--tier", choices=TIERS, default="smoke", help="default: smoke")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--seeds", type=int, default=0, help="how many (default: what the tier asks for)")


def _where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument("--backend", default="auto", help="operator backend, see `vmrepro doctor` (default: auto)")


def _views(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clips", type=int, help="clips of a video, at different times (default: what the protocol says)")
    parser.add_argument("--crops", type=int, choices=(1, 3), help="crops of a clip (default: what the protocol says)")


def _list(arguments: argparse.Namespace) -> int:
    figures = {
        figure: [(experiment.id, " ".join(experiment.reproduces)) for experiment in members(arguments.tier)]
        for figure, members in catalog.FIGURES.items()
    }
    for figure, measurements in efficiency.FIGURES.items():
        figures[figure] = [(f"{len(measurements(arguments.tier))} measurements", " ".join(efficiency.CLAIMS[figure]))]
    widest = max(len(name) for rows in figures.values() for name, _ in rows)
    for figure, rows in figures.items():
        print(figure)
        for name, claims in rows:
            print(f"  {name:<{widest}}  {claims}".rstrip())
    return 0


def _run(arguments: argparse.Namespace) -> int:
    if arguments.dry_run:
        return _plan(arguments)
    if arguments.id in efficiency.FIGURES:
        return _measure(arguments)
    from vmrepro.report import rebuild, tables
    from vmrepro.runs import runner

    experiments = catalog.find(arguments.id, arguments.tier)
    chosen = catalog.seeds(arguments.tier, arguments.seed, arguments.seeds)
    options = {"device": arguments.device, "backend": arguments.backend, "jobs": arguments.jobs}
    records = runner.run_all(experiments, chosen, **options)
    figure = rebuild.DRAWN_BY.get(arguments.id)
    if figure is not None and runner.leads():
        saved = figure.save(records, arguments.tier)
        print(tables.text(figure.finals(saved.numbers).reset_index()))
        print(tables.text(tables.verdicts(figure.rulings(saved.numbers, arguments.tier), brief=True)))
    return 0


def _measure(arguments: argparse.Namespace) -> int:
    from vmrepro.report import fig1, tables
    from vmrepro.runs.efficiency import run

    measurements = efficiency.FIGURES[arguments.id](arguments.tier)
    saved = fig1.save(run(arguments.id, measurements, arguments.tier, arguments.device), arguments.tier)
    print(fig1.finals(saved.numbers).T.to_string(float_format=lambda value: f"{value:.4g}", na_rep="-"))
    print(tables.text(tables.verdicts(fig1.rulings(saved.numbers, arguments.tier), brief=True)))
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from vmrepro.specs.schema import to_dict

    if arguments.id in efficiency.FIGURES:
        for one in efficiency.FIGURES[arguments.id](arguments.tier):
            clip = f"{one.model.num_frames:>4} frames of {one.model.img_size} pixels, {one.model.length:>6} tokens"
            print(f"{one.subject:<22}{clip}, {'largest batch that fits' if one.batch is None else f'batch {one.batch}'}")
        print("Nothing was run.")
        return 0

    experiments = catalog.find(arguments.id, arguments.tier)
    chosen = catalog.seeds(arguments.tier, arguments.seed, arguments.seeds)
    if getattr(arguments, "json", False):
        print(json.dumps([to_dict(experiment) for experiment in experiments], indent=1))
        return 0
    from vmrepro.report import tables

    plan = tables.plan(experiments, len(chosen))
    print(tables.text(plan, digits=3))
    print(f"\n{plan['pmacs'].sum():.3g} x 10^15 multiply-adds in all, seeds {chosen[0]} to {chosen[-1]}. Nothing was run.")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from vmrepro.runs import classify, runner

    options = {"clips": arguments.clips, "crops": arguments.crops, "device": arguments.device, "backend": arguments.backend}
    record = classify.evaluate(arguments.checkpoint, arguments.dataset, arguments.root, **options)
    if runner.leads():
        found = record.provenance["test"]
        print(f"top-1 {found['top1']:.2f}%  top-5 {found['top5']:.2f}%  {found['seen']} videos, {found['views']} views of each")
        print(f"each prediction: {record.folder / 'predictions.csv'}")
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    if arguments.top < 1:
        raise ValueError(f"--top must be a positive number of classes, got {arguments.top}")
    from vmrepro.runs import classify

    names = ("labels", "clips", "crops", "device", "backend", "decoder")
    options = {name: getattr(arguments, name) for name in names}
    for name, share in classify.predict(arguments.video, arguments.checkpoint, **options).top(arguments.top):
        print(f"{share:7.2%}  {name}")
    return 0


def _data_check(arguments: argparse.Namespace) -> int:
    from vmrepro.data import check

    report = check.check(arguments.dataset, arguments.root)
    print(check.render(report))
    return 0 if report.ok else 1


def _data_bench(arguments: argparse.Namespace) -> int:
    import pandas as pd
    import torch

    from vmrepro.data import decode_bench
    from vmrepro.report import figures
    from vmrepro.runs import provenance

    rows = pd.DataFrame(decode_bench.measure())
    print(rows.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep="-"))
    if arguments.record:
        signed = provenance.collect(torch.device("cpu"), "auto", 1)
        figures.save_numbers("speed", "decoders", rows, {"claims": [], "runs": [{"id": "decoders", **signed}]})
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from vmrepro import paths
    from vmrepro.report import site

    print(f"{len(site.report())} files written; open {paths.figures() / 'index.html'}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from vmrepro.report import verify

    lines = verify.judgements()
    print(verify.render(lines, arguments.format), end="")
    if arguments.write:
        print(verify.write(lines), file=sys.stderr)
    changed = verify.changed(lines)
    for line in changed:
        print(f"CHANGED {line}", file=sys.stderr)
    return 1 if changed else 0


def _peers(arguments: argparse.Namespace) -> int:
    from vmrepro.models import peers
    from vmrepro.report import audit
    from vmrepro.runs import provenance

    counted = [pair for table in peers.TABLES for pair in peers.counts(table)]
    print(f"{len(audit.record_peers(counted, provenance.commit()))} rows recorded in figures/peers.csv")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from vmrepro import doctor

    results = doctor.checks()
    print(doctor.render(results))
    return 1 if any(check.status == "fail" for check in results) else 0


def _notebooks_run(arguments: argparse.Namespace) -> int:
    from vmrepro import notebooks, paths
    from vmrepro.report import site

    outcomes = notebooks.run_all(arguments.tier)
    written = site.report()
    print(notebooks.summary(outcomes))
    print(f"{len(written)} files of the report written from recorded numbers; open {paths.figures() / 'index.html'}")
    return 1 if any(outcome.error for outcome in outcomes) else 0


def _notebooks_bless(arguments: argparse.Namespace) -> int:
    from vmrepro import notebooks

    print(notebooks.bless(arguments.notebook))
    return 0


if __name__ == "__main__":
    sys.exit(main())
