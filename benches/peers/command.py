"""The command line: what to measure, on whom, how long, and where the results go."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import fnmatch
import json
import os
import resource
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Iterator, Optional

from . import build, chart, machine, packages, report
from .cells import CELLS, chosen
from .field import OTHERS, Peer, Pontoon, Raw, Veth
from .field.rootlesskit import take_user_back
from .loads import Bench
from .measure import Plan, measure, total
from .progress import Progress, clock
from .topology import STATE, Failure, Site, cubic_allowed, leftovers

LOCK = Path("/run/ptb.lock")
ALWAYS = {"ip", "nsenter", "sysctl", "ss", "iperf3", "nginx", "wrk"}
BUSY_POLL = "--busy-poll=50"
SPLICE = ",splice"

EXAMPLES = """
examples:
  sudo benches/peers/run                                  everything: about three hours
  sudo benches/peers/run --quick                          every cell once and short, to see that it works
  sudo benches/peers/run --cells 'c2c.*' --peers 'kernel,ovs*,pontoon'
  sudo benches/peers/run --pontoon old=/tmp/pontoon --pontoon new=target/release/pontoon --peers 'old,new' --subject old
  sudo benches/peers/run --pontoon 'pontoon=-' --pontoon 'one-worker=- --workers 1' --peers 'pontoon,one-worker'
  benches/peers/run report --out target/peers --subject pasta
