"""Models of torch's own recurrent layers and its encoder-decoder transformer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.specimen import VOCABULARY, WIDTH


class LSTMLanguageModel(nn.Module):
    """The word language model of torch's examples; its head is called decoder."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Embedding(VOCABULARY, WIDTH)
        self.rnn = nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True)
        self.decoder = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(self.rnn(self.encoder(tokens))[0])


class GRUClassifier(nn.Module):
    """Words from both sides, a hidden Linear, a class."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.gru = nn.GRU(WIDTH, WIDTH, bidirectional=True, batch_first=True)
        self.hidden = nn.Linear(2 * WIDTH, WIDTH)
        self.fc = nn.Linear(WIDTH, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.hidden(self.gru(self.embedding(tokens))[0].mean(1))))


class Translator(nn.Module):
    """torch's encoder-decoder transformer between two vocabularies."""

    def __init__(self):
        super().__init__()
        self.transformer = nn.Transformer(
            WIDTH, 4, 2, 2, dim_feedforward=24, dropout=0.0, batch_first=True
        )
        self.generator = nn.Linear(WIDTH, VOCABULARY)
        self.src_tok_emb = nn.Embedding(VOCABULARY, WIDTH)
        self.tgt_tok_emb = nn.Embedding(VOCABULARY, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        source, target = self.src_tok_emb(tokens), self.tgt_tok_emb(tokens)
        return self.generator(self.transformer(source, target))


class Recommender(nn.Module):
    """Tables for users and items, a matrix that only multiplies, an MLP that ends in one number."""

    def __init__(self):
        super().__init__()
        self.user_factors = nn.EmbeddingBag(VOCABULARY, WIDTH)
        self.item_factors = nn.EmbeddingBag(VOCABULARY, WIDTH)
        self.cross = nn.Bilinear(WIDTH, WIDTH, 4)
        self.mlp = nn.Sequential(
            nn.Linear(2 * WIDTH + 4, 24), nn.ReLU(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 2)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        user, item = self.user_factors(tokens[:, :3]), self.item_factors(tokens[:, 3:])
        both = F.relu(self.cross(user, item))
        return self.mlp(torch.cat([user, item, both], 1))
