"""The agent of one attachment: its tracks, its control and its link, and what they tell the daemon."""

import atexit
import os
import time
import weakref
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
import torch

from optwatch.wire.frames import BatchBlocks
from optwatch.wire.limits import MAX_TEXT, PROTOCOL
from optwatch.wire.messages import (
    Ask,
    Beat,
    ConfigValue,
    Event,
    Follow,
    Hello,
    News,
    Prepare,
    Report,
    Schema,
    Stack,
)
from optwatch_agent import clips, identity, losses, naming, scalers, stacks
from optwatch_agent.compiled import COMPILER
from optwatch_agent.control import Control
from optwatch_agent.forward import Forward
from optwatch_agent.game import Game
from optwatch_agent.glance import Glance
from optwatch_agent.joint import Joint
from optwatch_agent.link import Link
from optwatch_agent.membership import Membership
from optwatch_agent.mirroring import Mirroring
from optwatch_agent.pace import Pace, waits_in_forward
from optwatch_agent.phases import LOADING
from optwatch_agent.signals import let_through
from optwatch_agent.snapshots import Snapshots
from optwatch_agent.source import Answer, Durable
from optwatch_agent.track import Track

_MOST_EVENTS = 10_000
_GONE = "the optimizer was dropped"
_STORE_PATIENCE = 0.25
"""Seconds that the end waits for the job's store, twice: it may be gone, and the job ends then too."""


