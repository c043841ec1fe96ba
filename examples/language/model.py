"""The LightningModule of the language models; its sizes are in `configs/llm/`.

It brings no optimizer: `optimizer:` in the YAML file does. To look at its options:

    python -m lightning_root fit --model.help examples.language.model.Llama
"""

from typing import Literal

import lightning as L
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from examples.language.network import Network


class Llama(L.LightningModule):
    """A decoder-only transformer as in Llama 3, equal to Hugging Face's `LlamaForCausalLM`.

    RMSNorm before each half of a block, rotary positions, grouped-query attention, SwiGLU, no
    biases. `names.py` says what each parameter is called there.

    Args:
        vocabulary: Number of tokens; no fewer than the tokenizer has.
        dimension: Size of the residual stream.
        layers: Number of blocks.
        heads: Query heads per block.
        key_value_heads: Key and value heads per block; must divide `heads`.
        head_dimension: Size of a head; even, as rotary positions turn pairs of channels.
        mlp_dimension: Size inside the MLP.
        context: Longest sequence the model is trained on and accepts, in tokens.
        rope_theta: Base of the rotary frequencies; larger ones tell longer distances apart.
        norm_eps: Added to the mean square in each normalization.
        tied: Whether the head is the embedding's matrix.
        activation_checkpointing: Keep only what enters each block for the backward pass and compute
            its inside again: less memory, about a third more computation.
        gathered_dtype: Under FSDP2, in what weights are gathered and multiplied. The shards that
            the optimizer updates keep their own dtype, and gradients are summed in float32.

    Raises:
        ValueError: If the heads cannot be grouped, or a head cannot be turned in pairs.
    """

    def __init__(
        self,
        vocabulary: int = 256,
        dimension: int = 192,
        layers: int = 6,
        heads: int = 6,
        key_value_heads: int = 2,
        head_dimension: int = 32,
        mlp_dimension: int = 704,
        context: int = 256,
        rope_theta: float = 500_000.0,
        norm_eps: float = 1e-5,
        tied: bool = True,
        activation_checkpointing: bool = False,
        gathered_dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        if heads % key_value_heads:
            raise ValueError(
                f"`key_value_heads` must divide `heads`, got {key_value_heads} and {heads}; "
                f"key_value_heads={heads} is attention without groups"
            )
        if head_dimension % 2:
            raise ValueError(
                f"`head_dimension` must be even, got {head_dimension}; rotary positions turn pairs "
                "of channels"
            )
        self.save_hyperparameters()
        self.context, self.vocabulary, self.gathered_dtype = context, vocabulary, gathered_dtype
        self.network = Network(
            vocabulary,
            dimension,
            layers,
            heads,
            key_value_heads,
            head_dimension,
            mlp_dimension,
            rope_theta,
            norm_eps,
            tied,
            activation_checkpointing,
        )

    def configure_model(self) -> None:
        """Shard block by block, then the rest, where the strategy is FSDP2."""
        if self.device_mesh is None:
            return
        policy = MixedPrecisionPolicy()
        if self.gathered_dtype == "bfloat16":
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for part in (*self.network.blocks, self.network):
            if not isinstance(part, FSDPModule):  # Lightning may call this hook again
                fully_shard(part, mesh=self.device_mesh["data_parallel"], mp_policy=policy)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return the logits of the next token after each position, or the loss.

        Args:
            tokens: (batch, time) integers in [0, vocabulary).
            targets: (batch, time) the token after each; None returns logits.

        Returns:
            (batch, time, vocabulary); with `targets` the mean cross-entropy in nats per token.

        Raises:
            ValueError: If the sequence is longer than `context`.
        """
        if tokens.shape[1] > self.context:
            raise ValueError(
                f"`tokens` must hold at most {self.context} tokens a row, got {tokens.shape[1]}; "
                "shorten the windows or raise the model's `context`"
            )
        output: Tensor = self.network(tokens, targets)
        return output

    def loss(self, batch: Tensor) -> Tensor:  # (batch, time + 1) integers in [0, vocabulary)
        """Mean cross-entropy of each token given those before it, in nats per token."""
        return self(batch[:, :-1], batch[:, 1:])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        loss = self.loss(batch)
        self.log("val/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch))
