"""Forecasters of time series, with the names of darts, neuralforecast and pytorch-forecasting."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.specimen import Specimen, logits_loss

PAST, AHEAD, WIDTH = 12, 4, 16


class NBEATSBlock(nn.Module):
    """darts': a stack, then what it explains of the past and what it adds to the forecast."""

    def __init__(self):
        super().__init__()
        sizes = (PAST, WIDTH, WIDTH)
        self.linear_layer_stack_list = nn.ModuleList(
            nn.Linear(*pair) for pair in itertools.pairwise(sizes)
        )
        self.fc_stack = nn.ModuleList([nn.Linear(WIDTH, WIDTH)])
        self.backcast_linear_layer = nn.Linear(WIDTH, PAST)
        self.forecast_linear_layer = nn.Linear(WIDTH, AHEAD)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layer in (*self.linear_layer_stack_list, *self.fc_stack):
            x = F.relu(layer(x))
        return self.backcast_linear_layer(x), self.forecast_linear_layer(x)


class NBEATS(nn.Module):
    """Stacks of blocks, each of which takes its part from the past."""

    def __init__(self):
        super().__init__()
        self.stacks_list = nn.ModuleList(
            nn.ModuleDict({"blocks": nn.ModuleList(NBEATSBlock() for _ in range(2))})
            for _ in range(2)
        )

    def forward(self, past: Tensor) -> Tensor:
        total = past.new_zeros(len(past), AHEAD)
        for stack in self.stacks_list:
            for block in stack["blocks"]:
                backcast, forecast = block(past)
                past, total = past - backcast, total + forecast
        return total


