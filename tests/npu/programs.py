"""What the tests run on a machine with NPUs, each function in a process of its own.

    python -m tests.npu.programs NAME FILE

FILE holds the pickled arguments; rank 0 writes the pickled result in their place.
"""

import os
import pickle
import sys
import warnings
from collections import Counter
from pathlib import Path

import lightning.pytorch as L
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_root import ROOT, NPUAccelerator, NPUDDPStrategy, NPUModelParallelStrategy, ROOTMixin
from lightning_root.npu import runtime
from lightning_root.optim.options import iteration_dtype
from tests.integration.models import PlainNet, ShardedNet, trainer, weights
from tests.models import CNN, GPT

# The threshold and the iteration as a CPU computes them, so that weights can be compared.
LIKE_A_CPU = {"ns_dtype": "float32", "ns_form": "standard", "outlier_quantile_mode": "exact"}


class Net(ROOTMixin, PlainNet):
    root_options = {"lr": 1e-2, "warmup_steps": 2, "max_steps": 12, **LIKE_A_CPU}


class ShardedROOTNet(ROOTMixin, ShardedNet):
    root_options = Net.root_options


ONE = {"accelerator": "npu", "devices": 1, "strategy": "npu_single"}


def reason():
    """Why there is no NPU, as the Trainer says it."""
    with_reason = [runtime.problem(), NPUAccelerator.is_available()]
    try:
        L.Trainer(accelerator="npu", strategy="npu_single")
    except Exception as error:
        with_reason.append((type(error).__name__, str(error)))
    return with_reason


def facts():
    """What the accelerator says about the machine."""
    made = NPUAccelerator()
    device = torch.device("npu", 0)
    made.setup_device(device)
    held = torch.ones(1000, device=device)
    stats = made.get_device_stats(device)
    return {
        "available": NPUAccelerator.is_available(),
        "count": NPUAccelerator.auto_device_count(),
        "parsed": {str(d): NPUAccelerator.parse_devices(d) for d in (1, -1, "-1", "auto", [0])},
        "devices": [str(d) for d in NPUAccelerator.get_parallel_devices([0])],
        "stats": {name: float(value) for name, value in stats.items()},
        "bytes": held.nbytes,
        "iteration": str(iteration_dtype("auto", held)),
    }


def refusals(cases):
    """The error of each Trainer that must not train: at once, or when it fits."""
    found = {}
    for name, options in cases.items():
        if name == "comm_hook":
            options = {**options, "strategy": NPUDDPStrategy(ddp_comm_hook=lambda *_: None)}
        try:
            trainer(max_steps=1, **options).fit(Net())
        except Exception as error:
            found[name] = (type(error).__name__, str(error))
    return found


def old_chip(cases):
    """What a chip without bfloat16 refuses, and what ROOT iterates in there."""
    return refusals(cases), str(iteration_dtype("auto", torch.ones(2, 2, device="npu")))


def strictness():
    """What happens to operators that a device does not have."""
    import torch_npu

    ones = torch.ones(4, 4, device="npu")
    double = torch.ones(4, 4, dtype=torch.float64, device="npu")
    attempts = {
        "sort": lambda: ones.bfloat16().sort(),
        "mm": lambda: torch.mm(double, double),
        "eigh": lambda: torch.linalg.eigh(ones),
        "fused": lambda: torch_npu.npu_rms_norm(ones, ones[0]),
    }
    found = {"cast": str(ones.double().dtype)}
    for name, attempt in attempts.items():
        try:
            attempt()
        except Exception as error:
            found[name] = str(error)
    return found


def facts_and_refusals(cases):
    return facts(), refusals(cases)


class Watching(Net):
    """Notes what the forward pass computes in."""

    def training_step(self, batch, index):
        hidden = self.body[0](self.embedding(batch[0]))
        self.seen = (str(hidden.dtype), str(hidden.device))
        return super().training_step(batch, index)


def precisions():
    """For each precision: dtype and device in the forward pass, of the weights; the loss scale.

    And what was warned about CUDA, which is not there.
    """
    found = {}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for precision in ("bf16-mixed", "16-mixed", "bf16-true", "32-true"):
            found[precision] = in_precision(precision)
    return found, [str(w.message) for w in warned if "CUDA is not" in str(w.message)]