"""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benches/peers/run", formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description=__doc__, epilog=EXAMPLES)
    parser.add_argument("do", nargs="?", choices=("run", "report", "clean"), default="run",
                        help="measure (the default); write the report of a folder anew; remove what a killed run left")
    parser.add_argument("--cells", default="*", metavar="GLOBS", help="cells to measure, comma-separated; all")
    parser.add_argument("--peers", default="*", metavar="GLOBS", help="peers to measure, comma-separated; all")
    parser.add_argument("--subject", metavar="PEER", help="the peer that ratios are to; kernel, or the first there is")
    parser.add_argument("--reps", type=int, default=5, help="repeats of each cell and peer (5)")
    parser.add_argument("--secs", type=float, default=4, help="seconds of each (4)")
    parser.add_argument("--quick", action="store_true", help="one repeat of one second, on a busy machine, too")
    parser.add_argument("--wait", type=float, default=20, metavar="SECS", help="most to wait for a quiet machine (20)")
    parser.add_argument("--again", type=int, default=2, metavar="N", help="how often to repeat a disturbed run (2)")
    parser.add_argument("--pontoon", action="append", default=[], metavar="[NAME=]PATH [FLAGS] [-- SPEC]",
                        help="a build of pontoon to measure, instead of building one (PATH -: the one that is built). With "
                        "a NAME it is measured under that, with flags for its daemon and, behind --, what follows a "
                        "published TCP port; may be given again")
    parser.add_argument("--load", metavar="PATH", help="the load generator, instead of building it")
    parser.add_argument("--out", type=Path, default=build.target() / "peers", metavar="DIR",
                        help="where results.json, table.md and chart.svg go (target/peers)")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="what is printed at the end")
    parser.add_argument("--yes", action="store_true", help="install what is missing without asking")
    parser.add_argument("--no-install", action="store_true", help="leave out what is missing")
    parser.add_argument("--list", action="store_true", help="say what cells and peers there are")
    return parser


def main(words: Optional[list[str]] = None) -> int:
    asked = arguments().parse_args(words)
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, stop)
    try:
        if asked.list:
            return show()
        if asked.do == "report":
            return again(asked)
        if os.geteuid():
            raise Failure("namespaces of a host's kind need root: sudo benches/peers/run")
        with alone():
            clean()
            return 0 if asked.do == "clean" else run(asked)
    except (Failure, ValueError) as why:
        print(f"benches/peers/run: {why}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def stop(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def show() -> int:
    for cell in CELLS:
        print(f"{cell.name:18} {cell.unit:7} {cell.about}")
    print()
    for peer in (*OTHERS, Pontoon("pontoon", "")):
        print(f"{peer.name:18} {peer.about}")
    print(f"{'pontoon-splice':18} the same with ports published as PORT{SPLICE} (hides the client's address)")
    print(f"{'pontoon-busy':18} the same with daemon {BUSY_POLL}")
    for peer in (Veth("pontoon-veth", ""), Raw("pontoon-raw", "")):
        print(f"{peer.name:18} {peer.about}")
    return 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Two of us would be each other's noise, and take down each other's namespaces."""
    with open(LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure("another one is running") from None
        yield


def clean() -> None:
    """Whatever an earlier run could not take down."""
    for name in leftovers():
        Site(name).destroy()
    take_user_back()
    shutil.rmtree(STATE, ignore_errors=True)


def field(asked: argparse.Namespace) -> list[Peer]:
    """The peers asked for, pontoon's builds last."""
    globs = [word.strip() for word in asked.peers.split(",")]
    ours = [build_of(word) for word in asked.pontoon]
    if not any("=" in word for word in asked.pontoon):
        path = ours[0].binary if ours else ""
        ours = [Pontoon("pontoon", path), Pontoon("pontoon-splice", path, spec=SPLICE),
                Pontoon("pontoon-busy", path, daemon=(BUSY_POLL,)), Veth("pontoon-veth", path), Raw("pontoon-raw", path)]
    known = [*(kind() for kind in OTHERS), *ours]
    for glob in globs:
        if not any(fnmatch.fnmatch(peer.name, glob) for peer in known):
            raise ValueError(f"no peer is called {glob!r}; --list shows them")
    return [peer for peer in known if any(fnmatch.fnmatch(peer.name, glob) for glob in globs)]


def build_of(word: str) -> Pontoon:
    """What --pontoon names: `[NAME=]PATH [daemon's flags] [-- what follows a port]`."""
    daemon, _, spec = word.partition(" -- ")
    path, *flags = shlex.split(daemon)
    name, _, path = path.rpartition("=")
    return Pontoon(name or "pontoon", "" if path == "-" else str(Path(path).resolve()), tuple(flags), spec)


def prepare(peers: list[Peer], asked: argparse.Namespace) -> tuple[list[Peer], dict[str, str]]:
    """Builds and installs what is missing; the peers that can run, and why the others cannot."""
    managed_by = packages.manager()
    aside = asked.out / "bin"
    os.environ["PATH"] += f":{aside}"
    programs = ALWAYS.union(*(peer.programs for peer in peers))
    if managed_by and not asked.no_install:
        absent = packages.wanted(programs, managed_by)
        if absent and packages.agree(absent, asked.yes):
            packages.install(absent, managed_by, aside)
    for peer in peers:
        if isinstance(peer, Pontoon) and not peer.binary:
            print("building pontoon", file=sys.stderr)
            built = build.pontoon()
            for other in peers:
                if isinstance(other, Pontoon):
                    other.binary = other.binary or built
    left_out = {}
    for peer in peers:
        why = peer.missing()
        if why:
            left_out[peer.name] = why
    return [peer for peer in peers if peer.name not in left_out], left_out


def run(asked: argparse.Namespace) -> int:
    plan = Plan(1, 1, 0, 0) if asked.quick else Plan(asked.reps, asked.secs, asked.wait, asked.again)
    cells = chosen(asked.cells)
    asked.out.mkdir(parents=True, exist_ok=True)
    peers, left_out = prepare(field(asked), asked)
    print("building the load generator" if not asked.load else f"load generator: {asked.load}", file=sys.stderr)
    load = str(Path(asked.load).resolve()) if asked.load else build.generator()
    raise_descriptors()
    results: dict = {"about": {}, "left_out": left_out, "samples": []}
    benches: list[Bench] = []
    with cubic_allowed():
        try:
            for peer in peers:
                bench = Bench(peer, load)
                try:
                    bench.begin()
                except Failure as why:
                    left_out[peer.name] = str(why)
                    bench.end()
                    continue
                benches.append(bench)
                version = peer.version()
                results["about"][peer.name] = peer.about + (f" ({version})" if version else "")
            names = [bench.peer.name for bench in benches]
            if not names:
                raise Failure("no peer is left: " + "; ".join(f"{name}: {why}" for name, why in left_out.items()))
            for name, why in left_out.items():
                print(f"left out: {name}: {why}", file=sys.stderr)
            results.update(peers=names, subject=subject_of(asked.subject, names), machine=machine.describe(),
                           plan={"repeats": plan.repeats, "seconds": plan.seconds}, begun=time.time())
            progress = Progress(total(plan, cells, benches))
            print(f"{len(cells)} cells, {len(names)} peers, about {clock(progress.total)}", file=sys.stderr)
            try:
                measure(plan, cells, benches, progress, note_into(results, asked.out))
            finally:
                progress.close()
                if results["samples"]:
                    write(results, asked.out)
        finally:
            take_down(benches)
    show_results(results, asked)
    return 0


def subject_of(wish: Optional[str], names: list[str]) -> str:
    if wish and wish not in names:
        raise ValueError(f"{wish} is not among the peers measured: {', '.join(names)}")
    return wish or ("kernel" if "kernel" in names else names[0])


def note_into(results: dict, out: Path):
    """Keeps each sample, and the file never far behind."""
    written = time.monotonic()

    def note(sample: dict) -> None:
        nonlocal written
        results["samples"].append(sample)
        if time.monotonic() - written > 30:
            written = time.monotonic()
            write(results, out)

    return note


def take_down(benches: list[Bench]) -> None:
    """Everything, even if Ctrl-C is pressed again meanwhile."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    for bench in benches:
        bench.end()
    clean()
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, stop)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def raise_descriptors() -> int:
    """As many for every peer as a container engine's service has, or as this process may have."""
    most = min(int(Path("/proc/sys/fs/nr_open").read_text()), 1 << 20)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except ValueError:  # no CAP_SYS_RESOURCE
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def write(results: dict, out: Path) -> None:
    """All three files."""
    out.mkdir(parents=True, exist_ok=True)
    new = out / "results.json.new"
    new.write_text(json.dumps(results, indent=1) + "\n")
    new.replace(out / "results.json")
    (out / "table.md").write_text(report.markdown(results))
    (out / "chart.svg").write_text(chart.chart(report.rows(results), results["peers"], results["subject"]))


def again(asked: argparse.Namespace) -> int:
    """The report of samples that are there, perhaps to another subject."""
    path = asked.out / "results.json"
    if not path.exists():
        raise Failure(f"no {path}: measure first, or name the folder with --out")
    results = json.loads(path.read_text())
    if asked.subject:
        results["subject"] = subject_of(asked.subject, results["peers"])
    write(results, asked.out)
    show_results(results, asked)
    return 0


def show_results(results: dict, asked: argparse.Namespace) -> None:
    print(json.dumps(results, indent=1) if asked.format == "json" else report.markdown(results))
    print(f"written: {asked.out}/results.json, table.md, chart.svg", file=sys.stderr)
