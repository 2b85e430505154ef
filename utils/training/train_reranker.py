"""FlagEmbedding's reranker training, able to go on after a kill; utils/training/finetune.py is the way in.

    python -m utils.training.train_reranker    (the arguments of FlagEmbedding.finetune.reranker.encoder_only.base)

Everything that trains is FlagEmbedding's. Two things are put right here, so that a resumed training ends
with the same weights, bit for bit on the same machine, as one that was never stopped:

- its checkpoints hold the inner model's weights, which transformers' Trainer then looks for under the wrapper's
  names, finds none of, and goes on without a word from the base model's;
- its dataset draws passages from Python's global generator while the data loader reads ahead, so that what
  is drawn depends on where the training was stopped. Here it depends on seed, epoch and line alone.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from FlagEmbedding.abc.finetune.reranker import (
    AbsRerankerDataArguments,
    AbsRerankerModelArguments,
    AbsRerankerTrainDataset,
    AbsRerankerTrainingArguments,
)
from FlagEmbedding.finetune.reranker.encoder_only.base import EncoderOnlyRerankerRunner
from FlagEmbedding.finetune.reranker.encoder_only.base.trainer import EncoderOnlyRerankerTrainer
from transformers import HfArgumentParser, PreTrainedTokenizerFast, TrainerCallback

from utils.training.finetune import COMPLETE, PARENT, checkpoint_to_resume


class EpochDataset(AbsRerankerTrainDataset):
    """Draws a line's passages by seed, epoch and line."""

    seed = 0
    epoch = 0

    def __getitem__(self, item: int) -> Any:
        state = random.getstate()
        random.seed(f"{self.seed} {self.epoch} {item}")
        try:
            return super().__getitem__(item)
        finally:
            random.setstate(state)


class EpochCallback(TrainerCallback):
    """Tells the dataset which epoch it is; accelerate does so only on one process."""

    def __init__(self, dataset: EpochDataset) -> None:
        self._dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the epoch's first batch is read; mid-epoch when resumed."""
        self._dataset.epoch = int(state.epoch + 1e-6)


class ResumableTrainer(EncoderOnlyRerankerTrainer):
    """FlagEmbedding's trainer, whose checkpoints are read back, and marked when they are whole."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from safetensors.torch import load_file

        inner = self.model.model
        inner.load_state_dict(load_file(Path(resume_from_checkpoint) / "model.safetensors"), strict=True)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # The last batch leaves its padding and truncation in the tokenizer, and so in tokenizer.json.
        if isinstance(self.processing_class, PreTrainedTokenizerFast):
            self.processing_class.backend_tokenizer.no_padding()
            self.processing_class.backend_tokenizer.no_truncation()
        super()._save(output_dir, state_dict)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # every process writes the state of its random numbers
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            for path in folder.iterdir():
                with open(path, "rb") as handle:
                    os.fsync(handle.fileno())
            (folder / COMPLETE).touch()


class Runner(EncoderOnlyRerankerRunner):
    """FlagEmbedding's runner with these parts."""

    def load_train_dataset(self) -> EpochDataset:
        """The training lines."""
        dataset = EpochDataset(args=self.data_args, tokenizer=self.tokenizer)
        dataset.seed = self.training_args.seed
        return dataset

    def load_trainer(self) -> ResumableTrainer:
        """The trainer."""
        return ResumableTrainer(
            model=self.model,
            args=self.training_args,
            train_dataset=self.train_dataset,
            data_collator=self.data_collator,
            processing_class=self.tokenizer,
            callbacks=[EpochCallback(self.train_dataset)],
        )


def end_with(process: int) -> None:
    """End this process when that one is gone: killed, it cannot end torchrun's workers, which would train on."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process)
        # A dead process that nobody has asked for its exit code, as in some containers, keeps its number.
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.5)
    os._exit(1)


def main() -> None:
    """Parse FlagEmbedding's arguments and train, from the last whole checkpoint if there is one."""
    if parent := os.environ.get(PARENT):
        threading.Thread(target=end_with, args=(int(parent),), daemon=True).start()
    parser = HfArgumentParser((AbsRerankerModelArguments, AbsRerankerDataArguments, AbsRerankerTrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    training_args.resume_from_checkpoint = checkpoint_to_resume(Path(training_args.output_dir))
    Runner(model_args=model_args, data_args=data_args, training_args=training_args).run()


if __name__ == "__main__":
    main()