def in_precision(precision):
    model = Watching()
    fit = trainer(max_steps=2, precision=precision, **ONE)
    fit.fit(model)
    scaler = getattr(fit.precision_plugin, "scaler", None)
    scale = None if scaler is None else (scaler.is_enabled(), scaler._scale.device.type)
    return (*model.seen, str(next(model.parameters()).dtype), scale)


def single(folder):
    """12 steps on the CPU; on an NPU; and 4 on NPU, CPU and NPU by turns, from checkpoints."""
    results = {}
    cpu = {"accelerator": "cpu"}
    for name, options in (("cpu", cpu), ("npu", ONE)):
        model = Net()
        trainer(max_steps=12, **options).fit(model)
        results[name] = on_cpu(weights(model))
    checkpoint = None
    for number, options in enumerate((ONE, cpu, ONE), 1):
        model = Net()
        fit = trainer(max_steps=4 * number, **options)
        fit.fit(model, ckpt_path=checkpoint)
        checkpoint = Path(folder) / f"{number}.ckpt"
        fit.save_checkpoint(checkpoint)
    return {**results, "resumed": on_cpu(weights(model)), "precisions": precisions()}


def data_parallel():
    """12 steps on two NPUs that see the same batches; means over ranks, also of whole numbers."""
    model = Net()
    fit = trainer(max_steps=12, accelerator="npu", devices=2, strategy="npu_ddp")
    fit.fit(model)
    rank = torch.tensor([fit.global_rank, 2], device=fit.strategy.root_device)
    means = [fit.strategy.reduce(value).tolist() for value in (rank.float(), 4 * rank)]
    return on_cpu(weights(model)), means


def sharded(folder):
    """The same with FSDP2, whole and in two halves with a checkpoint in shards between them."""

    def fit(steps, checkpoint=None):
        model = ShardedROOTNet()
        strategy = NPUModelParallelStrategy()
        run = trainer(max_steps=steps, accelerator="npu", devices=2, strategy=strategy)
        run.fit(model, ckpt_path=checkpoint)
        return run, on_cpu(weights(model))

    whole = fit(12)[1]
    half, _ = fit(6)
    half.save_checkpoint(folder)
    return whole, fit(12, folder)[1], sorted(path.name for path in Path(folder).iterdir())


def command_lines(*lines):
    """Several runs of `python -m lightning_root`, one after the other."""
    from lightning_root.cli import main

    return [main(line) for line in lines]


class Recorder(TorchDispatchMode):
    """Counts operators with the dtypes of what they take on NPUs."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        leaves = tree_leaves((args, kwargs or {}))
        tensors = [x for x in leaves if isinstance(x, torch.Tensor) and x.device.type == "npu"]
        self.seen.update((operator.overloadpacket.__name__, str(x.dtype)) for x in tensors)
        return operator(*args, **kwargs or {})


MODELS = {"gpt": lambda: GPT(tied=False, width=384, depth=1), "cnn": CNN}


def optimizer(cases):
    """Steps with each of these options, and what the device does not have."""
    return {name: steps(*case) for name, case in cases.items()}, strictness()


def steps(options, dtype):
    """Two steps with gradients of heavy tails on both devices: weights, and what NPUs computed."""
    results = {}
    for name, make in MODELS.items():
        torch.manual_seed(0)
        start = make().to(dtype).state_dict()
        for device in ("cpu", "npu"):
            model = make().to(dtype)
            model.load_state_dict(start)
            model.to(device)
            root = ROOT(model.parameters(), lr=1e-2, **options)
            recorder = Recorder()
            for step in range(2):
                for parameter, gradient in zip(
                    model.parameters(), gradients(start, step), strict=False
                ):
                    parameter.grad = gradient.to(device, dtype)
                with recorder:
                    root.step()
            results[name, device] = on_cpu(dict(model.named_parameters()))
        results[name, "operators"] = dict(recorder.seen)
    return results


def gradients(start, step):
    generator = torch.Generator().manual_seed(step)
    shapes = [value.shape for key, value in start.items() if "running" not in key]
    return [torch.randn(shape, generator=generator).pow(3) for shape in shapes if shape]


def on_cpu(tensors):
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def run():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    name, place = sys.argv[1], Path(sys.argv[2])
    arguments = pickle.loads(place.read_bytes())
    result = globals()[name](*arguments)
    if os.environ.get("RANK", "0") == "0":
        place.write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    run()
