"""What an evaluation found, with its protocol: tables in Markdown, LaTeX and CSV, JSON, and a picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import PIL.Image

from hf_vq.cards.base import table_cell
from hf_vq.cards.tokenizer import METRICS as TOKENIZER_METRICS
from hf_vq.metrics.features import FEATURE_TITLES, INCEPTION
from hf_vq.metrics.reconstruction import IMAGE_METRICS
from hf_vq.utils.files import atomic_file, write_json, write_text
from hf_vq.utils.settings import flatten

FORMAT = 1
TABLE_FILE, JSON_FILE, PICTURE_FILE = "evaluation.md", "evaluation.json", "evaluation.png"
LATEX_FILE, CSV_FILE = "evaluation.tex", "evaluation.csv"


class Metric(NamedTuple):
    """How a number is shown.

    Attributes:
        title: Its name.
        format: For `str.format`.
        more_is_better: None if neither is.
        of_features: Whether it compares features.
    """

    title: str
    format: str
    more_is_better: bool | None
    of_features: bool = False


class _OfFeatures(NamedTuple):
    """A comparison of features: its title, key and title with Inception's, format, and whether more is better."""

    title: str
    inception_key: str
    inception_title: str
    format: str
    more_is_better: bool | None


_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "↑": r"$\uparrow$",
    "\n": " ",
}  # fmt: skip
_BETTER = {key: metric.more_is_better for key, metric in IMAGE_METRICS.items()} | {"lpips": False, "usage": True}
_METRICS = {key: Metric(shown.title, shown.format, _BETTER.get(key)) for key, shown in TOKENIZER_METRICS.items()} | {
    "bits_per_image": Metric("Bits per image, fixed length", "{:,.0f}", None),
    "bits_per_pixel": Metric("Bits per pixel, fixed length", "{:.4g}", None),
    "entropy_bits_per_image": Metric("Bits per image, entropy of the codes", "{:,.1f}", None),
}
_COMPARISONS = {
    "frechet": _OfFeatures("Fréchet distance", "fid", "FID", "{:.4g}", False),
    "kernel": _OfFeatures("Kernel distance", "kid", "KID", "{:.4g}", False),
    "kernel_std": _OfFeatures("Kernel distance, std of subsets", "kid_std", "KID, std of subsets", "{:.2g}", None),
    "precision": _OfFeatures("Precision", "precision", "Precision", "{:.4f}", True),
    "recall": _OfFeatures("Recall", "recall", "Recall", "{:.4f}", True),
    "score": _OfFeatures("Score of classes", "inception_score", "Inception Score", "{:.2f}", True),
    "score_std": _OfFeatures(
        "Score of classes, std of splits", "inception_score_std", "Inception Score, std of splits", "{:.2g}", None
    ),
}


def metric_key(name: str, kind: str, features: str) -> str:
    """The key of a comparison of features: "fid" and the like are for Inception's alone.

    Args:
        name: As `GeneratorMetrics.compute` calls it.
        kind: `"tokenizer"` or `"generator"`.
        features: Name of the extractor.
    """
    if features != INCEPTION:
        return f"{name}_{features}"
    key = _COMPARISONS[name].inception_key
    return f"r{key}" if kind == "tokenizer" else key


def metric(key: str, kind: str, features: str) -> Metric | None:
    """How a metric is shown; None for counts, which the protocol has. Arguments as for `metric_key`."""
    for name, found in _COMPARISONS.items():
        if key == metric_key(name, kind, features):
            title = f"{found.title} ({FEATURE_TITLES.get(features, features)})"
            if features == INCEPTION:
                title = "r" * (kind == "tokenizer") + found.inception_title
            return Metric(title, found.format, found.more_is_better, True)
    return _METRICS.get(key)


