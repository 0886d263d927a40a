"""Stage 1: the codebook. A k-means start on a sample, then the paper's AdamW with a cosine schedule on all tokens (Eq. 2-6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from kbdm_core.codebook import NEAREST_CHUNK, codebook_loss, nearest_entries, quantise, usage_entropy
from kbdm_core.errors import KBDMError
from train.knowledge.kmeans import KMeans
from train.knowledge.tokens import READ_TOKENS, TokenRows, read_items, sample_tokens
from train.run.loop import Run
from train.run.optimisation import Optimisation
from train.run.order import Order, fingerprint, generator

JUDGED_TOKENS = 16384  # of the sample, on which start and result of the refinement are compared


@dataclass(frozen=True)
class CodebookTable:
    """[codebook]: stage 1, the visual vocabulary."""

    entries: Annotated[int, Ge(2)] = 1024
    """K, the number of entries. 512 to 4096 are sensible; more need more pictures."""
    init: Literal["kmeans", "sample", "uniform"] = "kmeans"
    """Start: k-means on a sample; random tokens; or uniform in -1/K..1/K, as VQ-VAE and the paper's literal recipe, which collapses."""
    kmeans_iterations: Annotated[int, Ge(1)] = 40
    """Iterations of k-means at most; it stops by itself when they gain little, mostly after 15 to 25."""
    kmeans_tokens: Annotated[int, Ge(0)] = 0
    """Tokens in the k-means sample, which is held in memory; 0 = 256 per entry."""
    epochs: Annotated[int, Ge(0)] = 1
    """Passes of AdamW over all tokens; 0 leaves the start as it is. After k-means more than one hardly helps; other starts need 30."""
    batch_tokens: Annotated[int, Ge(1)] = 4096
    """Tokens per step, over all processes."""
    accumulate: Annotated[int, Ge(1)] = 1
    """Parts in which a step's batch goes through memory."""
    learning_rate: Annotated[float, Ge(0)] = 1e-3
    """Of AdamW, falling to 0 along half a cosine."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Of AdamW."""
    revive: bool = True
    """After each epoch, put entries that no token used onto random tokens."""
    entropy_weight: Annotated[float, Ge(0)] = 0.0
    """Weight of the entropy of the entries' use, a term against collapse; needed only with a start other than k-means."""


