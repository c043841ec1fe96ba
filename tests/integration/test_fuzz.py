"""Random configurations: they train a step, or fail with one line that names the key.

`LIGHTNING_ROOT_FUZZ=5000 python -m pytest tests/integration/test_fuzz.py` runs more of them.
"""

import contextlib
import io
import os
import random

import pytest
import yaml

from lightning_root.cli.lightning import MainCLI, MainParser
from lightning_root.cli.messages import one_line
from tests.integration.models import LazyNet, PlainNet
from tests.optim.test_every_option import GOOD

COUNT = int(os.environ.get("LIGHTNING_ROOT_FUZZ", "160"))
FOUND = (179, 1282)
"""Seeds that had findings once: what a callback itself refuses came with a traceback."""

TRIPLE = [2.0, -1.5, 0.5]

OPTIMIZER = {
    "lr": [0.0, 1, 1e-2, "1e-3"],
    "weight_decay": [0, 0.1],
    "momentum": [0.0, 0.95],
    "nesterov": [True, False],
    "coefficients": ["adaptive", "muon", "cans", TRIPLE, {"10x12": [TRIPLE] * 5}],
    "outlier_quantile": [None, 0.5, 1, "auto"],
    "ns_steps": [5],
    "adjust_lr_fn": ["original", "spectral_unclamped", None],
    "betas": [[0.8, 0.9]],
    "eps": [1e-6],
    "maximize": [True],
    "foreach": [None, True],
    "fused": [None, False],
    "ns_dtype": ["auto", "float64", "bfloat16"],
    "ns_form": ["gram", "eigh", "polar"],
    "momentum_dtype": ["auto", "bfloat16", "float8"],
    "normalize": ["none", "neuron"],
    "lr_scales": [None, {"embedding": 3.0, "head": 0.3}, {"hidden": 0.5}],
    "weight_decays": [None, {"vector": 0.0}],
    "weight_decay_mode": ["decoupled", "cautious"],
    "gradient_clip_entries": [None, 4.0],
    "precondition": ["none", "covariance", "soap", "auto"],
    "precondition_sides": ["auto", "smaller", "both"],
    "precondition_source": ["gradient", "momentum"],
    "precondition_every": [1, 3],
    "precondition_statistics_every": [None, 2],
    "precondition_beta": [0.0, 0.9],
    "precondition_exponent": [None, 0.25, 1],
    "precondition_damping": [1e-3],
    "precondition_max_dim": [5, 11, 4096],
    "share_dtype": ["auto", "bfloat16"],
    "outlier_quantile_mode": ["exact", "sampled"],
    "kernels": ["auto", "torch"],
    "capturable": [False],
    "rules": [None, {"head.*": "adamw"}, {"body.0.weight": {"rows": 2}}, {"head.weight": "root"}],
    "share_updates": [False],
}
WRONG = {
    "lr": [-1, "fast", [1e-3], float("inf")],
    "weight_decay": [-0.1, "some"],
    "momentum": [1.0, -0.5, "nesterov"],
    "nesterov": ["maybe", 3],
    "coefficients": ["muno", [1, 2], [TRIPLE] * 3, "nowhere.json", {"wide": [TRIPLE] * 5}],
    "outlier_quantile": [0, 1.5, "most"],
    "ns_steps": [0, 2.5, "five", 10**9],
    "adjust_lr_fn": ["rms"],
    "betas": [[0.9], [0.9, 1.0], 0.9],
    "eps": [-1, "small"],
    "maximize": ["no way"],
    "foreach": ["each"],
    "fused": ["together"],
    "ns_dtype": ["int8", 32],
    "ns_form": ["fast"],
    "momentum_dtype": ["int8"],
    "normalize": ["layer"],
    "lr_scales": [{"heads": 1.0}, {"head": -1}, 3.0],
    "weight_decays": [{"norm": 0.0}, {"vector": "small"}],
    "weight_decay_mode": ["careful"],
    "gradient_clip_entries": [0, "some"],
    "precondition": ["sgd"],
    "precondition_sides": ["left"],
    "precondition_source": ["weights"],
    "precondition_every": [0, "often"],
    "precondition_statistics_every": [0, "seldom"],
    "precondition_beta": [1.0, "slow"],
    "precondition_exponent": [0, 2, "root"],
    "precondition_damping": [0.0, 1.0, "some"],
    "precondition_max_dim": [0, "large"],
    "share_dtype": ["int8"],
    "outlier_quantile_mode": ["about"],
    "kernels": ["cuda"],
    "capturable": ["sure"],
    "rules": [
        *({"hed.*": "adamw"}, {"*": "sgd"}, {"body.0.weight": {"row": 2}}, "bert"),
        *({"body.0.weight": {"rows": 7}}, {"norm.bias": "root"}, [1]),
    ],
    "share_updates": ["some"],
}
TRAINER = {
    "accumulate_grad_batches": [1, 2],
    "gradient_clip_val": [None, 0.5],
    "gradient_clip_algorithm": ["norm", "value"],
    "precision": ["32-true", "bf16-mixed", "bf16-true", "64-true"],
    "deterministic": [True, False],
    "detect_anomaly": [False],
}
WRONG_TRAINER = {
    "accumulate_grad_batches": ["two"],
    "gradient_clip_val": ["half"],
    "gradient_clip_algorithm": ["max"],
    "precision": ["8-true"],
    "max_epochs": ["all"],
    "devices": [[]],
}
SCHEDULER = {
    "warmup_steps": [None, 0, 3],
    "max_steps": [None, 10],
    "schedule": ["cosine", "linear", "constant"],
    "min_lr_ratio": [0.0, 0.5],
}
WRONG_SCHEDULER = {
    "warmup_steps": [-1, "few"],
    "max_steps": [0, "many"],
    "schedule": ["step"],
    "min_lr_ratio": [1.5, "a tenth"],
}
CALLBACKS = {
    "lightning_root.ROOTBinder": ({}, {}),
    "lightning_root.ROOTMonitor": (
        {"log_every_n_steps": [1, 7], "per_parameter": [True, False]},
        {"log_every_n_steps": [0, "often"], "per_parameter": ["maybe"]},
    ),
    "lightning.pytorch.callbacks.EMAWeightAveraging": ({"decay": [0.9]}, {"decay": ["slow"]}),
}


