"""What a codebook looked like at one step of training: where embeddings and codes lay, and numbers about them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_vq.utils.files import discard_leftovers

SNAPSHOTS_FOLDER = "codebook"
_NAME = re.compile(r"step-(\d+)\.safetensors")


@dataclass(frozen=True)
class CodebookSnapshot:
    """Embeddings P, codes C and codes in use Q at one step, on a fixed set of held-out images.

    Args:
        step: The optimizer steps done.
        metrics: Numbers over all vectors of the images; `CodebookMonitor` says which.
        embeddings: A sample of P, what the layer compares with its codes, float32 (num_points, code_dim).
        codes: Effective codes, float32 (num_shown, code_dim); all, or a sample of them.
        code_ids: Which codes these are, int64 (num_shown,).
        uses: How often each code was used, int64 (num_codes,).
    """

    step: int
    metrics: dict[str, float]
    embeddings: Tensor
    codes: Tensor
    code_ids: Tensor
    uses: Tensor

    @property
    def used(self) -> Tensor:
        """bool (num_shown,): which of `codes` are in use, Q."""
        return self.uses[self.code_ids] > 0

    @property
    def active_codes(self) -> int:
        """How many of all codes are in use."""
        return int((self.uses > 0).sum())

    @staticmethod
    def file_name(step: int) -> str:
        """The name under which `load_snapshots` looks for a step."""
        return f"step-{step:07d}.safetensors"

    def save(self, path: Path) -> None:
        """Writes everything into one safetensors file."""
        tensors = {name: getattr(self, name).contiguous() for name in ("embeddings", "codes", "code_ids", "uses")}
        save_file(tensors, path, metadata={"step": str(self.step), "metrics": json.dumps(self.metrics)})

    @classmethod
    def load(cls, path: Path) -> CodebookSnapshot:
        """Reads what `save` wrote.

        Raises:
            ValueError: The file is not such a one, or is cut off.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in ("embeddings", "codes", "code_ids", "uses")}
            return cls(step=int(metadata["step"]), metrics=json.loads(metadata["metrics"]), **tensors)
        except (SafetensorError, KeyError, TypeError) as reason:
            raise ValueError(f"'{path}' is no whole snapshot of a codebook ({reason}): delete it") from reason


def load_snapshots(folder: str | Path) -> list[CodebookSnapshot]:
    """All snapshots of a folder, such as `output_dir/codebook` of a run, in the order of their steps.

    Raises:
        FileNotFoundError: There is none.
        ValueError: A file cannot be read.
    """
    paths = snapshot_files(Path(folder))
    if not paths:
        raise FileNotFoundError(
            f"'{folder}' holds no {CodebookSnapshot.file_name(1)} and so on: train with monitor_steps > 0, and name "
            "the folder `codebook` of the run."
        )
    return sorted((CodebookSnapshot.load(path) for path in paths), key=lambda snapshot: snapshot.step)


def snapshot_files(folder: Path, after: int = -1) -> list[Path]:
    """The files of snapshots in a folder, of steps after `after`."""
    names = ((path, _NAME.fullmatch(path.name)) for path in folder.glob("*"))
    return [path for path, match in names if match and int(match[1]) > after]


def drop_snapshots(folder: Path, after: int) -> None:
    """Deletes snapshots of steps after `after`, and half-written ones, also in the sub-folders of named monitors."""
    for place in (folder, *folder.glob("*/")):
        for path in snapshot_files(place, after):
            path.unlink()
        discard_leftovers(place)


def moment_distances(p_mean: Tensor, p_covariance: Tensor, c_mean: Tensor, c_covariance: Tensor) -> dict[str, float]:
    """How far the moments of embeddings P and codes C are apart, in units of P's spread `s = sqrt(tr S_P)`.

    - `spread`: s itself, the root of P's total variance;
    - `mean_distance`: `|m_P - m_C| / s`;
    - `std_distance`: `|d_P - d_C| / s`, with d the standard deviations of the features;
    - `wasserstein_distance`: between the Gaussians with these moments, `W_2 / s` with
      `W_2^2 = |m_P - m_C|^2 + tr(S_P + S_C - 2 (S_P^(1/2) S_C S_P^(1/2))^(1/2))`.

    Units of s make runs comparable whose embeddings have another scale or dimension. 0 is a perfect match; codes
    that all lie at P's mean have `wasserstein_distance` 1.

    Args:
        p_mean: m_P (dim,), float64, as the others.
        p_covariance: S_P (dim, dim).
        c_mean: m_C (dim,).
        c_covariance: S_C (dim, dim).
    """
    spread = p_covariance.trace().clamp(min=0).sqrt()
    unit = float(spread.clamp(min=1e-30))
    deviations = [covariance.diagonal().clamp(min=0).sqrt() for covariance in (p_covariance, c_covariance)]
    squared = (p_mean - c_mean).square().sum() + p_covariance.trace() + c_covariance.trace()
    squared = squared - 2 * _root_trace(p_covariance, c_covariance)
    return {
        "spread": float(spread),
        "mean_distance": float((p_mean - c_mean).norm()) / unit,
        "std_distance": float((deviations[0] - deviations[1]).norm()) / unit,
        "wasserstein_distance": max(float(squared), 0.0) ** 0.5 / unit,  # in this order NaN stays NaN
    }


def _root_trace(first: Tensor, second: Tensor) -> Tensor:
    """`tr (A^(1/2) B A^(1/2))^(1/2)` of two covariances; eigenvalues below zero are rounding."""
    if not (first.isfinite().all() and second.isfinite().all()):
        return first.new_tensor(torch.nan)  # eigh would raise
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
