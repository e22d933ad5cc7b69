"""Findings and commands in words, as Markdown."""

from collections.abc import Mapping

from optwatch.wire.actions import Command
from optwatch.wire.findings import Finding


def finding_text(finding: Finding) -> str:
    """A finding with its evidence, causes and remedies."""
    lines = [f"**{finding.severity} {finding.kind}** at step {finding.step}: {finding.summary}", ""]
    where = [f"onset: step {finding.onset_step}"]
    where += [f"rank: {finding.rank}"] if finding.rank is not None else []
    where += [f"tensor: `{finding.tensor}`"] if finding.tensor is not None else []
    where += [f"over: step {finding.resolved_step}"] if finding.resolved_step is not None else []
    lines += [f"- {item}" for item in where]
    lines += [f"- {name}: {value}" for name, value in finding.evidence.items()]
    if finding.causes:
        lines += ["", "| cause | weight | because |", "| --- | --- | --- |"]
        lines += [f"| {c.cause} | {c.weight:.2f} | {_cell(c.because)} |" for c in finding.causes]
    if finding.remedies:
        lines += ["", "What helps:", ""]
        lines += [
            f"- {f'{remedy.action} {arguments(remedy.args)}'.rstrip()}: {remedy.why}"
            for remedy in finding.remedies
        ]
    return "\n".join(lines)


def command_text(command: Command) -> str:
    """A command, who asked for it, and what came of it."""
    lines = [f"{f'**{command.action}** {arguments(command.args)}'.rstrip()}: {command.state}", ""]
    items = [f"asked by: {command.asked_by}"]
    items += [f"why: {command.why}"] if command.why else []
    items += [f"finding: {command.finding}"] if command.finding is not None else []
    items += [f"takes back: command {command.undo_of}"] if command.undo_of is not None else []
    items += [f"applied at: step {command.step}"] if command.step is not None else []
    items += [f"ranks: {', '.join(map(str, command.ranks_applied))}"] if command.ranks_applied else []
    items += [f"reason: {command.reason}"] if command.reason else []
    if command.outcome is not None:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in command.outcome.numbers.items())
        items.append(f"outcome: {command.outcome.verdict}" + (f" ({numbers})" if numbers else ""))
    return "\n".join(lines + [f"- {item}" for item in items])


def arguments(args: Mapping[str, object]) -> str:
    """A command's arguments as `name=value name=value`."""
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in args.items()
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
