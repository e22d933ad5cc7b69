"""`optwatch daemon --tensorboard`: live files, read back by TensorBoard itself."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.daemons import DaemonProcess
from tests.integration.test_daemon_restart import reconnect
from tests.peers import AgentPeer, values


def test_steps_are_written_once_across_a_restart(daemon: DaemonProcess, tmp_path: Path) -> None:
    boards = tmp_path / "boards"
    daemon.stop()
    daemon.options = ("--tensorboard", str(boards))
    daemon.start()
    agent = AgentPeer(daemon.address)
    agent.greet()
    agent.batch(values(20))
    agent.wait_acked()
    daemon.kill()  # what was not flushed is made up for from the store
    daemon.start()
    again = reconnect(agent, daemon)
    again.batch(values(20, start=1_000))
    again.wait_acked()
    assert daemon.stop() == 0
    (directory,) = boards.iterdir()
    assert directory.name == f"toy-{agent.run[:8]}"
    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    accumulator.Reload()
    assert [event.step for event in accumulator.Scalars("loss/train")] == list(range(1, 41))
    agent.close(linger=0)
    again.close()
    daemon.start()
