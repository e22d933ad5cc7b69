"""`optwatch demo`: a real training that goes wrong, watched end to end.

The demo has a daemon, keys and a store of its own in a temporary directory: it never touches the user's.
"""

import argparse
import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec
import numpy as np

from optwatch.cli import show
from optwatch.cli.errors import Wrong
from optwatch.cli.tui import users_settings
from optwatch.client import Client, DaemonError
from optwatch.export.text import arguments
from optwatch.wire.actions import Command
from optwatch.wire.findings import Finding
from optwatch.wire.requests import Mode

if TYPE_CHECKING:
    from optwatch_tui.settings import Settings

HELP = "Watch a real training go wrong, and be found out and repaired."
EXAMPLE = "optwatch demo --fault bad_batch --headless"

FAULTS = {
    "lr_spike": "the learning rate is × 30 for 20 steps, a third into the run",
    "bad_batch": "one batch has its inputs × 100, a third into the run",
    "lr_too_high": "the learning rate is × 100 from the first step",
    "vanishing": "the network is a deep stack of sigmoids",
    "plateau": "the learning rate is × 0.0001 from a third of the run on",
    "none": "nothing goes wrong",
}

READING = 6
"""Seconds for the explanation to be read, before the terminal UI covers it."""

PACE = 0.015
"""Seconds that a step takes at least under the terminal UI, so that one can read and decide."""


class Result(msgspec.Struct, frozen=True):
    """What a training process prints when it is done."""

    final_loss: float | None
    onset: int | None
    parameters: str


class Report(msgspec.Struct, frozen=True):
    """What `--json` prints. Losses: means over a fixed held-out set at the end, null if not finite."""

    fault: str
    findings: tuple[Finding, ...]
    commands: tuple[Command, ...]
    final_loss: float | None
    final_loss_without_fault: float | None
    final_loss_left_alone: float | None


def configure(parser: argparse.ArgumentParser) -> None:
    faults = "; ".join(f"{name}: {text}" for name, text in FAULTS.items())
    parser.add_argument("--fault", choices=FAULTS, default="lr_spike", metavar="NAME", help=faults)
    parser.add_argument(
        "--headless", action="store_true", help="no terminal UI; also trains without fault, and left alone"
    )
    parser.add_argument("--steps", type=int, default=5000, metavar="N", help="optimizer steps (5000)")
    parser.add_argument(
        "--mode",
        choices=get_args(Mode),
        help="observe, advise (you approve by key; default with the UI), auto (acts; default headless)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of network, batches and noise (0)")
    parser.add_argument("--json", action="store_true", help="print a JSON object; implies --headless")


def run(args: argparse.Namespace) -> int:
    _check(args)
    on_screen = not (args.headless or args.json) and sys.stdin.isatty() and sys.stdout.isatty()
    if on_screen and find_spec("textual") is None:
        raise Wrong("the terminal UI needs its extra: pip install 'optwatch[tui]', or use --headless")
    settings = users_settings() if on_screen else None  # read before the demo moves to places of its own
    with tempfile.TemporaryDirectory(prefix="optwatch-demo-") as directory, _own_places(Path(directory)):
        mode: Mode = args.mode or ("advise" if on_screen else "auto")
        with _daemon(Path(directory), mode) as address:
            if settings is not None:
                _show(args, Path(directory), address, mode, settings)
            else:
                _compare(args, Path(directory), address, mode)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.steps < 1:
        raise Wrong(f"--steps has to be at least 1, not {args.steps}")
    if missing := [name for name in ("torch", "sklearn") if find_spec(name) is None]:
        raise Wrong(f"the demo needs {' and '.join(missing)}: pip install 'optwatch[demo]'")


# --- the two ways to see it -------------------------------------------------------------------------------


