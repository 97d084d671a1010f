"""Versions of a bundle on a device: kept once, put to use by an atomic switch, and back by themselves when they fail.

bundle ─► import ─► objects/ versions/ ─► health, compare ─► promote ─► pending, 3 tries ─► mark_good
                                                                           └─ verdict ─► the version before
"""

from edgekit.field.releases.lifecycle import Releases
from edgekit.field.releases.release import Release

__all__ = ["Release", "Releases"]
