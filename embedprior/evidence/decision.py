"""Claims declared before looking, and their verdicts: from declared sizes and margins, and from the interval alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from embedprior.evidence.errors import EvidenceError
from embedprior.evidence.intervals import CiMethod

SUPPORTED, EXCLUDED, INCONCLUSIVE = "supported", "excluded", "inconclusive"
SUPPORTED_SMALL = "supported, below the relevant difference"
NOT_TESTABLE, EXPLORATORY = "not testable at this size", "exploratory"
TENTATIVE = "tentative on fixed split only"
Kind = Literal["superior", "non-inferior", "equivalent"]


@dataclass(frozen=True)
class Claim:
    """One comparison with what is claimed of it.

    Attributes:
        a, b: methods.
        kind: ``superior`` = a scores higher than b; ``non-inferior`` = a is not worse than b by ``margin`` or more;
            ``equivalent`` = they differ by less than ``margin``.
        margin: of AUC; None for ``superior``.

    Raises:
        EvidenceError: a method against itself, or a margin that is missing, superfluous or not in (0, 0.5).
    """

    a: str
    b: str
    kind: Kind = "superior"
    margin: float | None = None

    def __post_init__(self) -> None:
        if self.a == self.b:
            raise EvidenceError(f"the claim '{self.a} > {self.b}' compares {self.a!r} with itself.")
        if (self.kind == "superior") != (self.margin is None):
            raise EvidenceError(
                f"a claim that {self.a} is {self.kind} to {self.b} "
                + ("takes no margin." if self.kind == "superior" else "needs a margin, e.g. 0.03.")
            )
        if self.margin is not None and not 0 < self.margin < 0.5:
            raise EvidenceError(f"the margin must be in (0, 0.5), e.g. 0.03; got {self.margin}.")

    @property
    def text(self) -> str:
        """The claim in signs: ``a > b``, ``a >= b - 0.03`` or ``a = b ± 0.03``."""
        if self.margin is None:
            return f"{self.a} > {self.b}"
        sign, operator = ("-", ">=") if self.kind == "non-inferior" else ("±", "=")
        return f"{self.a} {operator} {self.b} {sign} {self.margin:g}"


_FORM = re.compile(
    r"^(?P<a>.+?)\s*(?P<op>>=|≥|>|=)\s*(?P<b>.+?)(?:\s+(?P<sign>-|−|±|\+/-|\+-)\s*(?P<margin>\d*\.?\d+))?$"
)


def parse_claim(text: str) -> Claim:
    """Return the claim written as ``a > b``, ``a >= b - .03`` or ``a = b ± .03`` (``+-`` for ±).

    Raises:
        EvidenceError: another form.

    Example:
        >>> parse_claim("prior >= direct-head - .03")
        Claim(a='prior', b='direct-head', kind='non-inferior', margin=0.03)
    """
    found = _FORM.match(text.strip())
    forms = "write 'a > b', 'a >= b - .03' or 'a = b +- .03'"
    if found is None:
        raise EvidenceError(f"{text!r} is no claim; {forms}.")
    operator, sign, margin = found["op"], found["sign"], found["margin"]
    kinds: dict[tuple[str, str | None], Kind] = {
        (">", None): "superior",
        (">=", "-"): "non-inferior",
        ("=", "±"): "equivalent",
    }
    plain = {"≥": ">="}.get(operator, operator), {"−": "-", "+/-": "±", "+-": "±"}.get(sign, sign)
    if plain not in kinds:
        raise EvidenceError(f"{text!r} is no claim; {forms}.")
    return Claim(found["a"].strip(), found["b"].strip(), kinds[plain], None if margin is None else float(margin))


@dataclass(frozen=True)
class Rules:
    """What the caller declared before looking at the scores.

    Attributes:
        alpha: two-sided error rate of the whole family.
        ci: interval of an AUC.
        relevant_delta: the smallest difference of AUCs worth claiming.
        power: wished chance of finding a difference, for the detectable difference.
        auc, correlation: assumed AUC of the weaker method, and assumed correlation of the two AUC estimates.
        planned: detectable differences of a plan, at ``alpha`` and at Holm's first step (None = no difference is
            detectable); without a plan they are computed from the sizes.
    """

    alpha: float = 0.05
    ci: CiMethod = "logit-t"
    relevant_delta: float = 0.05
    power: float = 0.8
    auc: float = 0.8
    correlation: float = 0.5
    planned: tuple[float | None, float | None] | None = None


def verdict(
    claim: Claim, row: Mapping[str, Any], limits: tuple[float, float] | None, detectable: float | None, rules: Rules
) -> str:
    """Judge one claim of the family.

    Args:
        claim: what was declared.
        row: ``delta``, ``p_holm`` of its comparison.
        limits: the interval at Holm's level for this claim; None when undefined.
        detectable: difference that sizes and assumptions promise to find at Holm's first step; None = none.
        rules: what was declared.

    Returns:
        Superiority, at a size that could detect the relevant difference: *supported* (the interval lies above 0; with
        an estimate under the relevant difference this is said), *excluded* (it lies below the relevant difference),
        else *inconclusive*. At a smaller size the verdict is *not testable*, whatever came out, unless the whole
        interval lies beyond the relevant difference on either side.
        Non-inferiority and equivalence: *supported* when the interval keeps within the margin, *excluded* when it
        lies outside, else *inconclusive*, or *not testable* at a size that could not detect the margin.
    """
    if row["p_holm"] is None or limits is None:
        return NOT_TESTABLE
    low, high = limits
    if claim.margin is not None:
        return _within_margin(claim, low, high, detectable)
    relevant = rules.relevant_delta
    enough = detectable is not None and detectable <= relevant
    if not enough:
        return SUPPORTED if low >= relevant else EXCLUDED if high <= -relevant else NOT_TESTABLE
    if row["p_holm"] <= rules.alpha and row["delta"] > 0:
        return SUPPORTED if row["delta"] >= relevant else SUPPORTED_SMALL
    return EXCLUDED if high < relevant else INCONCLUSIVE


def _within_margin(claim: Claim, low: float, high: float, detectable: float | None) -> str:
    margin = claim.margin or 0.0
    equivalent = claim.kind == "equivalent"
    if low > -margin and (not equivalent or high < margin):
        return SUPPORTED
    if high <= -margin or (equivalent and low >= margin):
        return EXCLUDED
    return INCONCLUSIVE if detectable is not None and detectable <= margin else NOT_TESTABLE


def as_claim(given: Claim | str | tuple[str, str]) -> Claim:
    """Return a claim from itself, its text, or the pair (a, b) of "a scores higher than b"."""
    if isinstance(given, Claim):
        return given
    if isinstance(given, str):
        return parse_claim(given)
    a, b = given
    return Claim(str(a), str(b))


def status(fixed: str | None, resampled: str | None) -> str:
    """Combine the verdict on a fixed split with the one over folds or resamples, which decides where there is one.

    Support on the fixed split alone is *tentative* once the others were run and did not bear it out.
    """
    if resampled is None:
        return NOT_TESTABLE if fixed is None else fixed
    if fixed in (SUPPORTED, SUPPORTED_SMALL) and resampled not in (SUPPORTED, SUPPORTED_SMALL):
        return TENTATIVE
    return resampled


def checked_family(claims: Sequence[Claim]) -> list[Claim]:
    """Return the claims, each declared once.

    Raises:
        EvidenceError: one stands twice, or two claims of superiority contradict each other.
    """
    for i, claim in enumerate(claims):
        for other in claims[i + 1 :]:
            opposite = claim.kind == other.kind != "non-inferior" and (claim.a, claim.b) == (other.b, other.a)
            if claim == other or opposite:
                raise EvidenceError(f"the family holds the comparison of {claim.a!r} and {claim.b!r} twice.")
    return list(claims)
