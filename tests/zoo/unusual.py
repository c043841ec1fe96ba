"""Models whose weights are raw parameters: complex, by head, by state, or made by a network."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.specimen import VOCABULARY, WIDTH, Specimen, logits_loss, tokens


class Embed(nn.Module):
    """TransformerLens' table of tokens."""

    def __init__(self):
        super().__init__()
        self.W_E = nn.Parameter(torch.randn(VOCABULARY, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.W_E[tokens]


class PosEmbed(nn.Module):
    """TransformerLens' table of positions."""

    def __init__(self):
        super().__init__()
        self.W_pos = nn.Parameter(torch.randn(12, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.W_pos[: x.shape[1]]


class Unembed(nn.Module):
    """TransformerLens' head."""

    def __init__(self):
        super().__init__()
        self.W_U = nn.Parameter(torch.randn(WIDTH, VOCABULARY))
        self.b_U = nn.Parameter(torch.zeros(VOCABULARY))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.W_U + self.b_U


class HeadAttention(nn.Module):
    """A matrix for each head."""

    def __init__(self, heads: int = 2, size: int = 8):
        super().__init__()
        for name in "QKV":
            setattr(self, f"W_{name}", nn.Parameter(torch.randn(heads, WIDTH, size) * 0.1))
            setattr(self, f"b_{name}", nn.Parameter(torch.zeros(heads, size)))
        self.W_O = nn.Parameter(torch.randn(heads, size, WIDTH) * 0.1)
        self.b_O = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            torch.einsum("bld,hds->bhls", x, getattr(self, f"W_{name}"))
            + getattr(self, f"b_{name}")[:, None]
            for name in "QKV"
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.einsum("bhls,hsd->bld", mixed, self.W_O) + self.b_O


class RawMLP(nn.Module):
    """Two matrices without modules of their own."""

    def __init__(self):
        super().__init__()
        self.W_in = nn.Parameter(torch.randn(WIDTH, 24) * 0.1)
        self.W_out = nn.Parameter(torch.randn(24, WIDTH) * 0.1)
        self.b_in, self.b_out = nn.Parameter(torch.zeros(24)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x @ self.W_in + self.b_in) @ self.W_out + self.b_out


class HookedBlock(nn.Module):
    """Attention and MLP."""

    def __init__(self):
        super().__init__()
        self.ln1, self.attn = nn.LayerNorm(WIDTH), HeadAttention()
        self.ln2, self.mlp = nn.LayerNorm(WIDTH), RawMLP()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class HookedTransformer(nn.Module):
    """A decoder with TransformerLens' names."""

    def __init__(self):
        super().__init__()
        self.embed, self.pos_embed = Embed(), PosEmbed()
        self.blocks = nn.ModuleList(HookedBlock() for _ in range(2))
        self.ln_final, self.unembed = nn.LayerNorm(WIDTH), Unembed()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.pos_embed(self.embed(tokens))
        for block in self.blocks:
            x = block(x)
        return self.unembed(self.ln_final(x))


class SpectralConv1d(nn.Module):
    """A complex matrix for each low frequency."""

    def __init__(self, modes: int = 4):
        super().__init__()
        shape = (WIDTH, WIDTH, modes)
        self.weights1 = nn.Parameter(torch.randn(shape, dtype=torch.cfloat) / WIDTH)
        self.modes = modes

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x)[..., : self.modes]
        mixed = torch.einsum("bim,iom->bom", spectrum, self.weights1)
        return torch.fft.irfft(mixed, n=x.shape[-1])


class FNO1d(nn.Module):
    """A Fourier neural operator."""

    def __init__(self):
        super().__init__()
        self.fc0 = nn.Linear(2, WIDTH)
        self.spectral = nn.ModuleList(SpectralConv1d() for _ in range(2))
        self.ws = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 1) for _ in range(2))
        self.fc1, self.fc2 = nn.Linear(WIDTH, 24), nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc0(x).mT
        for spectral, w in zip(self.spectral, self.ws, strict=True):
            x = F.gelu(spectral(x) + w(x))
        return self.fc2(F.gelu(self.fc1(x.mT)))


class DiagonalKernel(nn.Module):
    """S4D's: rates and a complex output, entry by entry."""

    def __init__(self, states: int = 4):
        super().__init__()
        self.log_dt = nn.Parameter(torch.zeros(WIDTH))
        self.log_A_real = nn.Parameter(torch.zeros(WIDTH, states))
        self.A_imag = nn.Parameter(torch.randn(WIDTH, states))
        self.C = nn.Parameter(torch.randn(WIDTH, states, 2))

    def forward(self, length: int) -> Tensor:
        rates = torch.complex(-self.log_A_real.exp(), self.A_imag) * self.log_dt.exp()[:, None]
        powers = (rates[..., None] * torch.arange(length)).exp()
        return 2 * torch.einsum("hn,hnl->hl", torch.view_as_complex(self.C), powers).real


class S4DLayer(nn.Module):
    """A long convolution and a gated mixing of features."""

    def __init__(self):
        super().__init__()
        self.D, self.kernel = nn.Parameter(torch.ones(WIDTH)), DiagonalKernel()
        self.output_linear = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GLU(-1))

    def forward(self, x: Tensor) -> Tensor:
        x, length = x.mT, x.shape[1]
        spectrum = torch.fft.rfft(x, n=2 * length) * torch.fft.rfft(
            self.kernel(length), n=2 * length
        )
        y = torch.fft.irfft(spectrum)[..., :length] + x * self.D[:, None]
        return self.output_linear(F.gelu(y).mT)


