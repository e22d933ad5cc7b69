"""Run: one training, its ranks merged, its findings, its commands."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from optwatch.daemon import choices, resume
from optwatch.daemon.assembly import Record
from optwatch.daemon.blocks import scalar_points, with_samples
from optwatch.daemon.changes import Changes
from optwatch.daemon.clock import steady
from optwatch.daemon.commands import Book, Send
from optwatch.daemon.diagnosis import Diagnosis
from optwatch.daemon.duties import Duties
from optwatch.daemon.entries import CommandError, Entry
from optwatch.daemon.followers import Followers
from optwatch.daemon.hangs import Hangs, Standing, standings_of
from optwatch.daemon.head import Head
from optwatch.daemon.history import History
from optwatch.daemon.lane import Lane
from optwatch.daemon.ledger import read_commands, read_findings, read_markers
from optwatch.daemon.peers import Peer, obstacle, peers_of
from optwatch.daemon.replicas import Replicas
from optwatch.daemon.sessions import Link, Rank, Session
from optwatch.daemon.store import Store
from optwatch.detect.straggler import Stragglers
from optwatch.policy.budget import ASKED_BY
from optwatch.policy.load import DEFAULT
from optwatch.policy.rules import Rules
from optwatch.series.merge import select
from optwatch.series.points import Points
from optwatch.wire.findings import ALARMS, SEVERITIES, Finding
from optwatch.wire.frames import BatchBlocks
from optwatch.wire.messages import Ask, Assign, Checked, Event, Follow, Hello, Report, Schema, Stack, Sums
from optwatch.wire.requests import Marker, Mode, RunState

log = logging.getLogger(__name__)

CHECKPOINT = 2.0
"""Seconds between two checkpoints while nothing is found."""
LOOK = 0.25
"""Seconds between two looks at the ranks beside each other: there may be a thousand, and turns are short."""
REPLAYED_RECORDS = 1_024
MAX_MARKERS = 2_000
RATE_POINTS = 200
MIN_STEP_TIME = 1e-9
MAX_RECORDS = 16
"""Per-tensor records that one batch hands on to the screens."""


class Run:
    """The state of a run. All of it changes here, in the serving thread; the series load when needed."""

    def __init__(self, head: Head, store: Store, *, loaded: bool, rules: Rules = DEFAULT) -> None:
        self.head = head
        self.ranks: dict[int, Rank] = {}
        self.lanes: dict[int, Lane] = {}
        self.findings: dict[int, Finding] = {}
        self.markers: list[Marker] = []
        self.book = Book(head.run)
        self.hangs = Hangs()
        self.duties = Duties()
        self.followers = Followers()
        self.replicas = Replicas()
        self.stragglers = Stragglers()
        self.loaded = loaded
        self.fault = ""
        """Why this run is no longer followed: a fault of ours that must not end the service of others."""
        self.touched = True
        """Whether anything changed that a screen would show."""
        self._head_changed = False
        self._look_at = 0.0
        self._live: set[int] | None = None
        """The ranks that were in touch at the last look; None: others have come or left since."""
        self.new_markers: list[Marker] = []
        self.new_records: list[Record] = []
        self.diagnosis = Diagnosis(head.run, head.mode, rules)
        self._new_findings: dict[int, Finding] = {}  # for the store, with the next checkpoint
        self._told_findings: dict[int, Finding] = {}  # for the subscribers
        self._checkpoint_at: float | None = None
        """Monotonic time by which a checkpoint is due."""
        self._links: dict[int, Link] = {}
        self._asked: set[int] = set()
        """Ranks to be asked for their stack."""
        self._store = store

    # --- from the store -------------------------------------------------------------------------------

    def load(self, history: History) -> None:
        """Read findings, commands, markers and the series from the store, once."""
        if self.loaded:
            return
        self.loaded = True
        self._store.settle(timeout=1.0)
        read = self._store.reader.execute
        run = self.head.run
        self.findings = {finding.id: finding for finding in read_findings(self._store.reader, run)}
        self.book = Book(run, read_commands(self._store.reader, run))
        self.markers = read_markers(self._store.reader, run, MAX_MARKERS)
        saved = {}
        for (optimizer,) in read("SELECT DISTINCT optimizer FROM schema WHERE run = ?", (run,)).fetchall():
            saved[optimizer] = resume.read(self._store.reader, run, optimizer)
            lane = self.lane(optimizer)
            lane.load(history, run, optimizer, saved[optimizer], returning=not self.head.ended)
        self._load_diagnosis(history, saved.get(0))
        self.replicas.restore(self.diagnosis.opened("replicas"))
        self.stragglers.restore([finding.rank for finding in self.diagnosis.opened("stragglers").values()])

    def _load_diagnosis(self, history: History, saved: resume.Saved | None) -> None:
        run = self.head.run
        row = self._store.reader.execute("SELECT data FROM checkpoint WHERE run = ?", (run,)).fetchone()
        known = row is None or self.diagnosis.restore(row[0])
        if not known:
            self._store.drop_findings(run)
            self.findings.clear()
        if self.head.ended and known:
            return
        # What an earlier version has already acted on is looked at again, but not acted on again.
        mode = self.head.mode if known else "observe"
        first, last = self.diagnosis.step + 1, self.lane(0).merger.step
        if first > last:
            return
        norms = saved.norms() if saved is not None and first > saved.state.merged else None
        records = history.records(run, 0, first, None, limit=REPLAYED_RECORDS)
        for points in history.points(run, 0, first=first, last=last, norms=norms):
            self._conclude(with_samples(points, records), mode)

    # --- from the agents ------------------------------------------------------------------------------

    def greet(self, session: Session) -> None:
        """A session introduced itself: it speaks for its rank, unless a newer one already does."""
        hello = session.hello
        self._live = None
        rank = self.ranks.get(hello.rank)
        newer = rank is None or _age(hello) >= _age(rank.session.hello)
        if newer:
            if rank is None or rank.session.hello.session != hello.session:
                self.ranks[hello.rank] = Rank(hello.rank, session)
                self.replicas.forget(hello.rank)
                if hello.rank == 0:
                    self.book.begin_session(hello.session)
            else:
                rank.session = session
        if newer and hello.incarnation >= self.head.incarnation:
            head = self.head
            head.world_size, head.incarnation = hello.world_size, hello.incarnation
            if len(self.ranks) > head.world_size:
                for number in [r for r in self.ranks if r >= head.world_size]:
                    del self.ranks[number]
            head.ended = False
            if hello.rank == 0:
                head.optimizers, head.allow = hello.optimizers, hello.allow
                head.config, head.versions = hello.config, hello.versions
                self._found(self.diagnosis.setup(hello.optimizers))
                self._checkpoint_at = 0.0
        self._head_changed = self.touched = True  # a thousand may come at once: it is saved once

    def resend(self, session: Session, now: float, send: Send) -> None:
        """Repeat the commands that a session may have missed."""
        rank = self.ranks.get(session.hello.rank)
        if rank is not None and rank.session is session:  # of this one only: a thousand may come back at once
            for peer in peers_of([rank], now):
                self.book.resend(peer, steady(), send)

    def take_schema(self, session: Session, schema: Schema) -> None:
        """Take what a rank's batches will hold."""
        lane = self.lane(schema.optimizer)
        if session.hello.incarnation == lane.incarnation:  # a newer one begins with its first batch
            lane.assembly.introduce(session.hello.rank, schema)

    def take_batch(self, session: Session, schema: Schema, blocks: BatchBlocks, now: float) -> None:
        """Take the rows of a batch: into the store, and into the merged series."""
        hello = session.hello
        lane = self.lane(schema.optimizer)
        if hello.incarnation > lane.incarnation:
            if len(blocks.step) and blocks.step[0] <= lane.merger.furthest:
                lane.rewind(int(blocks.step[0]))
                if schema.optimizer == 0:
                    self.diagnosis.repeat(int(blocks.step[0]))
                    self._checkpoint_at = now
            lane.begin(hello.incarnation)
        needed = False
        if hello.incarnation == lane.incarnation:
            lane.assembly.hold(hello.rank, schema)
            # Who is needed is asked for records only: it is found out anew after each rank that came.
            records_sent = len(blocks.sample_step) or len(blocks.histogram_step)
            needed = bool(records_sent) and lane.assembly.needs(hello.rank)
        self._store.add_batch(hello, schema, blocks, tensors=needed)
        points = scalar_points(blocks.step, blocks.wall, blocks.scalars, blocks.logged, schema.scalars)
        if len(points):
            lane.cover(hello.incarnation, hello.rank, points)
        if needed:
            records = lane.sample(
                hello.rank,
                [
                    Record(step, schema, blocks.stats[at].copy(), blocks.counts[at].copy())
                    for at, step in enumerate(blocks.sample_step.tolist())
                ],
            )
            if schema.optimizer == 0:
                self.new_records.extend(records[-MAX_RECORDS:])
        lane.merger.add(hello.rank, points, now)
        if schema.optimizer == 0 and hello.world_size > 1:
            self.stragglers.take(hello.rank, points)
            rank = self.ranks.get(hello.rank)
            if rank is not None and "local_norm" in points.columns:
                local = points.column("local_norm")
                rank.local_norm = (
                    float(local.values[local.logged][-1]) if local.logged.any() else rank.local_norm
                )

    def take_event(self, event: Event) -> None:
        """Take a mark of the user's, or something the agent noticed."""
        self._store.add_marker(self.head.run, event)
        self._note(Marker(event.step, event.kind, event.text))
        if event.kind == "mark":
            self.diagnosis.mark(event.step)
            self._checkpoint_at = 0.0
        self.touched = True

    def take_report(self, session: Session, report: Report) -> None:
        """Take what became of a command on one rank."""
        # What waited before this daemon does not tell how soon the agent had answered.
        entry = self.book.report(session.hello.rank, report, steady() - session.delay)
        if entry is not None and entry.command.state == "applied" and entry.command.step is not None:
            self.diagnosis.acted(entry.command.step, entry.command.action)
            self._checkpoint_at = 0.0

    def take_checked(self, session: Session, checked: Checked, now: float) -> None:
        """Take the checksums of what a rank holds."""
        rank = self.ranks.get(session.hello.rank)
        if rank is not None and rank.session is session:
            self.replicas.take(
                rank.rank, checked.optimizer, checked.step, checked.sums, checked.declared, now
            )

    def take_sums(self, session: Session, sums: Sums, block: npt.NDArray[np.uint64]) -> None:
        """Take the checksums of each tensor that a rank was asked for."""
        self.replicas.detail(session.hello.rank, sums, block)

    def take_stack(self, session: Session, stack: Stack, now: float) -> None:
        """Take where a rank's training thread is, since somebody asked."""
        session.stack, session.stacked = stack, now

    def take_follow(self, session: Session, follow: Follow) -> None:
        """Take that a rank wants to be told of the run."""
        rank = self.ranks.get(session.hello.rank)
        if rank is not None and rank.session is session:
            self.followers.take(follow)

    def leave(self, session: Session) -> None:
        """A rank ended in good order; when all have, the run is over."""
        session.left = True
        self._live = None
        if self.ranks and all(rank.session.left for rank in self.ranks.values()):
            self.head.ended = True
            self.book.end("the run ended before it was applied")
            self._checkpoint_at = 0.0
            self.save_head()
        self.touched = True

    # --- as it stands ---------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """The last step of the first optimizer."""
        lane = self.lanes.get(0)
        beats = [rank.session.steps[0] for rank in self.ranks.values() if rank.session.steps]
        return max([lane.step if lane else 0, self.head.step if not self.loaded else 0, *beats])

    def lane(self, optimizer: int) -> Lane:
        if optimizer not in self.lanes:
            self.lanes[optimizer] = Lane()
        return self.lanes[optimizer]

    def live(self, now: float) -> set[int]:
        """The ranks that are connected and in touch, a suspect one included."""
        return {n for n, rank in self.ranks.items() if rank.session.link(now) in ("up", "suspect")}

    def state(self, now: float) -> RunState:
        if self.head.ended:
            return "ended"
        return "live" if self.live(now) else "stale"

    def rate(self) -> float | None:
        """Steps of the first optimizer per second lately, by the ranks' own step time."""
        return self._rate(0)

    def _rate(self, optimizer: int) -> float | None:
        lane = self.lanes.get(optimizer)
        if lane is None or "step_time" not in lane.timeline.columns or not len(lane.timeline):
            return None
        first = lane.timeline.last_step - RATE_POINTS
        _, values, logged = lane.timeline.window(first, None, ("step_time",), None)
        times = values[logged & np.isfinite(values) & (values > 0)]
        with np.errstate(over="ignore"):  # times from the wire may be anything
            return float(1 / max(np.median(times), MIN_STEP_TIME)) if len(times) else None

    def peers(self, now: float) -> list[Peer]:
        """The ranks as the book of commands sees them."""
        return peers_of(self.ranks.values(), now)

    def control(self, now: float) -> str:
        """ "armed", or why nothing can be commanded now."""
        if self.fault:
            return self.fault
        if self.head.ended:
            return "the run has ended"
        return obstacle(self.peers(now), self.head.world_size, self._step_times()) or "armed"

    def worst(self) -> str | None:
        """The highest severity among the findings that are not over."""
        if not self.loaded:
            return self.head.worst
        ranks = [SEVERITIES.index(f.severity) for f in self.findings.values() if f.resolved_step is None]
        return SEVERITIES[max(ranks)] if ranks else None

    def save_head(self) -> None:
        self._head_changed = False
        self.head.step, self.head.worst = self.step, self.worst()
        lane = self.lanes.get(0)
        if lane is not None:
            self.head.loss = lane.timeline.last("loss")
        self._store.save_run(self.head.run, self.head.started, time.time(), self.head)

    def set_mode(self, mode: Mode) -> None:
        self.head.mode = mode
        self.save_head()
        self.touched = True

    def ask_stacks(self, ranks: Iterable[int]) -> None:
        """Let these ranks be asked where their training threads are."""
        self._asked.update(ranks)

    def mark_by_hand(self, text: str) -> None:
        """A planned change, said by a client."""
        self._remark("mark", text)

    def _remark(self, kind: Literal["mark", "note"], text: str) -> None:
        """Enter what no agent has said."""
        seq = time.time_ns()  # another one each time, or the store has it already
        session = f"client {self.head.run}"
        self.take_event(Event(session=session, seq=seq, optimizer=0, step=self.step, kind=kind, text=text))

    def watch_links(self, now: float) -> None:
        """Notice ranks that went silent, or came back."""
        links = {number: rank.session.link(now) for number, rank in self.ranks.items()}
        # A replica stands in at once for a rank that is only suspect: it costs a few bytes.
        in_touch = {n for n, link in links.items() if link == "up"} or self.live(now)
        for lane in self.lanes.values():
            if not lane.merger.expecting(now):
                lane.assembly.keep_only(in_touch)
        if links != self._links:
            self._links = links
            self.touched = True

    def assign(self, now: float, tell: Callable[[str, Assign], None]) -> None:
        """Tell each rank whether it is to send everything: one replica of each part of the tensors is."""
        senders, spare = self.duties.look([lane.assembly for lane in self.lanes.values()])
        known = senders | spare
        for number, rank in self.ranks.items():
            session, reduced = rank.session, number in spare
            if session.beat is None or session.link(now) != "up" or number not in known:
                continue
            if session.beat.reduced != reduced and session.beat is not session.assigned:
                session.assigned = session.beat
                tell(session.hello.session, Assign(session=session.hello.session, reduced=reduced))
        if text := self.duties.news():
            self._remark("note", text)

    def advance(self, now: float, send: Send, changes: Changes) -> None:
        """Everything that follows from what was taken and from time passing.

        What changed is put where the subscribers get it, and described to the store.
        """
        looks = now >= self._look_at
        if looks or self._live is None:
            self._live = self.live(now)
        live = self._live
        for optimizer, lane in self.lanes.items():
            for points in lane.take(live, now):
                self.touched = True
                if optimizer == 0:
                    changes.points.append(points)
                    # A daemon before this one may have seen steps without a rank that sends them now.
                    if len(fresh := select(points, points.step > self.diagnosis.step)):
                        self._conclude(fresh, self.head.mode)
                    if self._checkpoint_at is None:
                        self._checkpoint_at = now + CHECKPOINT
                else:
                    changes.further.setdefault(optimizer, []).append(points)
        if looks:
            self._look_at = now + LOOK
            self._compare(live, now, send)
        for number in self._asked & self.ranks.keys():
            session = self.ranks[number].session.hello.session
            send(session, Ask(session=session, what="stack"))
        self._asked.clear()
        if self.book.open():
            self.book.work(self.peers(now), self.head.world_size, self._step_times(), steady(), send)
        if self.followers:
            speaking = {rank.session.hello.session for rank in self.ranks.values()}
            for news in self.followers.news(
                speaking, self.lane(0).timeline, self.findings.values(), self.book.commands, now
            ):
                send(news.session, news)
        self._describe(now, changes)

    def _compare(self, live: set[int], now: float, send: Send) -> None:
        """Look at the ranks beside each other: who hangs, whose replicas differ, who is late."""
        if (stalled := self.hangs.look(self._standings(now), now)) is not None:
            self._found(self.diagnosis.observe(stalled, "hangs"))
            self._checkpoint_at = 0.0
        self._compare_replicas(live, now, send)
        # Those that hold replicas do the same work on other data, and wait for each other in each step.
        telling = {number for number, rank in self.ranks.items() if rank.session.hello.own_time}
        for signal in self.stragglers.look(live & (self.replicas.compared | telling)):
            self._found(self.diagnosis.observe(signal, "stragglers"))
            self._checkpoint_at = 0.0

    def _compare_replicas(self, live: set[int], now: float, send: Send) -> None:
        expected = {*range(self.head.world_size)} - (self.ranks.keys() - live)
        for signal in self.replicas.look(expected, now):
            self._found(self.diagnosis.observe(signal, "replicas"))
            self._checkpoint_at = 0.0
        for question in self.replicas.questions:
            if (rank := self.ranks.get(question.rank)) is not None:
                session = rank.session.hello.session
                send(
                    session,
                    Ask(session=session, what="sums", optimizer=question.optimizer, step=question.step),
                )
        self.replicas.questions.clear()
        if self.replicas.agreed:
            self.book.confirm(self.replicas.agreed)

    def fail(self, error: Exception) -> None:
        """It cannot be followed any more: say so, and leave it as it stands."""
        self.fault = f"the daemon failed at this run, its log says where: {error!r}"
        self._note(Marker(self.step, "note", self.fault))

    def _standings(self, now: float) -> list[Standing]:
        """How far the ranks are, those that left apart; nothing unless all have come."""
        if len(self.ranks) < self.head.world_size or self.head.world_size == 1:
            return []
        return standings_of(self.ranks.values(), now)

    def checkpoint(self) -> None:
        """Put diagnosis, findings and merged series into the unit that is about to be submitted."""
        self._checkpoint_at = None
        for finding in self._new_findings.values():
            self._store.save_finding(finding)
        self._new_findings.clear()
        self._store.save_checkpoint(self.head.run, self.diagnosis.checkpoint())
        for optimizer, lane in self.lanes.items():
            lane.save(self._store, self.head.run, optimizer)

    def _conclude(self, points: Points, mode: Mode) -> None:
        """Let detectors and policy see points, and enter what they want."""
        was_broken, was_stopped = self.diagnosis.broken, self.diagnosis.stopped
        possible = choices.possible(self.head.allow, self.ranks, self.snapshots, self._alarms)
        conclusions = self.diagnosis.take(points, self.book.commands, possible, mode)
        if self.diagnosis.broken and not was_broken:
            self._note(Marker(self.diagnosis.step, "note", self.diagnosis.broken))
        if self.diagnosis.stopped and not was_stopped:
            self._note(Marker(self.diagnosis.step, "note", self.diagnosis.stopped))
        self._found(conclusions.findings)
        for number, outcome in conclusions.outcomes:
            self.book.judge(number, outcome)
        for number, why in conclusions.withdrawals:
            self.book.dismiss(number, ASKED_BY, why)
        for proposal in conclusions.proposals:
            try:
                self.book.ask(
                    proposal.action,
                    self.resolve(proposal.action, proposal.args),
                    asked_by=ASKED_BY,
                    why=proposal.why,
                    now=steady(),
                    allow=self.head.allow,
                    finding=proposal.finding,
                    undo_of=proposal.undo_of,
                    approved=proposal.send,
                )
            except CommandError as error:
                log.warning("run %s: the policy wanted what cannot be: %s", self.head.name, error)
        if conclusions.proposals or conclusions.outcomes or conclusions.withdrawals:
            self._checkpoint_at = 0.0

    def undo(self, number: str, user: str) -> Entry:
        """Enter the command that takes an applied one back; raises `CommandError` where there is none."""
        return self.book.undo(number, user, steady(), self.head.allow, resolve=self.resolve)

    def resolve(self, action: str, args: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a command as all ranks are to have them; raises `CommandError` for none."""
        return choices.resolve(
            action,
            args,
            snapshots=self.snapshots,
            alarms=self._alarms,
            timeline=self.lane(0).timeline,
            optimizers=len(self.head.optimizers),
            world_size=self.head.world_size,
        )

    @property
    def snapshots(self) -> tuple[int, ...]:
        """The steps of the snapshots that every rank holds, the oldest first."""
        return choices.held_by_all(self.ranks, self.head.world_size)

    @property
    def _alarms(self) -> list[Finding]:
        """The alarms that are open."""
        return [f for f in self.findings.values() if f.resolved_step is None and f.severity in ALARMS]

    def _note(self, marker: Marker) -> None:
        self.markers.append(marker)
        self.new_markers.append(marker)
        del self.markers[:-MAX_MARKERS]
        self.touched = True

    def _found(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            if finding.id not in self.findings:
                log.info("run %s: %s %s", self.head.name, finding.severity, finding.summary)
            self.findings[finding.id] = finding
            self._new_findings[finding.id] = finding
            self._told_findings[finding.id] = finding
            self.touched = True

    def _describe(self, now: float, changes: Changes) -> None:
        if self.book.changed:
            for number, entry in self.book.changed.items():
                changes.commands[number] = entry.command
                self._store.save_command(entry.command, entry)
            self.book.changed.clear()
            self.touched = True
        if self._head_changed:
            self.save_head()
        changes.findings.update(self._told_findings)
        self._told_findings.clear()
        changes.markers.extend(self.new_markers)
        self.new_markers.clear()
        changes.records.extend(self.new_records)
        self.new_records.clear()
        if self._checkpoint_at is not None and now >= self._checkpoint_at:
            self.checkpoint()

    def _step_times(self) -> list[float]:
        """Seconds per step lately, of each optimizer; one where nothing is known."""
        return [1 / (self._rate(i) or 1.0) for i in range(max(len(self.head.optimizers), 1))]


def _age(hello: Hello) -> tuple[int, float]:
    return hello.incarnation, hello.started
