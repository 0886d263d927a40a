"""Stage 2: the classifier that finds a picture's codebook entries by its caption (Eq. 7-8)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from kbdm_core.classifier import CLASSIFIERS, Classifier, FactorisedClassifier, classifier_loss
from kbdm_core.codebook import nearest_entries
from train.knowledge.captions import Captions
from train.knowledge.tokens import READ_TOKENS, TokenRows, read_items
from train.run.loop import Run
from train.run.optimisation import Optimisation
from train.run.order import Order, fingerprint, generator

if TYPE_CHECKING:
    from train.knowledge.pictures import Pictures  # imports OpenCLIP, slowly

Share = Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True)
class ClassifierTable:
    """[classifier]: stage 2, from a caption to an entry at every position."""

    kind: Literal["factorised", "mlp"] = "factorised"
    """factorised: positions share their weights (0.5 M); mlp: the paper's literal form, one output per position and entry (67 M)."""
    hidden: Annotated[int, Ge(1)] = 256
    """Width of the hidden layer."""
    epochs: Annotated[int, Ge(1)] = 30
    """Passes over all captions."""
    least_steps: Annotated[int, Ge(0)] = 2000
    """Small sets are passed over more often, until there are so many steps."""
    batch: Annotated[int, Ge(1)] = 64
    """Captions per step, over all processes."""
    accumulate: Annotated[int, Ge(1)] = 1
    """Parts in which a step's batch goes through memory."""
    learning_rate: Annotated[float, Ge(0)] = 3e-3
    """Of AdamW, falling to 0 along half a cosine."""
    warmup: Annotated[int, Ge(0)] = 100
    """Steps in which the learning rate rises to its full value."""
    weight_decay: Annotated[float, Ge(0)] = 0.01
    """Of AdamW."""
    phrase_share: Share = 0.25
    """How often a phrase of the caption stands for the caption: KB Text Query asks phrase by phrase."""
    empty_share: Share = 0.05
    """How often "" stands for the caption: the answer to an empty prompt is then what is usual at each position."""
    standardise: bool = True
    """Learn from text embeddings of mean 0 and deviation 1 per channel, and fold that into the first layer at the end: it learns faster."""


class ClassifierObjective(nn.Module):
    """The classifier with its loss, on standardised text embeddings (z_t - mean) / deviation, both [C_z]."""

    def __init__(self, classifier: Classifier, mean: Tensor, deviation: Tensor):
        super().__init__()
        self.classifier = classifier
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, z_t: Tensor, a: Tensor) -> Tensor:
        return classifier_loss(self.classifier, (z_t - self.mean) / self.deviation, a)

    @torch.no_grad()
    def folded(self) -> Classifier:
        """A copy of the classifier that takes z_t as it is: W (z_t - mean) / deviation + b = (W / deviation) z_t + (b - W mean / deviation)."""
        folded = copy.deepcopy(self.classifier)
        folded.input.weight /= self.deviation
        bias = folded.position if isinstance(folded, FactorisedClassifier) else folded.input.bias
        bias -= folded.input.weight @ self.mean
        return folded.requires_grad_(False).eval()


class ClassifierTraining:
    """Stage `classifier`: entries a [items,N] (any integer type) from the captions' z_t."""

    name = "classifier"

    def __init__(self, run: Run, table: ClassifierTable, captions: Captions, a: Tensor, entries: int):
        self.run, self.table, self.captions, self.a = run, table, captions, a
        self.order = Order(len(a), max(run.world, table.batch), run.table.seed)
        self.inputs = fingerprint(a, captions.of(range(len(a))))
        self.steps = max(table.least_steps, table.epochs * self.order.steps_per_epoch)
        torch.manual_seed(run.table.seed)
        classifier = CLASSIFIERS[table.kind](captions.z_t.shape[1], a.shape[1], entries, table.hidden)
        mean, deviation = captions.statistics() if table.standardise else (torch.zeros(()), torch.ones(()))
        objective = ClassifierObjective(classifier, mean, deviation).to(run.device)
        optimiser = torch.optim.AdamW(objective.parameters(), table.learning_rate, weight_decay=table.weight_decay)
        self.optimisation = Optimisation(run, objective, optimiser, self.steps, table.warmup)

    @property
    def classifier(self) -> Classifier:
        """The classifier as it stands, for z_t as they are."""
        return self.optimisation.plain.folded()

    def finished(self) -> bool:
        return False

    def step(self, index: int) -> dict[str, float | Tensor]:
        run, table = self.run, self.table
        items = self.order.step(index, run.rank, run.world)
        random = generator(run.table.seed, 5, index, run.rank)
        z_t = self.captions.drawn(items.tolist(), table.phrase_share, table.empty_share, random).to(run.device)  # [B, C_z]
        a = self.a[items].long().to(run.device)  # [B, N]
        parts = list(zip(z_t.chunk(table.accumulate), a.chunk(table.accumulate)))
        losses = [lambda part=part: self.optimisation.module(*part) for part in parts]
        return {"loss": self.optimisation.step(index, losses, run.check_alone, [len(z) for z, _ in parts])}

    def state(self) -> dict[str, Any]:
        return self.optimisation.state()

    def load(self, state: dict[str, Any]) -> None:
        self.optimisation.load(state)


