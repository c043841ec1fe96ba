"""From AdamW to ROOT: one line for a new run, one command for a run that is under way.

    python -m examples.guides.from_adamw

A LightningModule that returns AdamW from `configure_optimizers` trains with ROOT once `ROOTMixin`
is its first base. AdamW's learning rate stays, because ROOT scales the update of an (m, n) matrix
by 0.2 sqrt(max(m, n)), which gives its entries the size of AdamW's in long runs. It is a value to
start from, not the best one: try two and four times as much next. On the quick start AdamW is best
at 3e-3 and ROOT at 1.2e-2, and the few steps here show the same. Groups, weight decay, betas and
the scheduler of the old class stay as well; `root_options` with a `schedule`, or with
`warmup_steps`, asks for ours. A warning says what was kept, and what was not.

To train on from a checkpoint of AdamW, convert it: AdamW's averages are kept for the parameters
that stay AdamW's, and each matrix starts with the momentum that its first moment tells.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import torch

from examples.guides.digits import Classifier, digits, held_out_loss, make_trainer
from lightning_root import ROOTMixin
from lightning_root.cli import main as lightning_root


class Before(Classifier):
    """The class as it was."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.1)


class After(ROOTMixin, Before):
    """The class as it is now. In your own code, put the mixin into the old class's bases."""

    root_options: ClassVar = {"warmup_steps": 5}  # AdamW's rate and decay are kept


class AfterTuning(ROOTMixin, Classifier):
    """With a learning rate of its own, and without what is not needed any more."""

    root_options: ClassVar = {"lr": 1.2e-2, "warmup_steps": 5, "weight_decay": 0.1}


class GoingOn(ROOTMixin, Classifier):
    """For a run from a checkpoint: the learning rate is in the file, and there was no schedule."""

    root_options: ClassVar = {"schedule": None}


def main(steps: int = 60) -> dict[str, float]:
    """Train with each, then train AdamW's run on under ROOT; held-out losses in nats.

    Args:
        steps: Of each run.
    """
    losses = {}
    before = make_trainer(steps)
    for name, model, trainer in (
        ("AdamW", Before(), before),
        ("ROOT, AdamW's learning rate", After(), make_trainer(steps)),
        ("ROOT, four times that", AfterTuning(), make_trainer(steps)),
    ):
        trainer.fit(model, digits())
        losses[name] = held_out_loss(model)

    with TemporaryDirectory() as folder:
        old, new = Path(folder, "adamw.ckpt"), Path(folder, "root.ckpt")
        before.save_checkpoint(old)
        # The same as: python -m lightning_root convert-checkpoint adamw.ckpt --output root.ckpt
        lightning_root(["convert-checkpoint", str(old), "--output", str(new)])
        resumed = GoingOn()
        make_trainer(2 * steps).fit(resumed, digits(), ckpt_path=new, weights_only=True)
    losses[f"AdamW, from step {steps} on ROOT"] = held_out_loss(resumed)

    for name, loss in losses.items():
        print(f"{name:>30}: held-out loss {loss:.3f}")
    return losses


if __name__ == "__main__":
    main()
