"""The notebook runs from its first cell to its last, and is kept without outputs."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "train/recipes/first_look.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]


def test_the_notebook_is_kept_without_outputs():
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in CELLS)


@pytest.mark.slow
def test_the_notebook_runs_and_draws_four_pictures(monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    pictures = []

    def show() -> None:
        figure = plt.gcf()
        figure.canvas.draw()  # also what draws itself only now, as a layout does
        pictures.append([len(axis.images) + len(axis.patches) + len(axis.collections) for axis in figure.axes])
        plt.close(figure)

    monkeypatch.setattr(plt, "show", show)
    namespace: dict = {}
    for cell in CELLS:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), namespace)
    assert len(pictures) == 4 and all(drawn > 0 for axes in pictures for drawn in axes)
    codes, bits = namespace["codes"], namespace["bits"]
    assert codes.shape[0] == bits.shape[0] == 8 and 0 < bits.mean() < 10
