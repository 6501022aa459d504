"""The pretended device finds what a GPU would refuse, and what makes it wait."""

from __future__ import annotations

import threading
from random import Random

import pytest
import torch
import torch.nn.functional as F

from pretended import allocator, ghost, guard, races, standins, twin
from pretended.placement import WrongDevice
from pretended.standins import Card, Machine

REASON = guard.reason_against()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

CUDA = torch.device("cuda", 0)


def test_a_twin_computes_the_numbers_of_the_cpu() -> None:
    x = torch.arange(12.0).view(3, 4)
    with twin.pretend():
        y = (x.to("cuda") @ x.to("cuda").t()).softmax(-1)
        assert y.device == CUDA
        assert torch.equal(y.cpu(), (x @ x.t()).softmax(-1))


@pytest.mark.parametrize("kind", [twin, ghost])
def test_tensors_on_two_devices_are_refused(kind: object) -> None:
    with getattr(kind, "pretend")(Machine([Card(), Card()])):  # noqa: B009
        on_card = torch.ones(3, device="cuda")
        with pytest.raises(WrongDevice):
            on_card + torch.ones(3)
        with pytest.raises(WrongDevice):
            on_card + torch.ones(3, device="cuda:1")
        with pytest.raises(WrongDevice):
            F.scaled_dot_product_attention(on_card, torch.ones(3), on_card)
        assert (on_card + torch.tensor(2.0)).device == CUDA, "scalars may be on the CPU"
        assert on_card[torch.tensor([0, 1])].device == CUDA, "and indices"


def test_numpy_is_refused_and_the_cpu_build_is_as_before_afterwards() -> None:
    with twin.pretend(), pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
        torch.ones(1, device="cuda").numpy()
    assert not torch.cuda.is_available()
    with torch.inference_mode():
        assert torch.ones(1).is_inference()


def test_waits_and_copies_are_noted() -> None:
    with twin.pretend() as log:
        x = torch.ones(4, 4).to("cuda")
        x.sum().item()
        x.nonzero()
        x.tolist()
        pinned = torch.empty(4, 4, pin_memory=True)
        pinned.to("cuda", non_blocking=True)
        x[:2].cpu()
    reasons = {reason for _, reason, _ in log.syncs}
    assert reasons == {
        "copy to device, pageable", "copy to host, pageable", "aten::_local_scalar_dense",
        "aten::nonzero", "tolist",
    }  # fmt: skip
    assert log.copies["start", "to device, pinned", "tests"] == 64


def test_a_late_copy_to_the_host_arrives_when_the_host_waits() -> None:
    with twin.pretend():
        x, into = torch.ones(4, device="cuda"), torch.empty(4, pin_memory=True)
        into.copy_(x, non_blocking=True)
        x.fill_(7)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        assert not torch.equal(into, torch.ones(4)), "read too early"
        done.synchronize()
        assert torch.equal(into, torch.ones(4))


def test_writing_what_a_copy_still_reads_is_refused() -> None:
    with twin.pretend():
        source = torch.ones(4, pin_memory=True)
        source.to("cuda", non_blocking=True)
        with pytest.raises(twin.HostRace):
            source.fill_(2)
        torch.cuda.synchronize()
        source.fill_(2)


def test_threads_started_inside_pretend_too() -> None:
    made: list[torch.device] = []
    with twin.pretend():
        thread = threading.Thread(target=lambda: made.append(torch.ones(1, device="cuda").device))
        thread.start()
        thread.join()
    assert made == [CUDA]


@pytest.mark.parametrize("kind", [twin, ghost])
def test_memory_is_counted_and_limited(kind: object) -> None:
    card = Card(total_bytes=2**20)
    with getattr(kind, "pretend")(Machine([card])):  # noqa: B009
        x = torch.zeros(2**19, dtype=torch.uint8, device="cuda")
        x.view(-1, 2)
        assert card.allocated == 2**19, "a view needs no memory"
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
            torch.zeros(2**20, dtype=torch.uint8, device="cuda")
        assert torch.cuda.mem_get_info() == (2**19, 2**20)
        del x
        assert card.allocated == 0
        assert card.peak == 2**19


