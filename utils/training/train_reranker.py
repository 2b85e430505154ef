"""Run FlagEmbedding's reranker training so that it can be resumed; utils/training/finetune.py starts it.

    python -m utils.training.train_reranker    (the arguments of FlagEmbedding.finetune.reranker.encoder_only.base)

All training is FlagEmbedding's. Two faults are mended, so that a resumed training ends with the same weights, bit for
bit on the same machine, as one that was never stopped:

- Its checkpoints hold the inner model's weights. A resumed Trainer looks for them under the wrapper's names, finds
  none, and silently goes on from the base model's weights.
- Its dataset draws passages from Python's global random generator while the data loader reads ahead, so the draw
  depends on where training was stopped. Here it depends on seed, epoch and line alone.
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

from utils.devices import pad_classifier
from utils.store.files import write_file
from utils.store.jsonlines import dump_line
from utils.training.finetune import COMPLETE, PARENT, TRAINED, checkpoint_to_resume

LOGGED = ("step", "epoch", "loss", "learning_rate")


class EpochDataset(AbsRerankerTrainDataset):
    """A training file whose passages are drawn by seed, epoch and line."""

    seed = 0
    epoch = 0

    def __getitem__(self, item: int) -> Any:
        random.seed(f"{self.seed} {self.epoch} {item}")  # nothing else in a training draws from this generator
        return super().__getitem__(item)


class EpochCallback(TrainerCallback):
    """Tell the dataset the epoch, which accelerate does only on one process; leave losses and speed in a file."""

    def __init__(self, dataset: EpochDataset) -> None:
        self._dataset = dataset
        self._began = (0.0, 0)  # time and step, which is not 0 where training resumes

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note when, and at which step."""
        self._began = time.monotonic(), state.global_step

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write `TRAINED`, for the manifest."""
        if state.is_world_process_zero:
            seconds, steps = time.monotonic() - self._began[0], state.global_step - self._began[1]
            groups = steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            rows = [{key: row[key] for key in LOGGED} for row in state.log_history if "loss" in row]
            about = {"losses": rows, "pairs per second": groups * self._dataset.args.train_group_size / seconds}
            write_file(Path(args.output_dir) / TRAINED, dump_line(about))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set the epoch before its first batch is read, also when training resumes in mid-epoch."""
        self._dataset.epoch = int(state.epoch + 1e-6)


class ResumableTrainer(EncoderOnlyRerankerTrainer):
    """FlagEmbedding's trainer with checkpoints that are read back, and marked once they are whole."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from safetensors.torch import load_file

        inner = self.model.model
        inner.load_state_dict(load_file(Path(resume_from_checkpoint) / "model.safetensors"), strict=True)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # The last batch leaves its padding and truncation in the tokenizer; they must not get into tokenizer.json.
        if isinstance(self.processing_class, PreTrainedTokenizerFast):
            self.processing_class.backend_tokenizer.no_padding()
            self.processing_class.backend_tokenizer.no_truncation()
        super()._save(output_dir, state_dict)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # every process writes its random state into the folder
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            for path in folder.iterdir():
                with open(path, "rb") as handle:
                    os.fsync(handle.fileno())
            (folder / COMPLETE).touch()


class Runner(EncoderOnlyRerankerRunner):
    """FlagEmbedding's runner with the dataset and the trainer above."""

    def load_tokenizer_and_model(self) -> tuple[Any, Any]:
        """Return FlagEmbedding's, with the pad token that scoring uses."""
        tokenizer, model = super().load_tokenizer_and_model()
        pad_classifier(tokenizer, model.model)
        return tokenizer, model

    def load_train_dataset(self) -> EpochDataset:
        """Return the training lines."""
        dataset = EpochDataset(args=self.data_args, tokenizer=self.tokenizer)
        dataset.seed = self.training_args.seed
        return dataset

    def load_trainer(self) -> ResumableTrainer:
        """Return the trainer."""
        return ResumableTrainer(
            model=self.model,
            args=self.training_args,
            train_dataset=self.train_dataset,
            data_collator=self.data_collator,
            processing_class=self.tokenizer,
            callbacks=[EpochCallback(self.train_dataset)],
        )


def end_with(process: int) -> None:
    """End this process when its parent is gone: a killed parent cannot end torchrun's workers, which would train on."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process)
        # In some containers nobody collects a dead process; it stays as a zombie.
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
