"""Merging across processes."""

from __future__ import annotations

import torch.distributed
import torch.multiprocessing

from fastseg.evaluation.evaluator import gathered


def test_alone():
    assert gathered("part") == ["part"]


def _gather(rank: int, address: str, found) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=len(found)
    )
    found[rank] = gathered({"rank": rank})
    torch.distributed.destroy_process_group()


def test_parts_of_all_processes_in_order(tmp_path):
    with torch.multiprocessing.Manager() as manager:
        found = manager.list([None, None])
        torch.multiprocessing.spawn(_gather, (f"file://{tmp_path}/rendezvous", found), nprocs=2)
        assert list(found) == [[{"rank": 0}, {"rank": 1}]] * 2