class NHITSBlock(nn.Module):
    """neuralforecast's: all numbers of both outputs come from one layer."""

    def __init__(self, pool: int):
        super().__init__()
        self.pool = nn.MaxPool1d(pool)
        reads = PAST // pool
        self.layers = nn.Sequential(
            nn.Linear(reads, WIDTH), nn.ReLU(), nn.Linear(WIDTH, PAST + AHEAD // pool)
        )

    def forward(self, past: Tensor) -> tuple[Tensor, Tensor]:
        theta = self.layers(self.pool(past[:, None])[:, 0])
        ahead = F.interpolate(theta[:, None, PAST:], size=AHEAD, mode="linear")
        return theta[:, :PAST], ahead[:, 0]


class NHITS(nn.Module):
    """Blocks that read the past at several rates."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(NHITSBlock(pool) for pool in (4, 2, 1))

    def forward(self, past: Tensor) -> Tensor:
        total = past.new_zeros(len(past), AHEAD)
        for block in self.blocks:
            backcast, forecast = block(past)
            past, total = past - backcast, total + forecast
        return total


class GatedLinearUnit(nn.Module):
    """Signal and gate from one Linear."""

    def __init__(self, width: int):
        super().__init__()
        self.fc = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(self.fc(x), dim=-1)


class GateAddNorm(nn.Module):
    """A gated residual and a norm."""

    def __init__(self, width: int):
        super().__init__()
        self.glu, self.norm = GatedLinearUnit(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.norm(self.glu(x) + skip)


class GatedResidualNetwork(nn.Module):
    """Two Linears, a gate, and a way around them."""

    def __init__(self, reads: int, width: int = WIDTH):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(reads, width), nn.Linear(width, width)
        self.gate_norm = GateAddNorm(width)
        self.resample = nn.Linear(reads, width) if reads != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.gate_norm(self.fc2(F.elu(self.fc1(x))), self.resample(x))


class VariableSelection(nn.Module):
    """A network for each variable, and one that weighs them."""

    def __init__(self, variables: list[str]):
        super().__init__()
        self.flattened_grn = GatedResidualNetwork(WIDTH * len(variables), WIDTH)
        self.weights = nn.Linear(WIDTH, len(variables))
        self.single_variable_grns = nn.ModuleDict(
            {name: GatedResidualNetwork(WIDTH) for name in variables}
        )
        self.prescalers = nn.ModuleDict({name: nn.Linear(1, WIDTH) for name in variables})

    def forward(self, values: Tensor) -> Tensor:
        columns = values.unbind(-1)
        scaled = [f(x[..., None]) for f, x in zip(self.prescalers.values(), columns, strict=True)]
        share = self.weights(self.flattened_grn(torch.cat(scaled, -1))).softmax(-1)
        each = [f(x) for f, x in zip(self.single_variable_grns.values(), scaled, strict=True)]
        return (torch.stack(each, -1) * share[..., None, :]).sum(-1)


class TemporalFusionTransformer(nn.Module):
    """Variables by name, an LSTM, attention, quantiles."""

    def __init__(self):
        super().__init__()
        static = ["age", "income", "region", "size", "kind", "price", "class"]
        self.static_variable_selection = VariableSelection(static)
        self.encoder_variable_selection = VariableSelection(["sales", "holiday", "weather"])
        self.static_context_enrichment = GatedResidualNetwork(WIDTH)
        self.static_context_initial_hidden_lstm = GatedResidualNetwork(WIDTH)
        self.lstm_encoder = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.post_attn_gate_norm, self.pos_wise_ff = GateAddNorm(WIDTH), GatedResidualNetwork(WIDTH)
        self.output_layer = nn.Linear(WIDTH, 7)

    def forward(self, values: Tensor) -> Tensor:
        static, past = values[:, 0, :7], values[..., 7:]
        chosen = self.static_variable_selection(static)
        hidden = self.static_context_initial_hidden_lstm(chosen)[None]
        x, _ = self.lstm_encoder(
            self.encoder_variable_selection(past), (hidden, torch.zeros_like(hidden))
        )
        x = x + self.static_context_enrichment(chosen)[:, None]
        x = self.post_attn_gate_norm(self.multihead_attn(x, x, x, need_weights=False)[0], x)
        return self.output_layer(self.pos_wise_ff(x))


class PatchTSTBackbone(nn.Module):
    """Patches of a series by a Linear, a table of positions, layers of torch."""

    def __init__(self):
        super().__init__()
        self.W_P = nn.Linear(4, WIDTH)
        self.W_pos = nn.Parameter(torch.zeros(3, WIDTH))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 2, 24, 0.0, batch_first=True) for _ in range(2)
        )

    def forward(self, past: Tensor) -> Tensor:
        x = self.W_P(past.unflatten(1, (3, 4))) + self.W_pos
        for layer in self.layers:
            x = layer(x)
        return x


class PatchTST(nn.Module):
    """The flattened patches give the forecast."""

    def __init__(self):
        super().__init__()
        self.backbone = PatchTSTBackbone()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(3 * WIDTH, AHEAD))

    def forward(self, past: Tensor) -> Tensor:
        return self.head(self.backbone(past))


series_loss = logits_loss(lambda: torch.randn(3, PAST))

FORECASTING = {
    "nbeats": Specimen(
        build=NBEATS,
        loss=series_loss,
        aside={
            "*.backcast_linear_layer.weight": "output of a block: what it explains",
            "*.forecast_linear_layer.weight": "output of a block: what it adds",
        },
        idle={"stacks_list.1.blocks.1.backcast_linear_layer.*": "nothing follows the last block"},
    ),
    "nhits": Specimen(
        build=NHITS,
        loss=series_loss,
        aside={"blocks.*.layers.2.weight": "output of a block, both parts"},
    ),
    "tft": Specimen(
        build=TemporalFusionTransformer,
        loss=logits_loss(lambda: torch.randn(3, PAST, 10)),
        aside={"*.prescalers.*.weight": "a vector: one number in", "output_layer.weight": "head"},
    ),
    "patchtst": Specimen(
        build=PatchTST,
        loss=series_loss,
        aside={
            "backbone.W_P.weight": "patch embedding",
            "backbone.W_pos": "position table",
            "head.1.weight": "output head",
        },
    ),
}
