"""Privacy: what updates and models give away, and how to tell a tampered backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitune.late_imports import late_names

if TYPE_CHECKING:
    from vitune.privacy.attestation import Attestation, Finding, attest, attest_checkpoint
    from vitune.privacy.inversion import MatchSettings
    from vitune.privacy.leak import ATTACKS, LeakRow, LeakSettings, audit_leak
    from vitune.privacy.leak_page import check_leak_page, write_leak_page
    from vitune.privacy.membership import AttackResult, Estimate
    from vitune.privacy.membership_audit import MembershipSettings, audit_membership
    from vitune.privacy.membership_findings import MembershipFound, in_words
    from vitune.privacy.membership_page import write_membership_page
    from vitune.privacy.shared_update import Defence

__all__ = [
    "ATTACKS",
    "AttackResult",
    "Attestation",
    "Defence",
    "Estimate",
    "Finding",
    "LeakRow",
    "LeakSettings",
    "MatchSettings",
    "MembershipFound",
    "MembershipSettings",
    "attest",
    "attest_checkpoint",
    "audit_leak",
    "audit_membership",
    "check_leak_page",
    "in_words",
    "write_leak_page",
    "write_membership_page",
]

_FILES = {
    "attestation": ("Attestation", "Finding", "attest", "attest_checkpoint"),
    "inversion": ("MatchSettings",),
    "leak": ("ATTACKS", "LeakRow", "LeakSettings", "audit_leak"),
    "leak_page": ("check_leak_page", "write_leak_page"),
    "membership": ("AttackResult", "Estimate"),
    "membership_audit": ("MembershipSettings", "audit_membership"),
    "membership_findings": ("MembershipFound", "in_words"),
    "membership_page": ("write_membership_page",),
    "shared_update": ("Defence",),
}
"""Imported when first asked for: training looks in here for its private step alone."""

if not TYPE_CHECKING:  # which would let any name pass
    __getattr__ = late_names(__name__, _FILES)
