"""Training loops; `TokenizerTrainer` is in `tokenizer`, its settings in `arguments`. Needs `hf_vq[train]`."""

from hf_vq.utils.extras import require

require("train", "accelerate", "datasets")
