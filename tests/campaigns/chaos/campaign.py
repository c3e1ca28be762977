"""Rounds of trouble: each is one command under one disturbance, and then once more undisturbed."""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from campaigns.chaos.disturbances import DISTURBANCES
from campaigns.chaos.inputs import COMMANDS, make_inputs, released_record
from campaigns.chaos.server import UnreliableServer
from campaigns.chaos.trial import Reference, Trial


@dataclass
class Campaign:
    """Rounds on one set of inputs.

    Attributes:
        work: folder for everything; the inputs lie in it.
        server: of the inputs.
        seed: of all choices.
        findings: folder for what does not hold.
        rounds, broken: (command, disturbance) -> number of rounds, and of those with findings.
    """

    work: Path
    server: UnreliableServer
    seed: int
    findings: Path
    rounds: Counter = field(default_factory=Counter)
    broken: Counter = field(default_factory=Counter)
    _references: dict[tuple[str, bool], Reference] = field(default_factory=dict)

    def trial(
        self, name: str, folder: str, rng: random.Random, *, web: bool, reference: Reference | None
    ) -> Trial:
        """A command in a folder."""
        return Trial(
            COMMANDS[name],
            self.work / folder,
            self.server.url if web else str(self.work / "inputs"),
            released_record(self.work / "inputs"),
            self.server,
            rng,
            reference,
        )

    def reference(self, name: str, *, web: bool) -> Reference:
        """An undisturbed run of a command, made once."""
        if (name, web) not in self._references:
            folder = f"undisturbed-{name}{'-web' if web else ''}"
            with self.trial(name, folder, random.Random(0), web=web, reference=None) as trial:
                self._references[name, web] = trial.become_reference()
        return self._references[name, web]

    def run_round(self, number: int, name: str, trouble: str) -> None:
        """Disturb a command, run it again, and tell."""
        disturbance = DISTURBANCES[trouble]
        reference = self.reference(name, web=disturbance.web)
        rng = random.Random(f"{self.seed}/{number}/{name}/{trouble}")
        began = time.monotonic()
        folder = f"round-{number:04d}"
        with self.trial(name, folder, rng, web=disturbance.web, reference=reference) as trial:
            disturbance.disturb(trial)
            trial.run_undisturbed()
            self.rounds[name, trouble] += 1
            seconds = time.monotonic() - began
            print(f"{number:4} {name}, {trouble}: {'; '.join(trial.done)}  ({seconds:.0f} s)")
            if trial.problems:
                self.broken[name, trouble] += 1
                self.keep(trial, number, name, trouble)
        shutil.rmtree(self.work / folder)
        sys.stdout.flush()

    def keep(self, trial: Trial, number: int, name: str, trouble: str) -> None:
        """Put a finding into its folder."""
        place = self.findings / f"{name}-{trouble}-{self.seed}-{number:04d}"
        repeat = f"python tests/campaigns/chaos --seed {self.seed} --round {number}"
        lines = [
            f"i3d {' '.join(trial.words)}",
            *trial.done,
            "",
            *trial.problems,
            "",
            f"{repeat} --command {name} --disturbance {trouble}",
        ]
        trial.keep(place, "\n".join(lines) + "\n")
        for problem in trial.problems:
            print(f"     {problem}")
        print(f"     kept in {place}")

    def table(self) -> str:
        """Rounds of every pair, and behind a stroke those with findings."""
        commands = [name for name in COMMANDS if any(name == n for n, _ in self.rounds)]
        troubles = [name for name in DISTURBANCES if any(name == t for _, t in self.rounds)]
        rows = [["", *troubles]]
        for name in commands:
            row = [name]
            for trouble in troubles:
                rounds, bad = self.rounds[name, trouble], self.broken[name, trouble]
                row.append(f"{rounds}/{bad}" if bad else str(rounds or ""))
            rows.append(row)
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


def pairs(commands: list[str], troubles: list[str], rng: random.Random) -> list[tuple[str, str]]:
    """Every command with every disturbance that suits it, in a random order."""
    found = [(c, t) for c in commands for t in troubles if DISTURBANCES[t].suits(COMMANDS[c])]
    rng.shuffle(found)
    return found


def main(description: str | None) -> int:
    """The command: its exit code is 1 if something does not hold."""
    parser = argparse.ArgumentParser(
        prog="chaos", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, help="of all choices; printed where it is not given")
    parser.add_argument("--command", choices=COMMANDS, action="append")
    parser.add_argument("--disturbance", choices=DISTURBANCES, action="append")
    parser.add_argument("--round", type=int, help="this one alone")
    parser.add_argument("--findings", type=Path, default=Path("chaos-output"))
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}")

    troubles = []
    for name in options.disturbance or DISTURBANCES:
        lacking = DISTURBANCES[name].lacking()
        if lacking is None:
            troubles.append(name)
        else:
            print(f"skipped: {name}: {lacking}")
    chosen = pairs(options.command or list(COMMANDS), troubles, random.Random(seed))
    if not chosen:
        print("nothing to do")
        return 0

    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        make_inputs(work / "inputs")
        with UnreliableServer(work / "inputs") as server:
            campaign = Campaign(work, server, seed, options.findings)
            for number in count() if options.round is None else [options.round]:
                campaign.run_round(number, *chosen[number % len(chosen)])
                if time.monotonic() > end:
                    break
    print(f"\n{campaign.table()}\n")
    total, bad = campaign.rounds.total(), campaign.broken.total()
    print(
        f"seed {seed}: {total} rounds, {bad} with findings" + f" in {options.findings}" * bool(bad)
    )
    return 1 if bad else 0
