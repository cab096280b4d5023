"""One of two gloo ranks: trains every kind of layer on its own data, prints whether the ranks agree, as JSON lines.

Arguments: rank, world size, file for the rendezvous.
"""

import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from hf_vq import GroupVectorQuant, VectorQuant
from hf_vq.modeling.residual_vq import ResidualVectorQuant

FULL: dict[str, Any] = dict(affine_lr=2.0, sync_nu=0.3, replace_freq=2, kmeans_init=True, alternating_steps=2)
CASES = {
    "plain": lambda: VectorQuant(8, 32),
    "full": lambda: VectorQuant(8, 32, **FULL),
    "full sgd kmeans": lambda: VectorQuant(
        8, 32, **FULL, alternating_kind="sgd", alternating_lr=5.0, replace_policy="kmeans"
    ),
    "running busy": lambda: VectorQuant(
        8, 32, affine_mode="running", replace_freq=2, replace_policy="busy", kmeans_init=True, alternating_steps=1
    ),
    "ema": lambda: VectorQuant(8, 32, codebook_update="ema", kmeans_init=True, replace_freq=2),
    "collecting": lambda: VectorQuant(8, 512, kmeans_init=True, alternating_steps=1),
    "batch norm": lambda: VectorQuant(8, 32, norm="bn", kmeans_init=True),
    "group": lambda: GroupVectorQuant(8, 32, groups=2, share=False, **FULL),
    "residual": lambda: ResidualVectorQuant(
        8, 32, groups=2, share=False, affine_mode="running", **(FULL | {"affine_lr": 0.0})
    ),
    "residual shared": lambda: ResidualVectorQuant(8, 32, groups=2, share=True, **FULL),
    "quantizer dropout": lambda: ResidualVectorQuant(8, 32, groups=4, share=False, quantizer_dropout=1.0, **FULL),
}
MASKED = ("full", "running busy", "ema", "batch norm", "quantizer dropout")
# Images of each rank in each step: equal, unequal, empty on one rank and then on the other, empty on both.
SIZES = [(4, 4), (4, 2), (0, 4), (4, 0), (0, 0), (3, 4)]


def state(layer: VectorQuant) -> dict[str, torch.Tensor]:
    return {**layer.state_dict(), **layer.training_state()}


def disagreements(layer: VectorQuant, out) -> list[str]:
    """Names of what differs between the ranks by as much as a bit."""
    found = []
    for name, value in {**state(layer), "perplexity": out.perplexity, "usage": out.usage}.items():
        value = value.detach().double().contiguous()
        values = [torch.empty_like(value) for _ in range(dist.get_world_size())]
        dist.all_gather(values, value)
        if not all(torch.equal(values[0], other) for other in values[1:]):
            found.append(name)
    return found


def run(
    name: str, layers: dict[str, VectorQuant], rank: int, sizes: list[tuple[int, int]], masked: bool = False
) -> dict:
    layer = layers[name]
    model = DistributedDataParallel(layer) if any(p.requires_grad for p in layer.parameters()) else layer
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad] or [torch.zeros(1)], 0.1)
    generator = torch.Generator().manual_seed(100 + rank)
    bad = []
    for step, size in enumerate(sizes):
        z = torch.randn(size[rank], 8, 3, 3, generator=generator) * (1 + rank) + rank
        mask = (torch.rand(size[rank], 3, 3, generator=generator) > 0.7 * rank + 0.1 * step,) if masked else ()
        z_q, out = model(z.requires_grad_(), *mask)
        loss = z_q.square().sum() / 100 + out.loss
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        bad += [f"step {step}: {what}" for what in disagreements(layer, out)]
    finite = all(value.isfinite().all() for value in state(layer).values() if value.is_floating_point())
    return {"disagreements": bad, "finite": finite, "initialized": bool(layer.codebook.initialized)}


def main() -> None:
    rank, world_size, rendezvous = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # ranks start from different codebooks and draw different numbers
    before = {name: make() for name, make in CASES.items()}
    trained = VectorQuant(8, 4, replace_freq=2).train()
    trained(torch.randn(4, 8, 3, 3))
    with torch.no_grad():
        trained.codebook.weight[3] = 1000
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    assert dist.get_world_size() == 2
    after = {name: make() for name, make in CASES.items()}
    for when, layers in {"before": before, "after": after}.items():
        for name in CASES:
            result = run(name, layers, rank, SIZES if name != "collecting" else [(4, 2)] * 14)
            if rank == 0:
                print(json.dumps({"name": name, "built": when, **result}), flush=True)
    for name in MASKED:  # fewer and fewer vectors count, of rank 1 none in the later steps
        result = run(name, {name: CASES[name]()}, rank, SIZES, masked=True)
        if rank == 0:
            print(json.dumps({"name": f"{name}, masked", "built": "after", **result}), flush=True)

    # Eval calls no collective: only one rank runs it, and it would hang otherwise.
    if rank == 0:
        after["full"].eval()(torch.randn(2, 8, 3, 3))
        print(
            json.dumps({"name": "eval on one rank", "built": "after", "disagreements": [], "finite": True}), flush=True
        )
    dist.barrier()

    # Nor does a frozen layer in training mode, on whichever rank.
    for option in (FULL, {"codebook_update": "ema", "kmeans_init": True, "replace_freq": 2}):
        torch.manual_seed(0)
        frozen = VectorQuant(8, 32, **option).freeze().train()
        codes = frozen.get_codebook()
        if rank == 0:
            out = frozen(torch.randn(2, 8, 3, 3))[1]
        dist.barrier()
        moved = [] if torch.equal(codes, frozen.get_codebook()) else ["codes"]
        if rank == 0:
            seen = bool(out.perplexity > 1)
            print(json.dumps({"name": "frozen", "built": "after", "disagreements": moved, "finite": seen}), flush=True)

    # A single dead code, fewer than ranks, is replaced too; a forward before the group existed does no harm.
    layer = trained
    if rank == 1:
        layer.codebook.weight.data.add_(1)
    for _ in range(5):
        out = layer(torch.randn(4, 8, 3, 3))[1]
    found = disagreements(layer, out)
    if rank == 0:
        alive = bool((layer.codebook.unused_steps < 4).all())
        print(
            json.dumps({"name": "one dead code", "built": "before", "disagreements": found, "finite": alive}),
            flush=True,
        )

    # Statistics are those of the two batches together.
    torch.manual_seed(0)
    layer = VectorQuant(8, 32, alternating_steps=1, alternating_lr=1.0)
    both = torch.randn(6, 8, 3, 3)
    out = layer(both[:4] if rank == 0 else both[4:])[1]
    codes = layer.get_codebook()
    # So they are where the vectors of the two batches stand in one padded batch on each rank.
    torch.manual_seed(0)
    padded = VectorQuant(8, 32, alternating_steps=1, alternating_lr=1.0)
    mask = torch.arange(6)[:, None, None].expand(6, 3, 3) < 4
    padded(both, mask if rank == 0 else ~mask)
    padded_codes = padded.get_codebook()
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        torch.manual_seed(0)
        alone = VectorQuant(8, 32, alternating_steps=1, alternating_lr=1.0)
        expected = alone(both)[1]
        same = torch.equal(out.perplexity, expected.perplexity) and torch.equal(padded_codes, codes)
        same &= torch.allclose(codes, alone.get_codebook(), atol=1e-5)
        result = {
            "name": "as one process",
            "built": "after",
            "disagreements": [] if same else ["codes"],
            "finite": True,
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
