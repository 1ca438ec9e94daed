"""What the tests themselves keep to."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
# Two make seeds of names; one compares with numbers that PyTorch gave for RandomState's streams, which are frozen.
ALLOWED = {"conftest.py", "seeds.py", "test_inception.py", "test_suite.py"}
GENERATORS = re.compile(r"default_rng|RandomState|np\.random\.(?!Generator)|\brandom\.Random\(")


def test_random_numbers_come_from_names():
    """A generator that tests share gives other numbers in another order of them: take ``rng``, ``key`` or ``seeds``."""
    found = {
        f"{path.name}:{number}: {line.strip()}"
        for path in TESTS.glob("*.py")
        if path.name not in ALLOWED
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if GENERATORS.search(line)
    }
    assert not found
