"""ROOT in a bare torch loop, and in Hugging Face's Trainer.

    python -m examples.guides.from_bare_loop
    python -m examples.guides.from_bare_loop --hugging-face    # pip install transformers accelerate

ROOT is a `torch.optim.Optimizer`: where the loop had AdamW, it has ROOT. Hand it
`model.parameters()` itself, not a list made of it, and it finds the module behind it, and with that
names and module types; `model.named_parameters()` gives names alone. `str(optimizer.partition)` is
the table of who gets what. Three habits of Lightning that a loop has to keep by itself:

- a schedule is stepped after every optimizer step: `WarmupDecayLR` counts steps;
- `state_dict()` is keyed by numbers, as torch's are, and loads into the same model;
- under DDP, `optimizer.share(process_group)` has the ranks share the matrices among them.

Hugging Face's Trainer takes a finished optimizer and schedule as `optimizers=(ROOT, schedule)`.
"""

import sys
from tempfile import TemporaryDirectory
from typing import Any

import torch

from examples.guides.digits import Classifier, batches, held_out_loss
from lightning_root import ROOT, WarmupDecayLR


def main(steps: int = 60) -> float:
    """Train in a loop; the held-out loss in nats.

    Args:
        steps: Of the loop.
    """
    model = Classifier()
    optimizer = ROOT(model.parameters(), lr=0.01, weight_decay=0.1)
    schedule = WarmupDecayLR(optimizer, warmup_steps=5, max_steps=steps)
    print(optimizer.partition)
    for batch in batches(steps):
        optimizer.zero_grad()
        model.loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    loss = held_out_loss(model)
    print(f"\nbare loop: held-out loss {loss:.3f}")
    return loss


def hugging_face(steps: int = 30) -> tuple[float, float]:
    """Train a tiny Llama to count with Hugging Face's Trainer.

    Args:
        steps: Of the Trainer.

    Returns:
        The loss before and after, in nats.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16, num_hidden_layers=2, **sizes))
    optimizer = ROOT(model.parameters(), lr=0.01)
    schedule = WarmupDecayLR(optimizer, warmup_steps=3, max_steps=steps)
    rows = [torch.arange(start, start + 12) % 16 for start in range(64)]
    examples: list[Any] = [{"input_ids": row, "labels": row} for row in rows]
    with TemporaryDirectory() as folder:
        options = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=8,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(model, options, train_dataset=examples, optimizers=(optimizer, schedule))
        batch = {key: torch.stack([row[key] for row in examples]) for key in examples[0]}
        before = model(**batch).loss.item()
        trainer.train()
        after = model(**batch).loss.item()
    print(f"Hugging Face's Trainer: loss {before:.3f} before, {after:.3f} after")
    return before, after


if __name__ == "__main__":
    main()
    if "--hugging-face" in sys.argv[1:]:
        hugging_face()