@dataclass
class Report:
    """The numbers of an evaluation and all that one needs to get them again.

    Attributes:
        kind: `"tokenizer"` or `"generator"`, of all models.
        protocol: Data set, preprocessing, reference, features and the rest, ready for JSON.
        results: For each model ``name``, ``label``, ``revision``, ``dtype``, ``weights_sha256`` and ``metrics``.
        picture: Images above their reconstructions, or samples below images of the data set; only on the main process.
    """

    kind: str
    protocol: dict[str, Any]
    results: list[dict[str, Any]]
    picture: PIL.Image.Image | None = None

    def to_dict(self) -> dict[str, Any]:
        """All but the picture, for JSON."""
        return {"format": FORMAT, "kind": self.kind, "protocol": self.protocol, "results": self.results}

    def to_markdown(self, labels: list[str] | None = None) -> str:
        """The table of the metrics, with what each is of, and that of the protocol.

        Args:
            labels: Only these models; by default all, with the best number of each row in bold.
        """
        results = [result for result in self.results if labels is None or result["label"] in labels]
        rows = [["metric", *(table_cell(result["label"]) for result in results), "measured on"]]
        for shown, values in self.shown_metrics(results):
            arrow = {True: " ↑", False: " ↓", None: ""}[shown.more_is_better]
            rows.append([shown.title + arrow, *_printed(values, shown, "**{}**"), self.measured_on(shown)])
        settings = [["setting", "value"], *map(list, self.settings(results).items())]
        return f"{_table(rows)}\n\n{_table(settings)}\n"

    def to_latex(self) -> str:
        """The table of the metrics for LaTeX, with the package booktabs; the protocol stands above it in comments."""
        names = [latex_cell(result["label"]) for result in self.results]
        lines = [f"% {name}: {value}" for name, value in settings_rows(self.protocol).items()]
        lines += ["% \\usepackage{booktabs}", f"\\begin{{tabular}}{{l{'r' * len(names)}}}", "\\toprule"]
        lines += [" & ".join(["Metric", *names]) + r" \\", r"\midrule"]
        for shown, values in self.shown_metrics(self.results):
            arrow = {True: r" $\uparrow$", False: r" $\downarrow$", None: ""}[shown.more_is_better]
            cells = _printed(values, shown, r"\textbf{{{}}}", latex_cell)
            lines.append(" & ".join([latex_cell(shown.title) + arrow, *cells]) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])

    def to_csv(self) -> str:
        """A row for each model: what it is, what it was measured on, and all its numbers with all their digits."""
        dataset, features = self.protocol["dataset"], self.protocol["features"]
        keys = list(dict.fromkeys(key for result in self.results for key in result["metrics"]))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        what = ("name", "label", "revision", "dtype", "weights_sha256")
        writer.writerow([*what, "dataset", "dataset_revision", "split", "features", "features_sha256", *keys])
        for result in self.results:
            on = [dataset["name"], dataset["revision"], dataset["split"], features["name"], features["weights_sha256"]]
            writer.writerow([*map(result.get, what), *on, *map(result["metrics"].get, keys)])
        return text.getvalue()

    def shown_metrics(self, results: list[dict[str, Any]]) -> Iterator[tuple[Metric, list[float | None]]]:
        """What tables show: each metric, and its value of each model, None where there is none."""
        for key in dict.fromkeys(key for result in results for key in result["metrics"]):
            shown = metric(key, self.kind, self.protocol["features"]["name"])
            if shown is not None:
                yield shown, [result["metrics"].get(key) for result in results]

    def measured_on(self, shown: Metric) -> str:
        """Images, reference and features of a number, in short."""
        dataset, features = self.protocol["dataset"], self.protocol["features"]
        count = f"{dataset['num_images']:,} images"
        if not shown.of_features:
            return count
        if self.kind == "generator":
            count = f"{self.protocol['sampling']['num_images']:,} samples, {count}"
        weights = features["weights_sha256"]
        return f"{count}, {features['name']}" + (f" {weights[:8]}" if weights else "")

    def settings(self, results: list[dict[str, Any]] | None = None) -> dict[str, str]:
        """The protocol and the models as rows of a table."""
        found = settings_rows(self.protocol)
        for result in self.results if results is None else results:
            commit = f"commit {result['revision']}, " if result["revision"] else ""
            weights = f"weights sha256 {result['weights_sha256']}, {result['dtype']}"
            found[f"model {result['label']}"] = f"{result['name']}, {commit}{weights}"
        return {table_cell(name): table_cell(value) for name, value in found.items()}

    def save(self, folder: str | Path) -> None:
        """Writes `evaluation.md`, `.tex`, `.csv` and `.json`, and `evaluation.png` if there is a picture."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(self.to_markdown(), folder / TABLE_FILE)
        write_text(self.to_latex(), folder / LATEX_FILE)
        write_text(self.to_csv(), folder / CSV_FILE)
        write_json(self.to_dict(), folder / JSON_FILE)
        (folder / PICTURE_FILE).unlink(missing_ok=True)  # an earlier one shows other images
        if self.picture is not None:
            with atomic_file(folder / PICTURE_FILE) as temporary:
                self.picture.save(temporary)


def settings_rows(settings: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as titles and texts. None is left out, but for hashes of weights, where it means no weights."""
    return {
        name.replace("_", " "): "none" if value is None else f"{value:,}" if type(value) is int else str(value)
        for name, value in flatten(settings, ": ").items()
        if value is not None or name.endswith("weights_sha256")
    }


def latex_cell(text: str) -> str:
    """Text in a table of LaTeX: none of its characters is a command."""
    return "".join(_LATEX.get(character, character) for character in text)


def _printed(values: list[float | None], shown: Metric, bold: str, cell: Callable[[str], str] = str) -> list[str]:
    """Numbers as text, the best of several by `bold`, a format."""
    texts = ["" if value is None else shown.format.format(value) for value in values]
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(values) < 2 or shown.more_is_better is None or not known:
        return [cell(text) for text in texts]
    best = shown.format.format(max(known) if shown.more_is_better else min(known))
    return [bold.format(cell(text)) if text == best else cell(text) for text in texts]


def _table(rows: list[list[str]]) -> str:
    """A Markdown table whose columns are aligned, so that it can be read as it is."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last = len(widths) - 1
    lines = [
        "| "
        + " | ".join(cell if column == last else cell.ljust(widths[column]) for column, cell in enumerate(row))
        + " |"
        for row in rows
    ]
    lines.insert(
        1, "|" + "|".join("---" if column == last else "-" * (width + 2) for column, width in enumerate(widths)) + "|"
    )
    return "\n".join(lines)