class S4Model(nn.Module):
    """Layers between an encoder and a decoder."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, WIDTH)
        self.s4_layers = nn.ModuleList(S4DLayer() for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.decoder = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        for layer, norm in zip(self.s4_layers, self.norms, strict=True):
            x = norm(x + layer(x))
        return self.decoder(x.mean(1))


class Hypernetwork(nn.Module):
    """A network that makes the weights of each layer from the layer's code."""

    def __init__(self, layers: int = 2):
        super().__init__()
        self.layer_codes = nn.Parameter(torch.randn(layers, 6))
        self.generator = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, WIDTH**2))
        self.gains = nn.Parameter(torch.ones(layers, WIDTH))
        self.read = nn.Linear(8, WIDTH)
        self.classifier = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        for code, gain in zip(self.layer_codes, self.gains, strict=True):
            x = torch.tanh(x @ self.generator(code).view(WIDTH, WIDTH)) * gain
        return self.classifier(x)


UNUSUAL = {
    "hooked_transformer": Specimen(
        build=HookedTransformer,
        loss=logits_loss(tokens),
        aside={
            "embed.W_E": "token embedding",
            "pos_embed.W_pos": "position table",
            "unembed.W_U": "output head",
            "*.attn.b_[QKV]": "biases, one row for each attention head",
        },
        blind={"*.attn.b_K": "softmax does not see a shift"},
    ),
    "fno": Specimen(
        build=FNO1d,
        loss=logits_loss(lambda: torch.randn(2, 12, 2)),
        aside={
            "spectral.*.weights1": "complex, a matrix for each frequency",
            "fc2.weight": "output head",
        },
    ),
    "s4d": Specimen(
        build=S4Model,
        loss=logits_loss(lambda: torch.randn(2, 12, 3)),
        aside={
            "*.kernel.log_A_real": "decay rates, entry by entry",
            "*.kernel.A_imag": "frequencies, entry by entry",
            "*.kernel.C": "complex numbers as pairs",
            "decoder.weight": "output head",
        },
    ),
    "hypernetwork": Specimen(
        build=Hypernetwork,
        loss=logits_loss(lambda: torch.randn(4, 8)),
        aside={
            "layer_codes": "a code for each layer",
            "gains": "a row of gains for each layer",
            "classifier.weight": "output head",
        },
    ),
}
