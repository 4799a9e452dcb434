"""Where the lungs are, and whether the scan holds all of them."""

from __future__ import annotations

from embedprior.imaging.findings import Finding
from embedprior.imaging.volume import Volume


def audit_lungs(volume: Volume) -> list[Finding]:
    """Return findings about missing or cut lungs."""
    return []
