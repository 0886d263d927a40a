"""The k-means start of the codebook: Lloyd's iterations among near entries, with entries moved from where they help least to where most.

Three things make it faster and better than Lloyd's algorithm alone. Entries are put into compact groups, and the tokens of a group are
compared with the entries near the group instead of with all (in the manner of k2-means, Agustsson et al. 2017). Every few iterations
the entries whose loss costs least are taken away and set beside those whose split gains most, as long as the gain outweighs the cost
(in the manner of ELBG, Patane and Russo 2001); that also revives dead entries. And it stops when a turn of iterations gains little.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from kbdm_core.codebook import NEAREST_CHUNK, nearest_entries
from train.run.loop import Run
from train.run.order import fingerprint

GROUP = 16  # entries of a group at most
NEAR = 24  # neighbours of an entry that its group's tokens are compared with
TURN = 4  # iterations between two moves of entries
SPLIT_TOKENS = 512  # tokens of an entry, at most, from which its split is computed
SPLIT_ITERATIONS = 3  # power iterations for the direction of a split
PROTECTED = 3  # nearest neighbours of a removed entry, which inherit its tokens: they stay
ENOUGH = 0.003  # relative gain of a turn below which it stops


@dataclass(frozen=True, eq=False)
class Assignment:
    """Which entry each token of this process has [n], and over all processes: sums [K,C] and counts [K] of the entries' tokens,
    their summed squared distances `errors` [K], and, where asked for, by how much these would grow without the entry: `costs` [K]."""

    nearest: Tensor
    sums: Tensor
    counts: Tensor
    errors: Tensor
    costs: Tensor


@dataclass(frozen=True, eq=False)
class Moves:
    """Entries `removed` [m] whose tokens fall to the entries `heirs` [m], to be set beside the entries `split` [m], at split -+ step [m,C]."""

    removed: Tensor
    heirs: Tensor
    split: Tensor
    step: Tensor


class KMeans:
    """Stage `kmeans`. x [n,C]: this process's part of the sample, any floating-point type; start [K,C]: the first entries, float32, K >= 2.

    An interrupted step leaves the state as it was before.
    """

    name = "kmeans"

    def __init__(self, run: Run, x: Tensor, start: Tensor, steps: int):
        self.run, self.x, self.steps = run, x, steps
        self.entries = start
        self.assignment: Assignment | None = None
        self.norms = torch.empty(len(x), device=x.device)  # [n]
        for norms, part in zip(self.norms.split(NEAREST_CHUNK), x.split(NEAREST_CHUNK)):
            norms.copy_(part.float().square().sum(-1))
        (self.tokens,) = run.sum(torch.tensor(float(len(x)), dtype=torch.float64, device=x.device))
        self.last_turn, self.enough = float("inf"), False
        self.inputs = fingerprint(start, self.norms)

    def finished(self) -> bool:
        return self.enough

    @property
    def codebook(self) -> Tensor:
        """The mean of each entry's tokens [K,C]; an entry without tokens stays where it is."""
        if self.assignment is None:
            return self.entries
        counts = self.assignment.counts[:, None]
        return torch.where(counts > 0, self.assignment.sums / counts.clamp_min(1), self.entries.double()).float()

    def step(self, index: int) -> dict[str, float | Tensor]:
        """One iteration: entries to their means, in every turn some moved elsewhere, then each token to the nearest entry."""
        entries, before, moved = self.codebook, self.assignment, 0
        if index % TURN == TURN - 1 and before is not None:
            moves = self.run.first(lambda: self._moves(entries, before))
            entries, before, moved = *_move(entries, before, moves), len(moves.removed)
        settled = index % TURN == TURN - 2
        now = self._assign(entries, before, with_costs=settled)
        mse = float(now.errors.sum() / (self.tokens * self.x.shape[1]))
        self.entries, self.assignment = entries, now
        if settled:
            self.enough, self.last_turn = mse > (1 - ENOUGH) * self.last_turn, mse
        return {"mse": mse, "used": float((now.counts > 0).sum()), "moved": float(moved)}

    def state(self) -> dict[str, Any]:
        now = self.assignment
        parts = gather_object([now.nearest.int().cpu()]) if self.run.world > 1 else [now.nearest.int()]
        totals = {"sums": now.sums, "counts": now.counts, "errors": now.errors, "costs": now.costs}
        return {"entries": self.entries, "nearest": parts, **totals, "last_turn": self.last_turn, "enough": self.enough}

    def load(self, state: dict[str, Any]) -> None:
        def here(tensor: Tensor) -> Tensor:
            return tensor.to(self.x.device)

        self.entries = here(state["entries"])
        self.last_turn, self.enough = state["last_turn"], state["enough"]
        nearest = here(state["nearest"][self.run.rank]).long()
        self.assignment = Assignment(nearest, here(state["sums"]), here(state["counts"]), here(state["errors"]), here(state["costs"]))

    def _assign(self, entries: Tensor, before: Assignment | None, with_costs: bool) -> Assignment:
        """Each token to its nearest entry: of all, or, where there is an assignment, of those near its old one."""
        squares = entries.square().sum(-1)  # [K]
        nearest = torch.empty(len(self.x), dtype=torch.int64, device=entries.device)
        change = torch.zeros(entries.shape, dtype=torch.float64, device=entries.device)
        counts, errors, costs = torch.zeros(3, len(entries), dtype=torch.float64, device=entries.device)
        for ids, near in self._near_pairs(entries, self._roughly_nearest(entries) if before is None else before.nearest):
            self.run.check_alone()
            x = self.x[ids].float()  # [p, C]
            distances = torch.addmm(squares[near], x, entries[near].T, alpha=-2)  # [p, m], without ||x||^2
            if with_costs:
                (lowest, second), at = (pair.unbind(-1) for pair in distances.topk(2, largest=False))
                at = at[0]
            else:
                lowest, at = distances.min(-1)
            new = near[at]
            nearest[ids] = new
            errors.index_add_(0, new, (lowest + self.norms[ids]).clamp_min(0).double())
            if with_costs:
                costs.index_add_(0, new, (second - lowest).double())
            if before is not None:  # the sums change by the tokens that change
                changed = (new != before.nearest[ids]).nonzero()[:, 0]
                x, new, old = x[changed], new[changed], before.nearest[ids][changed]
                change.index_add_(0, old, x.double(), alpha=-1)
            change.index_add_(0, new, x.double())
        counts += torch.bincount(nearest, minlength=len(entries))
        self.run.sum(change, counts, errors, costs)
        return Assignment(nearest, change if before is None else before.sums + change, counts, errors, costs)

    def _roughly_nearest(self, entries: Tensor) -> Tensor:
        """For each token the middle entry of the group whose middle is nearest [n]."""
        groups = _groups(entries, torch.arange(len(entries), device=entries.device))
        middles = torch.stack([group[(entries[group] - entries[group].mean(0)).square().sum(-1).argmin()] for group in groups])
        return middles[nearest_entries(self.x, entries[middles])]

    def _near_pairs(self, entries: Tensor, nearest: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens [p] and the entries [m] to compare them with, group by group."""
        near = _neighbours(entries, min(NEAR + 1, len(entries)))  # [K, NEAR + 1], each its own first
        order, starts = _by_entry(nearest, len(entries))
        for group in _groups(entries, torch.arange(len(entries), device=entries.device)):
            ids = torch.cat([order[starts[j] : starts[j + 1]] for j in group.tolist()])
            candidates = near[group].unique()
            for part in ids.split(NEAREST_CHUNK):
                yield part, candidates

    def _moves(self, entries: Tensor, before: Assignment) -> Moves:
        """Pairs of an entry to remove and one to split, best first, while the gain exceeds the cost. Judged by this process's tokens."""
        gains, steps = self._splits(entries, before)
        neighbours = _neighbours(entries, min(PROTECTED + 1, len(entries))).tolist()
        cheapest = iter(before.costs.argsort(stable=True).tolist())
        taken: set[int] = set()
        pairs = []
        removed = next(cheapest)
        for split in gains.argsort(descending=True, stable=True).tolist():
            if split in taken:
                continue
            while removed is not None and (removed in taken or removed == split):
                removed = next(cheapest, None)
            if removed is None or gains[split] <= before.costs[removed]:
                break
            pairs.append((removed, split))
            taken |= {split, *neighbours[removed]}
        removed, split = torch.tensor(pairs, dtype=torch.int64, device=entries.device).reshape(-1, 2).unbind(-1)
        distances = torch.cdist(entries[removed], entries)
        distances[:, removed] = torch.inf
        return Moves(removed, distances.argmin(-1), split, steps[split])

    def _splits(self, entries: Tensor, before: Assignment) -> tuple[Tensor, Tensor]:
        """What splitting an entry in two gains [K], and half the way between the two [K,C]: along its tokens' principal axis.

        Only the half of the entries with the greatest errors is looked at.
        """
        gains, steps = torch.zeros_like(before.errors), torch.zeros_like(entries)
        order, starts = _by_entry(before.nearest, len(entries))
        for j in before.errors.argsort(descending=True)[: (len(entries) + 1) // 2].tolist():
            self.run.check_alone()
            x = self.x[order[starts[j] : starts[j + 1]][:SPLIT_TOKENS]].float() - entries[j]  # [p, C]
            if len(x) < 2:
                continue
            axis = x[x.square().sum(-1).argmax()]  # [C]
            for _ in range(SPLIT_ITERATIONS):
                axis = torch.nn.functional.normalize((x @ axis) @ x, dim=0)
            along = x @ axis  # [p]
            positive = along > 0
            if positive.all() or not positive.any():
                continue
            share = positive.double().mean()
            width = along[positive].mean() - along[~positive].mean()
            gains[j], steps[j] = before.counts[j] * share * (1 - share) * width.square(), axis * width / 2
        return gains, steps


def _move(entries: Tensor, before: Assignment, moves: Moves) -> tuple[Tensor, Assignment]:
    """Entries and assignment after the moves: heirs take the tokens of what is removed."""
    device = entries.device
    removed, heirs, split, step = (tensor.to(device) for tensor in (moves.removed, moves.heirs, moves.split, moves.step))
    entries, sums, counts = entries.clone(), before.sums.clone(), before.counts.clone()
    entries[removed] = entries[split] + step
    entries[split] -= step
    for totals in (sums, counts):
        totals.index_add_(0, heirs, totals[removed])
        totals[removed] = 0
    becomes = torch.arange(len(entries), device=device)
    becomes[removed] = heirs
    return entries, Assignment(becomes[before.nearest], sums, counts, before.errors, before.costs)


def _neighbours(entries: Tensor, count: int) -> Tensor:
    """For each entry the `count` nearest ones [K,count], itself first."""
    distances = torch.addmm(entries.square().sum(-1), entries, entries.T, alpha=-2)  # [K, K], without ||e||^2 of the row
    return distances.fill_diagonal_(-torch.inf).topk(count, largest=False).indices


def _by_entry(nearest: Tensor, entries: int) -> tuple[Tensor, list[int]]:
    """Tokens in the order of their entries [n], and where those of each entry start in it (K + 1 numbers)."""
    ends = torch.bincount(nearest, minlength=entries).cumsum(0)
    return nearest.argsort(stable=True), [0, *ends.tolist()]


def _groups(entries: Tensor, members: Tensor) -> list[Tensor]:
    """Compact groups of at most GROUP entries: halved along the principal axis, again and again."""
    if len(members) <= GROUP:
        return [members]
    x = entries[members] - entries[members].mean(0)
    axis = x[x.square().sum(-1).argmax()]
    for _ in range(SPLIT_ITERATIONS):
        axis = torch.nn.functional.normalize((x @ axis) @ x, dim=0)
    order, half = (x @ axis).argsort(stable=True), len(members) // 2
    return _groups(entries, members[order[:half]]) + _groups(entries, members[order[half:]])
