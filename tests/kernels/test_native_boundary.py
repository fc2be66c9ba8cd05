"""A function of a compiled module takes what its signature says; anything else is one sentence and never a crash.

The random calls run in a process of their own, so that a crash is a failure and not the end of the tests.
"""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from imc_kernels import native

MODULES = [name for name in ("_cpu", "_cuda") if native.missing(name) is None]
EMULATED = [name for name in MODULES if name == "_cpu" or native.module(name).emulated()]
EXAMPLES = 60
SIZES = {
    "p": 2,
    "b": 3,
    "k": 3,
    "i": 2,
    "n": 3,
    "d": 5,
    "v": 2,
    "a": 2,
    "c": 3,
    "h": 2,
    "s": 4,
    "m": 3,
    "w": 12,
    "e": 4,
}
DOUBLE = {  # tensors of float64 beside float32 scores
    "sinkhorn": "rows|columns", "sinkhorn_backward": "rows|columns", "sinkhorn_sweep": "rows|columns|log_sums",
    "sinkhorn_backward_sweep": "columns|earlier_rows|earlier_columns", "info_nce_loss_rows": "loss",
    "multi_crop": "affine|law",
    "transport_plan": "log_rows|log_columns|rows|columns",
    "transport_plan_backward": "log_rows|log_columns|rows|columns",
    "log_dot_product_loss_sums": "sums", "log_dot_product_loss_parts": "sums|samples|whole_quotients|losses|quotients",
}  # fmt: skip


class Subclass(Tensor):
    pass


class Wrapper(Tensor):
    """A tensor without memory of its own."""

    @staticmethod
    def __new__(cls, shape: tuple[int, ...]) -> Wrapper:
        return torch.Tensor._make_wrapper_subclass(cls, shape)

    @classmethod
    def __torch_dispatch__(cls, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("not for dispatch")


def functions(name: str) -> dict[str, Any]:
    """Those of a module that have a signature."""
    members = vars(native.module(name)).items()
    return {key: value for key, value in members if "[" in (getattr(value, "__doc__", None) or "").split("\n")[0]}


def parameters(function: Any) -> list[str]:
    """What Python passes, as the signature has it; for the CPU also threads."""
    text = function.__doc__.split(";")[0]
    parts = [part.strip() for part in re.split(r",(?![^\[]*\])", text)]
    mine = [part for part in parts if "(" not in part and len(part) > 1]
    return [*mine, "threads"] if "_cpu" in function.__module__ else mine


def size(text: str) -> int:
    """The value of such as "vk+1"."""
    product = {"": 1}
    for term in text.removesuffix("..").split("+"):
        value = int(re.match(r"\d*", term)[0] or 1)  # type: ignore[index]
        for letter in re.sub(r"^\d+", "", term):
            value *= SIZES[letter]
        product[term] = value
    return sum(value for term, value in product.items() if term)


def fitting(function: Any, parameter: str) -> Any:
    """An argument that the function takes, for float32 scores."""
    if match := re.match(r"(\w+)\[(.*)\]", parameter):
        name, shape = match[1], [size(text) for text in match[2].split()]
        if name == "workspace":
            return torch.zeros(10_000)
        if name == "used":
            return torch.ones(shape, dtype=torch.int64)
        if name in ("indices", "samples", "step"):
            return torch.zeros(shape, dtype=torch.int64 if function.__name__ == "multi_crop" else torch.float64)
        if name == "images":
            return torch.zeros(shape, dtype=torch.uint8)
        double = re.fullmatch(DOUBLE.get(function.__name__, "affine"), name)
        return torch.ones(shape, dtype=torch.float64 if double else torch.float32)
    name, _, letter = parameter.partition(" ")
    flags = (
        "symmetric",
        "agreement",
        "last",
        "relu",
        "normalise",
        "normalize_prototypes",
        "channels_last",
        "all_pairs",
        "others",
    )
    if name in flags:
        return False
    integer = letter or name in ("iteration", "threads")
    return SIZES.get(letter, int(name == "threads")) if integer else 0.5


def freed(shape: tuple[int, ...]) -> Tensor:
    tensor = torch.rand(shape)
    tensor.untyped_storage().resize_(0)
    return tensor


# Tensors that are not contiguous float32 ones in memory, of a shape.
ODD: list[Callable[[tuple[int, ...]], Tensor]] = [
    *(lambda shape, dtype=dtype: torch.ones(shape, dtype=dtype) for dtype in (
        torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.uint8,
        torch.float8_e4m3fn,
    )),
    lambda shape: torch.rand((*shape, 2))[..., 0],
    lambda shape: torch.rand((*shape, 2)),
    lambda shape: torch.rand(1)[0].expand(shape),
    lambda shape: torch.empty((0, *shape[1:])),
    lambda shape: torch._neg_view(torch.rand(shape)),
    lambda shape: torch.rand(shape, requires_grad=True),
    lambda shape: torch.nn.Parameter(torch.rand(shape)),
    lambda shape: torch.rand(shape, device="meta"),
    lambda shape: torch.rand(shape).to_sparse(),
    lambda shape: torch.rand(shape).as_subclass(Subclass),
    lambda shape: torch.quantize_per_tensor(torch.rand(shape), 0.1, 0, torch.quint8),
    lambda shape: torch.nested.nested_tensor([torch.rand(2), torch.rand(3)]),
    lambda shape: torch.Tensor.__new__(torch.Tensor),
    lambda shape: torch.frombuffer(bytearray(4 * math.prod(shape) + 1), dtype=torch.float32, offset=1).view(shape),
    freed,
    Wrapper,
]  # fmt: skip
objects = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 9), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=3),
    st.binary(max_size=3), st.just(object()), st.just(Tensor), st.lists(st.floats(), max_size=2), st.just(2**31),
    st.just(torch.tensor(0.5)), st.just(torch.rand(2, 3, 4)), st.just(SIZES), st.just(torch.rand(2, 2, 3, 4)),
)  # fmt: skip