def chosen(generator, table, share=0.3):
    return {k: generator.choice(v) for k, v in table.items() if generator.random() < share}


def configuration(generator):
    """What is fine as far as the tables know."""
    names = [name for name in CALLBACKS if generator.random() < 0.3]
    scheduler = generator.random() < 0.4
    config = {
        "trainer": chosen(generator, TRAINER),
        "optimizer": {"class_path": "lightning_root.ROOT", "init_args": {}},
        "lr_scheduler_interval": generator.choice(["step", "epoch", None]),
    }
    config["optimizer"]["init_args"] = chosen(generator, OPTIMIZER)
    if scheduler:
        arguments = chosen(generator, SCHEDULER)
        config["lr_scheduler"] = {"class_path": "WarmupDecayLR", "init_args": arguments}
    config["trainer"]["callbacks"] = [
        {"class_path": name, "init_args": chosen(generator, CALLBACKS[name][0])} for name in names
    ]
    return config


def spoilt(generator, config):
    """One thing in `config` made wrong; the word that has to be in the message."""
    places = [(config["optimizer"]["init_args"], WRONG)] * 4 + [(config["trainer"], WRONG_TRAINER)]
    if "lr_scheduler" in config:
        places.append((config["lr_scheduler"]["init_args"], WRONG_SCHEDULER))
    for callback in config["trainer"]["callbacks"]:
        if wrong := CALLBACKS[callback["class_path"]][1]:
            places.append((callback["init_args"], wrong))
    options, wrong = generator.choice(places)
    key = generator.choice(list(wrong))
    if generator.random() < 0.3:  # a slip of the fingers
        at = generator.randrange(1, len(key))
        slip = key[:at] + generator.choice("xqz") + key[at:]
        options[slip] = options.pop(key, 1)
        return slip
    options[key] = generator.choice(wrong[key])
    return key


class FitCLI(MainCLI):
    """Of the subcommands only the one that is used: most of the time goes into parsers."""

    @staticmethod
    def subcommands():
        return {"fit": MainCLI.subcommands()["fit"]}


