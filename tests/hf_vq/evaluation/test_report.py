"""The table: which number is the best, how each is called, and what stands beside it."""

from __future__ import annotations

import csv
import io
from typing import Any

from hf_vq.evaluation.report import Report, metric, metric_key, settings_rows


def report(**metrics: list[float]) -> Report:
    """Of two tokenizers."""
    protocol: dict[str, Any] = {
        "dataset": {"name": "d", "revision": None, "split": "test", "num_images": 1200, "num_skipped": 0},
        "features": {"name": "inception", "weights_sha256": "0123456789abcdef"},
    }
    results = [
        {
            "label": label,
            "name": f"me/{label}",
            "revision": None,
            "dtype": "float32",
            "weights_sha256": label * 3,
            "metrics": {key: values[number] for key, values in metrics.items()},
        }
        for number, label in enumerate(("x", "y|z"))
    ]
    return Report("tokenizer", protocol, results)


def cells(table: str, title: str) -> list[str]:
    """A row's cells after its title."""
    (row,) = (line for line in table.splitlines() if line.replace("\\|", "!").startswith(f"| {title}"))
    return [cell.strip() for cell in row.replace("\\|", "!").split("|")[2:-1]]


def test_the_best_number_of_each_row_is_bold() -> None:
    """More is better for PSNR, less for errors, neither for bits; equal as printed is equally good."""
    table = report(
        psnr=[20.0, 21.0], mse=[0.5, 0.25], ssim=[0.50001, 0.5], bits_per_image=[64, 1024], rfid=[3.0, 2.5]
    ).to_markdown()

    assert cells(table, "PSNR") == ["20.00", "**21.00**", "1,200 images"]
    assert cells(table, "MSE ↓") == ["0.500000", "**0.250000**", "1,200 images"]
    assert cells(table, "SSIM ↑") == ["**0.5000**", "**0.5000**", "1,200 images"]
    assert cells(table, "Bits per image, fixed") == ["64", "1,024", "1,200 images"]
    assert cells(table, "rFID ↓") == ["3", "**2.5**", "1,200 images, inception 01234567"]
    assert cells(table, "features: weights sha256") == ["0123456789abcdef"]
    assert cells(table, "model y!z") == ["me/y!z, weights sha256 y!zy!zy!z, float32"]


def test_the_table_for_latex_is_one_that_latex_reads() -> None:
    """Names cannot be commands, the best numbers are bold, arrows are mathematics, the protocol is a comment."""
    text = report(psnr=[20.0, 21.0], usage=[0.5, 0.25], rfid=[3.0, 2.5])
    text.results[0]["label"] = "50% of_a\\b"
    lines = text.to_latex().splitlines()

    assert r"Metric & 50\% of\_a\textbackslash{}b & y|z \\" in lines
    assert r"PSNR (dB, mean of the images') $\uparrow$ & 20.00 & \textbf{21.00} \\" in lines
    assert r"Codes in use $\uparrow$ & \textbf{50.0\%} & 25.0\% \\" in lines
    assert r"rFID $\downarrow$ & 3 & \textbf{2.5} \\" in lines
    assert "% dataset: num images: 1,200" in lines and lines[-1] == r"\end{tabular}"
    body = [line for line in lines if not line.startswith("%")]
    assert body[0] == r"\begin{tabular}{lrr}" and sum(line.count(" & ") for line in body) == 8


def test_the_csv_has_all_digits_and_a_row_for_each_model() -> None:
    """It reads back to the numbers of the report; a number that a model lacks is an empty cell."""
    found = report(psnr=[20.123456789, 21.0], mse=[1 / 3, 0.25])
    del found.results[1]["metrics"]["mse"]
    found.results[0]["name"] = 'me/"x", y'
    first, second = csv.DictReader(io.StringIO(found.to_csv()))

    assert first["name"] == 'me/"x", y' and float(first["psnr"]) == 20.123456789 and float(first["mse"]) == 1 / 3
    assert second["label"] == "y|z" and second["mse"] == "" and second["weights_sha256"] == "y|zy|zy|z"
    assert first["dataset"] == "d" and first["split"] == "test" and first["features"] == "inception"


def test_a_table_of_one_model_has_no_bold_numbers() -> None:
    """There is nothing to be better than."""
    table = report(psnr=[20.0, 21.0]).to_markdown(["x"])
    assert cells(table, "PSNR") == ["20.00", "1,200 images"] and "y" not in table.splitlines()[0].split("|")[2]


def test_only_inceptions_numbers_have_the_established_names() -> None:
    """The same comparison of other features carries their name, in keys and in titles."""
    assert metric_key("frechet", "tokenizer", "inception") == "rfid"
    assert metric_key("kernel", "generator", "inception") == "kid"
    assert metric_key("score", "generator", "inception") == "inception_score"
    assert metric_key("frechet", "generator", "8x8_pixels") == "frechet_8x8_pixels"
    shown = metric("kernel_8x8_pixels", "generator", "8x8_pixels")
    assert shown is not None and shown.title == "Kernel distance (8x8_pixels)"
    shown = metric("frechet_efficientnet-lite0", "tokenizer", "efficientnet-lite0")
    assert shown is not None and shown.title == "Fréchet distance (EfficientNet-Lite0 features)"
    assert metric("num_images", "tokenizer", "inception") is None


def test_settings_become_rows_of_text() -> None:
    """Nested names are joined; None is left out, but weights that there are none of are told."""
    assert settings_rows({"a_b": {"c": 1000, "d": None}, "e": 0.5, "features": {"weights_sha256": None}}) == {
        "a b: c": "1,000",
        "e": "0.5",
        "features: weights sha256": "none",
    }
