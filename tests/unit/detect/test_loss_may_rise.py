"""Where the loss need not fall, as in reinforcement learning, its course is shown and is no alarm."""

import numpy as np

from optwatch.detect.panel import Panel
from optwatch.wire.findings import ALARMS, Finding
from optwatch.wire.messages import GroupInfo, OptimizerInfo
from tests.unit.detect.series import F8, falling, points


def panel_of(why: str) -> Panel:
    panel = Panel("run")
    group = GroupInfo({"lr": 1e-3}, 1, 10)
    panel.setup([OptimizerInfo(name="main", kind="Adam", groups=(group,), digest="", loss_may_rise=why)])
    return panel


def rising(n: int = 400) -> F8:
    loss = falling(n)
    loss[n // 2 :] = 2.3 * 1.5 ** np.arange(n - n // 2)
    return loss


def test_a_loss_that_leaves_its_range_is_an_alarm_only_where_it_has_to_fall() -> None:
    has_to, need_not = panel_of(""), panel_of("reinforcement learning with an environment")
    for panel in (has_to, need_not):
        panel.update(points(loss=rising()))
    assert {finding.severity for finding in has_to.findings} & ALARMS
    assert [(finding.kind, finding.severity) for finding in need_not.findings] == [("divergence", "watch")]
    (finding,) = need_not.findings
    assert "reinforcement learning with an environment" in finding.summary
    assert not finding.causes
    assert not finding.remedies


def test_what_is_not_finite_stays_an_alarm() -> None:
    panel = panel_of("reinforcement learning")
    loss = falling(300)
    loss[200:] = np.nan
    panel.update(points(loss=loss))
    assert ("non_finite", "critical") in [(finding.kind, finding.severity) for finding in panel.findings]


def test_it_is_known_after_a_restart_of_the_daemon() -> None:
    before, after = panel_of("reinforcement learning"), Panel("run")
    after.restore(before.state())
    after.update(points(loss=rising()))
    assert severities(after.findings) == {"watch"}


def severities(findings: tuple[Finding, ...]) -> set[str]:
    return {finding.severity for finding in findings}
