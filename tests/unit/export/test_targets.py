"""notify.toml: what it may say, and what is said about a wrong one."""

from pathlib import Path

import pytest

from optwatch.export.targets import parse_targets, read_targets
from optwatch.wire.toml import TomlError

EXAMPLE = Path(__file__).parents[3] / "examples" / "notify.toml"
GOOD = '[[target]]\nname = "a"\nurl = "json://u:secret@host"\n'


def test_the_example_is_a_file_to_copy() -> None:
    mail, slack, webhook = parse_targets(EXAMPLE.read_text(), "notify.toml")
    assert (mail.digest_minutes, mail.quiet_except) == (30, ("critical",))
    assert "over" in slack.about
    assert webhook.kind[0] == "non_finite"


def test_no_file_is_nobody_to_tell(tmp_path: Path) -> None:
    assert read_targets(tmp_path / "notify.toml") == ()


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (GOOD + 'severty = ["critical"]\n', 4, "unknown field `severty`"),
        (GOOD + 'severity = ["fatal"]\n', 4, "Invalid enum value 'fatal'"),
        (GOOD + 'kind = ["plateau", "plato"]\n', 4, "Invalid enum value 'plato'"),
        (GOOD + 'quiet = "22-7"\n', 4, "HH:MM-HH:MM, such as"),
        (GOOD + 'quiet = "07:00-07:00"\n', 4, "HH:MM-HH:MM, such as"),
        (GOOD + "\nrepeat_minutes = -1\n", 5, "`float` >= 0"),
        (GOOD + 'url_env = "X"\n', 1, "either a url or the url_env"),
        (GOOD + '[[target]]\nname = "b"\n', 4, "either a url or the url_env"),
        (GOOD + GOOD, 5, "a second target named 'a'"),
        (GOOD + "x = \n", 4, "not TOML"),
        ("[targets]\n", 1, "unknown field `targets`"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, line: int, says: str) -> None:
    with pytest.raises(TomlError) as error:
        parse_targets(text, "notify.toml")
    assert "notify.toml" in str(error.value)
    assert f"line {line}" in str(error.value)
    assert says in str(error.value)
    assert "secret" not in str(error.value)


def test_secrets_that_others_can_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "notify.toml"
    path.write_text(GOOD)
    path.chmod(0o644)
    with pytest.raises(TomlError, match=r"others can read the secrets in .*chmod 600"):
        read_targets(path)
    path.chmod(0o600)
    assert len(read_targets(path)) == 1
    path.write_text(GOOD.replace("url =", "url_env ="))
    path.chmod(0o644)
    assert len(read_targets(path)) == 1
