"""One rule for the options of every operation, on every backend: what is a number, an integer, a truth value."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from operations import all_backends, native_backends
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad

import imc_kernels as k

GENERATOR = torch.Generator().manual_seed(0)
SCORES = torch.rand(2, 3, 4, generator=GENERATOR)
IMAGES = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8, generator=GENERATOR)
INDICES = torch.arange(3)
PARAMETERS = k.draw_crop_parameters(0, 0, INDICES, views=2, height=8, width=8)


def draw(**options: Any) -> Tensor:
    given: dict[str, Any] = {"views": 2, "height": 8, "width": 9, "seed": 1, "step": 2, "blur_probability": 0.5}
    given.update(options)
    return k.draw_crop_parameters(given.pop("seed"), given.pop("step"), INDICES, **given)


def crop(**options: Any) -> Tensor:
    given: dict[str, Any] = {"size": 6, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.5), **options}
    return k.multi_crop(IMAGES, INDICES, PARAMETERS, **given)


CALLS: dict[str, Callable[..., Tensor]] = {
    "sinkhorn": lambda **o: k.sinkhorn(SCORES, **o),
    "transport_plan": lambda **o: k.transport_plan(SCORES, **o),
    "prototype_scores": lambda **o: k.prototype_scores(SCORES, SCORES[0], **o),
    "per_view_batch_norm": lambda **o: k.per_view_batch_norm(SCORES.flatten(0, 1), **{"views": 2, **o}),
    "swapped_prediction_loss": lambda **o: k.swapped_prediction_loss(SCORES, SCORES, **o),
    "linear_swapped_prediction_loss": lambda **o: k.linear_swapped_prediction_loss(SCORES, SCORES[0], **o),
    "mutual_information_loss": lambda **o: k.mutual_information_loss(SCORES, SCORES, **o),
    "log_dot_product_loss": lambda **o: k.log_dot_product_loss(SCORES[None], **o),
    "self_distillation_loss": lambda **o: k.self_distillation_loss(SCORES[None], SCORES[None].flip(2), **o),
    "info_nce_loss": lambda **o: k.info_nce_loss(SCORES, **o),
    "multi_crop": crop,
    "draw_crop_parameters": draw,
}


class Option(NamedTuple):
    """An option, a value of it that every float type holds, and values out of its range."""

    operation: str
    name: str
    value: Any
    outside: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.operation}-{self.name}"


NAN, INF = float("nan"), float("inf")
NUMBERS = [
    Option("sinkhorn", "epsilon", 0.5, (0, -1.0, NAN, INF)),
    Option("swapped_prediction_loss", "temperature", 0.5, (0, -1.0, NAN, INF)),
    Option("linear_swapped_prediction_loss", "epsilon", 0.5, (0, -1.0, NAN, INF)),
    Option("linear_swapped_prediction_loss", "temperature", 0.5, (0, -1.0, NAN, INF)),
    Option("mutual_information_loss", "temperature", 0.5, (0, -1.0, NAN, INF)),
    Option("mutual_information_loss", "entropy_weight", 2.0, (NAN, INF, -INF)),
    Option("mutual_information_loss", "logit_limit", 0.5, (0, -1.0, NAN, INF)),
    Option("log_dot_product_loss", "smoothing", 0.25, (1, -0.5, NAN, INF)),
    Option("log_dot_product_loss", "entropy_weight", 2.0, (NAN, INF, -INF)),
    Option("log_dot_product_loss", "logit_limit", 0.5, (0, -1.0, NAN, INF)),
    *(
        Option("self_distillation_loss", n, 0.5, (0, -1.0, NAN, INF))
        for n in ("beta", "student_temperature", "teacher_temperature")
    ),
    Option("self_distillation_loss", "entropy_weight", 2.0, (NAN, INF, -INF)),
    Option("info_nce_loss", "temperature", 0.5, (0, -1.0, NAN, INF)),
    *(Option("transport_plan", n, 0.5, (0, -1.0, NAN, INF)) for n in ("epsilon", "reach")),
    Option("transport_plan", "tolerance", 0.5, (-1.0, NAN, INF)),
    *(
        Option("draw_crop_parameters", n, 0.5, (-0.5, NAN, INF))
        for n in ("brightness", "contrast", "saturation", "hue")
    ),
    *(
        Option("draw_crop_parameters", n, 0.5, (-0.5, 1.5, NAN, INF))
        for n in ("flip", "jitter_probability", "grayscale", "blur_probability")
    ),
]
MAY_BE_NONE = ("logit_limit", "reach", "tolerance")
INTEGERS = [
    Option("sinkhorn", "iterations", 2, (0, -1, 2**20 + 1, 2**62)),
    Option("linear_swapped_prediction_loss", "iterations", 2, (0, -1, 2**20 + 1, 2**62)),
    Option("linear_swapped_prediction_loss", "assigned", 1, (0, -1)),
    Option("transport_plan", "iterations", 2, (-1, -2, 2**20 + 1, 2**62)),
    Option("multi_crop", "size", 5, (0, -1)),
    Option("draw_crop_parameters", "views", 5, (0, -1, 2**16 + 1, 2**62)),
    *(Option("draw_crop_parameters", n, 5, (0, -1, 2**24 + 1, 2**62)) for n in ("height", "width")),
    *(Option("draw_crop_parameters", n, 5, ()) for n in ("first_view", "seed", "step")),
]
FLAGS = [
    Option("prototype_scores", "normalize_prototypes", False, ()),
    Option("linear_swapped_prediction_loss", "normalize_prototypes", False, ()),
    Option("mutual_information_loss", "symmetric", True, ()),
    Option("info_nce_loss", "normalise", True, ()),
    Option("transport_plan", "log", True, ()),
]
SEQUENCES = [
    Option("multi_crop", "mean", (0.5, 0.25, 0.125), (NAN, INF)),
    Option("multi_crop", "std", (0.5, 0.25, 0.125), (0, -1.0, NAN, INF)),
    *(Option("draw_crop_parameters", n, (0.25, 0.5), (0, -1.0, NAN, INF)) for n in ("scale", "ratio", "blur_sigma")),
]


def of_each_backend(options: list[Option]) -> Any:
    cases = [
        pytest.param(option, backend, id=f"{option}-{backend}")
        for option in options
        for backend in backends_of(option.operation)
    ]
    return pytest.mark.parametrize(("option", "backend"), cases)


def backends_of(operation: str) -> list[str]:
    return [""] if operation == "draw_crop_parameters" else all_backends(operation)


def call(option: Option, backend: str, value: Any) -> Tensor:
    return CALLS[option.operation](**{option.name: value}, **({"backend": backend} if backend else {}))


def forms(value: float) -> Iterator[Any]:
    """A number in every form that is one."""
    yield from (np.float64(value), np.float32(value), np.float16(value), np.asarray(value), Fraction(value))
    yield from (
        torch.tensor(value),
        torch.tensor(value, dtype=torch.float64),
        torch.tensor(value, dtype=torch.bfloat16),
    )
    yield torch.nn.Parameter(torch.tensor(value), requires_grad=False)
    if value == int(value):
        yield from (int(value), np.int64(value), np.uint8(value), torch.tensor(int(value)))


@of_each_backend(NUMBERS)
def test_what_is_a_number(option: Option, backend: str) -> None:
    expected = call(option, backend, option.value)
    for value in forms(option.value):
        assert torch.equal(call(option, backend, value), expected), repr(value)


WRONG = [True, np.True_, "0.5", b"1", 1j, np.complex64(1), torch.tensor(1j), Decimal("0.5"), [0.5], (0.5,), {}, object]
WRONG += [np.ones(1), torch.ones(1), torch.ones(2), torch.tensor(True), np.datetime64("2020")]
WITHOUT_VALUE = (torch.tensor(0.5, device="meta"), torch.tensor(1, device="meta"), torch.tensor(True, device="meta"))


@of_each_backend(NUMBERS)
def test_what_is_no_number(option: Option, backend: str) -> None:
    begin = re.escape(f"{option.operation}: {option.name} must be a ")
    for value in [*WRONG, *([] if option.name in MAY_BE_NONE else [None])]:
        with pytest.raises(TypeError, match=rf"^{begin}.*number.*, got [^\n]*$"):
            call(option, backend, value)
    for value in option.outside:
        for form in (value, np.float64(value), torch.tensor(value)):
            with pytest.raises(ValueError, match=rf"^{begin}.*number.*, got {value:g}$"):
                call(option, backend, form)
    with pytest.raises(ValueError, match=rf"^{begin}.*, got -?inf$"):
        call(option, backend, -(10**400))


@of_each_backend([option for option in NUMBERS + INTEGERS + FLAGS if option.name != "step"])  # which may be traced
def test_a_tensor_that_has_no_value_is_no_option(option: Option, backend: str) -> None:
    for value in WITHOUT_VALUE:
        expected = rf"^{option.operation}: {option.name} must be .*, got a tensor \[\] of [^\n]* on the device meta$"
        with pytest.raises(TypeError, match=expected):
            call(option, backend, value)


@of_each_backend([option for option in NUMBERS if str(option) != "info_nce_loss-temperature"])  # which may be learnt
def test_a_number_with_a_gradient_is_refused(option: Option, backend: str) -> None:
    message = f"{option.operation}: {option.name} is a constant, to which no gradient flows"
    for value in (torch.nn.Parameter(torch.tensor(option.value)), torch.tensor([option.value], requires_grad=True)):
        with pytest.raises(ValueError, match=message):
            call(option, backend, value)
        with torch.no_grad(), pytest.raises(ValueError, match=message):
            call(option, backend, value)
        value = value.detach().squeeze()
        call(option, backend, value)
        with forward_ad.dual_level(), pytest.raises(ValueError, match=message):
            call(option, backend, forward_ad.make_dual(value, torch.ones_like(value)))
        with pytest.raises(ValueError, match=message):
            torch.func.grad(lambda x: call(option, backend, x).sum())(value)


@of_each_backend(INTEGERS)
def test_what_is_an_integer(option: Option, backend: str) -> None:
    expected = call(option, backend, option.value)
    for kind in (np.int64, np.int8, np.uint64, np.asarray, torch.tensor):
        assert torch.equal(call(option, backend, kind(option.value)), expected), kind
    wrong = [
        True,
        np.True_,
        2.0,
        np.float64(2),
        "2",
        None,
        2j,
        Fraction(2),
        torch.tensor(2.0),
        torch.ones(1).int(),
        [2],
    ]
    for value in wrong:
        with pytest.raises(
            TypeError, match=rf"^{option.operation}: {option.name} must be an integer[^\n]*, got [^\n]*$"
        ):
            call(option, backend, value)
    for value in option.outside:
        for form in (value, np.int64(value), torch.tensor(value)):
            with pytest.raises(
                ValueError, match=rf"{option.name} must be an integer (of at least 1|from [01] to \d+), got {value}$"
            ):
                call(option, backend, form)


BOUNDED = [option for option in INTEGERS if len(option.outside) > 2]


@of_each_backend(BOUNDED)
def test_the_largest_integer_is_a_stated_one(option: Option, backend: str) -> None:
    """No call runs for years or asks for all memory by one number alone; what the sentence names is accepted."""
    with pytest.raises(ValueError, match=r"from [01] to (\d+), got") as refusal:
        call(option, backend, 2**62)
    most = int(re.findall(r"from [01] to (\d+)", str(refusal.value))[0])
    assert most + 1 == option.outside[2]
    assert f"2^{most.bit_length() - 1}" in (getattr(k, option.operation).__doc__ or "")


def test_every_integer_has_an_end() -> None:
    """By itself or by the sizes of the tensors: seeds, steps and numbers of views are hashed, of any size."""
    ended = {(option.operation, option.name) for option in BOUNDED}
    hashed = {("draw_crop_parameters", name) for name in ("seed", "step", "first_view")}
    by_sizes = {
        ("multi_crop", "size"): "crops of 4611686018427387904 pixels from images of 8 are too large",
        ("linear_swapped_prediction_loss", "assigned"): (
            "embeddings [V, B, D] must hold at least the 4611686018427387904 assigned views, and 2 unless "
            'pairs="all", got [2, 3, 4]'
        ),
        ("per_view_batch_norm", "views"): "6 rows are not 4611686018427387904 views of equal size",
    }
    for (operation, name), sentence in by_sizes.items():
        with pytest.raises(ValueError, match=f"^{operation}: {re.escape(sentence)}$"):
            CALLS[operation](**{name: 2**62})
    known = {(operation, name) for operation in CALLS for name, annotation in integers_of(operation)}
    assert known == ended | hashed | set(by_sizes)


def integers_of(operation: str) -> Iterator[tuple[str, str]]:
    for name, annotation in getattr(k, operation).__annotations__.items():
        if annotation.split(" | ")[0] == "int":
            yield name, annotation


@of_each_backend(FLAGS)
def test_what_is_true_or_false(option: Option, backend: str) -> None:
    for value in (True, False):
        expected = call(option, backend, value)
        for kind in (np.bool_, np.asarray, torch.tensor):
            assert torch.equal(call(option, backend, kind(value)), expected), kind
    for value in (0, 1, 1.0, "no", None, np.int64(1), torch.tensor(1), torch.ones(1).bool(), []):
        with pytest.raises(TypeError, match=rf"^{option.operation}: {option.name} must be True or False, got [^\n]*$"):
            call(option, backend, value)


@of_each_backend(SEQUENCES)
def test_what_is_a_sequence_of_numbers(option: Option, backend: str) -> None:
    values, count = option.value, len(option.value)
    expected = call(option, backend, values)
    kinds: tuple[Callable[[Any], Any], ...] = (list, np.array, torch.tensor, lambda v: [torch.tensor(x) for x in v])
    for kind in (*kinds, lambda v: list(map(np.float32, v)), lambda v: list(map(Fraction, v))):
        assert torch.equal(call(option, backend, kind(values)), expected)
    name = f"^{option.operation}: {option.name}"
    for value in (0.5, None, "1" * count, {0.1, 0.2, 0.3}, np.ones((count, 1)), torch.ones(count, 1), torch.ones(())):
        with pytest.raises(TypeError, match=rf"{name} must be {count} numbers, got [^\n]*$"):
            call(option, backend, value)
    for value in ((), values[:-1], [*values, 0.5], torch.ones(count + 1)):
        with pytest.raises(ValueError, match=rf"{name} must be {count} numbers, got {len(value)}$"):
            call(option, backend, value)
    for value in option.outside:
        with pytest.raises(ValueError, match=rf"{name}\[1\] must be .*, got {value:g}$"):
            call(option, backend, [values[0], value, *values[2:]])
    with pytest.raises(TypeError, match=rf"{name}\[0\] must be .*number.*, got str$"):
        call(option, backend, ["0.5", *values[1:]])
    with pytest.raises(ValueError, match=rf"{name} is a constant, to which no gradient flows"):
        call(option, backend, torch.tensor(values, requires_grad=True))


def test_text() -> None:
    for value in (None, 1, ["log-dot"], torch.ones(1)):
        with pytest.raises(ValueError, match="critic must be log-dot, dot, "):
            k.log_dot_product_loss(SCORES[None], critic=value)  # type: ignore[arg-type]
    for text in ("Agreement", "", "none"):
        with pytest.raises(ValueError, match=r'weights must be a tensor \[B\], "agreement" or None, got '):
            k.self_distillation_loss(SCORES[None], SCORES[None], weights=text)
    for value in (None, 1, "both", "All", ["all"]):
        with pytest.raises(ValueError, match='pairs must be "others" or "all", got '):
            k.linear_swapped_prediction_loss(SCORES, SCORES[0], pairs=value)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match='pairs must be "others" or "all", got '):
            k.swapped_prediction_loss(SCORES, SCORES, pairs=value)  # type: ignore[arg-type]
    for name in CALLS:
        if name != "draw_crop_parameters":
            for value in (["cpu"], 1, torch.ones(2), b"cpu"):
                with pytest.raises((ValueError, TypeError), match="backend= names no backend: "):
                    CALLS[name](backend=value)


OF_LOSSES = [option for option in NUMBERS if option.operation != "draw_crop_parameters"]
NATIVE = [(option, backend) for option in OF_LOSSES for backend in native_backends(option.operation)]
SCHEDULED = [
    *((option, backend, form) for option, backend in NATIVE for form in ("float", "tensor")),
    *((option, "eager", "float") for option in OF_LOSSES[:2]),
    *((option, "eager", "tensor") for option in OF_LOSSES[:2]),
    *((option, backend, "attribute") for option, backend in NATIVE if option.name == "epsilon"),
]


@pytest.mark.parametrize(("option", "backend", "form"), SCHEDULED, ids=str)
def test_a_number_that_changes_from_step_to_step_does_not_compile_again(
    option: Option, backend: str, form: str
) -> None:
    """Five values: one graph for the first, one for all others; each right, with its gradient."""
    torch.compiler.reset()
    graphs = CompileCounterWithBackend("aot_eager")

    class Step(torch.nn.Module):
        value: Any = option.value

        def forward(self, x: Tensor, value: Any) -> Tensor:
            given = self.value if form == "attribute" else value
            return operation(x, option, backend, given) * 2

    module = Step()
    compiled = torch.compile(module, fullgraph=True, backend=graphs)
    x = SCORES.clone().requires_grad_()
    for step in range(5):
        value = option.value * (1 - step / 10)
        module.value = value
        result = compiled(x, torch.tensor(value, dtype=torch.float64) if form == "tensor" else value)
        expected = operation(x, option, backend, value) * 2
        torch.testing.assert_close(result, expected)
        (gradient,) = torch.autograd.grad(result.sum(), x)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), x)[0])
    assert graphs.frame_count <= 2


def operation(x: Tensor, option: Option, backend: str, value: Any) -> Tensor:
    inputs = {
        "swapped_prediction_loss": (x, SCORES),
        "linear_swapped_prediction_loss": (x, SCORES[0]),
        "mutual_information_loss": (x, SCORES),
        "log_dot_product_loss": (x[None],),
        "self_distillation_loss": (x[None], SCORES[None].flip(2)),
    }
    function = getattr(k, option.operation)
    return function(*inputs.get(option.operation, (x,)), **{option.name: value}, backend=backend)


@pytest.mark.parametrize(("option", "backend"), NATIVE, ids=str)
def test_a_tensor_out_of_range_is_refused_in_a_compiled_graph(option: Option, backend: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(lambda x, value: operation(x, option, backend, value), fullgraph=True, backend="aot_eager")
    for value in option.outside:
        with pytest.raises(ValueError, match=rf"^{option.operation}: {option.name} must be .*, got {value:g}$"):
            compiled(SCORES, torch.tensor(float(value)))