def outcome(config, folder, net):
    """ "trained", or what was written about the failure."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    fixed = ["--trainer.accelerator=cpu", "--trainer.fast_dev_run=1", "--seed_everything=0"]
    fixed += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    written = io.StringIO()
    with contextlib.redirect_stderr(written), contextlib.redirect_stdout(io.StringIO()):
        try:
            made = FitCLI(
                net,
                args=["fit", f"--config={file}", *fixed],
                parser_class=MainParser,
                save_config_callback=None,
            )
        except SystemExit:
            return written.getvalue()
        except Exception as error:  # a finding: it is shown with its configuration
            return f"{type(error).__name__}: {error}"
    return "trained" if made.trainer.global_step == 1 else "did not train"


def is_one_line_about(text, key):
    (line, *more) = text.splitlines()
    return line.startswith("error: ") and key in line and len(line) < 600 and not more


def test_all_options_are_in_the_tables():
    assert set(OPTIMIZER) == set(WRONG) == set(GOOD)


@pytest.mark.filterwarnings("ignore")  # the oddest options deserve their warnings
def test_random_configurations_train_or_name_the_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    findings = []
    for seed in [*range(COUNT), *FOUND]:
        generator = random.Random(seed)
        config = configuration(generator)
        key = spoilt(generator, config) if generator.random() < 0.6 else None
        said = outcome(config, tmp_path, generator.choice([PlainNet, LazyNet]))
        fine = said == "trained" if key is None else is_one_line_about(said, key)
        if not fine:
            findings.append(f"{seed} ({key or 'nothing wrong'}): {config}\n    {said}")
    assert not findings, "\n".join([f"{len(findings)} of {COUNT}:", *findings])


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("unrecognized arguments: --optimizr=ROOT", "unrecognized arguments: --optimizr=ROOT"),
        (
            'Parser key "a":\n  Parser key "b":\n    Expected a <class \'int\'>. Got value: x',
            "a.b: expected int. Got value: x",
        ),
        (
            "Parser key \"a\":\n  - Expected a <class 'list'>\n  - Expected a <class 'NoneType'>\n"
            "  Given value: 3",
            "a: expected list or null. Got value: 3",
        ),
        ("Parser key \"a\":\n Option 'b' is not accepted\n more", "a: Option 'b' is not accepted"),
        (
            "Does not validate against any of the Union subtypes\nErrors:\n"
            "  - `every` must be >= 1, got 0\n  - Not a valid subclass of Callback\n"
            "  - Expected a <class 'NoneType'>\nGiven value: [3]",
            "`every` must be >= 1, got 0",
        ),
        (
            'Parser key "a":\n  - Expected a path but my.Net either not accessible or invalid\n'
            "  - Does not validate against any of the Union subtypes\n  Errors:\n"
            "    - Problem with given class_path 'my.Net':\n        No module named 'my'\n"
            "    - Expected a <class 'NoneType'>\n  Given value: my.Net",
            "a: Problem with given class_path 'my.Net': No module named 'my'",
        ),
        (
            'Parser key "a":\n  - Expected a path but SGDD either not accessible or invalid\n'
            "  - Does not validate against any of the Union subtypes\n  Errors:\n"
            "    - Expected a dot import path string: SGDD\n    - Expected a <class 'NoneType'>\n"
            "  Given value: SGDD",
            "a: no class is known by the name SGDD; give its path: package.Class",
        ),
        (  # the class fits the first kind, so that it is none of the second is not what is wrong
            "Parser key \"a\":\n  Errors:\n    - Problem with given class_path 'my.Decay':\n"
            '        Parser key "b":\n          Errors:\n'
            "            - Expected a <class 'int'>\n            - Expected a <class 'NoneType'>\n"
            "          Given value: few\n"
            "    - Import path my.Decay does not correspond to a subclass of Plateau\n"
            "    - Expected a <class 'NoneType'>\n  Given value: NestedArg(key='b', val='few')",
            "a.b: expected int or null. Got value: few",
        ),
        (
            "Parser key \"a\":\n  Errors:\n    - Expected a <class 'float'>\n"
            "    - Expected a dot import path string: \n    Given value: \n"
            "  Given value: NestedArg(key='b', val='')",
            "a: expected float. Got value: ''",
        ),
        (
            'Parser key "optimizer":\n  Errors:\n'
            "    - Problem with given class_path 'torch.optim.Optimizer':\n"
            "        Option 'lr' is not accepted\n    - Expected a <class 'NoneType'>",
            "optimizer: name the class before its options: `--optimizer package.Class`",
        ),
        (
            "Unexpected config: - 1\n- 2\n",
            "`--config` must be a YAML file of keys with values, got a file that begins with "
            "'- 1 - 2'",
        ),
        (
            "Unexpected config: ",
            "`--config` must be a YAML file of keys with values, got an empty file",
        ),
    ],
)
def test_long_messages_become_one_line(message, line):
    assert one_line(message) == line
