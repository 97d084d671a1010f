"""Versions of a bundle on a device: stored once, promoted by an atomic switch, rolled back automatically on failure.

bundle ─► import ─► objects/ versions/ ─► health, compare ─► promote ─► pending, 3 tries ─► mark_good
                                                                           └─ verdict ─► the version before
"""

from edgekit.field.releases.lifecycle import Releases
from edgekit.field.releases.release import Release

__all__ = ["Release", "Releases"]