def shake(function: Any, examples: int) -> int:
    """Random calls of a function. Returns how many were refused."""
    wanted, refused = parameters(function), 0
    function(*(fitting(function, parameter) for parameter in wanted))

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=examples == EXAMPLES,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(data=st.data())
    def call(data: st.DataObject) -> None:
        nonlocal refused
        fits = [fitting(function, parameter) for parameter in wanted]
        arguments = list(fits)
        for _ in range(data.draw(st.integers(1, 2))):
            at = data.draw(st.integers(0, len(arguments) - 1))
            if isinstance(fits[at], Tensor) and data.draw(st.booleans()):
                arguments[at] = data.draw(st.sampled_from(ODD))(tuple(fits[at].shape))
            else:
                arguments[at] = data.draw(objects)
        if data.draw(st.integers(0, 9)) == 0:
            arguments = arguments[: data.draw(st.integers(0, len(arguments)))]
        if "iterations i" in wanted and any(type(x) is int and x > 1000 for x in arguments):
            arguments[0] = None  # it would be served, some day
        message = "served"
        try:
            function(*arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            message = str(error)
        refused += message != "served"
        assert message, "no message"
        assert "\n" not in message, message

    call()
    return refused


@pytest.mark.parametrize("name", EMULATED)
def test_no_argument_crashes_the_interpreter(name: str) -> None:
    command = [sys.executable, str(Path(__file__)), name, str(EXAMPLES)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    refused = dict(line.split() for line in result.stdout.splitlines())
    assert refused.keys() == functions(name).keys()
    assert all(int(count) > EXAMPLES // 4 for count in refused.values())


@pytest.mark.skipif("_cpu" not in MODULES, reason="the CPU kernels are not built")
@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        ({0: 140}, TypeError, r"_cpu\.sinkhorn: scores must be a torch.Tensor \[p.. b k\], got int"),
        ({0: None}, TypeError, r"scores must be a torch.Tensor \[p.. b k\], got NoneType"),
        ({0: torch.ones(2, 3, 4).long()}, TypeError, "scores must be float32 or .* float16, got int64"),
        ({2: torch.ones(2, 3, 4).double()}, TypeError, "assignments must be float32, got float64"),
        ({2: torch.ones(2, 3, 5)}, ValueError, r"of the shape \[p.. b k\], here \[2, 3, 4\], got \[2, 3, 5\]"),
        ({2: torch.ones(2, 4, 3).mT}, ValueError, r"must be contiguous, got the strides \[12, 1, 3\]"),
        ({2: torch.ones(2, 3, 4, device="meta")}, TypeError, "torch says: Cannot pack tensors on meta"),
        ({2: torch.ones(2, 3, 4).to_sparse()}, TypeError, "torch says: Cannot access data pointer"),
        ({0: torch.ones(2, 0, 4)}, ValueError, r"scores must be non-empty, got the shape \[2, 0, 4\]"),
        ({1: torch.ones(5)}, ValueError, r"marginals must be of the shape \[k\], here \[4\], got \[5\]"),
        ({3: torch.ones(2, 3, 3).double()}, ValueError, "columns must be given where rows is given"),
        ({5: float("nan")}, ValueError, "epsilon must be a number, got nan"),
        ({5: "0.05"}, TypeError, "epsilon must be a number, got str"),
        ({6: 0}, ValueError, r"1 <= i is required, got i = 0 \(iterations\)"),
        ({6: True}, TypeError, "iterations must be an integer, got bool"),
        ({6: 2**64}, ValueError, "iterations must be an integer from 0 to 9223372036854775807"),
        ({7: 0}, ValueError, "threads must be an integer from 1 to 1024"),
    ],
)
def test_one_sentence_says_what_was_wrong(change: dict[int, Any], kind: type[Exception], sentence: str) -> None:
    arguments = [torch.rand(2, 3, 4), None, torch.empty(2, 3, 4), None, None, 0.05, 3, 1]
    module = native.module("_cpu")
    module.sinkhorn(*arguments)
    for at, argument in change.items():
        arguments[at] = argument
    with pytest.raises(kind, match=sentence):
        module.sinkhorn(*arguments)


@pytest.mark.skipif("_cpu" not in MODULES, reason="the CPU kernels are not built")
def test_what_a_kernel_would_read_by_is_checked() -> None:
    """Values, and sizes that no tensor gives."""
    module = native.module("_cpu")
    box = torch.tensor([0.0, 0, 4, 4, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    images, indices, affine = torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.tensor([1]), torch.ones(2, 3).double()

    def crop(parameters: Tensor = box, indices: Tensor = indices, images: Tensor = images, size: int = 2) -> None:
        crops = torch.empty(1, 1, size, size, images.shape[3])
        module.multi_crop(crops, images, indices, parameters.reshape(1, 1, 13), affine, size, True, 1)

    crop()
    for column, value in ((0, -1), (1, 1), (2, 0), (2, 5), (3, float("nan")), (12, 24), (12, -1)):
        with pytest.raises(ValueError, match="the boxes of parameters must lie inside the images"):
            crop(box.index_fill(0, torch.tensor(column), value))
    for index in (-1, 2):
        with pytest.raises(ValueError, match=rf"indices must lie in \[0, 2\), got {index}"):
            crop(indices=torch.tensor([index]))
    with pytest.raises(ValueError, match=r"affine must be of the shape \[2 c\]"):
        crop(images=images[..., :2].contiguous())
    embeddings, statistics = torch.rand(2, 4, 3), torch.empty(2, 2, 3)
    with pytest.raises(ValueError, match=r"f\+n <= b is required, got b = 4 .*, f = 2 \(first_sample\), n = 3"):
        module.info_nce_loss_rows(embeddings, torch.empty(()).double(), statistics, 2, 0.1, False, 1)
    logits, scores = torch.rand(2, 3, 4), torch.rand(2, 3, 5)
    with pytest.raises(ValueError, match=r"c = k is required, got c = 4 .*, k = 5"):
        module.mutual_information_loss(logits, scores, torch.empty(()), None, None, 0.1, 4.0, 1.0, True, 1)


@pytest.mark.parametrize("name", EMULATED)
def test_what_asks_about_a_module_refuses_other_arguments(name: str) -> None:
    module = native.module(name)
    rest = {key: value for key, value in vars(module).items() if callable(value) and key not in functions(name)}
    wrong = (None, -1, 0, 2**70, 2**40, 0.5, "x", torch.rand(2))
    for function in rest.values():
        for arguments in ((a, b, c, d) for a in wrong for b in wrong for c in wrong for d in wrong):
            with pytest.raises((TypeError, ValueError)):
                function(*arguments)


def test_a_module_says_what_its_functions_take() -> None:
    for name in MODULES:
        assert len(functions(name)) >= 8
        assert all(parameters(function) for function in functions(name).values())


if __name__ == "__main__":
    torch.set_num_threads(2)
    loaded: ModuleType = native.module(sys.argv[1])
    with contextlib.suppress(AttributeError):
        loaded.emulate(multiprocessors=4)
    for name, function in functions(sys.argv[1]).items():
        print(name, shake(function, int(sys.argv[2])))