def test_a_ghost_has_any_size_and_counts_flops_and_bytes() -> None:
    with ghost.pretend(Machine([Card(total_bytes=2**50)])) as log:
        n = 2**18
        a = torch.empty(n, n, dtype=torch.bfloat16, device="cuda")
        b = (a @ a).relu_()
        assert b.shape == (n, n)
        with pytest.raises(RuntimeError, match="dtypes"):
            a @ b.float()
        small = torch.arange(4, device="cuda") * 2
        assert small.tolist() == [0, 2, 4, 6], "numbers of small tensors are known"
    assert log.stage_flops("start") == 2 * n**3
    assert log.moved["start", "mm"] == 2 * 2 * n * n, "both factors are one tensor"
    assert log.launches["start", "relu_"] == 1


def test_a_refused_registration_fails_the_next_launch() -> None:
    with twin.pretend(Machine(refuse_locking=True)):
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        assert runtime.cudaHostRegister(4096, 4096, 0) != 0
        with pytest.raises(torch.AcceleratorError, match="out of memory"):
            torch.ones(1, device="cuda") + 1
        torch.ones(1, device="cuda")


@pytest.mark.parametrize("is_ordered", [True, False])
def test_the_sanitizer_finds_an_unordered_write(is_ordered: bool) -> None:
    with twin.pretend() as log, races.watch(log) as found:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        buffer = torch.zeros(8, device="cuda")
        if is_ordered:
            side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            buffer.fill_(1)
        if is_ordered:
            torch.cuda.current_stream().wait_stream(side)
        buffer.sum()
    assert found.launches >= 3
    assert (sum(found.races.values()) == 0) == is_ordered


def test_the_allocator_reserves_segments_and_reuses_them() -> None:
    mib = allocator.MIB
    trace = [("a", 1, 3 * mib), ("a", 2, 30 * mib), ("f", 2, 0), ("a", 3, 29 * mib), ("a", 4, 512)]
    found = allocator.peak_reserved(trace)
    assert found.reserved == (20 + 30 + 2) * mib
    assert found.in_use == 33 * mib + 512


def test_expandable_segments_grow_by_pages_and_return_empty_ones() -> None:
    mib = allocator.MIB
    trace = [("a", 1, 3 * mib), ("a", 2, 30 * mib), ("f", 2, 0), ("a", 3, 29 * mib), ("a", 4, 512)]
    assert allocator.peak_expandable(trace) == ((40 + 2) * mib, (40 + 2) * mib)
    hole = [("a", 1, 60 * mib), ("a", 2, 20 * mib), ("f", 1, 0), ("a", 3, 80 * mib)]
    assert allocator.peak_expandable(hole) == (160 * mib, 100 * mib), "the hole's pages go back"


def test_a_random_trace_never_needs_less_than_its_tensors() -> None:
    random, most = Random(1), 0
    live: dict[int, int] = {}
    trace: list[tuple[str, int, int]] = []
    for number in range(2000):
        if live and random.random() < 0.5:
            trace.append(("f", live.pop(random.choice(sorted(live))), 0))
        size = 512 * random.choice([1, 100, 3000, 50_000, 400_000])
        live[number] = number
        trace.append(("a", number, size))
    sizes = {number: size for kind, number, size in trace if kind == "a"}
    used = 0
    for kind, number, _ in trace:
        used += sizes[number] if kind == "a" else -sizes[number]
        most = max(most, used)
    found = allocator.peak_expandable(trace)
    assert most <= found.needed <= found.mapped
    assert allocator.peak_reserved(trace).in_use >= most


def test_two_cards_have_memory_of_their_own() -> None:
    cards = [Card(), Card(name="Second", capability=(7, 5))]
    with twin.pretend(Machine(cards)):
        torch.ones(1024, device="cuda:1")
        kept = torch.ones(1024, device="cuda:1")
        assert (cards[0].peak, cards[1].allocated) == (0, kept.nbytes)
        assert torch.cuda.get_device_capability("cuda:1") == (7, 5)
        assert torch.cuda.get_device_name(1) == "Second"
    assert standins.machine().cards[0].name == "Pretended GPU"
