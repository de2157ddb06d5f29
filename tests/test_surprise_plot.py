"""Pictures of generations are written, whole, and are not blank."""

from pathlib import Path

import numpy as np
import pytest

from codeclm.inference.sound.surprise_plot import GenerationPlot, plot_generations

RATE = 16_000


def example(duration_s: float, prompt_s: float = 1.0) -> GenerationPlot:
    time = np.arange(round(duration_s * RATE)) / RATE
    audio = 0.3 * np.sin(2 * np.pi * 200 * time + 5 * np.sin(9 * time)) * (np.sin(7 * time) > 0)
    bits = np.random.default_rng(0).gamma(6, 7, round(duration_s * 25))
    return GenerationPlot(audio.astype(np.float32), RATE, bits, 25.0, prompt_s, f"{duration_s} s")


def pixels(path: Path) -> np.ndarray:
    return pytest.importorskip("matplotlib.image").imread(path)[..., :3]


def test_the_picture_of_one_generation_is_written_and_not_blank(tmp_path: Path):
    pytest.importorskip("matplotlib")
    item = example(2.0)
    path = tmp_path / "new" / "one.png"
    plot_generations([item], path)
    image = pixels(path)
    assert image.shape[1] > 1000
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 100
    assert 0.1 < (image < 0.9).any(axis=-1).mean() < 0.9
    assert [file.name for file in path.parent.iterdir()] == ["one.png"]


def test_several_seeds_are_stacked_and_the_surprise_changes_the_picture(tmp_path: Path):
    pytest.importorskip("matplotlib")
    first, second = example(2.0), example(1.5, prompt_s=0.0)
    gap = np.where(np.arange(50) < 25, np.nan, first.surprise_bits)
    without_prompt_bits = GenerationPlot(first.audio, RATE, gap, 25.0, 1.0, first.title)
    plot_generations([first], tmp_path / "one.png")
    plot_generations([first, second], tmp_path / "two.png")
    plot_generations([without_prompt_bits], tmp_path / "gap.png")
    one, two, gapped = (pixels(tmp_path / name) for name in ("one.png", "two.png", "gap.png"))
    assert two.shape[0] == 2 * one.shape[0] and two.shape[1] == one.shape[1]
    assert np.abs(one - gapped).mean() > 1e-3


def test_nothing_to_draw_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_generations([], tmp_path / "none.png")


def test_a_picture_goes_through_a_link_and_a_failed_one_leaves_nothing(tmp_path: Path):
    pytest.importorskip("matplotlib")
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    plot_generations([example(0.5)], tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink() and pixels(tmp_path / "real.png").shape[1] > 1000
    with pytest.raises(OSError, match="a.png: cannot be written"):
        plot_generations([example(0.5)], tmp_path / "real.png/a.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.png", "real.png"]
