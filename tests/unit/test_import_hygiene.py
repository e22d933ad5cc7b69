"""Light parts stay light: what an import pulls in, seen in a fresh process."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "textual", "tensorboard", "sklearn")


def loaded_by(statement: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after a statement."""
    probe = f"{statement}\nimport sys\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "statement",
    [
        "import optwatch",
        "import optwatch.cli",
        "from optwatch.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "import optwatch.client",
        "import optwatch.daemon.process",
        "import optwatch.detect.panel",
        "import optwatch.policy.engine",
        "import optwatch.wire.requests",
    ],
)
def test_optwatch_alone_is_light(statement: str) -> None:
    assert loaded_by(statement) == set()


def test_the_agent_brings_torch_and_nothing_else() -> None:
    assert loaded_by("import optwatch_agent\noptwatch_agent.attach") == {"torch"}


def test_the_face_brings_the_agent_only_when_it_is_used() -> None:
    assert loaded_by("import optwatch\noptwatch.attach") == {"torch"}


def test_the_tui_never_brings_torch() -> None:
    assert loaded_by("import optwatch_tui.app") == {"textual"}
