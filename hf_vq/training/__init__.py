"""Training loops; `TokenizerTrainer` is in `tokenizer_trainer`, its settings in `arguments`."""