class CodebookObjective(nn.Module):
    """The codebook as a trainable module: loss of a batch (Eq. 6), with the optional entropy term, and its entries' use."""

    def __init__(self, start: Tensor, entropy_weight: float):
        super().__init__()
        self.weight = nn.Parameter(start.clone())  # [K, C]
        self.entropy_weight = entropy_weight

    def forward(self, z_e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z_e [P,C] -> loss, its MSE part, and the number of tokens per entry [K]."""
        with torch.autocast(z_e.device.type, enabled=False):  # distances of half precision would confuse near entries
            z_q, indices = quantise(z_e, self.weight)
            mse = codebook_loss(z_q, z_e)
            loss = mse - self.entropy_weight * usage_entropy(z_e, self.weight) if self.entropy_weight else mse
        return loss, mse.detach(), torch.bincount(indices, minlength=len(self.weight))


class Refinement:
    """Stage `codebook`: AdamW on the codebook, over the items of `rows` in random order."""

    name = "codebook"

    def __init__(self, run: Run, table: CodebookTable, rows: TokenRows, start: Tensor):
        self.run, self.table, self.rows = run, table, rows
        items, per_item, _ = rows.shape
        self.order = Order(items, max(run.world, round(table.batch_tokens / per_item)), run.table.seed)
        self.steps = table.epochs * self.order.steps_per_epoch
        objective = CodebookObjective(start, table.entropy_weight).to(run.device)
        optimiser = torch.optim.AdamW(objective.parameters(), table.learning_rate, weight_decay=table.weight_decay)
        self.optimisation = Optimisation(run, objective, optimiser, self.steps)
        self.used = torch.zeros(len(start), dtype=torch.int64, device=run.device)  # tokens per entry since the last revival [K]
        self.inputs = fingerprint(start, torch.tensor(rows.shape))

    @property
    def codebook(self) -> Tensor:
        return self.optimisation.plain.weight.detach()

    def finished(self) -> bool:
        return False

    def step(self, index: int) -> dict[str, float | Tensor]:
        items = self.order.step(index, self.run.rank, self.run.world)
        z_e = read_items(self.rows, items, self.run.device).flatten(0, 1)  # [P, C]
        mses, counts = [], torch.zeros_like(self.used)

        def loss_of(part: Tensor) -> Tensor:
            loss, mse, used = self.optimisation.module(part)
            mses.append(mse)
            counts.add_(used)
            return loss

        parts = z_e.chunk(self.table.accumulate)
        losses = [lambda part=part: loss_of(part) for part in parts]
        loss = self.optimisation.step(index, losses, self.run.check_alone, [len(part) for part in parts])
        mse = torch.stack(mses).mean()
        self.run.sum(counts, mse)
        used = self.used + counts
        revived = 0
        if self.table.revive and (index + 1) % self.order.steps_per_epoch == 0 and index + 1 < self.steps:
            revived, used = self._revive(used, z_e, index), torch.zeros_like(used)
        self.used = used
        return {"loss": loss, "mse": mse / self.run.world, "used": (counts > 0).sum(), "revived": revived}

    def _revive(self, used: Tensor, z_e: Tensor, index: int) -> int:
        """Set the entries without tokens onto random tokens of the main process's batch, and forget their momentum."""
        dead = (used == 0).nonzero()[:, 0]
        chosen = torch.randint(len(z_e), (len(dead),), generator=generator(self.run.table.seed, 3, index))
        fresh = self.run.first(lambda: z_e[chosen.to(z_e.device)].cpu())
        weight = self.optimisation.plain.weight
        with torch.no_grad():
            weight[dead] = fresh.to(weight)
        for moment in self.optimisation.optimiser.state[weight].values():
            if moment.shape == weight.shape:
                moment[dead] = 0
        return len(dead)

    def state(self) -> dict[str, Any]:
        return {**self.optimisation.state(), "used": self.used}

    def load(self, state: dict[str, Any]) -> None:
        self.optimisation.load(state)
        self.used = state["used"].to(self.used)


def refuse_too_few(table: CodebookTable, rows: TokenRows) -> None:
    """Raise KBDMError if there are fewer tokens than entries."""
    tokens = rows.shape[0] * rows.shape[1]
    if tokens < table.entries:
        raise KBDMError(f"{tokens} tokens cannot fill a codebook of {table.entries} entries; take more pictures, or set codebook.entries lower.")


def train_codebook(run: Run, table: CodebookTable, rows: TokenRows) -> Tensor:
    """Stage 1 as a whole: tokens [items,N,C] -> codebook [K,C], float32 on the CPU.

    AdamW's result is taken only if its error is not above its start's.
    """
    seed, device = run.table.seed, run.device if run.device.type == "cuda" else torch.device("cpu")  # float64 sums: not on every accelerator
    sample = sample_tokens(rows, table.kmeans_tokens or 256 * table.entries, seed, run.rank, run.world).to(device)
    start = run.first(lambda: _start(table, sample, seed).cpu()).to(device)
    if table.init == "kmeans":
        kmeans = KMeans(run, sample, start, table.kmeans_iterations)
        with torch.no_grad():
            run.train(kmeans)
        start = kmeans.codebook
    judged = sample[:: -(-len(sample) // JUDGED_TOKENS)]
    error = float(run.sum(_error(judged, start))[0])
    if table.epochs:
        refinement = Refinement(run, table, rows, start.to(run.device))
        run.train(refinement)
        result = refinement.codebook.to(device)
        after = float(run.sum(_error(judged, result))[0])
        gain = f"codebook: AdamW changed the error of its start by {100 * (after / max(error, 1e-30) - 1):+.2f} %"
        run.say(gain if after <= error else f"{gain}; the start is kept")
        start = result if after <= error else start
    return start.float().cpu()


def codebook_figures(run: Run, rows: TokenRows, codebook: Tensor) -> dict[str, float]:
    """What the codebook makes of all tokens: mse (mean over tokens and channels), perplexity exp(H) of the entries' use, used entries."""
    codebook = codebook.to(run.device)
    items, per_item, width = rows.shape
    error = torch.zeros((), dtype=torch.float64, device=run.device)
    counts = torch.zeros(len(codebook), dtype=torch.float64, device=run.device)
    share = torch.arange(run.rank, items, run.world)
    with run.bar(len(share), "codebook: figures", "item") as bar:
        for part in share.split(max(1, READ_TOKENS // per_item)):
            run.signals.check()
            z_e = read_items(rows, part, run.device).flatten(0, 1)
            nearest = nearest_entries(z_e, codebook)
            error += (codebook[nearest] - z_e).square().sum(dtype=torch.float64)
            counts += torch.bincount(nearest, minlength=len(codebook))
            bar.update(len(part))
    run.sum(error, counts)
    usage = counts / counts.sum()
    perplexity = torch.exp(-(usage * usage.clamp_min(1e-12).log()).sum())
    return {"mse": float(error) / (items * per_item * width), "perplexity": float(perplexity), "used": int((counts > 0).sum())}


def _start(table: CodebookTable, sample: Tensor, seed: int) -> Tensor:
    """The first entries [K,C], float32, from the main process's part of the sample."""
    random = generator(seed, 4)
    if table.init == "uniform":
        return (torch.rand(table.entries, sample.shape[1], generator=random) * 2 - 1) / table.entries
    if len(sample) >= table.entries:
        chosen = torch.randperm(len(sample), generator=random)[: table.entries]
    else:  # the sample is shared out among many processes
        chosen = torch.randint(len(sample), (table.entries,), generator=random)
    return sample[chosen.to(sample.device)].float()


def _error(tokens: Tensor, codebook: Tensor) -> Tensor:
    """Summed squared distance of tokens [P,C] to their nearest entries, float64."""
    total = torch.zeros((), dtype=torch.float64, device=tokens.device)
    for part in tokens.split(NEAREST_CHUNK):
        part = part.float()
        total += (codebook[nearest_entries(part, codebook)] - part).square().sum(dtype=torch.float64)
    return total
