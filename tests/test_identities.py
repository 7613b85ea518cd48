"""Every identity of the theory that this version claims is stated by a test."""

from identities import CLAIMED, marked


def test_every_claimed_identity_has_a_test() -> None:
    stated = marked()
    assert [name for name in CLAIMED if name not in stated] == []