def entries_of(run: Run, rows: TokenRows, codebook: Tensor) -> Tensor:
    """The nearest entries of all items' tokens (Eq. 3), [items,N] int32 on the CPU, computed by all processes together."""
    items, per_item, _ = rows.shape
    entries = torch.zeros(items, per_item, dtype=torch.int32, device=run.device)
    codebook = codebook.to(run.device)
    share = torch.arange(run.rank, items, run.world)
    with run.bar(len(share), "classifier: nearest entries", "item") as bar:
        for part in share.split(max(1, READ_TOKENS // per_item)):
            run.signals.check()
            entries[part.to(run.device)] = nearest_entries(read_items(rows, part, run.device), codebook).int()
            bar.update(len(part))
    return run.sum(entries)[0].cpu()


@dataclass(frozen=True)
class Retrieval:
    """How well entries are retrieved for captions: top-1 and top-5 token accuracy, and MSE of the retrieved z_q to the true z_e."""

    top1: float
    top5: float
    mse: float


Retrieve = Callable[[Tensor], Tensor]  # items [n] -> entries at each position, most probable first [n, N, 5 or 1]


def evaluate(run: Run, classifier: Classifier, pictures: Pictures, a: Tensor, codebook: Tensor) -> dict[str, dict[str, float]]:
    """Retrieval of the held-out pictures by the classifier, and by two baselines that know the training pictures:

    `most_frequent`, the entry that is most frequent at each position, and `nearest_caption`, the entries of the training picture whose
    caption has the highest cosine similarity of z_t. a [items,N]: the entries of all pictures.
    """
    captions, train = pictures.captions, pictures.train
    device, entries = run.device, len(codebook)
    codebook = codebook.to(device)

    def by_classifier(items: Tensor) -> Tensor:
        return classifier(captions.of(items.tolist()).to(device)).topk(min(5, entries), -1).indices

    positions = torch.arange(a.shape[1])
    counts = torch.zeros(a.shape[1], entries, dtype=torch.int64)  # [N, K]
    for part in train.split(4096):
        counts.view(-1).index_add_(0, (positions * entries + a[part]).flatten(), torch.ones(len(part) * a.shape[1], dtype=torch.int64))
    frequent = counts.topk(min(5, entries), -1).indices.to(device)  # [N, 5]
    known = nn.functional.normalize(captions.of(train.tolist()), dim=-1).to(device)  # [M, C_z]

    def by_frequency(items: Tensor) -> Tensor:
        return frequent.expand(len(items), -1, -1)

    def by_nearest_caption(items: Tensor) -> Tensor:
        nearest = (captions.of(items.tolist()).to(device) @ known.T).argmax(-1).cpu()  # [n]
        return a[train[nearest]].long().to(device)[..., None]  # [n, N, 1]

    ways: dict[str, Retrieve] = {"classifier": by_classifier, "most_frequent": by_frequency, "nearest_caption": by_nearest_caption}
    totals = torch.zeros(len(ways), 3, dtype=torch.float64)
    share = pictures.held_out[run.rank :: run.world]
    with torch.no_grad(), run.bar(len(share), "classifier: held-out pictures", "picture") as bar:
        for items in share.split(16):
            run.signals.check()
            z_e, truth = read_items(pictures.rows, items, device), a[items].long().to(device)[..., None]  # [n, N, C], [n, N, 1]
            for total, retrieve in zip(totals, ways.values()):
                found = retrieve(items)
                right = found == truth
                z_q = nn.functional.embedding(found[..., 0], codebook)
                error = (z_q - z_e).square().mean(-1).sum(dtype=torch.float64)
                total += torch.stack([right[..., 0].sum(), right.any(-1).sum(), error]).cpu()
            bar.update(len(items))
    (totals,) = run.sum(totals.to(device))
    tokens = max(1, len(pictures.held_out) * a.shape[1])
    return {name: vars(Retrieval(*(total / tokens).tolist())) for name, total in zip(ways, totals)}
