"""The page of corrupted images, docs/corrupted.md, with every number from results/corrupted.jsonl.

python benchmarks/corrupted_page.py
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import judged
from corrupted import DATA, measured
from survives import ARMS, NOISES, SEEDS, SPARSITIES
from survives_page import NAMES, Line, Setting

from flatsparse.common.files import write_atomic

ROOT = Path(__file__).parent.parent
PAGE, TEMPLATE = ROOT / "docs" / "corrupted.md", Path(__file__).with_name("corrupted_page.md")
OURS, BASE = "s2sam", "plain"


@dataclass(frozen=True)
class Nets:
    """The lines of one setting, by arm and seed."""

    lines: Mapping[tuple[str, int], Line]

    def corrupted(self, arm: str, kinds: Sequence[str] = ()) -> list[float]:
        """The mean accuracy over some corruptions, by default all, seed by seed."""
        of = [self.lines[arm, seed]["corrupted"] for seed in SEEDS]
        return [statistics.fmean(one[kind] for kind in kinds or one) for one in of]

    def clean(self, arm: str) -> list[float]:
        """The accuracy on the images as they are, seed by seed."""
        return [self.lines[arm, seed]["clean"] for seed in SEEDS]

    def gaps(self, arm: str, kinds: Sequence[str] = ()) -> list[float]:
        """The differences to plain training, seed by seed."""
        return judged.paired(self.corrupted(arm, kinds), self.corrupted(BASE, kinds))

    def beyond_clean(self, arm: str) -> list[float]:
        """The differences to plain training that there are not on clean images."""
        return judged.paired(self.gaps(arm), judged.paired(self.clean(arm), self.clean(BASE)))


def by_setting(lines: Iterable[Line]) -> dict[Setting, Nets]:
    """Return the nets of each setting."""
    found: dict[Setting, dict[tuple[str, int], Line]] = {(s, noise): {} for noise in NOISES for s in SPARSITIES}
    for line in lines:
        found[line["sparsity"], line["noise"]][line["arm"], line["seed"]] = line
    return {setting: Nets(own) for setting, own in found.items()}


def rendered(lines: Sequence[Line]) -> str:
    """Return the page."""
    nets = by_setting(lines)
    claims = judged.claims({setting: own.gaps(OURS) for setting, own in nets.items()})
    return TEMPLATE.read_text(encoding="utf-8").format(
        runs=len(lines),
        seeds=len(SEEDS),
        claims=len(claims),
        says="\n".join(f"- {sentence}" for sentence in says(nets, claims)),
        settings=settings_table(nets, claims),
        kinds=kinds_table(nets),
    )


def says(nets: Mapping[Setting, Nets], claims: Mapping[Setting, judged.Claim]) -> list[str]:
    """Return the sentences above the tables."""
    found = []
    for noise, title in zip(NOISES, ("Right labels", "20 % wrong labels"), strict=True):
        own = {setting: claim for setting, claim in claims.items() if setting[1] == noise}
        texts = judged.listed(f"{_name(setting)} {claim.text}" for setting, claim in own.items())
        beyond = judged.listed(f"{_name(s)} {judged.difference(nets[s].beyond_clean(OURS))}" for s in own)
        found.append(f"**{title}.** S²-SAM minus plain: {texts}. Beyond the difference on clean images: {beyond}.")
    means = {
        arm: [statistics.fmean(own.gaps(arm)) - statistics.fmean(own.gaps(OURS)) for own in nets.values()]
        for arm in ARMS
        if arm not in (OURS, BASE)
    }
    ahead = judged.listed(f"{NAMES[arm]} in {sum(gap > 0 for gap in gaps)}" for arm, gaps in means.items())
    found.append(
        f"**Others of as many gradients** have a larger mean than S²-SAM in some of the {len(nets)} settings: {ahead}."
    )
    return found


def settings_table(nets: Mapping[Setting, Nets], claims: Mapping[Setting, judged.Claim]) -> str:
    """Return the table of all arms in all settings."""
    others = [arm for arm in ARMS if arm not in (OURS, BASE)]
    head = [
        "nets",
        "plain, clean",
        "plain, corrupted",
        "S²-SAM",
        "beyond clean",
        "ruled out",
        *(NAMES[arm] for arm in others),
    ]
    rows = [
        [
            f"{_name(setting)}, {'20 % wrong' if setting[1] else 'right'}",
            judged.mean(own.clean(BASE)),
            judged.mean(own.corrupted(BASE)),
            claims[setting].text,
            judged.difference(own.beyond_clean(OURS)),
            claims[setting].verdict,
            *(judged.difference(own.gaps(arm)) for arm in others),
        ]
        for setting, own in nets.items()
    ]
    return judged.table(head, rows)


def kinds_table(nets: Mapping[Setting, Nets]) -> str:
    """Return the table of S²-SAM's difference to plain training for each corruption."""
    kinds = next(iter(next(iter(nets.values())).lines.values()))["corrupted"]
    head = ["corruption", *(f"{_name(setting)}, {'20 % wrong' if setting[1] else 'right'}" for setting in nets)]
    return judged.table(
        head,
        (
            [kind.replace("_", " "), *(judged.difference(own.gaps(OURS, [kind])) for own in nets.values())]
            for kind in kinds
        ),
    )


def _name(setting: Setting) -> str:
    return f"RigL {setting[0]:.0%}" if setting[0] else "dense"


if __name__ == "__main__":
    if not DATA.exists():
        raise SystemExit("no runs yet: python benchmarks/corrupted.py")
    write_atomic(PAGE, rendered(measured()).encode())
