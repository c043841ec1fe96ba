"""From `torch.optim.Muon` with AdamW beside it to ROOT, in the middle of a run.

    python -m examples.guides.from_torch_muon

torch's Muon takes 2-D parameters only, so that it comes with a second optimizer and a list of which
parameter belongs to which. ROOT is both in one, and makes that list from the module. Three things
differ, and `convert-checkpoint` sees to the first:

- torch's `momentum_buffer` is an average of gradients, ROOT's is their sum: the same direction,
  1 / (1 - momentum) times as long;
- `adjust_lr_fn`: torch's default is "original", ROOT's is "match_rms_adamw". Keep the learning rate
  with the function that it was found for;
- torch iterates in bfloat16 everywhere, ROOT does so on accelerators and in float32 on a CPU.

`coefficients="muon", outlier_quantile=None` makes ROOT Muon itself: the first continued run below
goes on as the old one would. The second takes ROOT's coefficients and threshold from there on.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from examples.guides.digits import Classifier, batches, held_out_loss
from lightning_root import ROOT
from lightning_root.cli import main as lightning_root


def main(steps: int = 40) -> dict[str, float]:
    """Train with the two, convert, go on with one; held-out losses in nats.

    Args:
        steps: Before the change; as many follow.
    """
    data = batches(2 * steps)
    model = Classifier()
    hidden = [module.weight for module in model.layers if isinstance(module, torch.nn.Linear)]
    rest = [p for p in model.parameters() if not any(p is weight for weight in hidden)]
    muon = torch.optim.Muon(hidden, lr=0.01, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=0.01, weight_decay=0.1)
    for batch in data[:steps]:
        model.zero_grad()
        model.loss(batch).backward()
        muon.step()
        adamw.step()
    losses = {f"Muon and AdamW, {steps} steps": held_out_loss(model)}

    with TemporaryDirectory() as folder:
        files = {name: str(Path(folder, f"{name}.pt")) for name in ("model", "muon", "adamw")}
        for name, part in {"model": model, "muon": muon, "adamw": adamw}.items():
            torch.save(part.state_dict(), files[name])
        output = str(Path(folder, "root.pt"))
        # The same as: python -m lightning_root convert-checkpoint model.pt muon.pt adamw.pt \
        #     --output root.pt
        lightning_root(["convert-checkpoint", *files.values(), "--output", output])
        state = torch.load(output, weights_only=True)
        weights = torch.load(files["model"], weights_only=True)

    for name, options in {
        "then ROOT as Muon": {"coefficients": "muon", "outlier_quantile": None},
        "then ROOT": {},
    }.items():
        model = Classifier()
        model.load_state_dict(weights)
        root = ROOT(model.parameters(), **options)  # learning rates and decay are in the state
        root.load_state_dict(state)
        for batch in data[steps:]:
            root.zero_grad()
            model.loss(batch).backward()
            root.step()
        losses[name] = held_out_loss(model)

    for name, loss in losses.items():
        print(f"{name:>30}: held-out loss {loss:.3f}")
    return losses


if __name__ == "__main__":
    main()
