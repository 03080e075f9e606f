import random

import pytest

from .killing import check


@pytest.mark.parametrize(
    "kind", [("rigl", "s2sam"), ("gmp", "sam"), ("set", "random"), ("dense", "none"), ("lth", "s2sam")], ids="-".join
)
def test_a_run_killed_at_random_moments_ends_as_if_undisturbed(tmp_path, kind):
    assert check(kind, tmp_path, random.Random(repr(kind)), most=4) > 0