class Agent:
    """Everything behind a `Watch`. The training thread calls `close`; the link's thread the rest."""

    def __init__(
        self,
        optimizers: Mapping[str, torch.optim.Optimizer],
        *,
        model: torch.nn.Module | None,
        name: str | None,
        address: str | None,
        see_loss: bool,
        config: Mapping[str, ConfigValue],
        step: int | None,
        allow: Sequence[str],
        budget: float,
        scaler: torch.amp.grad_scaler.GradScaler | None,
        store: Any,
        strict: bool,
        comm_hook: bool,
        snapshots: int,
        guard: Sequence[str],
    ) -> None:
        self.closed = False
        self.membership = Membership(identity.identify(name), store)
        self.tracks: list[Track] = []
        names = naming.names_of(model)
        declared = naming.is_replicated(model)
        self._pace: Pace | None = None
        self._compiles = False
        self.snapshots = Snapshots(tuple(optimizers.values()), model, scaler, snapshots, budget)
        if len(optimizers) > 1 and any(isinstance(each, Joint) for each in optimizers.values()):
            self.snapshots.refuse("parameters with optimizers of their own, of several classes, step in turn")
        self._told_snapshots: tuple[int, ...] = ()
        self._scaler_patches = scalers.TAP.patches_of(type(scaler)) if scaler is not None else []
        for patch in self._scaler_patches:
            patch.install()
        losses.TAP.install()
        self._thread = losses.TAP.join()
        clips.TAP.patch.install()
        LOADING.install()
        try:
            for index, (label, optimizer) in enumerate(optimizers.items()):
                self.tracks.append(
                    Track(
                        index,
                        label,
                        optimizer,
                        names,
                        budget / len(optimizers),
                        step,
                        see_loss,
                        self._hurry,
                        self.membership,
                        declared,
                        comm_hook,
                        self.snapshots,
                        guard,
                    )
                )
            if model is not None:
                self.tracks[0].forward = Forward(model)
            self._pace = Pace(model) if model is not None and waits_in_forward(model) else None
            self._own_time = declared or self._pace is not None
            self.control = Control(
                self.identity.session,
                allow,
                [track.actuators for track in self.tracks],
                self.membership,
                strict,
            )
            self.control.follow(lambda: tuple(track.under_way for track in self.tracks))
            for track in self.tracks:
                track.control = self.control
            self._allow = tuple(allow)
            self._config = dict(config)
            self._events: deque[Event] = deque(maxlen=_MOST_EVENTS)
            for track in self.tracks:
                if track.recorder.tensors and not track.recorder.told:
                    count = f"{len(track.recorder.tensors):,} tensors of {track.name}"
                    self.event("note", f"the {count} are too many to tell of each: there are norms of all")
            self.mirroring = Mirroring()
            self.glance = Glance()
            self._told_degraded: set[int] = set()
            self._told_unguarded: set[int] = set()
            first, *others = (naming.describe(track.name, track.optimizer) for track in self.tracks)
            missing = naming.missing(model, [track.optimizer for track in self.tracks])
            self._optimizers = (msgspec.structs.replace(first, missing=missing), *others)
            self.link = Link(self, self.identity.session, address)
            if len(self.tracks) > 1 and not any(isinstance(each, Joint) for each in optimizers.values()):
                self._game = Game()
                for track in self.tracks:
                    track.stepped_by = self._stepped_by
            self._compiles = any(track.is_on_cpu for track in self.tracks)
            if self._compiles:
                COMPILER.prepare()
            self.link.start()
            _agents.add(self)
            atexit.register(self._at_exit)
        except BaseException:
            self._take_off()
            identity.leave(self.identity)
            raise

    @property
    def identity(self) -> identity.Identity:
        """Who this is, as far as it is known."""
        return self.membership.who

    def follows(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether this attachment is to that optimizer."""
        return not self.closed and any(track.is_on(optimizer) for track in self.tracks)

    @property
    def overhead(self) -> float:
        """Share of the step time taken, of late."""
        return sum(track.governor.overhead for track in self.tracks)

    def event(self, kind: Any, text: str, step: int | None = None, optimizer: int = 0) -> None:
        """Tell of something that happened."""
        self._events.append(
            Event(
                session=self.identity.session,
                seq=0,
                optimizer=optimizer,
                step=self.tracks[optimizer].completed if step is None else step,
                kind=kind,
                text=text[:MAX_TEXT],
            )
        )

    def close(self, reason: str) -> None:
        """Take everything off and say goodbye."""
        if self.closed:
            return
        self._take_off()
        atexit.unregister(self._at_exit)
        identity.leave(self.identity)
        if self.identity.pid == os.getpid():
            self.control.give_up(reason, _STORE_PATIENCE)
            self.membership.close(_STORE_PATIENCE)
            self.link.stop(reason)
            self.mirroring.close()

    def expire(self) -> None:
        """Its optimizers are gone: close, and let the link send the rest while the process goes on."""
        self._take_off()
        if self.identity.pid == os.getpid():
            self.control.give_up(_GONE, _STORE_PATIENCE)
            self.membership.close(_STORE_PATIENCE)
            self.link.stop(_GONE, timeout=0)
            self.mirroring.close(patience=0)

    def _take_off(self) -> None:
        self.closed = True
        for track in self.tracks:
            track.close()
        self.snapshots.clear()
        self._unpatch()
        if self._compiles and self.identity.pid == os.getpid():
            COMPILER.release()

    def _unpatch(self) -> None:
        losses.TAP.leave(self._thread)
        losses.TAP.remove()
        clips.TAP.remove()
        LOADING.remove()
        for patch in self._scaler_patches:
            patch.remove()
        if self._pace is not None:
            self._pace.close()

    def abandon(self) -> None:
        """In a forked child: the socket and the thread are the parent's. Be still."""
        self.closed = True
        for track in self.tracks:
            track.active = False
            if track.forward is not None:
                track.forward.arm(False)

    def _at_exit(self) -> None:
        if not self.closed:
            self.close("the process ends")
        elif self.identity.pid == os.getpid():  # expired: its link may still be sending
            self.link.stop(_GONE)

    # --- what the link carries ------------------------------------------------------------------------

    def ready(self) -> bool:
        self.membership.look(stepped=any(track.stepped for track in self.tracks))
        return self.membership.settled

    @property
    def run(self) -> str:
        return self.identity.run

    def hello(self) -> Hello:
        who = self.identity
        return Hello(
            protocol=PROTOCOL,
            session=who.session,
            run=who.run,
            name=who.name,
            incarnation=who.incarnation,
            job=who.job,
            rank=who.rank,
            world_size=who.world_size,
            host=who.host,
            pid=who.pid,
            started=who.started,
            optimizers=self._optimizers,
            allow=self._allow,
            control=self.control.state,
            own_time=self._own_time,
            config=self._config,
            versions=identity.versions(),
        )

    def _stepped_by(self, index: int, passes: int) -> None:
        """See whether the optimizers play against each other, until it is known."""
        try:
            is_open = losses.TAP.may_look
            if is_open:
                there = {i: track.optimizer for i, track in enumerate(self.tracks) if not track.gone}
                self._game.after(index, there, passes)
                is_open = self._game.is_open
                if self._game.is_on:
                    self._tell_of_game()
        except Exception as error:  # noqa: BLE001 - never into the training loop
            let_through(error)
            is_open = False
        if not is_open:
            for track in self.tracks:
                track.stepped_by = None

    def _tell_of_game(self) -> None:
        why = "optimizers that play against each other"
        self._optimizers = tuple(
            msgspec.structs.replace(each, loss_may_rise=each.loss_may_rise or why)
            for each in self._optimizers
        )
        self.link.speak_again()

    def _hurry(self) -> None:
        self.link.hurry()

    def collect(self, everything: bool) -> list[tuple[Durable, BatchBlocks | None, Schema | None]]:
        COMPILER.reap()
        session = self.identity.session
        out: list[tuple[Durable, BatchBlocks | None, Schema | None]] = []
        for i, track in enumerate(self.tracks):
            for schema, batch, blocks in track.recorder.take(session, everything):
                out.append((batch, blocks, schema))
                if i == 0:
                    self.glance.take(schema, blocks)
            while track.skips:
                self.event(
                    "skipped_step", "a gradient overflowed under the GradScaler", track.skips.popleft(), i
                )
            while track.guard.news:
                step, text = track.guard.news.popleft()
                self.event("skipped_step", text, step, i)
            if track.guard.refused and i not in self._told_unguarded:
                self._told_unguarded.add(i)
                self.event("note", f"no guard: {track.guard.refused}", optimizer=i)
            if track.degraded and i not in self._told_degraded:
                self._told_degraded.add(i)
                self.event("degraded", f"nothing is measured any more: {track.degraded}", optimizer=i)
            while track.checks.taken:
                checked = msgspec.structs.replace(track.checks.taken.popleft(), session=session)
                out.append((checked, None, None))
        while self._events:
            out.append((self._events.popleft(), None, None))
        while self.control.outcomes:
            outcome = self.control.outcomes.popleft()
            report = Report(
                session=session,
                seq=0,
                command=outcome.prepare.command,
                vote=outcome.prepare.vote,
                state=outcome.state,
                steps=outcome.steps,
                reason=outcome.reason[:MAX_TEXT],
                numbers=outcome.numbers,
            )
            out.append((report, None, None))
        return out

    def beat(self) -> Beat:
        first = self.tracks[0]
        phase, since = first.phases.now
        self._told_snapshots = self.snapshots.steps
        return Beat(
            session=self.identity.session,
            steps=tuple(track.under_way for track in self.tracks),
            phase=phase,
            phase_time=time.perf_counter() - since,
            overhead=self.overhead,
            sample_every=first.governor.sample_every,
            queued=self.link.outbox.queued,
            dropped=self.link.outbox.ring.dropped + sum(track.recorder.dropped for track in self.tracks),
            control=self.control.state,
            oldest=self.link.outbox.oldest,
            reduced=first.reduced,
            snapshots=self._told_snapshots,
            thinned=self.link.outbox.ring.thinned,
            sent=self.link.outbox.sent,
            clock=time.monotonic(),
        )

    def account(self, share: float) -> None:
        for track in self.tracks:
            track.governor.beside = share / len(self.tracks)

    def pressing(self) -> bool:
        """Whether there are other snapshots than the daemon knows of: it may roll back to these only."""
        return self.snapshots.steps != self._told_snapshots

    def follow(self) -> Follow | None:
        return self.mirroring.follow(self.identity.session)

    def hear(self, news: News) -> None:
        self.mirroring.hear(news)

    def take(self, prepare: Prepare) -> None:
        self.control.take(prepare)

    def assign(self, reduced: bool) -> None:
        for track in self.tracks:
            track.reduced = reduced

    def answer(self, ask: Ask) -> Answer | None:
        if ask.what == "sums" and 0 <= ask.optimizer < len(self.tracks):
            found = self.tracks[ask.optimizer].checks.detail(self.identity.session, ask.step)
            return None if found is None else (found[0], (found[1],))
        if ask.what == "stack":
            phases = self.tracks[0].phases
            phase, since = phases.now
            stack = Stack(
                session=self.identity.session,
                steps=tuple(track.under_way for track in self.tracks),
                phase=phase,
                phase_time=time.perf_counter() - since,
                frames=stacks.frames_of(phases.thread),
            )
            return stack, ()
        return None


_agents: "weakref.WeakSet[Agent]" = weakref.WeakSet()


def is_watched(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an attachment follows this optimizer."""
    return any(agent.follows(optimizer) for agent in tuple(_agents))


def make_way(optimizers: Collection[torch.optim.Optimizer]) -> None:
    """End the attachments to these optimizers, which are attached anew, and to optimizers that are gone."""
    for agent in tuple(_agents):
        if any(agent.follows(optimizer) for optimizer in optimizers):
            agent.close("attached anew")
        elif not agent.closed and all(track.gone for track in agent.tracks):
            agent.expire()


def _after_fork() -> None:
    for agent in tuple(_agents):
        agent.abandon()


os.register_at_fork(after_in_child=_after_fork)
