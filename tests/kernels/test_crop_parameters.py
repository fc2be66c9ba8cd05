"""The draw of crop parameters: what it depends on, and the distribution of each column."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from imc_kernels import draw_crop_parameters
from imc_kernels.ops.crop_parameters import Column

SIDES: dict[str, Any] = {"height": 32, "width": 32}


def draw(count: int = 2000, **options: Any) -> Tensor:
    """One view of ``count`` samples: [count, 13], float64."""
    return draw_crop_parameters(3, 5, torch.arange(count), views=1, **{**SIDES, **options})[0].double()


def test_a_sample_does_not_depend_on_its_batch() -> None:
    everything = draw_crop_parameters(1, 2, torch.arange(50), views=6, **SIDES)
    chosen = torch.tensor([7, 3, 44, 7, 0])
    assert torch.equal(draw_crop_parameters(1, 2, chosen, views=6, **SIDES), everything[:, chosen])
    late = draw_crop_parameters(1, 2, torch.arange(50), views=4, first_view=2, **SIDES)
    assert torch.equal(late, everything[2:])


def test_seed_step_sample_and_view_each_change_the_draw() -> None:
    base = draw_crop_parameters(1, 2, torch.arange(20), views=2, **SIDES)
    assert not (base[0] == base[1]).all(dim=-1).any()
    assert len(base[0].unique(dim=0)) == 20
    for seed, step in ((2, 2), (1, 3), (2, 1), (-1, 2), (2**63 + 1, 2)):
        assert not (draw_crop_parameters(seed, step, torch.arange(20), views=2, **SIDES) == base).all(dim=-1).any()


def test_is_the_same_today_and_tomorrow() -> None:
    """A run continued by a later version of the package sees the crops it would have seen."""
    row = draw_crop_parameters(1, 2, torch.tensor([3]), views=1, **SIDES)[0, 0]
    expected = [1, 0, 27, 30, 0.984708, 0.666665, 0.723611, 0.03255, 0, 0, 1, 1, 18]
    torch.testing.assert_close(row, torch.tensor(expected), rtol=0, atol=2e-6)


@pytest.mark.parametrize("seed", [0, -1, 2**63 + 1])
@pytest.mark.parametrize("step", [0, 5, 2**62, -3])
def test_a_step_in_a_tensor_draws_the_same(seed: int, step: int) -> None:
    """Also once it is advanced in place, as a captured graph does."""
    counter, indices = torch.tensor(step - 1), torch.tensor([4, 9, 2**40])
    counter += 1
    drawn = draw_crop_parameters(seed, counter, indices, views=3, first_view=2, **SIDES)
    assert torch.equal(drawn, draw_crop_parameters(seed, step, indices, views=3, first_view=2, **SIDES))


def test_a_step_in_another_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match=r"step must be an integer or an int64 tensor \[\], got torch.float32 \[\]"):
        draw_crop_parameters(0, torch.tensor(1.0), torch.arange(2), views=1, **SIDES)


def test_a_step_on_another_device_is_refused() -> None:
    """On meta it has no value."""
    step, indices = torch.zeros((), dtype=torch.int64), torch.arange(3)
    for steps, samples in (("meta", "cpu"), ("cpu", "meta")):
        sentence = rf"^draw_crop_parameters: indices are on {samples} and step on {steps}; move one$"
        with pytest.raises(ValueError, match=sentence):
            draw_crop_parameters(0, step.to(steps), indices.to(samples), views=2, **SIDES)
    assert draw_crop_parameters(0, step.to("meta"), indices.to("meta"), views=2, **SIDES).is_meta


def test_threads_change_nothing() -> None:
    threads = torch.get_num_threads()
    try:
        drawn = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            drawn.append(draw_crop_parameters(1, 2, torch.arange(5000), views=3, **SIDES))
        assert torch.equal(drawn[0], drawn[1])
        assert torch.equal(drawn[0], drawn[2])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (1, 1), (7, 50), (96, 20)])
def test_boxes_are_whole_pixels_inside_the_image(height: int, width: int) -> None:
    boxes = draw(height=height, width=width, scale=(0.01, 1.0))[:, :4]
    top, left, box_height, box_width = boxes.unbind(1)
    assert torch.equal(boxes, boxes.floor())
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (box_height >= 1).all()
    assert (box_width >= 1).all()
    assert (top + box_height <= height).all()
    assert (left + box_width <= width).all()


def test_area_and_ratio_follow_their_distributions() -> None:
    """In a large image and below its whole area, the first attempt nearly always fits: both are plainly uniform."""
    count, side = 20000, 2000
    boxes = draw(count, height=side, width=side, scale=(0.1, 0.4))[:, :4]
    area, log_ratio = boxes[:, 2] * boxes[:, 3] / side**2, (boxes[:, 3] / boxes[:, 2]).log()
    for values, low, high in ((area, 0.1, 0.4), (log_ratio, -math.log(4 / 3), math.log(4 / 3))):
        deviation = (high - low) / math.sqrt(12)
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=4 * deviation / math.sqrt(count))
        assert float(values.std()) == pytest.approx(deviation, rel=4 / math.sqrt(count))
        assert low - 2e-3 < values.min()
        assert values.max() < high + 2e-3  # sides of 547 pixels and more are rounded
    place = boxes[:, :2] / (side - boxes[:, 2:] + 1)
    for axis in place.unbind(1):
        assert float(axis.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * count))
    assert abs(float(torch.corrcoef(torch.stack([area, log_ratio, *place.unbind(1)])).triu(1).abs().max())) < 0.03


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(100, 10, [43, 0, 13, 10]), (10, 100, [0, 43, 10, 13]), (20, 20, [0, 0, 20, 20])],
)
def test_where_nothing_fits_the_box_is_the_central_one(height: int, width: int, box: list[int]) -> None:
    parameters = draw(10, height=height, width=width, scale=(4.0, 5.0))
    assert (parameters[:, :4] == torch.tensor(box)).all()


def test_rates_lie_within_four_standard_deviations() -> None:
    count = 20000
    parameters = draw(count, flip=0.3, jitter_probability=0.8, grayscale=0.25, blur_probability=0.5)
    for column, rate in ((Column.FLIP, 0.3), (Column.JITTER, 0.8), (Column.GRAYSCALE, 0.25), (Column.BLUR, 0.5)):
        happened = float((parameters[:, column] > 0).double().mean())
        assert happened == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / count))
    orders = parameters[:, Column.ORDER].long().bincount(minlength=24)
    assert len(orders) == 24
    deviation = math.sqrt(count * (1 / 24) * (23 / 24))
    assert (orders - count / 24).abs().max() < 4 * deviation


def test_factors_fill_their_ranges() -> None:
    parameters = draw(20000, brightness=0.4, contrast=1.5, saturation=0.0, hue=0.1, blur_probability=1.0)
    for column, low, high in (
        (Column.BRIGHTNESS, 0.6, 1.4),
        (Column.CONTRAST, 0.0, 2.5),
        (Column.SATURATION, 1.0, 1.0),
        (Column.HUE, -0.1, 0.1),
        (Column.BLUR, 0.1, 2.0),
    ):
        values = parameters[:, column]
        assert low - 1e-6 <= values.min() <= low + 0.01
        assert high - 0.01 <= values.max() <= high + 1e-6
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.03)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_probabilities_of_0_and_1_are_certain(value: float) -> None:
    parameters = draw(flip=value, jitter_probability=value, grayscale=value, blur_probability=value)
    for column in (Column.FLIP, Column.JITTER, Column.GRAYSCALE):
        assert (parameters[:, column] == value).all()
    assert ((parameters[:, Column.BLUR] > 0) == bool(value)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": 0}, "views must be an integer from 1 to 65536, got 0"),
        ({"height": 0}, "height must be an integer from 1 to 16777216, got 0"),
        ({"scale": (0.5, 0.2)}, "scale must be a range (low, high) with low <= high, got (0.5, 0.2)"),
        ({"scale": (0.5,)}, "scale must be 2 numbers, got 1"),
        ({"ratio": (0.0, 1.0)}, "ratio[0] must be a finite number above 0, got 0"),
        ({"blur_sigma": (0.1, math.inf)}, "blur_sigma[1] must be a finite number above 0, got inf"),
        ({"flip": 1.5}, "flip must be a number from 0 to 1, got 1.5"),
        ({"grayscale": math.nan}, "grayscale must be a number from 0 to 1, got nan"),
        ({"contrast": -0.1}, "contrast must be a finite number of at least 0, got -0.1"),
        ({"hue": 0.6}, "hue must be a number from 0 to 0.5, got 0.6"),
        ({"indices": torch.zeros(2, 2, dtype=torch.int64)}, "indices must have the shape [B], got [2, 2]"),
    ],
)
def test_bad_options_are_one_sentence(options: dict[str, Any], message: str) -> None:
    given = {"indices": torch.arange(3), "views": 1, **SIDES, **options}
    with pytest.raises(ValueError, match=re.escape(f"draw_crop_parameters: {message}")):
        draw_crop_parameters(1, 2, given.pop("indices"), **given)


@pytest.mark.parametrize("indices", [[1, 2], torch.rand(3)])
def test_indices_are_an_int64_tensor(indices: Any) -> None:
    with pytest.raises(TypeError, match="indices must be an int64 tensor"):
        draw_crop_parameters(1, 2, indices, views=1, **SIDES)