def _show(args: argparse.Namespace, directory: Path, address: str, mode: Mode, settings: "Settings") -> None:
    """The training under the terminal UI, then the story."""
    import optwatch_tui

    key = settings.shown
    print(
        f"The demo trains for about {args.steps * PACE:.0f} s, slowed down for the eye: {FAULTS[args.fault]}."
    )
    if mode == "advise":
        answers = f"press {key('approve')} to approve, {key('dismiss')} to dismiss"
        print(f"When optwatch finds something it proposes what to do: {answers}.")
    by_hand = f"{key('restart')}, {key('lower_lr')} and {key('clip')} act by hand"
    others = f"{key('help')} shows all keys, {key('quit')} leaves"
    print(f"{by_hand}, {others}. It begins in {READING} s, or with Enter.")
    if select.select([sys.stdin], [], [], READING)[0]:
        sys.stdin.readline()
    name = f"demo-{args.fault}"
    with (
        (directory / "training.log").open("wb") as log,
        _training(args, log, watch=name, pace=PACE) as training,
    ):
        run_id = _await_run(name, training)
        optwatch_tui.run(address, watch=run_id, settings=settings)
        if training.poll() is None:
            _say("the training goes on to its end; Ctrl-C leaves at once")
        result = _result(training)
    findings, commands, losses = _ask(run_id)
    _tell(args.fault, result.onset, findings, commands, losses)
    print(f"held-out loss at the end: {show.number(result.final_loss)}")
    print("`optwatch demo --headless` compares it with the run without the fault and the run left alone")


def _compare(args: argparse.Namespace, directory: Path, address: str, mode: Mode) -> None:
    """Three real trainings with the same seed; the story and their held-out losses."""
    name = f"demo-{args.fault}"
    _say(f"fault {args.fault}: {FAULTS[args.fault]}")
    _say(f"1 of 3: the training with optwatch attached, mode {mode}, daemon at {address}")
    with _training(args, None, watch=name, label="with optwatch") as training:
        run_id = _await_run(name, training)
        watched = _result(training)
    findings, commands, losses = _ask(run_id)
    _say("2 and 3 of 3: the same training without the fault, and with the fault but left alone")
    with (
        _training(args, None, fault="none", label="without fault") as clean,
        _training(args, None, label="left alone") as alone,
    ):
        without, left = _result(clean), _result(alone)
    if args.json:
        show.print_json(
            Report(args.fault, findings, commands, watched.final_loss, without.final_loss, left.final_loss)
        )
        return
    _tell(args.fault, watched.onset, findings, commands, losses)
    print("held-out loss at the end of three trainings with the same seed")
    print(f"  with optwatch      {show.number(watched.final_loss)}")
    print(f"  without the fault  {show.number(without.final_loss)}")
    print(f"  left alone         {show.number(left.final_loss)}")


def _tell(
    fault: str,
    onset: int | None,
    findings: tuple[Finding, ...],
    commands: tuple[Command, ...],
    losses: dict[int, float],
) -> None:
    """What happened, in the order in which it happened."""
    print(f"\nfault {fault}: {FAULTS[fault]}" + ("" if onset is None else f" (step {onset:,})"))
    if onset is not None and onset > 1 and (before := _around(losses, onset - 51, onset - 1)):
        worst = max(value for step, value in losses.items() if step >= onset)
        print(f"  loss {before:.4g} before it, {worst:.4g} at worst, {_last(losses):.4g} at the end")
    for finding in findings:
        if finding.severity != "watch":
            glyph, colour = show.SEVERITY[finding.severity]
            head = show.paint(f"{glyph} found {finding.kind} at step {finding.step:,}", colour)
            print(f"  {head}: {finding.summary}")
    for command in commands:
        glyph, colour = show.state_cell(command)[0][0], show.state_cell(command)[1]
        what = f"{command.action} {arguments(command.args)}".rstrip()
        where = f" at step {command.step:,}" if command.step is not None else ""
        head = show.paint(f"{glyph} {what} {command.state}{where}", colour)
        print(f"  {head}: {command.reason or command.why}")
        if command.step is not None and (before := _around(losses, command.step - 20, command.step)):
            after = _around(losses, command.step + 180, command.step + 220)
            print(f"      loss {before:.4g} before, {show.number(after)} 200 steps after")
    if not findings:
        print("  nothing was found")


