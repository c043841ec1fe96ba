"""From a LightningModule with two optimizers and manual optimization to ROOT.

    python -m examples.guides.from_two_optimizers

Lightning steps several optimizers in manual optimization only, so that a module with Muon for its
matrices and AdamW for the rest does by hand what the Trainer does for others: the split, zeroing,
the backward pass, two steps, the schedules; accumulation and clipping through the Trainer's options
are refused. With ROOT there is one optimizer. The lines that only served the two can go:
`automatic_optimization = False`, the body of `training_step`, the list of names, one schedule.

What `Before` counts twice is counted once in `After`: in manual optimization `trainer.global_step`
grows with every optimizer's step.
"""

from typing import Any

import torch
from torch import Tensor

from examples.guides.digits import Classifier, digits, held_out_loss, make_trainer
from lightning_root import WarmupDecayLR, configure_optimizers


class Before(Classifier):
    """Two optimizers, two schedules, a loop of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        matrices = [p for n, p in self.named_parameters() if p.ndim == 2 and "head" not in n]
        rest = [p for n, p in self.named_parameters() if p.ndim != 2 or "head" in n]
        muon = torch.optim.Muon(matrices, lr=0.01, adjust_lr_fn="match_rms_adamw")
        adamw = torch.optim.AdamW(rest, lr=0.01, weight_decay=0.1)
        steps = self.trainer.max_steps // 2
        schedules = [WarmupDecayLR(o, warmup_steps=5, max_steps=steps) for o in (muon, adamw)]
        return [muon, adamw], schedules

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        optimizers, schedules = self.optimizers(), self.lr_schedulers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()


class After(Classifier):
    """One optimizer; the Trainer does the rest, and its options work."""

    def configure_optimizers(self) -> Any:
        return configure_optimizers(self, lr=0.01, weight_decay=0.1, warmup_steps=5)


def main(steps: int = 60) -> dict[str, float]:
    """Train both, the second also in halves of batches; held-out losses in nats.

    Args:
        steps: Batches of the first and second run.
    """
    losses = {}
    for name, model, count, options in (
        ("two optimizers", Before(), 2 * steps, {}),
        ("ROOT", After(), steps, {}),
        ("ROOT, two batches a step", After(), steps // 2, {"accumulate_grad_batches": 2}),
    ):
        make_trainer(count, **options).fit(model, digits())
        losses[name] = held_out_loss(model)
        print(f"{name:>30}: held-out loss {losses[name]:.3f}")
    return losses


if __name__ == "__main__":
    main()
