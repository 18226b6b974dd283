"""A parity check's verdict for the pages of a CI system: JUnit's XML, and a summary in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vit_runtime.manifest import Limits
from vit_runtime.parity.judging import Check, Report

FAILURES = 20  # that a summary shows


@dataclass(frozen=True)
class Result:
    """A file and its reports: one for each provider, then one for each pair of them."""

    path: str
    reports: tuple[Report, ...]

    @property
    def passed(self) -> bool:
        """Whether every report did."""
        return all(report.passed for report in self.reports)


def junit(results: Sequence[Result]) -> str:
    """A document of testsuites: a suite for each report, a case for each check. Characters that XML has not become question marks."""
    from xml.etree import ElementTree

    root = ElementTree.Element("testsuites", name="vit-parity")
    for result in results:
        for report in result.reports:
            failed = [check for check in report.checks if not check.passed]
            name = f"{_text(result.path)} on {report.checks[0].provider}"
            counts = {"tests": str(len(report.checks)), "failures": str(len(failed)), "errors": "0", "skipped": "0"}
            suite = ElementTree.SubElement(root, "testsuite", {"name": name, **counts})
            for check in report.checks:
                case = ElementTree.SubElement(suite, "testcase", classname=name, name=_where(check), time="0")
                if not check.passed:
                    ElementTree.SubElement(case, "failure", message=measured(check), type="parity")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def summary(results: Sequence[Result]) -> str:
    """Markdown: the verdict, a line for each report with its worst check, and the first failures."""
    verdict = "passed" if all(result.passed for result in results) else "FAILED"
    lines = [f"## vit-parity: {verdict}", "", "| file | on | verdict | checks | worst |", "| --- | --- | --- | --- | --- |"]
    failures = list[str]()
    for result in results:
        name = _cell(result.path)
        for report in result.reports:
            word, worst = "passed" if report.passed else "**FAILED**", report.worst
            where = f"{_where(worst)}: {measured(worst)}"
            lines.append(f"| {name} | {report.checks[0].provider} | {word} | {len(report.checks)} | {where} |")
            failures += [f"{name} on {c.provider}, {_where(c)}: {measured(c)}" for c in report.checks if not c.passed]
    if failures:
        more = [f"- and {len(failures) - FAILURES} more"] if len(failures) > FAILURES else []
        lines += ["", "Failed:", "", *(f"- {failure}" for failure in failures[:FAILURES]), *more]
    return "\n".join(lines) + "\n"


def rows(report: Report) -> list[list[str]]:
    """A report as a table: a head, then a line for each check, its verdict last where it failed."""
    exact, several = isinstance(report.limits, Limits), {check.inputs for check in report.checks} != {"golden"}
    classes = ["same class", "same five"] if any(check.ranks for check in report.checks) else []
    figures = ["rms error", "in floors", "largest", "in floors"] if exact else ["least cosine", "mean", "largest KL"]
    found = [["output", "batch", "size", *(["images"] if several else []), *figures, *classes, ""]]
    for check in report.checks:
        size = f"{check.image_size[0]}x{check.image_size[1]}"
        where = [check.output, str(check.batch_size), size, *([check.inputs] if several else [])]
        order = _order(check) if classes else []
        found.append([*where, *(_floors(check) if exact else _nearness(check)), *order, "" if check.passed else "FAILED"])
    return found


def _order(check: Check) -> list[str]:
    """How many images kept their class on top, and those that did not for a tie's sake; how many kept their first five."""
    if check.ranks is None or check.accuracy.top1 is None:
        return ["", ""]
    ties = f" ({check.ranks.near_ties} near a tie)" if check.ranks.near_ties else ""
    return [f"{check.accuracy.top1:.0%}{ties}", f"{check.ranks.top5:.0%}"]


def _floors(check: Check) -> list[str]:
    return [f"{check.error.rms:.2e}", f"{check.rms_floors:.2f}", f"{check.error.max:.2e}", f"{check.max_floors:.2f}"]


def _nearness(check: Check) -> list[str]:
    near = check.accuracy
    return [f"{near.cosine_min:.5f}", f"{near.cosine_mean:.5f}", "" if near.kl_max is None else f"{near.kl_max:.1e}"]


def measured(check: Check) -> str:
    """What a check measured, and what is allowed."""
    near, limit = check.accuracy, check.limit
    if isinstance(limit, Limits):
        return f"{check.rms_floors:.2f} floors rms, {check.max_floors:.2f} the largest error; limits {limit.rms:g} and {limit.max:g}"
    divergence = f", KL {near.kl_max:.1e} of {limit.kl:g}" if near.kl_max is not None and limit.kl is not None else ""
    mean = f", mean {near.cosine_mean:.5f} of {limit.cosine_mean:g}" if limit.cosine_mean is not None else ""
    return f"least cosine {near.cosine_min:.5f} of {limit.cosine:g}{mean}{divergence}"


def _where(check: Check) -> str:
    height, width = check.image_size
    inputs = f", {check.inputs}" if check.inputs != "golden" else ""
    return f"{check.output}, batch size {check.batch_size}, {height}x{width}{inputs}"


def _text(value: str) -> str:
    """With question marks for what XML 1.0 has no place for: control characters, halves of surrogates."""
    ranges = ((" ", "\ud7ff"), ("\ue000", "\ufffd"), ("\U00010000", "\U0010ffff"))
    return "".join(char if any(first <= char <= last for first, last in ranges) else "?" for char in value)


def _cell(value: str) -> str:
    """As a cell of a Markdown table shows it."""
    plain = "".join(char if char.isprintable() else "?" for char in value)
    return "".join(f"\\{char}" if char in "\\`*_[]<>|" else char for char in plain)