def _around(losses: dict[int, float], first: int, last: int) -> float | None:
    values = [losses[step] for step in range(first, last + 1) if step in losses]
    return float(np.median(values)) if values else None


def _last(losses: dict[int, float]) -> float:
    return float(np.median([losses[step] for step in sorted(losses)[-50:]]))


# --- processes --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _own_places(directory: Path) -> Iterator[None]:
    """Keys, store and connection file of this process and its children in a directory of their own."""
    places = {
        f"XDG_{name}": str(directory / name.lower()) for name in ("CONFIG_HOME", "STATE_HOME", "RUNTIME_DIR")
    }
    former = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("OPTWATCH_")]:
        del os.environ[name]
    os.environ.update(places)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(former)


@contextlib.contextmanager
def _process(command: list[str], **streams: Any) -> Iterator[subprocess.Popen[str]]:
    """A child that Ctrl-C in the terminal does not reach by itself, and that ends with the block."""
    process = subprocess.Popen(  # noqa: S603 - our own modules
        [sys.executable, "-m", *command],
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        **streams,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def _daemon(directory: Path, mode: Mode) -> Iterator[str]:
    """A daemon on a free port; its address."""
    log_path = directory / "daemon.log"
    options = ["--listen", "tcp://127.0.0.1:0", "--mode", mode, "--idle-exit", "300"]
    with (
        log_path.open("wb") as log,
        _process(["optwatch", "daemon", *options], stdout=subprocess.PIPE, stderr=log) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        if "listening on" not in line:
            said = log_path.read_text(errors="replace").strip().splitlines()
            raise Wrong(f"the demo's daemon did not start: {said[-1] if said else 'it said nothing'}")
        yield line.split()[-1]


def _training(
    args: argparse.Namespace,
    log: Any,
    *,
    fault: str | None = None,
    watch: str | None = None,
    pace: float = 0.0,
    label: str = "training",
) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """A training process; progress goes to `log`, or to standard error."""
    options = ["--fault", fault or args.fault, "--setup-of", args.fault, "--label", label]
    options += ["--seed", str(args.seed), "--steps", str(args.steps), "--pace", str(pace)]
    options += ["--watch", watch] if watch else []
    return _process(["optwatch_agent.demo", *options], stdout=subprocess.PIPE, stderr=log)


def _result(training: subprocess.Popen[str]) -> Result:
    """The result of a training, once it has ended."""
    output, _ = training.communicate()
    if training.returncode != 0:
        raise Wrong(f"a training of the demo ended with status {training.returncode}; see above")
    return msgspec.json.decode(output, type=Result)


def _await_run(name: str, training: subprocess.Popen[str]) -> str:
    """The id of the run that a training has opened."""
    with Client() as client:
        while True:
            if found := [each.run for each in client.runs() if each.name == name]:
                return found[0]
            if training.poll() is not None:
                raise Wrong(
                    "the training ended before the daemon saw it; with so few --steps there is no demo"
                )
            time.sleep(0.1)


def _ask(run_id: str) -> tuple[tuple[Finding, ...], tuple[Command, ...], dict[int, float]]:
    """Findings, commands and the loss of each step, once the daemon has everything of the run."""
    with Client(timeout=15) as client:
        end = time.monotonic() + 30
        while client.status(run_id).state == "live" and time.monotonic() < end:
            time.sleep(0.1)
        try:
            _, blocks = client.series(run_id, columns=("loss",))
        except DaemonError as error:
            raise Wrong(str(error)) from None
        finite = np.isfinite(blocks.values[:, 0])
        losses = dict(zip(blocks.step[finite].tolist(), blocks.values[finite, 0].tolist(), strict=True))
        return client.findings(run_id), client.commands(run_id), losses


def _say(text: str) -> None:
    print(f"optwatch demo: {text}", file=sys.stderr, flush=True)
