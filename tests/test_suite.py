"""What the tests, and the modules of the package, keep to."""

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


def test_modules_are_short():
    """One that grows beyond 350 lines is two rooms."""
    rooms = [TESTS.parent / "psld_jax", TESTS.parent / "convert"]
    lines = {path: len(path.read_text().splitlines()) for room in rooms for path in room.rglob("*.py")}
    assert len(lines) > 100 and {path.name: n for path, n in lines.items() if n > 350} == {}
