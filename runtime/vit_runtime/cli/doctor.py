"""vit-doctor: what is installed, which providers truly work here, what is broken, and the command that mends it."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import click

from vit_runtime.cli.common import Command, Console, output_options
from vit_runtime.doctor import Diagnosis, Finding, Machine, diagnose
from vit_runtime.errors import MachineError

__all__ = ["main"]


@click.command(cls=Command)
@output_options
def main(console: Console) -> None:
    """Say what is installed, which execution providers truly work on this machine, what is broken, and what mends it.

    Each provider runs three nodes and has to give the right numbers. The exit code is 0 when the CPU provider works and nothing is
    broken, otherwise 4: what is only missing does not change it. With -q only what must be mended is printed, to stderr.

    Example: vit-doctor --json
    """
    console.progress("running three nodes on each provider")
    diagnosis = diagnose()
    console.result(diagnosis.to_dict(), "\n".join(_report(diagnosis)))
    for line in _to_mend(diagnosis) if console.quiet else ():
        click.echo(line, err=True)
    if not diagnosis.ok:
        sys.exit(MachineError.exit_code)


def _report(diagnosis: Diagnosis) -> list[str]:
    add = [item for item in diagnosis.everything if item.status == "missing" and item not in diagnosis.failures]
    lines = ["machine", *_machine(diagnosis.machine)]
    lines += ["packages", *_table(diagnosis.findings)]
    lines += ["providers", *_table(diagnosis.everything[len(diagnosis.findings) :])]
    if add:
        lines += ["to add what is missing, if you need it", *_indented(_by_text((item.name, item.remedy) for item in add))]
    if diagnosis.failures:
        lines += ["to mend what is broken", *_indented(_to_mend(diagnosis))]
    return lines


def _machine(machine: Machine) -> list[str]:
    quota = "" if machine.cpu_quota is None else f", limited to {machine.cpu_quota:g} CPUs"
    memory = "unknown" if machine.memory_mib is None else f"{machine.memory_mib} MiB, {machine.memory_available_mib} MiB of it available"
    return [
        f"  Python   {machine.python} on {machine.platform}",
        f"  CPU      {machine.cpu}",
        f"  cores    {machine.physical_cores} physical, {machine.logical_cpus} logical{quota}; a session starts {machine.threads} threads",
        f"  memory   {memory}",
    ]


def _table(findings: Iterable[Finding]) -> list[str]:
    return [f"  {item.status:<8} {item.name:<16} {item.detail}" for item in findings]


def _to_mend(diagnosis: Diagnosis) -> list[str]:
    return _by_text((item.name, f"{item.detail}; {item.remedy}") for item in diagnosis.failures)


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _by_text(items: Iterable[tuple[str, str]]) -> list[str]:
    """Each text once, after all the names that it concerns."""
    names: dict[str, list[str]] = {}
    for name, text in items:
        names.setdefault(text, []).append(name)
    return [f"{', '.join(concerned)}: {text}" for text, concerned in names.items()]


if __name__ == "__main__":
    main()
