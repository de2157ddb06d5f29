"""The picture of a generation is written, whole, fits a page, and is not blank."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codeclm.inference.sound.surprise_plot import GenerationPlot, plot_generation

RATE = 16_000
README_PICTURE = Path(__file__).parent.parent / "inference/demo.png"


def example(duration_s: float, prompt_s: float = 1.0) -> GenerationPlot:
    time = np.arange(round(duration_s * RATE)) / RATE
    audio = 0.3 * np.sin(2 * np.pi * 200 * time + 5 * np.sin(9 * time)) * (np.sin(7 * time) > 0)
    bits = np.random.default_rng(0).gamma(6, 7, round(duration_s * 25))
    return GenerationPlot(audio.astype(np.float32), RATE, bits, 25.0, prompt_s)


def pixels(path: Path) -> np.ndarray:
    return pytest.importorskip("matplotlib.image").imread(path)[..., :3]


def test_the_picture_is_as_wide_as_a_page_and_not_blank(tmp_path: Path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "one.png"
    plot_generation(example(2.0), path)
    image = pixels(path)
    assert image.shape[1] == 1200 and image.shape[0] < image.shape[1] / 2
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50
    assert 0.1 < (image < 0.9).any(axis=-1).mean() < 0.9
    assert [file.name for file in path.parent.iterdir()] == ["one.png"]


def test_the_readmes_picture_has_the_shape_that_the_demo_draws(tmp_path: Path):
    pytest.importorskip("matplotlib")
    plot_generation(example(2.0), tmp_path / "one.png")
    assert pixels(README_PICTURE).shape == pixels(tmp_path / "one.png").shape
    assert README_PICTURE.stat().st_size < 200_000


def test_surprise_that_is_not_known_changes_the_picture(tmp_path: Path):
    pytest.importorskip("matplotlib")
    item = example(2.0)
    gap = np.where(np.arange(50) < 25, np.nan, item.surprise_bits)
    plot_generation(item, tmp_path / "one.png")
    plot_generation(replace(item, surprise_bits=gap), tmp_path / "gap.png")
    assert np.abs(pixels(tmp_path / "one.png") - pixels(tmp_path / "gap.png")).mean() > 1e-3


def test_a_picture_without_a_prompt_is_all_continuation(tmp_path: Path):
    pytest.importorskip("matplotlib")
    plot_generation(example(1.0, prompt_s=0.0), tmp_path / "nothing.png")
    assert pixels(tmp_path / "nothing.png").shape[1] == 1200


def test_nothing_to_draw_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_generation(example(0.0), tmp_path / "none.png")


def test_a_picture_goes_through_a_link_and_a_failed_one_leaves_nothing(tmp_path: Path):
    pytest.importorskip("matplotlib")
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    plot_generation(example(0.5), tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink() and pixels(tmp_path / "real.png").shape[1] > 1000
    with pytest.raises(OSError, match="a.png: cannot be written"):
        plot_generation(example(0.5), tmp_path / "real.png/a.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.png", "real.png"]
