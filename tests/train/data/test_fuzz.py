"""Damaged copies of every file that is read: the reader gives what it holds or one sentence, never another error.

`make fuzz` draws new damage for minutes; here a fixed few copies of each run. IMC_FUZZ_EXAMPLES sets their number.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers import READERS, attempt

from imc.data.cifar import unpickle
from imc.errors import UserError

EXAMPLES = int(os.environ.get("IMC_FUZZ_EXAMPLES", "10"))
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES == 10, suppress_health_check=list(HealthCheck)
)
Damage = tuple[float, list[tuple[float, bytes, int]]]
DAMAGE = st.tuples(
    st.one_of(st.just(1.0), st.floats(0, 1)),
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=4), st.integers(0, 4)), min_size=1, max_size=6
    ),
)


def damaged(content: bytes, damage: Damage) -> bytes:
    """The content cut to a fraction of its length, with a few bytes replaced by others, fewer or more.

    Half of these places are drawn from the first 128 bytes, where headers lie.
    """
    length, places = damage
    result = bytearray(content[: round(length * len(content))])
    for index, (position, put, taken) in enumerate(places):
        at = int(position * (min(128, len(result)) if index % 2 == 0 else len(result)))
        result[at : at + taken] = put
    return bytes(result)


@pytest.mark.parametrize("name", READERS)
def test_a_valid_file_is_read(name: str) -> None:
    reader = READERS[name]
    assert attempt(reader, (reader.place() / reader.file).read_bytes()) == ""


@pytest.mark.parametrize("name", READERS)
@FUZZ
@given(damage=DAMAGE)
def test_a_damaged_file_is_read_or_refused_in_a_sentence(name: str, damage: Damage) -> None:
    reader = READERS[name]
    attempt(reader, damaged((reader.place() / reader.file).read_bytes(), damage))


@pytest.mark.parametrize("name", READERS)
@FUZZ
@given(content=st.binary(max_size=200))
def test_arbitrary_bytes_are_read_or_refused_in_a_sentence(name: str, content: bytes) -> None:
    attempt(READERS[name], content)


@FUZZ
@given(content=st.binary(max_size=200))
def test_arbitrary_bytes_are_no_pickle_of_cifar(content: bytes) -> None:
    with suppress(UserError):
        assert isinstance(unpickle(Path("x"), b"\x80\x02}(" + content), dict)
