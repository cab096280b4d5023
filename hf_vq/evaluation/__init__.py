"""One evaluator for tokenizers and generators: `evaluate` in `hf_vq.evaluation.evaluator`. Needs `hf_vq[eval]`."""

from hf_vq.utils.extras import require

require("eval", "accelerate", "datasets", "matplotlib", "torchmetrics")
