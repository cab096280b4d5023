"""Training loops; `TokenizerTrainer` is in `tokenizer_trainer`, its settings in `arguments`. Needs `hf_vq[train]`."""

from ..extras import require

require("train", "accelerate", "datasets")
