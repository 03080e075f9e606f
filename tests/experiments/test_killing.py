import random

import pytest

from .killing import check

MORE = [pytest.param(kind, marks=pytest.mark.slow) for kind in (("gmp", "sam"), ("set", "random"), ("dense", "none"))]


@pytest.mark.parametrize("kind", [("rigl", "s2sam"), ("lth", "s2sam"), *MORE], ids="-".join)
def test_a_run_killed_at_random_moments_ends_as_if_undisturbed(tmp_path, kind):
    assert check(kind, tmp_path, random.Random(repr(kind)), most=4) > 0
