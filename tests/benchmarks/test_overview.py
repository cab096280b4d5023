"""The picture at the top of the README has a row for every method, at the settings that were chosen for it."""

import json
import statistics

import overview
import pytest


@pytest.mark.parametrize("data", ["photographs", "emoji"])
def test_every_row_has_its_measured_values(data: str) -> None:
    """Errors and uses are those of the records; our rows alone are in the strong color."""
    error, usage = overview.panels(data)

    assert list(error.values) == list(overview.ROWS) and all(error.values.values())
    assert list(error.strong) == ["hf_vq, default settings", "hf_vq, chosen settings"]
    records = json.loads((overview.RESULTS / f"quality_{data}.json").read_text())["records"]
    mine = [r for r in records if r["row"] == "plain VQ, 3-d codes, alpha 1" and r["steps"] == 1500]
    assert error.values["plain VQ, 3-d codes"] == [1e3 * r["mse"] for r in mine]
    assert usage.values["plain VQ, 3-d codes"] == [100 * r["usage"] for r in mine]
    floor = statistics.mean(error.values["no quantization"])
    assert all(value > floor for row, values in error.values.items() if row != "no quantization" for value in values)
